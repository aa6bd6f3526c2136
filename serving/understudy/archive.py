"""Everything that hears of an exchange, live or from the record: keeper, judge and the report's figures.

It belongs to the replica's event loop. What an earlier run recorded is replayed in the background, so that a long
record does not delay the first answer; counts are there from the start, verdicts are whole when ``replayed`` is set.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

from understudy.config import RecordSpec
from understudy.errors import Locked, NotKept, RecordError, Refused
from understudy.judge.gates import Gate
from understudy.judge.verdict import Judge
from understudy.lane.guard import Guard
from understudy.record import Accepted, Control, Counts, Ended, Feedback, RecordKeeper, Unfinished, from_json, upkeep
from understudy.record.care import needs_care
from understudy.record.given import without_exchange
from understudy.record.labels import current_label, feedback_of, is_given
from understudy.record.privacy import FULL
from understudy.record.recording import Recording, keep_rule
from understudy.record.schema import SERVER
from understudy.record.waiting import Waiting
from understudy.report.summary import ChallengerSummary
from understudy.report.tally import Tallies
from understudy.types import DraftCounts, Ending, Exchange, State

log = logging.getLogger(__name__)
VERDICT_MAX_AGE_S = 1.0
PUBLISHED_MAX_AGE_S = 60.0
REPLAY_BATCH = 20
OPEN_AGAIN_S = (0.0, 1.0, 4.0)
OPEN_LATER_S = 10.0
ELSEWHERE_AFTER = 6  # turns of it: a minute is what Ray gives a replica to end, and its successor wants its folder
MAX_SEATS = 10_000
NOTE_MAX_S = 1.0
MAX_NOTES = 1_000
CARE_S = 60.0
CARE_FOR_OTHERS = 60  # turns
RESTARTED = Ending(State.EXPIRED, None, "restart")


class Archive:
    """The lane tells it of every exchange (lane.Witnesses).

    Args:
        keeper: None where the record could not be opened; ``why_not`` says why, and nothing is kept.
        gates: what the judge decides by.
        guard: the lane's.

    Attributes:
        incomplete: the replay could not read all of the record, and verdicts are with less.
        sent_again: endings of an interrupted run whose exchanges are sent again, by state.
    """

    def __init__(
        self,
        keeper: RecordKeeper | None,
        why_not: str,
        gates: Sequence[Gate],
        guard: Guard,
        recording: Recording | None = None,
    ) -> None:
        self.replayed = asyncio.Event()
        self.incomplete = False
        self._keeper = keeper
        self._why_not = why_not
        self._guard = guard
        privacy = FULL if recording is None else recording.privacy
        self._judge = Judge(gates, known_as=privacy.known_as)
        self._tallies = Tallies(privacy)
        self.waiting = Waiting()
        self._started_unix_s = time.time()
        self._verdicts: dict[str, dict[str, Any]] = {}
        self._verdicts_at_s = float("-inf")
        self._replaying: asyncio.Task[None] | None = None
        self._recording = recording
        self._rollout = "" if recording is None else recording.rollout
        self.num_other_rollouts = 0
        self.sent_again: Counter[State] = Counter()
        self._resends: Collection[State] = ()
        self._caring: asyncio.Task[None] | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._keeping: dict[str, asyncio.Task[bool]] = {}
        self._identity: Mapping[str, Any] = {}
        self._num_unrecorded = 0
        self._notes: list[Control] = []  # to be entered when the record opens
        self._open_keeper: Callable[[], RecordKeeper] | None = None
        self._opener: Callable[[Recording], RecordKeeper] | None = None
        self._opening: asyncio.Task[None] | None = None

    @staticmethod
    async def open(
        folder: Path,
        describe_parameters: Callable[[Any], Mapping[str, Any]],
        gates: Sequence[Gate],
        guard: Guard,
        recording: Recording | None = None,
    ) -> Archive:
        """Open the record in ``folder``, kept as ``recording`` says (in full, and in that folder alone, without it).

        Where it cannot be opened the champion serves all the same; status says so.
        """
        why_not, how = "", recording or Recording.at(folder)
        spec = None if recording is None else recording.spec
        opener = partial(_opened, spec, describe_parameters)
        open_keeper = partial(opener, how if recording is not None else replace(how, log=folder))
        for wait_s in OPEN_AGAIN_S:  # a replica that is being replaced may hold the folder a little longer
            await asyncio.sleep(wait_s)
            try:
                return Archive(await asyncio.to_thread(open_keeper), "", gates, guard, recording)
            except (RecordError, OSError) as fault:
                log.warning("the record cannot be opened: %s", fault)
                why_not = f"nothing is recorded: {fault}"
        archive = Archive(None, why_not, gates, guard, recording)
        archive._open_keeper, archive._opener = open_keeper, opener
        return archive

    def keep_opening(self, restore: Callable[[Mapping[str, Counts]], None]) -> None:
        """Where the record could not be opened, go on trying; ``restore`` gets the counts it then has."""
        if self._keeper is None and self._open_keeper is not None:
            self._opening = asyncio.create_task(self._open_later(self._open_keeper, restore), name="archive-open")

    async def _open_later(
        self, open_keeper: Callable[[], RecordKeeper], restore: Callable[[Mapping[str, Counts]], None]
    ) -> None:
        for turn in count(1):
            await asyncio.sleep(OPEN_LATER_S)
            try:
                self._keeper = await asyncio.to_thread(open_keeper)
            except (RecordError, OSError) as fault:
                self._why_not = f"nothing is recorded: {fault}"
                if isinstance(fault, Locked) and turn >= ELSEWHERE_AFTER:
                    with self._guard("record"):
                        self._keeper = await asyncio.to_thread(self._open_elsewhere)
            if self._keeper is not None:
                break
        log.warning("the record is open; %d events before were not recorded", self._num_unrecorded)
        if self._identity:  # it was to be entered before there was a record
            self._append(self._identity_entry())
            self.compare_gates({name: self._identity.get(name) for name in ("gates", "gates_sha256")}, dict)
        for entry in self._notes:
            self._append(entry)
        restore(self.take_up())
        self._append(Control("recording_resumed", time.time(), num_lost=self._num_unrecorded, actor=SERVER))

    def _open_elsewhere(self) -> RecordKeeper | None:
        """In the first replica's folder that nobody holds: more replicas live than there were to be (autoscaling).

        Raises:
            RecordError, OSError: it cannot be opened.
        """
        if self._recording is None or self._opener is None:
            return None
        for number in range(MAX_SEATS):
            other = self._recording.beside(f"replica-{number}")
            try:
                keeper = self._opener(other)
            except Locked:
                continue
            log.warning("%s has a writer for good: recording in %s", self._recording.log, other.log)
            self._recording = other
            return keeper
        return None

    def take_up(self, resends: Collection[State] = ()) -> Mapping[str, Counts]:
        """The counts of earlier runs by challenger, with what they left unfinished ended as expired.

        Args:
            resends: an exchange that ended so for any challenger is sent again (offline). What became of it before is
                counted, also in ``sent_again``, and not judged: the new endings are.
        """
        self._resends = resends
        if self._keeper is None:
            return {}
        recovery, num_now = self._keeper.recovery, self._keeper.num_at_once
        self._expire(recovery.unfinished[:num_now])
        self._replaying = asyncio.create_task(self._replay(recovery.unfinished[num_now:]), name="archive-replay")
        if self._recording is not None:
            self._caring = asyncio.create_task(self._care(self._recording), name="archive-care")
        return {name: counts.expire_pending() for name, counts in recovery.counts.items()}

    # what the lane tells (steps 5, 8 and 9)

    def accepted(self, exchange: Exchange, challengers: Sequence[str], offered: Mapping[str, int]) -> None:
        """Step 5: make it durable; the keeper writes in a thread of its own."""
        self._append(Accepted(exchange, tuple(challengers), offered))
        for given in self.waiting.take(ids_of(exchange)):
            self._hear_feedback(exchange.exchange_id, given)

    def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
        """Steps 8 and 9: keep the ending, and let the judge see it."""
        seen, asked = ending.challenger, exchange.champion
        same_prompt = seen is not None and seen.prompt_token_ids == asked.prompt_token_ids
        self._append(Ended(exchange.exchange_id, challenger, ending, time.time(), same_prompt))
        self._hear(exchange, challenger, ending)

    def no_more(self) -> None:
        """No exchange will come any more (offline): every session is complete, and verdicts are final."""
        self._judge.no_more()
        self._verdicts_at_s = float("-inf")

    async def taken_up(self) -> None:
        """Return when everything that was recorded before has been judged.

        Raises:
            RecordError: nothing is recorded.
        """
        if self._keeper is None:
            raise RecordError(self._why_not)
        await self.replayed.wait()

    def check_whole(self, *, despite: bool) -> None:
        """That nothing is decided on a part of the evidence, which may say GO where all of it does not.

        Raises:
            Refused: the record of earlier runs is not judged yet, or could not be read to its end (unless ``despite``).
        """
        if self._keeper is None:
            return  # and there is nothing to enter it in
        if not self.replayed.is_set():
            raise Refused("the record of earlier runs is still being read: the verdict is not whole yet")
        if self.incomplete and not despite:
            raise Refused(
                "the record of earlier runs could not be read to its end, the server's log says why: the verdict is "
                "with less (whoever decides all the same gives a reason: despite)"
            )

    # what people ask and tell

    async def find(self, any_id: str) -> list[Mapping[str, Any]]:
        """Everything recorded under an exchange id, a response id or a client's request id, newest first."""
        if self._keeper is None:
            return []
        await self._flushed()
        return list(await asyncio.to_thread(self._keeper.find, any_id))

    async def feedback(self, given: Feedback) -> bool:
        """Keep it, and judge by its label where the id is known. What changes nothing (labels.py) is not kept.

        Returns:
            Whether the id is known. One that is not may come yet, or was never sampled.

        Raises:
            NotKept: there is no record, or no room: it would be lost, and counts for nothing.
        """
        while earlier := self._keeping.get(given.id):  # what becomes of it decides whether this one changes anything
            await asyncio.wait([earlier])
        if self._keeper is None:
            raise NotKept(self._why_not)
        if why_not := self._keeper.why_full():
            raise NotKept(why_not)
        is_new = not self.waiting.has(given)
        if is_new:
            self.waiting.add(given)  # before anything awaits: its exchange may come just now, and takes it
        keeping = asyncio.create_task(self._keep(self._keeper, given, is_new=is_new), name="archive-feedback")
        self._keeping[given.id] = keeping
        keeping.add_done_callback(lambda _: self._keeping.pop(given.id))
        return await asyncio.shield(keeping)  # who gave it may leave: it is kept and heard, or neither

    async def _keep(self, keeper: RecordKeeper, given: Feedback, *, is_new: bool) -> bool:
        try:
            found = await self.find(given.id)
            if found:
                self.waiting.take([given.id])
            if is_new and not (found and all(is_given(given, feedback_of(view)) for view in found)):
                await keeper.keep(given)  # others have come since there was room
                for view in found:
                    self._hear_feedback(view["exchange_id"], given)
        except BaseException:
            if is_new:
                self.waiting.remove(given)
            raise
        return bool(found)

    def control(
        self,
        action: str,
        offered: Mapping[str, int],
        detail: Mapping[str, Any] | None = None,
        actor: str = SERVER,
    ) -> None:
        """Something was done to the shadow as a whole; by whom."""
        self._append(Control(action, time.time(), detail or {}, offered, actor=actor))

    async def note(
        self, action: str, offered: Mapping[str, int], detail: Mapping[str, Any] | None = None, *, actor: str
    ) -> str:
        """The same, for what is done already and by no means waits for its entry.

        Returns:
            Why the entry is not durable after NOTE_MAX_S at the most; empty where it is. It is made later if it can be.
        """
        entry = Control(action, time.time(), detail or {}, offered, actor=actor)
        if self._keeper is None:
            if len(self._notes) < MAX_NOTES:
                self._notes.append(entry)
            else:
                self._append(entry)  # counted as lost
            return self._why_not
        try:
            async with asyncio.timeout(NOTE_MAX_S):
                await self._keeper.write(entry)
        except RecordError as fault:
            return str(fault)
        except TimeoutError:
            return f"the store has not answered for {NOTE_MAX_S:g} s"
        return ""

    def identify(self, detail: Mapping[str, Any], offered: Mapping[str, int]) -> None:
        """Enter what is compared (``identity``), now or when the record opens, and again whenever retention removes."""
        self._identity = detail
        if self._keeper is not None:
            self.control("identity", offered, detail)

    async def enter(self, action: str, offered: Mapping[str, int], detail: Mapping[str, Any], actor: str) -> None:
        """The same, for what must not be done without its entry: it is durable when this returns.

        Raises:
            RecordError: it is not.
        """
        if self._keeper is None:
            raise RecordError(self._why_not)
        await asyncio.to_thread(self._keeper.enter, Control(action, time.time(), detail, offered, actor=actor))

    def compare_gates(self, now: Mapping[str, Any], offered: Callable[[], Mapping[str, int]]) -> None:
        """Enter that the gates are others than at the start before, where they are. In the background.

        Args:
            now: ``gates`` and ``gates_sha256``, as entered at this start.
            offered: asked when it is entered.
        """
        if self._keeper is not None:
            self._comparing = asyncio.create_task(self._compare_gates(self._keeper, now, offered), name="archive-gates")

    async def _compare_gates(
        self, keeper: RecordKeeper, now: Mapping[str, Any], offered: Callable[[], Mapping[str, int]]
    ) -> None:
        with self._guard("gates"):
            # and not "start": after a while of retention the newest identity is all there is of it
            last = await asyncio.to_thread(keeper.reader.last_control, "identity", self._started_unix_s)
            before = {name: (last or {}).get("detail", {}).get(name) for name in now}
            known = None not in (before["gates_sha256"], now["gates_sha256"])  # a model that cannot be hashed
            if known and before["gates_sha256"] != now["gates_sha256"]:
                self.control("gates_changed", offered(), {"before": before, "now": dict(now)})

    def verdicts(self, names: Iterable[str], *, idle: bool) -> Mapping[str, dict[str, Any]]:
        """By challenger. One takes about 10 ms of the event loop: under traffic they are renewed once a second."""
        now_s = time.monotonic()
        if idle or now_s - self._verdicts_at_s >= VERDICT_MAX_AGE_S:
            self._verdicts = {name: self._judge.verdict(name).as_dict() for name in names}
            self._verdicts_at_s = now_s
        return self._verdicts

    def recent_verdicts(self, names: Iterable[str]) -> Mapping[str, dict[str, Any]]:
        """As somebody last asked for them, and at most a minute old: for the metrics, which are no reason to judge."""
        if time.monotonic() - self._verdicts_at_s >= PUBLISHED_MAX_AGE_S:
            return self.verdicts(names, idle=False)
        return self._verdicts

    def drafts(self) -> dict[str, DraftCounts]:
        """What became of the champion's answers as drafts, of each challenger that had some."""
        return self._tallies.drafts()

    def summaries(self, busy_s: Mapping[str, float]) -> list[ChallengerSummary]:
        """The report's figures, by challenger."""
        return self._tallies.summaries(busy_s)

    def status(self) -> dict[str, Any]:
        """Whether things are being recorded, and what was found wrong in the record."""
        if self._keeper is None:
            return {"recording": False, "detail": self._why_not, "lost": self._num_unrecorded}
        recording, detail = self._keeper.health()
        recovery = self._keeper.recovery
        return {
            "recording": recording,
            "detail": detail,
            "replayed": self.replayed.is_set(),
            "incomplete": self.incomplete,
            "lost": self._keeper.num_lost + recovery.num_lost,
            "rollout": self._rollout,
            "other_rollouts": self.num_other_rollouts,
            "feedback_waiting": len(self.waiting.ids()),
            "feedback_forgotten": self.waiting.num_forgotten,
            "unredacted": self._keeper.num_unredacted,
            "damaged": recovery.num_damaged + self._keeper.reader.damage.num_damaged,
            "orphans": recovery.num_orphans,
        }

    async def close(self) -> None:
        """Write what is left and give the folder back. Idempotent."""
        tasks = [task for task in (self._replaying, self._caring, self._opening, self._comparing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._keeper is not None:
            with self._guard("record"):
                await asyncio.to_thread(self._keeper.close)

    # inside

    def _identity_entry(self) -> Control:
        return Control("identity", time.time(), self._identity, actor=SERVER)

    def _append(self, event: Accepted | Ended | Feedback | Control) -> None:
        if self._keeper is not None:
            self._keeper.append(event)
        else:
            self._num_unrecorded += 1

    async def _flushed(self) -> None:
        assert self._keeper is not None
        with self._guard("record"):  # recording may be off; what is on disk is found all the same
            await self._keeper.flush()

    async def _care(self, recording: Recording) -> None:
        """Seal, remove, erase and adopt in a process of its own, when something is due.

        The first time after a minute: a replica that starts with this one may be about to take its own folder.
        """
        keeper = self._keeper
        assert keeper is not None

        def enter(action: str, detail: Mapping[str, Any], actor: str | None = SERVER) -> None:
            entries = [Control(action, time.time(), detail, actor=actor)]
            if action == "retention" and self._identity:  # the segment that has it may be among those that go
                entries.insert(0, self._identity_entry())
            keeper.enter(*entries)

        for turn in count():
            await asyncio.sleep(CARE_S)
            with self._guard("care"):
                adopting = turn % CARE_FOR_OTHERS == 0
                if adopting:
                    keeper.begin_file()  # little traffic is sealed too, and becomes old enough to be removed
                if adopting or await asyncio.to_thread(needs_care, recording):
                    try:
                        await upkeep.run(recording, enter, adopting=adopting)
                    finally:  # a child that failed may have erased something before
                        keeper.reader.source.forget()

    def _hear_feedback(self, exchange_id: str, given: Feedback) -> None:
        if given.label and not given.name:
            self._judge.feedback(exchange_id, given.label, given.at_unix_s)

    def _hear(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
        self._judge.ended(exchange, challenger, ending)
        self._tallies.ended(exchange, challenger, ending)

    def _expire(self, unfinished: Iterable[Unfinished]) -> None:
        for left in unfinished:
            self._append(Ended(left.exchange_id, left.challenger, RESTARTED, time.time()))

    async def _expire_all(self, unfinished: Sequence[Unfinished]) -> None:
        """More than the keeper takes at once. Those for which there is no room any more end at the next start."""
        assert self._keeper is not None
        size = self._keeper.num_at_once
        for first in range(0, len(unfinished), size):
            await self._flushed()
            recording, why_not = self._keeper.health()
            if not recording:
                log.error("%d exchanges that never ended are not judged: %s", len(unfinished) - first, why_not)
                self.incomplete = True
                return
            self._expire(unfinished[first : first + size])

    async def _replay(self, unfinished: Sequence[Unfinished]) -> None:
        """Read in a thread, judge in the loop, a few exchanges at a time."""
        assert self._keeper is not None
        await self._expire_all(unfinished)
        for given in await asyncio.to_thread(self._waiting_feedback):
            self.waiting.add(given)
        await self._flushed()  # what came before this is read, and takes what waits for it; later ones have
        views = self._keeper.iterate()
        while (batch := await asyncio.to_thread(self._next_batch, views)) is not None:
            for rollout, exchange, endings, label in batch:
                with self._guard("replay"):  # nor one that cannot be judged
                    waited = self.waiting.take(ids_of(exchange))
                    if exchange.arrived_unix_s >= self._started_unix_s:
                        for given in waited:  # read from the record before it came, and added after
                            self._hear_feedback(exchange.exchange_id, given)
                        continue  # heard live
                    if rollout != self._rollout:  # of other models, or for other gates: no evidence for these
                        self.num_other_rollouts += 1
                        continue
                    states = [ending.state for ending in endings.values()]
                    if any(state in self._resends for state in states):
                        self.sent_again.update(states)
                        continue
                    for name, ending in endings.items():
                        self._hear(exchange, name, ending)
                    if label is not None:
                        self._hear_feedback(exchange.exchange_id, label)
            self._judge.settle()  # the first verdict would else have all sessions to count, 40 us each
        self.replayed.set()

    def _waiting_feedback(self) -> list[Feedback]:
        """What was given for ids that no exchange has: all of it would push out of ``waiting`` what really waits."""
        assert self._keeper is not None
        reader = self._keeper.reader
        with self._guard("replay"):
            given = [one for one in map(from_json, reader.feedback()) if isinstance(one, Feedback)]
            unknown = without_exchange({one.id for one in given}, reader)
            return [one for one in given if one.id in unknown]
        self.incomplete = True
        return []

    def _next_batch(
        self, views: Iterator[dict[str, Any]]
    ) -> list[tuple[str, Exchange, dict[str, Ending], Feedback | None]] | None:
        """Some exchanges with their rollouts and labels; None at the end."""
        read, is_cut_off = list[dict[str, Any]](), True
        with self._guard("replay"):  # a record that cannot be read any further leaves the verdict with less
            for view in islice(views, REPLAY_BATCH):
                read.append(view)  # one by one: what was read before it failed counts
            is_cut_off = False
        self.incomplete |= is_cut_off
        batch = []
        for view in read:
            with self._guard("replay"):  # one exchange that cannot be read is no reason to lose the others
                batch.append((view.get("rollout", ""), *from_view(view), current_label(view)))
        return batch if read else None


def _opened(
    spec: RecordSpec | None, describe_parameters: Callable[[Any], Mapping[str, Any]], how: Recording
) -> RecordKeeper:
    """Raises RecordError, OSError."""
    if spec is not None:
        keep_rule(spec)
        if spec.text != "full":
            how.take_secret()
    return RecordKeeper.open(
        how.log,
        describe_parameters=describe_parameters,
        rollout=how.rollout,
        privacy=how.privacy,
        store=how.store,
        signer=how.signer,
    )


def from_view(view: Mapping[str, Any]) -> tuple[Exchange, dict[str, Ending]]:
    """An exchange as the record shows it, as objects: with its endings by challenger.

    Raises:
        RecordError: it lacks something.
    """
    accepted = from_json({"v": 1, "kind": "accepted", "offered": {}, **view})
    assert isinstance(accepted, Accepted)
    exchange, endings = accepted.exchange, {}
    for name, end in view["challengers"].items():
        if end["state"] != State.PENDING.value:
            head = {"v": 1, "kind": "ended", "exchange_id": exchange.exchange_id, "challenger": name}
            ended = from_json(head | end | {"at_unix_s": end["ended_unix_s"]})
            assert isinstance(ended, Ended)
            endings[name] = ended.ending
    return exchange, endings


def ids_of(exchange: Exchange) -> set[str | None]:
    """Every id under which feedback may be given."""
    return {exchange.exchange_id, exchange.request_id, exchange.facts.client_request_id}
