"""The meter with engines and devices that only count, and a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from tests.builders import Clock, Ear, Offer, answer, exchange, in_loop, observation, running, shadow_spec, turns

from understudy.config import Limits, Prices
from understudy.engines.fake import FakeEngine
from understudy.lane.guard import Guard
from understudy.meter.caps import Caps
from understudy.meter.exposition import EngineRegistry, Exposition, PrometheusSink, metrics_app
from understudy.meter.gaps import middle_s
from understudy.meter.meter import DRAFTED, NO_ENERGY_PRICE, ONE_PROCESS, Group, Meter
from understudy.meter.metrics import BY_NAME, METRICS, Labels, Metric, Metrics
from understudy.meter.nvml import NvmlSource
from understudy.meter.publish import ExchangeMetrics, publish_meter
from understudy.meter.reading import DeviceReading
from understudy.meter.sampler import Sampler
from understudy.meter.station import Heard
from understudy.meter.traffic import Finished, Kind, Traffic
from understudy.types import Comparison, DraftCounts, Ending, Exchange, Measured, Observation, State, Taken

from .fake_nvml import FakeNvml


@dataclass
class CountedEngine:
    name: str
    role: str
    pid: int = 1
    used_s: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)
    drafted: bool = False
    bytes: Mapping[str, Any] | None = field(default_factory=lambda: {"weights_bytes": 5})

    def busy_s(self) -> float:
        return self.used_s

    async def memory(self) -> Mapping[str, Any] | None:
        return self.bytes


class Device:
    """Draws 100 W, and 400 W more while told to be busy."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.joules = clock, 0.0

    def read(self) -> list[DeviceReading]:
        return [DeviceReading("gpu0", "x", self.clock(), self.joules, missing={"clock_hz": "Not Supported"})]

    def close(self) -> None: ...


@dataclass
class Bench:
    """Everything around a meter."""

    prices: Prices = field(default_factory=Prices)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.champion, self.challenger = CountedEngine("champ", "champion"), CountedEngine("rival", "challenger")
        self.device = Device(self.clock)
        self.sampler = Sampler(self.device)
        self.caps = Caps(self.limits, self.clock)
        group = Group([self.champion, self.challenger], ("gpu0",))
        self.meter = Meter([group], self.sampler, self.prices, self.caps, Guard(), self.clock)
        self.sampler.sample()
        self.meter.tick()

    def window(self, champion_s: float = 0.0, challenger_s: float = 0.0, seconds: float = 2.0) -> None:
        self.clock.advance(seconds)
        self.champion.used_s += champion_s
        self.challenger.used_s += challenger_s
        self.device.joules += 100 * seconds + 400 * (champion_s + challenger_s)
        self.sampler.sample()
        self.meter.tick()


def answered(traffic: Traffic, requests: int) -> None:
    sums = traffic.finished[Kind.ANSWER]
    sums.requests, sums.prompt_tokens, sums.generated_tokens = requests, 100 * requests, 10 * requests
    sums.prefill_s, sums.decode_s = 1.0, 3.0


def test_seconds_and_joules_go_to_who_was_stepped_and_the_rest_to_nobody() -> None:
    bench = Bench()
    bench.window()  # idle: now the idle power is known
    for _ in range(10):
        bench.window(champion_s=1.0, challenger_s=0.5)
    champion, rival = bench.meter.share("champ"), bench.meter.share("rival")
    assert (champion.device_s, rival.device_s) == pytest.approx((10.0, 5.0))
    assert (champion.energy_joules, rival.energy_joules) == pytest.approx((5000.0, 2500.0))
    assert bench.meter.idle().device_s == pytest.approx(2.0 + 10 * 0.5)
    assert bench.meter.idle().energy_joules == pytest.approx(200.0 + 10 * 50.0)


def test_an_engine_process_that_was_replaced_starts_again_at_nothing() -> None:
    bench = Bench()
    bench.window(champion_s=1.0)
    bench.champion.used_s = 0.25  # a new process
    bench.window()
    assert bench.meter.share("champ").device_s == pytest.approx(1.0)
    bench.window(champion_s=0.5)
    assert bench.meter.share("champ").device_s == pytest.approx(1.5)


def test_the_status_is_json_with_figures_for_both_and_words_for_what_is_not_known() -> None:
    bench = Bench(Prices(usd_per_device_hour=3.6))
    answered(bench.champion.traffic, 10)
    answered(bench.challenger.traffic, 5)
    bench.window(champion_s=1.0, challenger_s=0.5)
    status = json.loads(json.dumps(bench.meter.status()))
    assert status["models"]["champ"]["cost"]["usd"] == pytest.approx(0.001)
    assert "promoted" not in status["models"]["champ"]
    promoted = status["models"]["rival"]["promoted"]
    assert promoted["saved_device_fraction"] == pytest.approx(0.0)  # half the answers in half the time
    assert status["shadow"]["usd"] == pytest.approx(0.0005)
    assert status["shadow"]["device_share"] == pytest.approx(0.5 / 60)
    assert "gpu0: clock_hz: Not Supported" in status["cannot_say"]
    assert ONE_PROCESS in status["cannot_say"]
    assert "champ: its engine did not say what memory it holds" in status["cannot_say"]  # nobody has asked it


def test_a_replay_has_no_champion_and_so_nothing_to_be_promoted_over() -> None:
    bench = Bench()
    meter = Meter([Group([bench.challenger], ("gpu0",))], bench.sampler, Prices(), bench.caps, Guard(), bench.clock)
    status = meter.status()
    assert list(status["models"]) == ["rival"]
    assert status["models"]["rival"]["promoted"] is None


def test_nothing_is_projected_from_answers_that_the_champion_drafted() -> None:
    bench = Bench()
    answered(bench.champion.traffic, 10)
    answered(bench.challenger.traffic, 5)
    bench.window(champion_s=1.0, challenger_s=0.5)
    assert bench.meter.status()["models"]["rival"]["promoted"] is not None
    bench.challenger.drafted = True
    status = bench.meter.status()
    assert status["models"]["rival"]["promoted"] is None
    assert f"rival: {DRAFTED}" in status["cannot_say"]


@in_loop
async def test_it_asks_for_memory_once_before_it_ticks_and_ends_its_thread() -> None:
    bench = Bench()
    await bench.meter.start()
    assert bench.meter.memory == {"champ": {"weights_bytes": 5}, "rival": {"weights_bytes": 5}}
    await bench.meter.close()
    await bench.meter.close()


@in_loop
async def test_only_an_allocator_is_asked_again() -> None:
    bench = Bench()
    bench.champion.bytes = {"weights_bytes": 5, "allocator": {"peak_allocated_bytes": 7}}
    await bench.meter._ask_for_memory()
    bench.champion.bytes = {"weights_bytes": 5, "allocator": {"peak_allocated_bytes": 9}}
    bench.challenger.bytes = {"weights_bytes": 6}
    await bench.meter._ask_for_memory()
    assert bench.meter.memory["champ"]["allocator"]["peak_allocated_bytes"] == 9
    assert bench.meter.memory["rival"] == {"weights_bytes": 5}


# Devices whose counters are another's, and figures that nothing measures


def mig(*groups: tuple[str, ...], prices: Prices | None = None) -> tuple[Meter, float]:
    """A meter over the fixture's MIG instances after 2 s busy, and the joules that their GPU took."""
    library, clock = FakeNvml(), Clock()
    library._gpus[2]["energy_mj"] = [10_000] * sum(len(each) for each in groups) + [600_000]
    sampler = Sampler(NvmlSource(["2"], library=library, clock=clock))
    engines = [CountedEngine(f"m{number}", "challenger") for number in range(len(groups))]
    made = [Group([engine], devices) for engine, devices in zip(engines, groups, strict=True)]
    meter = Meter(made, sampler, prices or Prices(), Caps(Limits(), clock), Guard(), clock)
    sampler.sample()
    meter.tick()
    clock.advance(2.0)
    for engine in engines:
        engine.used_s += 2.0
    sampler.sample()
    meter.tick()
    return meter, 590.0


def test_two_mig_instances_of_one_gpu_in_a_group_have_its_joules_once() -> None:
    meter, joules = mig(("gpu2/mig0", "gpu2/mig2"))
    assert meter.share("m0").energy_joules == pytest.approx(joules)
    assert "share its counter" not in " ".join(meter.status()["cannot_say"])


def test_groups_on_instances_of_one_gpu_have_no_joules_and_the_status_says_why() -> None:
    meter, _ = mig(("gpu2/mig0",), ("gpu2/mig2",), prices=Prices(usd_per_kwh=0.36))
    assert [meter.share(name).energy_joules for name in ("m0", "m1")] == [None, None]
    assert meter.idle().energy_joules is None
    assert meter.usd("m0") is None
    assert [meter.share(name).device_s for name in ("m0", "m1")] == pytest.approx([2.0, 2.0])
    said = meter.status()["cannot_say"]
    assert "energy of gpu2: several engine processes share its counter, and nothing tells them apart" in said


def test_a_price_of_energy_that_nothing_measures_is_no_price_and_is_said() -> None:
    bench = Bench(Prices(usd_per_kwh=0.36))
    bench.device.joules = None  # type: ignore[assignment]
    bench.sampler.latest = {}
    bench.clock.advance(2.0)
    bench.champion.used_s += 1.0
    bench.meter.tick()
    sink = Remembers()
    publish_meter(bench.meter, Metrics([sink]))
    status = bench.meter.status()
    assert status["shadow"]["usd"] is status["shadow"]["usd_per_hour"] is None
    assert status["models"]["champ"]["cost"]["usd"] is None
    assert NO_ENERGY_PRICE in status["cannot_say"]
    assert "understudy_shadow_usd_per_hour" not in [name for name, _, _ in sink.seen]
    assert ("understudy_cost_usd_total", "champ") not in sink.counted


def test_a_throttle_reading_that_is_not_to_be_had_is_not_published() -> None:
    library = FakeNvml()
    library._gpus[1]["throttle"] = {"error": pynvml.NVML_ERROR_NOT_SUPPORTED}
    clock, sink = Clock(), Remembers()
    sampler = Sampler(NvmlSource(["0", "1"], library=library, clock=clock))
    meter = Meter([], sampler, Prices(), Caps(Limits(), clock), Guard(), clock)
    sampler.sample()
    publish_meter(meter, Metrics([sink]))
    told = {labels["device"]: value for name, value, labels in sink.seen if name == "understudy_device_throttled"}
    assert told == {"gpu0": 1.0}
    assert "gpu1: throttle_reasons: Not Supported" in meter.status()["cannot_say"]


# Caps, through the lane


@in_loop
async def test_the_lane_sheds_with_the_caps_name_and_goes_on_when_the_minute_has_moved() -> None:
    bench = Bench(limits=Limits(max_device_share=0.1))
    async with running(FakeEngine(), over_cap=bench.caps.over) as stage:
        stage.lane.offer(Offer(exchange("a")))
        await stage.lane.idle()
        bench.window(challenger_s=2.0)
        bench.window(challenger_s=2.0)
        bench.window(challenger_s=2.0)
        stage.lane.offer(Offer(exchange("b")))
        await stage.lane.idle()
        assert stage.counts()["shed"] == {"max_device_share": 1}
        for _ in range(30):
            bench.window()
        stage.lane.offer(Offer(exchange("c")))
        await stage.lane.idle()
        assert stage.counts()["compared"] == 2


@in_loop
async def test_a_cap_sheds_what_comes_and_what_waits_and_lets_what_runs_finish() -> None:
    over: list[tuple[str, str]] = []
    gate = asyncio.Event()
    engine = FakeEngine(gate=gate)
    spec = shadow_spec(max_concurrency=1)
    async with running(engine, spec=spec, over_cap=lambda: over[0] if over else None) as stage:
        for name in ("runs", "waits"):
            stage.lane.offer(Offer(exchange(name)))
        await turns(20)
        over.append(("max_usd_per_hour", "7 USD an hour, 6 is allowed"))
        stage.lane.offer(Offer(exchange("comes")))
        await turns(20)
        assert [(name, ending.reason) for name, _, ending in stage.ear.endings] == [("comes", "max_usd_per_hour")]
        gate.set()
        await stage.lane.idle()
        assert stage.counts()["compared"] == 1
        assert stage.counts()["shed"] == {"max_usd_per_hour": 2}


# Metrics


class Remembers:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.counted: dict[tuple[str, str], float] = {}
        self.seen: list[tuple[str, float, dict[str, str]]] = []

    def add(self, metric: Metric, amount: float, labels: Labels) -> None:
        key = metric.name, labels.get("model", "")
        self.counted[key] = self.counted.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, labels: Labels) -> None:
        self.seen.append((metric.name, value, dict(labels)))

    observe = set


def test_names_are_unique_and_say_their_unit() -> None:
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("understudy_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert metric.buckets == tuple(sorted(metric.buckets))
        if metric.unit in ("seconds", "bytes", "joules", "watts", "celsius", "hertz"):
            assert metric.unit in metric.name
        assert set(metric.labels) <= {"role", "model", "device", "state", "reason"}


def test_a_counter_follows_a_total_and_never_falls() -> None:
    sink = Remembers()
    metrics = Metrics([sink])
    for total in (3.0, 5.0, 5.0, 4.0, 6.0):
        metrics.count_to("understudy_answers_total", total, role="champion", model="m")
    metrics.count_to("understudy_answers_total", None, role="champion", model="n")
    assert sink.counted == {("understudy_answers_total", "m"): 6.0}


def test_a_name_that_is_not_in_the_table_is_an_error() -> None:
    with pytest.raises(KeyError, match="understudy_typo"):
        Metrics([Remembers()]).set("understudy_typo", 1)


def test_an_exchange_gives_one_observation_a_model() -> None:
    sink = Remembers()
    heard = ExchangeMetrics(Metrics([sink]))
    took = Measured(0.1, 0.2, 1.0, 3, 2.0, ((-30, 4), (-20, 1)))
    one = exchange("a", answer(1, 2, 3), measured=took)
    rival = observation(answer(1, 2), model="rival", measured=Measured(0.0, 0.5, 0.5))
    heard.accepted(one, ["rival"], {})
    heard.ended(one, "rival", Ending(State.COMPARED, None, None, rival, Comparison({"token_agreement": 0.5})))
    heard.ended(one, "rival", Ending(State.SHED, "budget"))
    values = [(name, round(value, 6), labels.get("model")) for name, value, labels in sink.seen]
    assert values.count(("understudy_ttft_seconds", 0.3, "champion")) == 1
    assert values.count(("understudy_ttft_seconds", 0.5, "rival")) == 1
    gaps = [value for name, value, _ in values if name == "understudy_stream_gap_seconds"]
    assert gaps == [round(middle_s(-20), 6)]  # p95 of the one stream
    assert ("understudy_decode_tokens_per_second", 2.0, "champion") in values
    assert ("understudy_token_agreement", 0.5, "rival") in values


def test_what_became_of_drafts_is_counted_for_each_challenger_that_compared() -> None:
    sink = Remembers()
    heard = ExchangeMetrics(Metrics([sink]))
    one = exchange("a", answer(1, 2, 3))
    compared = Comparison({"token_agreement": 0.5})
    for challenger, draft in (
        ("near", DraftCounts(proposed=30, accepted=20, lost=3, realigned=2)),
        ("near", DraftCounts(proposed=10, accepted=0, lost=1, realigned=0)),
        ("far", DraftCounts(proposed=1, accepted=0, lost=1, realigned=0)),
        ("plain", None),
    ):
        seen = replace(observation(answer(1, 2), model=challenger), draft=draft)
        heard.ended(one, challenger, Ending(State.COMPARED, None, None, seen, compared))
        heard.ended(one, challenger, Ending(State.FAILED, "engine_dead", None, seen))
    names = ("drafted_tokens", "accepted_draft_tokens", "lost_drafts", "realigned_drafts")
    counted = [tuple(sink.counted[f"understudy_{name}_total", model] for name in names) for model in ("near", "far")]
    assert counted == [(40, 20, 4, 2), (1, 0, 1, 0)]
    assert not any(model == "plain" for _, model in sink.counted)


def test_a_broken_metric_does_not_reach_the_record() -> None:
    class Broken:
        def accepted(self, *_: Any) -> None:
            raise RuntimeError("broken")

        ended = accepted

    ear, guard = Ear(), Guard()
    heard = Heard(ear, [Broken()], guard, lambda seen, _name: seen)
    heard.accepted(exchange("a"), ["rival"], {})
    heard.ended(exchange("a"), "rival", Ending(State.SHED, "budget"))
    assert guard.swallowed["metrics"] == 2
    assert len(ear.accepted_ids) == len(ear.endings) == 1


def test_whoever_hears_of_an_exchange_hears_what_it_took() -> None:
    class Both(Ear):
        def accepted(self, exchange: Exchange, *more: Any) -> None:
            super().accepted(exchange, *more)
            taken.append(exchange.champion.taken)

        def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
            super().ended(exchange, challenger, ending)
            taken.append(ending.challenger and ending.challenger.taken)

    def weighed(seen: Observation, name: str) -> Observation:
        if name == "heavy":
            raise RuntimeError("not to be weighed")
        return replace(seen, taken=Taken(device_s=len(name)))

    taken: list[Taken | None] = []
    guard = Guard()
    heard = Heard(Both(), [], guard, weighed)
    heard.accepted(exchange("a"), ["rival"], {})
    heard.ended(exchange("a"), "rival", Ending(State.COMPARED, challenger=observation(answer(1), model="rival")))
    heard.ended(exchange("a"), "rival", Ending(State.SHED, "budget"))
    heard.ended(exchange("a"), "heavy", Ending(State.COMPARED, challenger=observation(answer(1), model="heavy")))
    assert taken == [Taken(device_s=8), Taken(device_s=5), None, Taken()]
    assert guard.swallowed["meter"] == 1


def test_the_meters_figures_come_out_in_the_text_format() -> None:
    bench = Bench(Prices(usd_per_device_hour=3.6))
    sink = PrometheusSink()
    metrics = Metrics([sink])
    bench.champion.traffic.finished[Kind.ANSWER].requests = 3
    bench.window(champion_s=1.0, challenger_s=0.5)
    publish_meter(bench.meter, metrics)
    text = generate_latest(sink.registry).decode()
    assert 'understudy_device_seconds_total{model="champ",role="champion"} 1.0' in text
    assert 'understudy_cost_usd_total{model="rival",role="challenger"} 0.0005' in text
    assert 'understudy_answers_total{model="champ",role="champion"} 3.0' in text
    assert "understudy_meter_ok 1.0" in text
    assert "understudy_device_power_watts{" not in text  # nothing measures it


def test_the_peak_that_an_allocator_on_cuda_tells_is_published_and_no_other() -> None:
    bench, sink = Bench(), Remembers()
    bench.meter.memory = {"champ": {"allocator": {"peak_allocated_bytes": 9}}, "rival": {"allocator": None}}
    publish_meter(bench.meter, Metrics([sink]))
    told = {(name, labels["model"]): value for name, value, labels in sink.seen if "_peak_" in name}
    assert told == {("understudy_process_peak_allocated_bytes", "champ"): 9.0}


def engine_registry(role: str, model: str, tokens: float) -> EngineRegistry:
    registry = CollectorRegistry()
    counter = Counter("vllm:prompt_tokens", "Prompt tokens.", ["model_name"], registry=registry)
    counter.labels(model_name=model).inc(tokens)
    Gauge("process_something", "Not vLLM's.", registry=registry).set(7)
    return EngineRegistry(role, model, registry)


def test_engines_with_the_same_names_are_one_family_told_apart_by_role() -> None:
    engines = [engine_registry("champion", "a", 3), engine_registry("challenger", "b", 5)]
    exposition = Exposition(PrometheusSink().registry, engines)
    text = generate_latest(exposition).decode()  # type: ignore[arg-type]
    assert text.count("# TYPE vllm:prompt_tokens_total counter") == 1
    assert 'vllm:prompt_tokens_total{model="a",model_name="a",role="champion"} 3.0' in text
    assert 'vllm:prompt_tokens_total{model="b",model_name="b",role="challenger"} 5.0' in text
    assert text.count("\nprocess_something 7.0") == 1  # once, from the process's own registry
    assert list(text_string_to_metric_families(text))
    client = TestClient(metrics_app(exposition))
    assert client.get("/metrics").text == text
    openmetrics = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")
    only = client.get("/metrics", params={"name[]": "vllm:prompt_tokens_total"}).text
    assert "process_something" not in only
    assert only.count("vllm:prompt_tokens_total{") == 2


def test_traffic_kinds_are_all_there() -> None:
    assert set(Traffic().finished) == set(Kind)
    assert Traffic().finished[Kind.SCORE] == Finished()
