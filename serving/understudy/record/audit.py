"""``understudy audit verify``: go through a whole record and name everything that is not as its writer left it.

What is checked, from the first record to the last: that every document has its hash; that every chain value follows
from the one before; that numbers have no gap, no repetition and their order; that the columns of sealed segments
follow from the documents; that a segment's root, counts and chain are its manifest's, and manifests name the one
before; that manifests and checkpoints carry valid signatures; that what is missing (a tombstone, a segment's files)
was entered, and that a tombstone says no more. Records of version 1 have no chain: they are found unless somebody says
how many there are.

What it cannot see: what follows the last checkpoint or manifest that is signed. Whoever can write the record can cut it
off there, or write it anew with hashes and a chain of its own; without a key that is the whole record. So the summary
says the number of records and the head: keep them elsewhere, and compare.

A server may be writing, sealing, erasing and removing meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from understudy.errors import RecordError
from understudy.record import merkle
from understudy.record.codec import decode
from understudy.record.columns import COLUMNS, DAMAGED, KEPT_WHEN_ERASED, row_or_damaged
from understudy.record.lines import Chain, is_whole, links_of, record_of, segment_path, segments
from understudy.record.manifest import NO_MANIFEST, Manifest
from understudy.record.signing import CHECKPOINT, MANIFEST, checkpoint_message, is_signed
from understudy.record.sources import Source

_FROM_DOCUMENT = [name for name in COLUMNS if name not in KEPT_WHEN_ERASED]


@dataclass
class Audit:
    """The audit of one writer's record.

    Attributes:
        writer: whose record.
        findings: what is not as it was left; each names the place, and the record where there is one.
        num_records: chained records seen, of which ``num_erased`` are tombstones; ``num_unchained`` of version 1.
            Lines that are not what was written are findings, and in none of these.
        head: hex; the chain after the last of them.
        num_checkpoints, num_segments: of which each is signed, or ``num_unsigned`` are not.
        keys: the public keys that signed, in hex.
    """

    writer: str
    findings: list[str] = field(default_factory=list)
    num_records: int = 0
    num_erased: int = 0
    num_unchained: int = 0
    num_checkpoints: int = 0
    num_segments: int = 0
    num_unsigned: int = 0
    head: str = ""
    keys: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Link:
    """One record as the record itself shows it."""

    place: str
    n: int | None
    sha: bytes
    chain: bytes
    document: bytes | None


def audit(source: Source, writer: str, public_key: str | None = None, *, allow_version_1: int = 0) -> Audit:
    """Verify one writer's record; one row group at a time is in memory, and a few bytes for each record.

    Args:
        source: whose record.
        writer: its name, which its checkpoints sign.
        public_key: hex; every signature must be by this one.
        allow_version_1: so many records of version 1, before all others, are known to be the writer's.

    Raises:
        RecordError: the record cannot be read at all. A file that cannot be is a finding.
    """
    return _Auditor(source, writer, public_key).run(allow_version_1)


class _Auditor:
    def __init__(self, source: Source, writer: str, public_key: str | None) -> None:
        self._source, self._public_key = source, public_key
        self._chain, self._previous = Chain(), NO_MANIFEST
        self._tombstones: dict[int, str] = {}
        self._gone: dict[int, str] = {}  # segments without files
        self._entered_ns: set[int] = set()
        self._entered_segments: set[int] = set()
        self._first_unchained = ""
        self.audit = Audit(writer)

    def run(self, allow_version_1: int) -> Audit:
        logged = segments(self._source.log)  # before the sealed ones: one may be sealed, and retired, in between
        sealed = set(self._source.sealed())
        numbers = sorted(sealed.union(logged))
        for number in numbers:
            if number > numbers[0] and number - 1 not in numbers:
                self._find(f"segment {number - 1}: neither a log file nor a manifest is there")
            if number in sealed or not self._logged(number, is_last=number == numbers[-1]):
                self._sealed(number)
        if self.audit.num_unchained > allow_version_1:
            self._find(
                f"{self._first_unchained}: a record without a chain, the first of {self.audit.num_unchained} before "
                f"record 0, where {allow_version_1} of version 1 are allowed: inserted"
            )
        if self._unexplained():
            self._hear_since(numbers[-1])
        self.audit.findings += self._unexplained()
        self.audit.head = self._chain.head.hex()
        return self.audit

    def _sealed(self, number: int) -> None:
        place = f"segment {number}"
        try:
            manifest = self._source.manifest(number)
        except RecordError as error:
            self._find(f"{place}: {error}")
            return
        self.audit.num_segments += 1
        self._signature(manifest.signature, MANIFEST, manifest.body, f"{place}: manifest")
        if manifest.previous != self._previous:
            self._find(f"{place}: its manifest does not follow the one before it")
        self._previous = manifest.sha
        if manifest.chain_before != self._chain.head.hex():
            self._find(
                f"{place}: its chain does not follow what is before it: records are missing or were changed there"
            )
            self._chain.head = bytes.fromhex(manifest.chain_before)
        if manifest.files and not self._present(manifest):
            self._gone[number] = place
            if manifest.last_n is not None:
                self.audit.num_records += manifest.last_n + 1 - self._chain.n
        else:
            self._rows(manifest, place)
        if manifest.last_n is not None:
            self._chain = Chain(manifest.last_n + 1, bytes.fromhex(manifest.chain))

    def _present(self, manifest: Manifest) -> bool:
        found = set(self._source.store.list("segments"))
        missing = [file.path for file in manifest.files if file.path not in found]
        if missing and len(missing) < len(manifest.files):
            self._find(f"segment {manifest.segment}: {', '.join(missing)}: gone")
        return not missing

    def _rows(self, manifest: Manifest, place: str) -> None:
        shas, num_rows = [], 0
        try:
            for row in self._source.open_sealed(manifest.segment).rows(list(COLUMNS)):
                num_rows += 1
                where = f"{place}, byte {row['offset']}"
                if row["n"] is None:
                    self._unchained(row["kind"] == DAMAGED, where)
                    continue
                shas.append(row["sha"])
                document = None if row["document"] is None else row["document"].encode("utf-8")
                self._link(_Link(where, row["n"], row["sha"], row["chain"], document))
                self._columns(row, document, where)
        except RecordError as error:
            self._find(f"{place}: {error}")
            return
        if num_rows != manifest.num_records:
            self._find(f"{place}: it has {num_rows} records, its manifest says {manifest.num_records}")
        if merkle.root(shas).hex() != manifest.merkle_root:
            self._find(f"{place}: its records have another Merkle root than its manifest says")
        if self._chain.head.hex() != manifest.chain:
            self._find(f"{place}: its chain ends elsewhere than its manifest says")

    def _columns(self, row: Mapping[str, Any], document: bytes | None, where: str) -> None:
        if document is None:
            left = [name for name in _FROM_DOCUMENT if row.get(name) is not None and name != "document"]
            if left:
                self._find(f"{where}: record {row['n']} was erased and still has {', '.join(left)}")
            return
        if sha256(document).digest() != row["sha"]:
            return  # a finding already
        made = row_or_damaged(document)
        wrong = [name for name in ("kind", *_FROM_DOCUMENT) if repr(row.get(name)) != repr(made.get(name))]
        if wrong:
            self._find(f"{where}: record {row['n']}: columns that are not the document's: {', '.join(wrong)}")

    def _logged(self, number: int, *, is_last: bool) -> bool:
        """False: there is no such file any more."""
        try:
            for where, line in self._lines(number):
                links = links_of(line)
                if not line.endswith(b"\n") and is_last:
                    break  # being written
                if links is None:
                    self._unchained(not is_whole(line), where)
                    continue
                n, sha, chain = links
                self._link(_Link(where, n, sha, chain, record_of(line)))
        except FileNotFoundError:
            return False
        except OSError as error:
            self._find(f"{segment_path(self._source.log, number).name}: {error}")
        return True

    def _lines(self, number: int) -> Iterator[tuple[str, bytes]]:
        path, offset = segment_path(self._source.log, number), 0
        with path.open("rb") as file:
            for line in file:
                yield f"{path.name}, byte {offset}", line
                offset += len(line)

    def _link(self, link: _Link) -> None:
        """One chained record: its number, its hash, its link, and what it says about others."""
        name = f"{link.place}: record {link.n}"
        expected, before = self._chain.n, self._chain.head
        if link.n is not None and link.n > expected:
            missing = f"record {expected}" if link.n == expected + 1 else f"records {expected} to {link.n - 1}"
            self._find(f"{name}{whose(link)}: {missing} should come before it: dropped or moved")
        elif link.n is not None and link.n < expected:
            self._find(f"{name}{whose(link)}: record {expected} should be here: inserted, repeated or moved")
        elif link.document is not None and sha256(link.document).digest() != link.sha:
            self._find(f"{name}{whose(link)}: changed")
        elif sha256(before + link.sha).digest() != link.chain:
            self._find(
                f"{name}{whose(link)}: its chain does not follow: it was changed or inserted, with a hash of its own"
            )
        self.audit.num_records += 1
        if link.document is None:
            self.audit.num_erased += 1
            self._tombstones[link.n or 0] = name
        else:
            self._listen(link, name)
        if link.n is not None and link.n >= expected:
            self._chain = Chain(link.n + 1, link.chain)

    def _listen(self, link: _Link, name: str) -> None:
        assert link.document is not None
        try:
            control = control_of(link.document)
        except RecordError as error:
            self._find(f"{name}: {error}")
            return
        match control:
            case {"action": "checkpoint", "detail": dict(detail)}:
                self._checkpoint(detail, name)
        self._hear(control)

    def _hear(self, control: Mapping[str, Any]) -> None:
        """What an entry says was taken out."""
        match control:
            case {"action": "erase", "detail": {"records": [*erased]}}:
                self._entered_ns.update(one for one in erased if isinstance(one, int))
            case {"action": "retention", "detail": {"segments": [*removed]}}:
                self._entered_segments.update(one for one in removed if isinstance(one, int))

    def _hear_since(self, number: int) -> None:
        """Entries that were made while the rest was read, in this segment or later ones; not audited this time."""
        listed = {*segments(self._source.log), *self._source.sealed()}
        for later in sorted(each for each in listed if each >= number):
            for document in self._documents(later):
                with suppress(RecordError):
                    self._hear(control_of(document))

    def _documents(self, number: int) -> Iterator[bytes]:
        try:
            yield from (record_of(line) for _, line in self._lines(number) if is_whole(line))
            return
        except FileNotFoundError:  # sealed
            pass
        for row in self._source.open_sealed(number).rows(("document",)):
            if row["document"] is not None:
                yield row["document"].encode()

    def _checkpoint(self, detail: Mapping[str, Any], name: str) -> None:
        self.audit.num_checkpoints += 1
        message = checkpoint_message(self.audit.writer, detail.get("n", -1), detail.get("chain", ""))
        self._signature(detail, CHECKPOINT, message, f"{name}: checkpoint")
        if (detail.get("n"), detail.get("chain")) != (self._chain.n, self._chain.head.hex()):
            self._find(f"{name}: the checkpoint signs another chain than the one before it")

    def _signature(self, signature: Mapping[str, Any] | None, what: bytes, message: bytes, name: str) -> None:
        if signature is None:
            self.audit.num_unsigned += 1
            if self._public_key is not None:
                self._find(f"{name}: not signed")
            return
        if not is_signed(signature, what, message):
            self._find(f"{name}: its signature does not hold")
        elif self._public_key not in (None, signature["key"]):
            self._find(f"{name}: signed by another key, {signature['key']}")
        self.audit.keys.add(str(signature.get("key")))

    def _unchained(self, is_damaged: bool, where: str) -> None:
        if is_damaged:
            self._find(f"{where}: not what was written")
        elif self._chain.n:
            self._find(f"{where}: a record without a chain among those with one: inserted")
        else:
            self._first_unchained = self._first_unchained or where
            self.audit.num_unchained += 1

    def _unexplained(self) -> list[str]:
        """What is gone though no entry says so."""
        erased = (
            f"{name}: its document is gone, and no entry says that it was erased"
            for n, name in self._tombstones.items()
            if n not in self._entered_ns
        )
        removed = (
            f"{place}: its files are gone, and no entry says that it was removed"
            for number, place in self._gone.items()
            if number not in self._entered_segments
        )
        return [f"{self.audit.writer}: {what}" for what in (*erased, *removed)]

    def _find(self, what: str) -> None:
        self.audit.findings.append(f"{self.audit.writer}: {what}")


def control_of(document: bytes) -> Mapping[str, Any]:
    """A control record; empty where it is another one. Raises RecordError."""
    return decode(document) if b'"kind":"control"' in document[:200] else {}


def whose(link: _Link) -> str:
    """For people: what kind of record it says it is, and of what."""
    try:
        said = {} if link.document is None else decode(link.document)
    except RecordError:
        return ""
    id = said.get("exchange_id") or said.get("id") or said.get("action")
    return f" ({said['kind']} {id})" if said else ""
