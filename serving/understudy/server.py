"""One replica from the inside: engines, fork, lane, record, judge and routes, put together. Knows no Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from understudy import __version__
from understudy.api import routes
from understudy.api.middleware import App, Front
from understudy.config import Config, ModelSpec, parse
from understudy.engines import placements
from understudy.engines.placements import Engines
from understudy.errors import EngineDead
from understudy.judge.verdict import Judge
from understudy.lane.lane import Lane
from understudy.lane.ledger import total
from understudy.record import Accepted, Control, Ended, Feedback, RecordKeeper, from_json
from understudy.report.page import report_page
from understudy.report.tally import Tallies
from understudy.types import Ending, Exchange, State

log = logging.getLogger("understudy")
VERDICT_MAX_AGE_S = 1.0


class Server:
    """Build one with ``start``; ``app`` is the ASGI app, ``close`` ends everything.

    It is what the lane tells of every exchange (lane.Witnesses), and what the routes ask (routes.Shadow).
    """

    app: App

    def __init__(self, config: Config, engines: Engines, keeper: RecordKeeper) -> None:
        self._config = config
        self._engines = engines
        self._keeper = keeper
        self._judge = Judge(config.gates)
        self._tallies = Tallies()
        self._verdicts: dict[str, dict[str, Any]] = {}
        self._verdicts_at_s = float("-inf")
        self._lane = Lane(
            engines.challengers,
            config.shadow,
            self,
            champion_load=engines.champion.get_num_unfinished_requests,
        )

    @staticmethod
    async def start(raw_config: Mapping[str, Any]) -> Server:
        """Everything up, the shadow on.

        Raises:
            ConfigError, EngineStartError: the champion cannot be served; everything was ended again.
        """
        config = parse(raw_config)
        engines = await placements.start(config)
        try:
            from understudy.engines.vllm_engine import describe_parameters

            keeper = await asyncio.to_thread(
                RecordKeeper.open, record_folder(config), describe_parameters=describe_parameters
            )
            self = Server(config, engines, keeper)
            await self._take_up_the_record()
            self.app = await self._build_app()
            self._lane.start()
            self._note("start")
        except BaseException:
            await engines.close()
            raise
        return self

    async def close(self) -> None:
        """Stop the lane, write what is left, end the engines. Idempotent."""
        await self._lane.close()
        self._note("stop")
        with self._lane.guard("record"):
            await asyncio.to_thread(self._keeper.close)
        await self._engines.close()

    def check_health(self) -> None:
        """Raises EngineDead when the champion can no longer answer."""
        if self._engines.champion_dead.is_set() or self._engines.champion.errored:
            raise EngineDead("the champion's engine is gone")

    # what the lane tells (steps 5, 8 and 9)

    def accepted(self, exchange: Exchange, challengers: Sequence[str], offered: Mapping[str, int]) -> None:
        """Step 5: make it durable; the keeper writes in a thread of its own."""
        self._keeper.append(Accepted(exchange, tuple(challengers), offered))

    def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
        """Steps 8 and 9: keep the ending, and let the judge see it."""
        self._keeper.append(Ended(exchange.exchange_id, challenger, ending, time.time()))
        self._judge.ended(exchange, challenger, ending)
        self._tallies.ended(exchange, challenger, ending)

    # what the routes ask

    async def status(self) -> dict[str, Any]:
        """The contract of DESIGN.md."""
        counts = self._lane.counts()
        verdicts = self._current_verdicts(idle=not any(each["pending"] for each in counts.values()))
        challengers = [
            await self._challenger_status(model, counts[model.name], verdicts[model.name])
            for model in self._config.challengers
        ]
        recording, record_detail = self._keeper.health()
        return {
            "phase": self._lane.phase().value,
            "reason": self._why_off(),
            "placement": self._config.placement,
            "champion": describe_model(self._config.champion) | {"ready": not self._engines.champion_dead.is_set()},
            "challengers": challengers,
            "counts": total(counts.values()),
            "verdict": overall(verdicts),
            "record": {"recording": recording, "detail": record_detail},
            "lane": self._lane.status(),
            "version": __version__,
        }

    async def exchanges(self, any_id: str) -> list[Mapping[str, Any]]:
        """Everything recorded under one of an exchange's ids."""
        with self._lane.guard("record"):
            await self._keeper.flush()
        return list(await asyncio.to_thread(self._keeper.find, any_id))

    async def feedback(self, any_id: str, label: str) -> bool:
        """Keep the label, and judge by it wherever the id is known."""
        self._keeper.append(Feedback(any_id, label, time.time()))
        with self._lane.guard("record"):
            await self._keeper.flush()
        found = await asyncio.to_thread(self._keeper.find, any_id)
        for exchange in found:
            self._label(exchange["exchange_id"], label)
        return bool(found)

    def pause(self) -> None:
        """The kill switch."""
        self._lane.pause()
        self._note("pause")

    def resume(self) -> None:
        """Shadow again."""
        self._lane.resume()
        self._note("resume")

    async def report(self) -> dict[str, Any]:
        """Status and the figures of each challenger: what the page and the table are made of."""
        status = await self.status()
        busy_s = {challenger["name"]: challenger["busy_s"] for challenger in status["challengers"]}
        return {"status": status, "summaries": [asdict(one) for one in self._tallies.summaries(busy_s)]}

    async def report_page(self) -> str:
        """The same as one HTML page."""
        status = await self.status()
        busy_s = {challenger["name"]: challenger["busy_s"] for challenger in status["challengers"]}
        return report_page(status, self._tallies.summaries(busy_s), generated_unix_s=time.time())

    # inside

    async def _build_app(self) -> App:
        from understudy import openai_app
        from understudy.fork import Fork

        champion = self._config.champion
        adapter = champion.name if champion.lora else None
        fork = Fork(self._engines.champion, champion.name, self._lane.offer, adapter)
        vllm_app = await openai_app.build(fork, self._config)
        other_tokenizers = any(not getattr(e, "same_tokenizer", True) for e in self._engines.challengers)
        shadow_app = routes.build(self, self._config.auth.shadow_key)
        return Front(vllm_app, shadow_app, self._lane.offer, self._lane.guard, keep_bodies=other_tokenizers)

    async def _take_up_the_record(self) -> None:
        """Counts and verdicts go on where the last run stopped; what it left unfinished ends as expired."""
        recovery = self._keeper.recovery
        for name, counts in recovery.counts.items():
            if name in self._lane.sides:
                self._lane.sides[name].ledger.restore(counts)
        expired = Ending(State.EXPIRED, None, "restart")
        for unfinished in recovery.unfinished:
            self._keeper.append(Ended(unfinished.exchange_id, unfinished.challenger, expired, time.time()))
            if unfinished.challenger in self._lane.sides:
                ledger = self._lane.sides[unfinished.challenger].ledger
                ledger.sample()
                ledger.end(expired)
        await self._keeper.flush()
        await asyncio.to_thread(self._replay)

    def _replay(self) -> None:
        for view in self._keeper.iterate():
            accepted = from_json({"v": 1, "kind": "accepted", "offered": {}, **view})
            assert isinstance(accepted, Accepted)
            for name, end in view["challengers"].items():
                if end["state"] == State.PENDING.value:
                    continue
                ended = from_json(
                    {
                        "v": 1,
                        "kind": "ended",
                        "exchange_id": accepted.exchange.exchange_id,
                        "challenger": name,
                    }
                    | end
                    | {"at_unix_s": end["ended_unix_s"]}
                )
                assert isinstance(ended, Ended)
                self._judge.ended(accepted.exchange, name, ended.ending)
                self._tallies.ended(accepted.exchange, name, ended.ending)
            for given in view["feedback"]:
                self._label(accepted.exchange.exchange_id, given["label"])
        self._current_verdicts(idle=True)  # the first after a long record takes its time, here in a thread

    def _label(self, exchange_id: str, label: str) -> None:
        self._judge.feedback(exchange_id, label)

    async def _challenger_status(
        self, model: ModelSpec, counts: Mapping[str, Any], verdict: Mapping[str, Any]
    ) -> dict[str, Any]:
        side = self._lane.sides[model.name]
        health = side.engine.health()
        busy_s = 0.0
        with self._lane.guard("busy_s"):
            busy_s = await side.engine.busy_s()
        return describe_model(model) | {
            "ready": health.ready,
            "detail": health.detail,
            "breaker": side.breaker.state,
            "last_fault": side.breaker.last_fault,
            "same_tokenizer": getattr(side.engine, "same_tokenizer", None),
            "busy_s": round(busy_s, 3),
            "counts": counts,
            "verdict": verdict,
        }

    def _current_verdicts(self, *, idle: bool) -> Mapping[str, dict[str, Any]]:
        """A verdict takes about 10 ms of this event loop: while there is traffic, one a second is enough."""
        now_s = time.monotonic()
        if idle or now_s - self._verdicts_at_s >= VERDICT_MAX_AGE_S:
            self._verdicts = {name: self._judge.verdict(name).as_dict() for name in self._lane.sides}
            self._verdicts_at_s = now_s
        return self._verdicts

    def _why_off(self) -> str:
        """One sentence where nothing is being shadowed."""
        if self._lane.paused:
            return "paused by an operator"
        if not self._config.challengers:
            return "no challenger is configured"
        if self._config.shadow.sample == 0:
            return "shadow.sample is 0"
        sides = self._lane.sides.values()
        down = [
            f"{side.engine.name}: {side.engine.health().detail}" for side in sides if not side.engine.health().ready
        ]
        return "; ".join(down)

    def _note(self, action: str) -> None:
        offered = {name: side.ledger.offered for name, side in self._lane.sides.items()}
        self._keeper.append(Control(action, time.time(), offered=offered))


def record_folder(config: Config) -> Any:
    """Each replica writes a folder of its own under record.url; a single one writes 'replica-0'."""
    replica = os.environ.get("UNDERSTUDY_REPLICA", "replica-0")
    return config.record.folder / replica


def describe_model(model: ModelSpec) -> dict[str, Any]:
    """What status says of a model."""
    return {"name": model.name, "model": model.model, "lora": model.lora}


def overall(verdicts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The only challenger's verdict; of several the least favourable word, with each beside it."""
    if len(verdicts) == 1:
        return dict(next(iter(verdicts.values())))
    words = {name: verdict["verdict"] for name, verdict in verdicts.items()}
    order = ("NO-GO", "NOT ENOUGH DATA", "GO")
    worst = next((word for word in order if word in words.values()), "NOT ENOUGH DATA")
    return {
        "verdict": worst,
        "by_challenger": words,
        "reason": "the least favourable of the challengers' verdicts",
    }
