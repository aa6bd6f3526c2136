"""Whatever is done to a record by somebody who is not its writer, the audit finds and names it."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from understudy.cli import cli
from understudy.errors import ConfigError, RecordError
from understudy.record import Control
from understudy.record import merkle as tree
from understudy.record.audit import Audit, audit
from understudy.record.lines import Chain, frame, links_of, record_of, segment_path, segments
from understudy.record.proof import check, prove
from understudy.record.seal import seal
from understudy.record.signing import Signer, make_key
from understudy.record.sources import Source

from .builders import accepted, ended, feedback, flush, open_keeper


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sealed segments, and two files of the log; signed."""
    root = tmp_path_factory.mktemp("record")
    make_key(root / "key.pem")
    signer = Signer(root / "key.pem")
    folder = root / "replica-0"
    keeper = open_keeper(folder, max_segment_bytes=6_000, signer=signer)
    for number in range(12):
        keeper.append(accepted(number))
        keeper.append(ended(number))
        flush(keeper)
    keeper.append(Control("pause", 1.0))
    keeper.append(feedback("ex-3"))
    keeper.close()
    logged = {number: segment_path(folder, number).read_bytes() for number in segments(folder)[-2:]}
    seal(Source.at(folder), "replica-0", sign=signer.sign)
    number = min(logged)  # give the last sealed one back to the log
    segment_path(folder, number).write_bytes(logged[number])
    for path in [folder / "manifests" / f"{number:08d}.json", *folder.rglob(f"segments/**/{number:08d}.parquet")]:
        path.unlink()
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "replica-0"))


def findings(folder: Path, **options: Any) -> list[str]:
    return audit(Source.at(folder), "replica-0", **options).findings


def public_key(whole: Path) -> str:
    return Signer(whole.parent / "key.pem").public_key


def test_an_untouched_record_has_no_findings(folder: Path, whole: Path) -> None:
    done: Audit = audit(Source.at(folder), "replica-0", public_key(whole))
    assert done.findings == []
    assert done.num_segments >= 2
    assert len(segments(folder)) == 2
    assert (done.num_records, done.num_checkpoints, done.num_unsigned) == (12 * 2 + 3, 1, 0)
    assert done.keys == {public_key(whole)}


def lines(folder: Path) -> tuple[Path, list[bytes]]:
    path = segment_path(folder, segments(folder)[0])
    return path, path.read_bytes().splitlines(keepends=True)


def again(line: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A line that proves itself, made by somebody who knows how."""
    links = links_of(line)
    assert links is not None
    document = json.loads(change(record_of(line)))
    n = document.pop("n")
    return frame(json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(), Chain(n, links[2]))


LOGGED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "changed": (lambda all: [all[0].replace(b"Say yes.", b"Say no!!"), *all[1:]], "changed"),
    "changed, with a new hash": (
        lambda all: [again(all[0], lambda one: one.replace(b"Say yes.", b"Say no!!")), *all[1:]],
        "changed or inserted",
    ),
    "dropped": (lambda all: [all[0], *all[2:]], "should come before it: dropped"),
    "reordered": (lambda all: [all[1], all[0], *all[2:]], "dropped or moved"),
    "repeated": (lambda all: [all[0], all[0], *all[1:]], "inserted, repeated or moved"),
    "inserted": (lambda all: [all[0], frame(b'{"v":2,"kind":"control"}', Chain(99)), *all[1:]], "dropped or moved"),
    "garbage": (lambda all: [all[0], b"garbage\n", *all[1:]], "not what was written"),
    "chain": (lambda all: [all[0][:83] + b"%x" % (int(all[0][83:84], 16) ^ 1) + all[0][84:], *all[1:]], "chain"),
}


@pytest.mark.parametrize("what", LOGGED)
def test_a_line_of_the_log(folder: Path, what: str) -> None:
    change, word = LOGGED[what]
    path, all = lines(folder)
    n = links_of(all[0])
    assert n is not None
    path.write_bytes(b"".join(change(all)))
    found = findings(folder)
    assert found
    assert word in " ".join(found)
    assert path.name in found[0]


def of_version_1(*documents: bytes) -> bytes:
    return b"".join(b'{"crc":"%08x",%b\n' % (zlib.crc32(one[1:]), one[1:]) for one in documents)


FORGED = of_version_1(
    b'{"v":1,"kind":"feedback","id":"ex-1","label":"forged","at_unix_s":1.0}',
    b'{"v":1,"kind":"feedback","id":"ex-2","label":"forged","at_unix_s":1.0}',
)


def test_records_of_version_1_are_found_unless_somebody_says_how_many_there_are(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path / "replica-0")
    keeper.append(accepted(1))
    keeper.close()
    path = segment_path(tmp_path / "replica-0", 1)
    path.write_bytes(FORGED + path.read_bytes())
    run = CliRunner().invoke
    for _ in range(2):  # in the log, then sealed
        (found,) = findings(tmp_path / "replica-0")
        assert "byte 0: a record without a chain, the first of 2 before record 0, where 0" in found
        assert len(findings(tmp_path / "replica-0", allow_version_1=1)) == 1
        assert findings(tmp_path / "replica-0", allow_version_1=2) == []
        for number, code, says in ((0, 1, "inserted"), (1, 1, "inserted"), (2, 0, "nothing was"), (3, 1, "1 of the")):
            done = run(cli, ["audit", "verify", str(tmp_path), "--allow-version-1", str(number)])
            assert (done.exit_code, says in done.output) == (code, True), done.output
        seal(Source.at(tmp_path / "replica-0"), "replica-0", include_newest=True)


def test_a_record_of_version_1_among_others(folder: Path) -> None:
    path, all = lines(folder)
    path.write_bytes(b"".join([*all, FORGED]))
    assert all_say("inserted", findings(folder, allow_version_1=2))


def all_say(word: str, found: list[str]) -> bool:
    return bool(found) and all(word in one for one in found)


def test_a_whole_file_of_the_log_or_its_end(folder: Path) -> None:
    path, all = lines(folder)
    path.write_bytes(b"".join(all[:-1]))
    assert any("should come before it" in one for one in findings(folder))
    path.unlink()
    assert any("neither a log file nor a manifest" in one for one in findings(folder))


def parquet(folder: Path) -> tuple[Path, list[dict[str, Any]], Any]:
    path = min(folder.rglob("*.parquet"))
    table = pq.ParquetFile(path).read()
    return path, table.to_pylist(), table.schema


def say_no(rows: list[dict[str, Any]]) -> None:
    rows[1]["document"] = rows[1]["document"].replace('"outcome":"finished"', '"outcome":"failed"')


def swap(rows: list[dict[str, Any]]) -> None:
    for name in ("n", "sha", "chain", "document"):
        rows[0][name], rows[1][name] = rows[1][name], rows[0][name]


def erase(rows: list[dict[str, Any]]) -> None:
    rows[1] |= {name: None for name in rows[1] if name not in ("n", "offset", "kind", "sha", "chain")}


SEALED: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "a document": (say_no, "record 1 (ended ex-0): changed"),
    "a column": (lambda rows: rows[1].update(state="failed"), "columns that are not the document's: state"),
    "a number": (lambda rows: rows[1].update(comparison=[("top1", 1.0)]), "columns that are not the document's"),
    "kept as damaged": (lambda rows: rows[1].update(kind="damaged"), "columns that are not the document's: kind"),
    "a hash": (lambda rows: rows[1].update(sha=bytes(32)), "record 1 (ended ex-0): changed"),
    "dropped": (lambda rows: rows.pop(1), "record 1 should come before it"),
    "reordered": (swap, "record 0 should come before it"),
    "half erased": (lambda rows: rows[1].update(document=None), "was erased and still has v, at_unix_s, rollout"),
    "erased without an entry": (erase, "no entry says that it was erased"),
}


@pytest.mark.parametrize("what", SEALED)
def test_a_row_of_a_sealed_segment(folder: Path, what: str) -> None:
    change, word = SEALED[what]
    path, rows, schema = parquet(folder)
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    assert any(word in one for one in findings(folder)), findings(folder)


def test_what_was_erased_before_there_were_all_columns(folder: Path) -> None:
    """Files of an earlier version lack a column; what is said of their tombstones is the same."""
    path, rows, schema = parquet(folder)
    erase(rows)
    of_then = pa.schema([field for field in schema if field.name != "actor"])
    assert len(of_then) == len(schema) - 1
    pq.write_table(pa.Table.from_pylist(rows, schema=of_then), path)
    (found,) = findings(folder)
    assert found.endswith("record 1: its document is gone, and no entry says that it was erased")


def test_a_file_that_is_gone_and_one_that_cannot_be_read(folder: Path) -> None:
    path, _, _ = parquet(folder)
    path.write_bytes(b"PAR1")
    assert any("cannot be read" in one for one in findings(folder))
    path.unlink()
    assert any("no entry says that it was removed" in one for one in findings(folder))


def test_a_segment_made_anew_by_somebody_without_the_key(folder: Path, whole: Path) -> None:
    """Documents, hashes, chain, root and manifest all fit: only the signature and the next segment tell."""
    path = folder / "manifests" / "00000001.json"
    path.write_bytes(path.read_bytes().replace(b'"num_records":', b'"num_records":1'))
    found = findings(folder)
    assert any("signature does not hold" in one for one in found)
    assert any("segment 2: its manifest does not follow" in one for one in found)
    make_key(folder / "other.pem")
    assert all("by another key" in one for one in findings(whole, public_key=Signer(folder / "other.pem").public_key))


def test_a_checkpoint_that_is_not_signed_by_the_key(folder: Path, whole: Path) -> None:
    last = segment_path(folder, segments(folder)[-1])
    text = last.read_bytes()
    assert b'"action":"checkpoint"' in text
    at = text.index(b'"signature":"') + 13
    last.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
    assert any("changed" in one for one in findings(folder, public_key=public_key(whole)))


def test_proofs(whole: Path) -> None:
    proofs = list(prove(Source.at(whole), "client-1"))
    assert [json.loads(proof["document"])["kind"] for proof in proofs] == ["accepted"]
    proofs += prove(Source.at(whole), "ex-1")
    for proof in proofs:
        assert f"signed by {public_key(whole)}" in check(json.loads(json.dumps(proof)))
    good = proofs[0]
    for change in (
        {"document": good["document"].replace("Say yes.", "Say no!!")},
        {"sha": "00" * 32, "document": None},
        {"path": good["path"][:-1]},
        {"manifest": good["manifest"].replace('"replica-0"', '"replica-1"')},
        {"signature": {**good["signature"], "signature": "00" * 64}},
        {"sha": "no"},
        {"n": 999},
        {"document": None, "sha": "00" * 32},
    ):
        with pytest.raises(RecordError):
            check({**good, **change})
    assert check(good).startswith(f"record {good['n']} is in segment 1 of replica-0")
    assert check({**good, "document": None, "n": 999}).startswith("a record that was erased is in")
    assert list(prove(Source.at(whole), "nobody")) == []


@pytest.mark.parametrize("size", range(1, 18))
def test_merkle_paths_lead_to_the_root(size: int) -> None:
    shas = [bytes([index]) * 32 for index in range(size)]
    for index, sha in enumerate(shas):
        assert tree.root_from(sha, tree.path(shas, index)) == tree.root(shas)
        assert tree.root_from(bytes(32 * [99]), tree.path(shas, index)) != tree.root(shas)


def test_merkle_root_is_rfc_6962s() -> None:
    def mth(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return sha256(b"\0" + leaves[0]).digest()
        k = 1 << (len(leaves) - 1).bit_length() - 1
        return sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()

    for size in range(1, 40):
        leaves = [bytes([index]) * 32 for index in range(size)]
        assert tree.root(leaves) == mth(leaves)


def test_the_command(folder: Path, whole: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(cli, ["audit", "verify", str(folder), "--public-key", public_key(whole)])
    assert (done.exit_code, "nothing was found" in done.output) == (0, True), done.output
    path, all = lines(folder)
    path.write_bytes(b"".join(all[1:]))
    done = run(cli, ["audit", "verify", str(folder)])
    assert (done.exit_code, "dropped" in done.output) == (1, True)
    done = run(cli, ["audit", "prove", "ex-1", "--url", str(folder)])
    assert len(done.output.splitlines()) == 2
    (tmp_path / "proof").write_text(done.output)
    assert "signed by" in run(cli, ["audit", "check", str(tmp_path / "proof")]).output
    made = run(cli, ["audit", "keygen", str(tmp_path / "new.pem")]).output.strip()
    assert Signer(tmp_path / "new.pem").public_key == made
    with pytest.raises(ConfigError, match="File exists"):
        make_key(tmp_path / "new.pem")
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(ConfigError, match=r"record.signing_key: .*no.pem"):
        Signer(tmp_path / "no.pem")
