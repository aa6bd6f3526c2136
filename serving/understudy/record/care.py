"""What a record needs from time to time: sealing, retention, erasing, and logs whose writer is gone.

Nothing is removed before the log says so: ``enter`` puts a control record into the writer's log, durably, and begins a
new file, so that what was written before it can be sealed. The server runs this in a process of its own (upkeep.py).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Protocol

from understudy.config import RecordSpec
from understudy.errors import Locked, RecordError
from understudy.record import erase
from understudy.record.keeper import RecordKeeper
from understudy.record.lines import segments
from understudy.record.lock import FolderLock
from understudy.record.manifest import Manifest
from understudy.record.privacy import Privacy
from understudy.record.recording import Recording, secret_in
from understudy.record.scanning import sources_at
from understudy.record.schema import SERVER, Control, Ended
from understudy.record.seal import seal, sealing
from understudy.record.sources import Source
from understudy.record.store import LocalStore, Store, store_at
from understudy.types import Ending, State

ENTERED: Final = "retention.json"  # in a writer's store
logger = logging.getLogger(__name__)
ORPHANED = Ending(State.EXPIRED, None, "orphaned")


class Enter(Protocol):
    """Puts a control record into the writer's log; it is durable, and the log's file complete, when this returns."""

    def __call__(self, action: str, detail: Mapping[str, Any], actor: str | None = SERVER, /) -> None:
        """``actor``: by whom. Raises RecordError where it cannot be done: then nothing may be removed."""


def root_of(recording: Recording) -> Store:
    """Where the writers' folders are: requests to erase are beside them."""
    url = recording.spec.url
    return LocalStore(recording.spec.folder) if "://" not in url or url.startswith("file://") else store_at(url)


def care(recording: Recording, enter: Enter, *, include_newest: bool = False) -> dict[str, int]:
    """Everything that is due for one writer.

    Args:
        recording: whose record it is.
        enter: see Enter.
        include_newest: also seal the newest file; the caller holds the writer's lock.

    Returns:
        {"sealed": segments, "removed": segments, "erased": records}.

    Raises:
        RecordError, OSError: something cannot be read or written; what was done is whole, the rest is due again.
    """
    source = Source(recording.log, recording.store)
    now_unix_s = time.time()
    done = {"sealed": 0, "removed": 0, "erased": 0}
    due = [one for one in erase.requests(root_of(recording)) if erase.is_due(one, recording.store)]
    founds = [(one, *_enter_erasure(recording, source, one, enter)) for one in due]
    done["sealed"] = len(seal(source, recording.writer, include_newest=include_newest, sign=recording.sign))
    with sealing(recording.log):
        for one, meant, found in founds:
            done["erased"] += erase.erase(source, found)
            erase.note_served(one, recording.store, meant)
    done["removed"] = retain(recording, source, enter, now_unix_s)
    return done


def _enter_erasure(
    recording: Recording, source: Source, one: erase.Erasure, enter: Enter
) -> tuple[erase.Served, erase.Found]:
    """Note what is meant before the rows that say so are gone: other writers have feedback, and a crash may come."""
    meant = erase.gather(sources_at(recording.spec.url, recording.spec.folder), one, recording.privacy)
    found = erase.find(source, meant, recording.privacy)
    entered = erase.served(one, recording.store).entered_ns
    noted = replace(meant, looked_unix_s=0.0, entered_ns=entered)
    erase.note_served(one, recording.store, noted)
    if found.places and (entered is None or not entered.issuperset(found.ns)):
        enter("erase", {"request": one.id, "tag": one.tag, "records": found.ns}, one.by)
        erase.note_served(one, recording.store, replace(noted, entered_ns=frozenset(found.ns)))
    return meant, found


def retain(recording: Recording, source: Source, enter: Enter, now_unix_s: float) -> int:
    """Remove the files of segments whose newest record is older than ``record.retention``; manifests stay."""
    if recording.spec.retention_s is None:
        return 0
    oldest_unix_s = now_unix_s - recording.spec.retention_s
    expired = list(_expired(source, oldest_unix_s))
    if expired:
        numbers = [each.segment for each in expired]
        if not _entered(recording.store).issuperset(numbers):  # a store that refuses to delete is asked again
            enter("retention", {"before_unix_s": oldest_unix_s, "segments": numbers})
            recording.store.write(ENTERED, json.dumps(numbers).encode())
        with sealing(recording.log):
            for each in expired:
                for file in each.files:
                    recording.store.delete(file.path)
    return len(expired)


def _entered(store: Store) -> frozenset[int]:
    """The segments of which the log says that retention has removed them, though they may still be there."""
    return frozenset(json.loads(store.read(ENTERED))) if store.exists(ENTERED) else frozenset()


def _expired(source: Source, oldest_unix_s: float) -> Iterator[Manifest]:
    """Segments that have files and no record that is younger, oldest first.

    Up to the first that is too young, for those after it are younger: a store is asked for two lists and one manifest,
    however long the record is.
    """
    sealed = set(source.sealed())
    names = (path.rpartition("/")[2].removesuffix(".parquet") for path in source.store.list("segments"))
    for number in sorted({int(name) for name in names if name.isdecimal()} & sealed):
        manifest = source.manifest(number)
        # Earlier versions took a client's word for a time, and one of the next century would keep all after it.
        if min(manifest.last_unix_s, manifest.sealed_unix_s) >= oldest_unix_s:
            return
        yield manifest


@contextmanager
def adopted(recording: Recording) -> Iterator[Enter]:
    """Be the writer of a log that has none: what its writer left unfinished ends as expired ("orphaned").

    Raises:
        Locked: it has a writer.
        RecordError: it cannot be read or written.
    """
    keeper = RecordKeeper.open(recording.log, describe_parameters=dict, store=recording.store)
    try:
        left = keeper.recovery.unfinished
        keeper.append_all(Ended(each.exchange_id, each.challenger, ORPHANED, time.time()) for each in left)
        yield lambda action, detail, actor=SERVER: keeper.enter(Control(action, time.time(), detail, actor=actor))
    finally:
        keeper.close()


def orphans(recording: Recording) -> list[str]:
    """The names of the other writers' folders here that have a log or are due for retention or erasing."""
    root = recording.spec.folder
    if not root.is_dir():
        return []
    others = (each for each in sorted(root.iterdir()) if each.is_dir() and each.name != recording.writer)
    return [each.name for each in others if segments(each) or (each / "manifests").is_dir()]


def adopt(recording: Recording, make: Callable[[str], Recording]) -> tuple[list[str], dict[str, str]]:
    """Care for every folder beside this one whose writer is gone, and seal it whole.

    Returns:
        Their names; and those for which it could not be done, each with why: it is due again.

    Args:
        recording: this writer's own.
        make: the recording of another name.
    """
    taken, failed = [], {}
    for name in orphans(recording):
        try:
            other = make(name)
            if needs_care(other, is_orphan=True):
                with adopted(other) as enter:
                    enter("adopted", {"by": recording.writer})
                    care(other, enter)
                seal_whole(other)
                taken.append(name)
        except Locked:  # it has a writer
            continue
        except (RecordError, OSError) as error:  # one broken folder is no reason to leave the others
            logger.error("%s has no writer and cannot be cared for: %s", recording.spec.folder / name, error)
            failed[name] = str(error)
    return taken, failed


def seal_whole(recording: Recording) -> None:
    """Seal everything of a log that nobody writes. Raises Locked where somebody does."""
    lock = FolderLock(recording.log)
    try:
        seal(Source(recording.log, recording.store), recording.writer, include_newest=True, sign=recording.sign)
    finally:
        lock.close()


def needs_care(recording: Recording, *, is_orphan: bool = False) -> bool:
    """Whether care() would find something to do; reads no Parquet. Raises OSError, RecordError."""
    now_unix_s = time.time()
    if len(segments(recording.log)) > (0 if is_orphan else 1):
        return True
    if any(erase.is_due(one, recording.store) for one in erase.requests(root_of(recording))):
        return True
    if recording.spec.retention_s is None:
        return False
    source = Source(recording.log, recording.store)
    return any(True for _ in _expired(source, now_unix_s - recording.spec.retention_s))


def erase_now(spec: RecordSpec, tags: Sequence[str], by: str | None = None) -> Iterator[str]:
    """Request that everything with these tags (name=value) be erased, and do it where no server writes. Words.

    ``by``: who wants it, for the entries.

    Raises:
        RecordError: there is no record, or a tag is none.
    """
    named = [erase.check_tag(tag) for tag in tags]
    names = [source.log.name for source in sources_at(spec.url, spec.folder)]
    privacy = Privacy(secret=secret_in(spec.folder))
    for name, value in named:
        erase.request(root_of(Recording.of(spec, "")), name, value, privacy, by)
    for writer in names:
        recording = replace(Recording.of(spec, writer), privacy=privacy)
        try:
            with adopted(recording) as enter:
                done = care(recording, enter)
            yield f"{writer}: {done['erased']} records erased"
        except Locked as error:
            yield f"{writer}: {error}; its server erases within two minutes"
        except (RecordError, OSError) as error:
            yield f"{writer}: NOT erased: {error}; repeat it when this is repaired"
