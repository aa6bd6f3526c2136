"""How one replica records: the options of ``record`` as the objects they stand for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from understudy.config import RecordSpec
from understudy.errors import RecordError
from understudy.record.privacy import FULL, Privacy
from understudy.record.redactors import load
from understudy.record.signing import Signer
from understudy.record.store import LocalStore, Store, is_local, make_folders, store_at, sync_folder

SECRET_FILE = "redaction.key"
NO_SPOOL = "/nonexistent"
RULE_FILE = "redaction.json"  # {"text": ..., "redactors": [...]}: by what rule the servers write this record


@dataclass(frozen=True)
class Recording:
    """One writer's record.

    Attributes:
        writer: its name, and that of its folder.
        log: the folder of its log, on a local disk.
        store: where its sealed segments go.
        rollout: what is compared, and by which gates.
        privacy: what of a text may be written.
        signer: signs manifests and checkpoints, where there is a key.
        spec: the options it was made from.
    """

    writer: str
    log: Path
    store: Store
    rollout: str = ""
    privacy: Privacy = FULL
    signer: Signer | None = None
    spec: RecordSpec = field(default_factory=RecordSpec)

    def beside(self, writer: str) -> Recording:
        """The same for another writer."""
        store = (
            LocalStore(self.spec.folder / writer) if is_local(self.spec.url) else store_at(self.spec.url).inside(writer)
        )
        return replace(self, writer=writer, log=self.spec.folder / writer, store=store)

    def take_secret(self) -> None:
        """The record's own secret, where it could not be had at the start. Raises RecordError.

        A record without one gets the one that this process has used since. Where there is one, of an earlier run or
        another replica, a session that goes on across this moment counts as two until the next start.
        """
        self.privacy.secret = secret_in(self.spec.folder, self.privacy.secret)

    def of_rollout(self, rollout: str) -> Recording:
        """The same, for what is compared now."""
        return replace(self, rollout=rollout)

    @property
    def sign(self) -> Callable[[bytes, bytes], dict[str, str]] | None:
        """Signer.sign, where there is a key."""
        return None if self.signer is None else self.signer.sign

    @staticmethod
    def at(folder: Path) -> Recording:
        """Everything in one folder, in full."""
        return Recording(folder.name, folder, LocalStore(folder))

    @staticmethod
    def of(spec: RecordSpec, writer: str, rollout: str = "") -> Recording:
        """As the configuration has it.

        Raises:
            ConfigError: a redactor, the signing key or the store's package cannot be had. A store that cannot be
                written is no such error: the keeper says so when it opens it.
        """
        redactors = () if spec.text == "full" else load(spec.redactors)
        privacy = Privacy(spec.text, redactors, _secret_or_new(spec.folder))
        return Recording(
            writer=writer,
            log=spec.folder / writer,
            store=LocalStore(spec.folder / writer) if is_local(spec.url) else store_at(spec.url).inside(writer),
            rollout=rollout,
            privacy=privacy,
            signer=None if spec.signing_key is None else Signer(spec.signing_key),
            spec=spec,
        )


def keep_rule(spec: RecordSpec) -> None:
    """Note by what rule this record is written, for who adds to it without the configuration. Raises OSError."""
    content = json.dumps({"text": spec.text, "redactors": spec.redactors}).encode()
    store = LocalStore(spec.folder)
    if not store.exists(RULE_FILE) or store.read(RULE_FILE) != content:
        store.write(RULE_FILE, content)


def with_rule(spec: RecordSpec) -> RecordSpec:
    """The spec with the rule by which this record's servers write; in full where no server has written it.

    Raises:
        RecordError: it cannot be known here.
    """
    folder = spec.folder
    if not is_local(spec.url) and not (folder / SECRET_FILE).exists():
        raise RecordError(f"{folder} has no {SECRET_FILE}: it is no spool of {spec.url}, whose text may be redacted")
    if is_local(spec.url) and (folder.resolve().parent / RULE_FILE).exists():
        raise RecordError(f"{spec.url} is the folder of one writer; give the record it is in")
    try:
        rule = json.loads((folder / RULE_FILE).read_bytes())
        return replace(spec, text=rule["text"], redactors=tuple(rule["redactors"]))
    except FileNotFoundError:
        return spec
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{folder / RULE_FILE} cannot be read: {error}") from error


def names_of(id: str, url: str, spool: Path | None = None) -> tuple[str, ...]:
    """Under what the record at ``url`` may have an id: as it is, and its pseudonym where the key can be read."""
    privacy = privacy_of(url, spool)
    return (id,) if privacy is None else (id, privacy.pseudonym(id))


def privacy_of(url: str, spool: Path | None = None) -> Privacy | None:
    """Knows names by the pseudonyms of the record at ``url``; None where its key cannot be read. Writes nothing."""
    folder = RecordSpec(url=url, spool=str(spool or NO_SPOOL)).folder
    for place in (folder, folder.resolve().parent):  # the record, or the folder of one writer
        try:
            return Privacy(secret=(place / SECRET_FILE).read_bytes())
        except OSError:
            continue
    return None


def _secret_or_new(root: Path) -> bytes:
    """One for a while where the folder cannot be written: nothing can be recorded in it either (take_secret())."""
    try:
        return secret_in(root)
    except RecordError:
        return os.urandom(32)


def secret_in(root: Path, or_else: bytes = b"") -> bytes:
    """The secret that keys this record's pseudonyms, made at the first call; the replicas share it.

    Args:
        root: the record's folder.
        or_else: becomes the secret where there is none; a new one where not given.

    Raises:
        RecordError: it cannot be read or made.
    """
    path = root / SECRET_FILE
    try:
        if not path.exists():  # one that is there can be had on a full disk
            make_folders(root)
            _make_secret(path, or_else or os.urandom(32))
        sync_folder(root)  # a secret that is lost in a crash makes every pseudonym before it a stranger
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path} cannot be had: {error}") from error


def _make_secret(path: Path, secret: bytes) -> None:
    """Whole or not at all, and never over another's. Raises OSError."""
    made = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(fd)
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink(missing_ok=True)
