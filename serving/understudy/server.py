"""One replica from the inside: engines, fork, lane, archive and routes, put together. Knows no Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

from understudy import __version__, promotion
from understudy.api import routes
from understudy.api.middleware import App, Front
from understudy.archive import Archive
from understudy.compare import Comparators
from understudy.compare.base import ParseTools
from understudy.config import Config, ModelSpec, parse
from understudy.engines import placements
from understudy.engines.base import Engine
from understudy.engines.placements import Engines
from understudy.errors import EngineDead
from understudy.identity import identify
from understudy.judge.verdict import overall
from understudy.lane.guard import Guard
from understudy.lane.lane import Lane, Offered
from understudy.lane.ledger import total
from understudy.lane.own_view import why_none
from understudy.meter.metrics import Sink
from understudy.meter.station import Station
from understudy.promotion import Promotion
from understudy.record import Feedback
from understudy.record.recording import Recording
from understudy.report.page import report_page
from understudy.report.summary import ChallengerSummary
from understudy.types import Floor, State

log = logging.getLogger(__name__)
LIFTED = "its quarantine is lifted; it comes back when the replica starts the next time"


class Server:
    """Build one with ``start``; ``app`` is the ASGI app. The routes ask it (routes.Shadow)."""

    app: App

    def __init__(
        self,
        config: Config,
        engines: Engines,
        archive: Archive,
        guard: Guard,
        compare: Comparators,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self._config = config
        self._engines = engines
        self._archive = archive
        self._identity: Mapping[str, Any] = {}
        self._station = Station(config, engines.meters, guard, sinks)
        self._lane = Lane(
            engines.challengers,
            config.shadow,
            self._station.heard_with(archive),
            champion_load=engines.champion_load,
            guard=guard,
            compare=compare,
            over_cap=self._station.caps.over,
            floor=engines.floor,
        )

    @staticmethod
    async def start(
        raw_config: Mapping[str, Any],
        replica: int = 0,
        sinks: Sequence[Sink] = (),
        *,
        serve: bool = True,
        resends: Collection[State] = (),
    ) -> Server:
        """Everything up, the shadow on. Each replica, by its rank, records in a folder of its own.

        Metrics are at /metrics, and go to ``sinks`` too. ``serve=False`` leaves the champion out, and the app: for a
        replay, in which the champion has answered before. ``resends`` as in Archive.take_up.

        Raises:
            ConfigError, EngineStartError: the champion cannot be served; everything was ended again.
        """
        config, guard = parse(raw_config), Guard()
        compare = Comparators(config.compare, guard)
        record = await asyncio.to_thread(Recording.of, config.record, f"replica-{replica}")
        engines = await (placements.start(config, record.log.parent) if serve else placements.start_challengers(config))
        archive = None
        try:
            from understudy.engines.vllm_engine import describe_parameters

            detail: Mapping[str, Any] = {}
            with guard("identity"):  # a model that cannot be hashed can still be served
                identity = await asyncio.to_thread(identify, config)
                offline = {"offline": "compare" if serve else "replay"} if resends else {}
                record, detail = record.of_rollout(identity.rollout), {**identity.detail, **offline}
            archive = await Archive.open(record.log, describe_parameters, config.gates, guard, record)
            compare.parse_tools = tool_parser(config, engines)
            self = Server(config, engines, archive, guard, compare, sinks)
            self._identity = {"rollout": record.rollout, **detail}
            self._lane.restore(archive.take_up(resends))
            archive.keep_opening(self._lane.restore)
            if serve:
                self.app = await self._build_app()
            await self._station.start(self._facts)
            self._lane.start()
            archive.identify(detail, self._lane.offered())
            hashes = {name: detail.get(name) for name in ("config_sha256", "gates_sha256", "gates")}
            archive.control("start", self._lane.offered(), hashes)
            archive.compare_gates({name: hashes[name] for name in ("gates", "gates_sha256")}, self._lane.offered)
        except BaseException:
            if archive is not None:
                await archive.close()
            await engines.close()
            raise
        return self

    async def close(self) -> None:
        """Stop the lane, write what is left, end the engines. Idempotent."""
        async with AsyncExitStack() as rest:  # each in its turn, whatever the one before it raises
            rest.push_async_callback(self._engines.close)
            rest.push_async_callback(self._archive.close)
            rest.callback(lambda: self._archive.control("stop", self._lane.offered()))
            rest.push_async_callback(self._station.close)
            rest.push_async_callback(self._lane.close)

    def check_health(self) -> None:
        """Raises EngineDead when the champion can no longer answer."""
        if self._engines.champion_dead.is_set() or self._engines.champion.errored:
            raise EngineDead("the champion's engine is gone")

    # what offline runs ask

    @property
    def champion_name(self) -> str:
        """What clients ask for."""
        return self._config.champion.name

    def offer(self, offered: Offered, floor: Floor | None = None) -> None:
        """Step 4 for an exchange that was answered before, with the noise floor that it had."""
        if floor is not None:
            self._lane.floor.bring(offered.exchange_id, len(self._lane.sides), floor)
        self._lane.offer(offered)

    def counts(self) -> dict[str, dict[str, Any]]:
        """By challenger."""
        return self._lane.counts()

    def absent(self) -> dict[str, str]:
        """The challengers that are not there, and why."""
        health = {name: side.engine.health() for name, side in self._lane.sides.items()}
        return {name: found.detail for name, found in health.items() if not found.ready}

    async def room(self, max_pending: int) -> None:
        """Return when no challenger has more than that before it."""
        await self._lane.room(max_pending)

    async def idle(self) -> None:
        """Return when every exchange has ended."""
        await self._lane.idle()

    async def taken_up(self) -> None:
        """Return when everything that was recorded before has been judged. Raises RecordError: nothing is recorded."""
        await self._archive.taken_up()

    def sent_again(self) -> Mapping[State, int]:
        """Endings of an interrupted run whose exchanges were sent again: in the counts, and not in the verdict."""
        return self._archive.sent_again

    def no_more_exchanges(self) -> None:
        """From here on verdicts are final."""
        self._archive.no_more()

    # what the routes ask

    async def status(self) -> dict[str, Any]:
        """What status and report show, as JSON; serving/README.md says what becomes of each exchange in it."""
        busy_s = {name: await self._busy_s(name) for name in self._lane.sides}
        with self._lane.guard("quarantine"):
            await asyncio.to_thread(self._engines.quarantine.refresh)
        counts = self._lane.counts()  # from here on nothing awaits: the figures are of one moment
        totals = total(counts.values())
        verdicts = self._archive.verdicts(self._lane.sides, idle=totals["pending"] == 0)
        return {
            "phase": self._lane.phase().value,
            "reason": self._why_off(),
            "placement": self._config.placement,
            "champion": describe(self._config.champion)
            | {
                "ready": self._champion_is_up(),
                "steps": self._champion_steps(),
            },
            "challengers": [
                self._challenger(model)
                | {"busy_s": busy_s[model.name], "counts": counts[model.name], "verdict": verdicts[model.name]}
                for model in self._config.challengers
            ],
            "counts": totals,
            "verdict": overall(verdicts),
            "record": self._archive.status(),
            "lane": self._lane.status(),
            "meter": self._station.meter.status(),
            "version": __version__,
        }

    async def exchanges(self, any_id: str) -> list[Mapping[str, Any]]:
        """Everything recorded under one of an exchange's ids."""
        return await self._archive.find(any_id)

    async def feedback(self, given: Feedback) -> bool:
        """Keep it, and judge by its label wherever the id is known. Raises NotKept."""
        return await self._archive.feedback(given)

    def waiting(self) -> list[str]:
        """The ids for which there is feedback and no exchange yet."""
        return self._archive.waiting.ids()

    async def pause(self, actor: str) -> str:
        """The kill switch: it is off before this first awaits. Why that is not recorded (yet), empty where it is."""
        self._lane.pause()
        return await self._archive.note("pause", self._lane.offered(), actor=actor)

    async def resume(self, challenger: str | None, actor: str) -> str:
        """Shadow again, and lift the quarantine; of one challenger only where one is named.

        Who was in quarantine comes back when the replica starts the next time.

        Returns:
            As pause() does.

        Raises:
            KeyError: no challenger has that name.
        """
        if challenger is not None and challenger not in self._lane.sides:
            raise KeyError(challenger)
        lifted = await asyncio.to_thread(self._engines.quarantine.lift, challenger)
        if challenger is None:
            self._lane.resume()
        if lifted:
            log.warning("quarantine lifted: %s", ", ".join(lifted))
        detail = {"challenger": challenger, "lifted": lifted}
        return await self._archive.note("resume", self._lane.offered(), detail, actor=actor)

    async def promote(self, asked: Promotion, actor: str) -> dict[str, Any]:
        """Enter the decision for a challenger; its entry's detail. Nothing of this server changes.

        Raises:
            KeyError: no challenger has that name.
            Refused: its verdict is no GO and no reason was given, this server runs another configuration, or what
                earlier runs recorded is not judged yet.
            RecordError: the entry cannot be made durable.
        """
        if asked.challenger not in self._lane.sides:
            raise KeyError(asked.challenger)
        self._archive.check_whole(despite=asked.despite is not None)
        verdicts = self._archive.verdicts(self._lane.sides, idle=True)
        detail = promotion.decided(asked, verdicts[asked.challenger], self._identity)
        await self._archive.enter("promote", self._lane.offered(), detail, actor)
        return detail

    async def report(self) -> dict[str, Any]:
        """The same as JSON."""
        status, summaries = await self.report_parts()
        return {"status": status, "summaries": [asdict(one) for one in summaries]}

    async def report_parts(self) -> tuple[dict[str, Any], list[ChallengerSummary]]:
        """Status and the figures of each challenger: what the page and the table are made of."""
        status = await self.status()
        busy_s = {challenger["name"]: challenger["busy_s"] for challenger in status["challengers"]}
        return status, self._archive.summaries(busy_s)

    async def report_page(self) -> str:
        """The same as one HTML page."""
        status = await self.status()
        busy_s = {challenger["name"]: challenger["busy_s"] for challenger in status["challengers"]}
        return report_page(status, self._archive.summaries(busy_s), generated_unix_s=time.time())

    # inside

    async def _build_app(self) -> App:
        from understudy import openai_app
        from understudy.fork import Fork

        champion = self._config.champion
        adapter = champion.name if champion.lora else None
        traffic, says_logprobs = self._engines.traffic, champion.says_logprobs
        fork = Fork(self._engines.champion, champion.name, self._lane.offer, adapter, traffic, says_logprobs)
        vllm_app = await openai_app.build(fork, self._config)
        shadow_app = routes.build(self, self._config.auth.shadow_key)
        offer, guard = self._lane.offer, self._lane.guard
        return Front(vllm_app, shadow_app, self._station.app, offer, guard, keep_bodies=True)

    def _facts(self) -> dict[str, Any]:
        """What the metrics need of status, without asking anybody: it is put together every two seconds."""
        counts, known = self._lane.counts(), self._archive.recent_verdicts(self._lane.sides)
        return {
            "phase": self._lane.phase().value,
            "champion": describe(self._config.champion) | {"ready": self._champion_is_up()},
            "challengers": [
                self._challenger(model) | {"counts": counts[model.name], "verdict": known.get(model.name, {})}
                for model in self._config.challengers
            ],
            "record": self._archive.status(),
            "lane": self._lane.status(),
        }

    async def _busy_s(self, name: str) -> float:
        with self._lane.guard("busy_s"):
            return round(await self._lane.sides[name].engine.busy_s(), 3)
        return 0.0

    def _challenger(self, model: ModelSpec) -> dict[str, Any]:
        side = self._lane.sides[model.name]
        quarantined = self._engines.quarantine.why(model.name)
        health = side.engine.health()
        return describe(model) | {
            "ready": health.ready,
            "detail": LIFTED if health.reason == "quarantined" and quarantined is None else health.detail,
            "breaker": side.breaker.state,
            "last_fault": side.breaker.last_fault,
            "same_tokenizer": getattr(side.engine, "same_tokenizer", None),
            "steps": steps_of(side.engine),
            "scoring": getattr(side.engine, "scoring", None),
            "no_divergence": why_none(self._engines.floor, side.engine) if self._config.shadow.divergence else None,
            "weights": weights_of(side.engine),
            "quarantine": None if quarantined is None else asdict(quarantined),
            "draft": None if (draft := self._archive.drafts().get(model.name)) is None else asdict(draft),
        }

    def _champion_is_up(self) -> bool:
        return self._engines.champion is not None and not self._engines.champion_dead.is_set()

    def _champion_steps(self) -> dict[str, Any] | None:
        """Of its core; None in a replay, in which it has none."""
        if self._engines.champion is None:
            return None
        return asdict(self._engines.processes[0].steps(self._config.champion.name))

    def _why_off(self) -> str:
        """One sentence where nothing is being shadowed, and for each challenger that is not there."""
        if self._lane.paused:
            return "paused by an operator"
        if not self._config.challengers:
            return "no challenger is configured"
        if self._config.shadow.sample == 0:
            return "shadow.sample is 0"
        over = self._station.caps.over()
        if over is not None:
            return f"stopped by a cap, {over[0]}: {over[1]}"
        said = []
        for name, side in self._lane.sides.items():
            health = side.engine.health()
            if not health.ready:
                said.append(f"{name}: {health.detail}")
            elif side.breaker.state != "closed":
                said.append(f"{name}: stopped after repeated faults, the last one {side.breaker.last_fault}")
        return "; ".join(said)


def tool_parser(config: Config, engines: Engines) -> ParseTools | None:
    """vLLM's own parser of the tool calls that the client sees, where one is configured."""
    name = config.server.get("tool_call_parser")
    if not name:
        return None
    from understudy.engines.tool_calls import vllm_parser

    return vllm_parser(name, engines.tokenizer)


def describe(model: ModelSpec) -> dict[str, Any]:
    """What status says of a model."""
    return {"name": model.name, "model": model.model, "lora": model.lora}


def steps_of(engine: Engine) -> dict[str, Any] | None:
    """What its steps took, which in the shared placement is what the champion may have waited for."""
    steps = getattr(engine, "steps", None)
    return None if steps is None else asdict(steps())


def weights_of(engine: Engine) -> dict[str, Any] | None:
    """Whether it uses the champion's tensors, and the bytes that are shared and its own."""
    weights: Mapping[str, int] = getattr(engine, "weights", {})
    return {"kind": "shared" if weights["shared_bytes"] else "own", **weights} if weights else None
