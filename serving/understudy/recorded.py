"""The report of a record, without a server: all replicas together, and as long afterwards as the record is kept.

    status, summaries = judged("understudy-data")

A running replica judges what it met itself; a label that was given to another one is not in its verdict. Here every
exchange, ending and label under one URL is judged by one judge, with the gates that stand in the record, so sessions
that were spread over replicas are whole. Nothing here takes a lock or writes: servers may be writing the same record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from understudy.archive import from_view
from understudy.errors import ConfigError, RecordError
from understudy.judge.gates import Gate
from understudy.judge.verdict import Judge, overall
from understudy.lane.guard import Guard
from understudy.lane.ledger import Ledger
from understudy.record.labels import current_label
from understudy.record.privacy import FULL
from understudy.record.reading import RecordReader
from understudy.record.recording import privacy_of
from understudy.record.scanning import merged, sources_at
from understudy.report.summary import ChallengerSummary
from understudy.report.tally import Tallies
from understudy.types import State

View = Mapping[str, Any]
Watch = Callable[[Iterator[dict[str, Any]]], Iterator[View]]
READING = "report"


def judged(
    url: str, *, spool: Path | None = None, rollout: str | None = None, watch: Watch = iter
) -> tuple[dict[str, Any], list[ChallengerSummary]]:
    """Status and figures as a server gives them, of one rollout: the same models and gates.

    Memory: the judge's, 250 to 390 bytes for each exchange and challenger, and every feedback.

    Args:
        url: as ``record.url`` has it, or the folder of one replica.
        spool: ``record.spool``, where the record is in an object store; without it only what is sealed is seen.
        rollout: its id; None for the one that was started last.
        watch: passes the exchanges on, and may show how far it is.

    Returns:
        A status with ``record.others``, the exchanges of other rollouts, ``record.unreadable`` of this one, and
        whether anything in the record is ``damaged``; and the figures.

    Raises:
        RecordError: there is no record, it does not say what was compared, or no such rollout is in it.
    """
    known = identities(url, spool)
    identity = chosen(known, rollout, url)
    readers = [RecordReader(source) for source in sources_at(url, spool)]
    privacy = privacy_of(url, spool) or FULL
    judge, tallies, guard = Judge(gates_of(identity), known_as=privacy.known_as), Tallies(privacy), Guard()
    ledgers: dict[str, Ledger] = defaultdict(Ledger)
    stands = standing(readers, identity)
    others = 0
    for number, view in enumerate(watch(merged(readers))):
        if (view.get("rollout") or "") != identity["rollout"]:
            others += 1
        elif stands is None or stands[view[stands_by(identity)]] == number:
            with guard(READING):  # one that cannot be read or judged is no reason to lose the others
                hear(view, judge, tallies, ledgers)
    if stands is not None:
        judge.no_more()
    models = {each["name"]: each for each in identity["challengers"]}
    names = [*models, *(name for name in ledgers if name not in models)]
    verdicts = {name: judge.verdict(name).as_dict() for name in names}
    status = {
        "champion": {"name": identity["champion"]["name"], "model": identity["champion"]["model"]},
        "phase": f"recorded, rollout {identity['rollout'] or 'without an id'}",
        "placement": "any",
        "challengers": [
            {
                "name": name,
                "model": models.get(name, {}).get("model", ""),
                "counts": {key: count for key, count in ledgers[name].counts().items() if key != "offered"},
                "verdict": verdicts[name],
            }
            for name in names
        ],
        "verdict": overall(verdicts),
        "record": {
            "others": others,
            "unreadable": guard.swallowed[READING],
            "damaged": any(reader.damage.num_damaged for reader in readers),
        },
    }
    return status, tallies.summaries(dict.fromkeys(names))


def hear(view: View, judge: Judge, tallies: Tallies, ledgers: Mapping[str, Ledger]) -> None:
    """One exchange with its endings and its label."""
    exchange, endings = from_view(view)
    for name in view["challengers"]:
        ledgers[name].sample()
        if name in endings:
            ledgers[name].end(endings[name])
            judge.ended(exchange, name, endings[name])
            tallies.ended(exchange, name, endings[name])
    if (label := current_label(view)) is not None:
        judge.feedback(exchange.exchange_id, label.label, label.at_unix_s)


def stands_by(identity: Mapping[str, Any]) -> str:
    """By what the exchanges of an offline run are the same: compare sends a prompt's id, replay the exchange's own."""
    return "client_request_id" if identity["offline"] == "compare" else "exchange_id"


def standing(readers: Sequence[RecordReader], identity: Mapping[str, Any]) -> dict[Any, int] | None:
    """Which of the exchanges stands for each id; None where every one does.

    An offline run that was interrupted and goes on sends again what was not done: the last one stands, as in its own
    report. It takes one more pass over the record.
    """
    if "offline" not in identity:
        return None
    rollout, by = identity["rollout"], stands_by(identity)
    views = enumerate(merged(readers))
    return {view[by]: number for number, view in views if (view.get("rollout") or "") == rollout}


def identities(url: str, spool: Path | None = None) -> list[dict[str, Any]]:
    """What was compared, by each rollout of the record, the one that was started last at the end.

    Raises:
        RecordError: there is no record.
    """
    found: dict[str, tuple[float, dict[str, Any]]] = {}
    for source in sources_at(url, spool):
        for control in RecordReader(source).controls("identity"):
            rollout, at_unix_s = control.get("rollout") or "", control["at_unix_s"]
            if at_unix_s >= found.get(rollout, (-inf,))[0] and control["detail"].get("champion"):
                found[rollout] = at_unix_s, control["detail"] | {"rollout": rollout}
    return [detail for _, detail in sorted(found.values(), key=lambda each: each[0])]


def chosen(known: Sequence[dict[str, Any]], rollout: str | None, url: str) -> dict[str, Any]:
    """Of the identities the one with this rollout, or the last. Raises RecordError where there is none."""
    if not known:
        raise RecordError(f"{url} does not say what was compared: no server has recorded its identity there")
    if rollout is None:
        return known[-1]
    for identity in known:
        if identity["rollout"] == rollout:
            return identity
    ids = ", ".join(identity["rollout"] for identity in known)
    raise RecordError(f"--rollout: {rollout!r} is not in {url}; there are {ids}")


def gates_of(identity: Mapping[str, Any]) -> list[Gate]:
    """The gates as they were recorded. Raises RecordError where this version does not know one."""
    try:
        return [Gate(**gate) for gate in identity["gates"]]
    except (TypeError, KeyError, ConfigError) as fault:
        raise RecordError(f"a recorded gate is none of this version's: {fault}") from fault


def is_whole(status: Mapping[str, Any]) -> bool:
    """Whether the verdict is over all that was recorded. One with less may say GO where all of it does not."""
    return not status["record"]["unreadable"] and not status["record"]["damaged"]


def said_of(status: Mapping[str, Any]) -> list[str]:
    """What a person has to know of a verdict from a record, one sentence each."""
    said, record = [], status["record"]
    if record["others"]:
        said.append(f"{record['others']:,} exchanges of other rollouts are in the record and not in this verdict")
    if record["unreadable"]:
        said.append(f"{record['unreadable']:,} exchanges could not be read: the verdict is with less")
    if record["damaged"]:
        said.append("something in the record is damaged (understudy audit verify says what): the verdict is with less")
    pending = sum(each["counts"][State.PENDING.value] for each in status["challengers"])
    if pending:
        said.append(f"{pending:,} have not ended yet, or their replica has not come back since")
    return said
