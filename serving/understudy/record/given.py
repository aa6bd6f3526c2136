"""Feedback from files: rows of JSONL or CSV, to a server or into a record, and what still waits for its exchange.

    {"request_id": "chatcmpl-...", "label": "billing"}
    {"request_id": "order-4711", "name": "revenue_usd", "value": 12.5, "at_unix_s": 1732435200}

A CSV file has these names in its first line. Giving the same again changes nothing. Into a record it is written by a
writer of its own, ``feedback``, so that no server has to stop; a running server counts it at its next start.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Final

from understudy.config import RecordSpec
from understudy.errors import RecordError
from understudy.record.codec import well_formed
from understudy.record.keeper import RecordKeeper
from understudy.record.labels import as_given, is_given
from understudy.record.reading import RecordReader, given_feedback
from understudy.record.recording import Recording, with_rule
from understudy.record.scanning import sources_at
from understudy.record.schema import Feedback

WRITER: Final = "feedback"
AHEAD_S: Final = 86_400.0  # how far another machine's clock, or its time zone, may be ahead
FIELDS: Final = ("request_id", "label", "value", "name", "at_unix_s")


def parse(row: Mapping[str, Any], now_unix_s: float) -> Feedback:
    """One row as feedback.

    Raises:
        RecordError: it lacks something, or has a field that nobody knows; the message says which.
    """
    unknown = [name for name in row if name not in FIELDS]
    if unknown:
        raise RecordError(f"{unknown[0]!r} is not a field of feedback; known are {', '.join(FIELDS)}")
    id, label, value, name = (row.get(field) or None for field in ("request_id", "label", "value", "name"))
    value = row.get("value") if row.get("value") not in (None, "") else None
    if not isinstance(id, str):
        raise RecordError("request_id: must be text: one of the exchange's ids")
    for field, text in (("label", label), ("name", name)):
        if text is not None and not (isinstance(text, str) and text.strip()):
            raise RecordError(f"{field}: {text!r} must be text that is not empty")
    if label is None and value is None:
        raise RecordError("label or value: one of them must be there")
    at_unix_s = _number(row, "at_unix_s", None)
    if at_unix_s is None:
        at_unix_s = now_unix_s
    elif not 0 <= at_unix_s <= now_unix_s + AHEAD_S:
        raise RecordError(f"at_unix_s: {row['at_unix_s']!r} must be Unix seconds, and at most a day from now")
    number = _number(row, "value", None)
    return Feedback(well_formed(id), well_formed(label or ""), at_unix_s, number, well_formed(name or ""))


def read(path: Path) -> list[Feedback]:
    """All feedback of a file; its ending says whether it is CSV or JSONL.

    Raises:
        RecordError: a row is wrong; nothing was sent. The message names the line.
    """
    now_unix_s, found = time.time(), []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in _rows(path, file):
                try:
                    found.append(parse(row, now_unix_s))
                except RecordError as error:
                    raise RecordError(f"{path}, line {number}: {error}") from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from error
    return found


def in_order(given: Iterable[Feedback]) -> list[Feedback]:
    """By ``at_unix_s``, equal ones as they came: what repeats what stands is left out, so it must not come early."""
    return sorted(given, key=attrgetter("at_unix_s"))


def send(url: str, key: str | None, given: Iterable[Feedback]) -> tuple[int, list[str]]:
    """Give it to a running server: how many, and the ids it does not know (yet).

    Raises:
        RecordError: the server cannot be asked, or refuses one; what was sent before is given.
    """
    import httpx

    num_sent, unknown = 0, []
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with httpx.Client(headers=headers, timeout=60) as client:
        for one in in_order(given):
            body = {"request_id": one.id, "label": one.label or None, "value": one.value, "name": one.name or None}
            try:
                answer = client.post(f"{url}/shadow/feedback", json=body | {"at_unix_s": one.at_unix_s})
            except httpx.HTTPError as fault:
                raise RecordError(f"{url} cannot be asked after {num_sent} were given: {fault}") from fault
            if answer.status_code != 200:
                raise RecordError(f"{url} refuses {one.id!r} after {num_sent} were given: {answer.text[:200]}")
            num_sent += 1
            if not answer.json()["known"]:
                unknown.append(one.id)
    return num_sent, unknown


def waiting(url: str, key: str | None) -> list[str]:
    """The ids for which a running server has feedback and no exchange. Raises RecordError."""
    import httpx

    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        answer = httpx.get(f"{url}/shadow/feedback", headers=headers, timeout=60)
    except httpx.HTTPError as fault:
        raise RecordError(f"{url} cannot be asked: {fault}") from fault
    if answer.status_code != 200:
        raise RecordError(f"{url}/shadow/feedback answers {answer.status_code}: {answer.text[:200]}")
    found: list[str] = answer.json()["pending"]
    return found


def enter(url: str, given: Iterable[Feedback], spool: str | None = None) -> tuple[int, list[str]]:
    """Write what is new into the record at ``url``: how many, and the ids that no exchange there has.

    By the rule (``record.text``) by which its servers write: an id that was recorded as a pseudonym is found, and
    the label is redacted.

    Raises:
        RecordError: there is no record, its rule cannot be known, somebody else is doing this, or not all of it is on
            disk; to give it again repeats nothing.
        ConfigError: a redactor of the rule cannot be had here.
    """
    spec = with_rule(RecordSpec(url=url) if spool is None else RecordSpec(url=url, spool=spool))
    readers = [RecordReader(source) for source in sources_at(url, None if spool is None else Path(spool))]
    recording = Recording.of(spec, WRITER)
    privacy = recording.privacy
    there, ids = given_feedback(readers), known_ids(readers)
    before = {id: [as_given(id, one) for *_, one in sorted(all, key=itemgetter(0, 1))] for id, all in there.items()}
    keeper = RecordKeeper.open(recording.log, describe_parameters=dict, store=recording.store, privacy=privacy)
    num_new, unknown = 0, []

    def new() -> Iterator[Feedback]:
        nonlocal num_new
        for one in in_order(given):
            id, label, name = privacy.id(one.id), privacy.label(one.label), privacy.label(one.name)
            if id not in ids:
                unknown.append(one.id)
            known, recorded = before.setdefault(id, []), Feedback(id, label, one.at_unix_s, one.value, name)
            if not is_given(recorded, known):
                known.append(recorded)
                num_new += 1
                yield one

    try:
        keeper.append_all(new())
    finally:
        keeper.close()
    return num_new, unknown


def pending(url: str, spool: str | None = None) -> list[str]:
    """Ids of a record for which there is feedback and no exchange. Raises RecordError."""
    readers = [RecordReader(source) for source in sources_at(url, None if spool is None else Path(spool))]
    ids = known_ids(readers)
    return sorted(id for id in given_feedback(readers) if id not in ids)


def known_ids(readers: Iterable[RecordReader]) -> set[str]:
    """Every id of every exchange; three short strings each."""
    heads = (head for reader in readers for _, head in reader.source.heads(reader.damage.report))
    accepted = (head for head in heads if head.kind == "accepted")
    return {id for head in accepted for id in (head.exchange_id, head.request_id, head.client_request_id) if id}


def without_exchange(ids: set[str], reader: RecordReader) -> set[str]:
    """Those of the ids that no exchange of this folder has. Memory: theirs alone, however many exchanges there are."""
    remaining = set(ids)
    for _, head in reader.source.heads(reader.damage.report) if ids else ():
        if head.kind == "accepted":
            remaining.difference_update((head.exchange_id, head.request_id, head.client_request_id))
    return remaining


def _rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if path.suffix.lower() == ".csv":
        for number, row in enumerate(csv.DictReader(file), 2):
            yield number, {name: value for name, value in row.items() if name is not None}
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                parsed = json.loads(line)
            except ValueError as error:
                raise RecordError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(parsed, dict):
                raise RecordError(f"{path}, line {number}: not a JSON object")
            yield number, parsed


def _number(row: Mapping[str, Any], field: str, default: float | None) -> float | None:
    value = row.get(field)
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise RecordError(f"{field}: {value!r} must be a finite number")
    return number
