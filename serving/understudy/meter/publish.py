"""From what the lane tells and what the meter knows to the rows of metrics.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from understudy.meter.gaps import quantile_s
from understudy.meter.meter import Meter
from understudy.meter.metrics import Metrics
from understudy.meter.traffic import Kind
from understudy.types import DraftCounts, Ending, Exchange, Observation, State

VERDICTS = {"GO": 1, "NOT ENOUGH DATA": 0, "NO-GO": -1}


class ExchangeMetrics:
    """Hears of exchanges as the record keeper does (lane.Witnesses): one observation a model and exchange."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def accepted(self, exchange: Exchange, _challengers: Sequence[str], _offered: Mapping[str, int]) -> None:
        """The champion's times."""
        self._observe(exchange.champion, "champion")

    def ended(self, _exchange: Exchange, challenger: str, ending: Ending) -> None:
        """The challenger's, how far it agreed, and what became of its draft."""
        if ending.state is State.COMPARED and ending.challenger is not None and ending.challenger.answers:
            self._observe(ending.challenger, "challenger")
            agreement = ending.comparison.values.get("token_agreement") if ending.comparison else None
            self._metrics.observe("understudy_token_agreement", agreement, model=challenger)
            self._count(ending.challenger.draft, challenger)

    def _count(self, draft: DraftCounts | None, challenger: str) -> None:
        """What became of its draft; nothing where it generated plainly."""
        if draft is not None:
            self._metrics.count("understudy_drafted_tokens_total", draft.proposed, model=challenger)
            self._metrics.count("understudy_accepted_draft_tokens_total", draft.accepted, model=challenger)
            self._metrics.count("understudy_lost_drafts_total", draft.lost, model=challenger)
            self._metrics.count("understudy_realigned_drafts_total", draft.realigned, model=challenger)

    def _observe(self, seen: Observation, role: str) -> None:
        took, labels = seen.measured, {"role": role, "model": seen.model}
        for name, value in (
            ("understudy_queue_seconds", took.queue_s),
            ("understudy_prefill_seconds", took.prefill_s),
            ("understudy_ttft_seconds", took.ttft_s),
            ("understudy_decode_seconds", took.decode_s),
            ("understudy_decode_tokens_per_second", seen.decode_tokens_per_s),
            ("understudy_batch_size", took.batch_size),
            ("understudy_stream_gap_seconds", quantile_s(took.gaps, 0.95)),  # one, and not one for each token
        ):
            self._metrics.observe(name, value, **labels)


def publish_meter(meter: Meter, metrics: Metrics) -> None:
    """Everything that the meter counts."""
    for engine in meter.engines:
        labels = {"role": engine.role, "model": engine.name}
        answers, scores = engine.traffic.finished[Kind.ANSWER], engine.traffic.finished[Kind.SCORE]
        share, memory = meter.share(engine.name), meter.memory.get(engine.name, {})
        for name, total in (
            ("understudy_answers_total", answers.requests),
            ("understudy_scores_total", scores.requests),
            ("understudy_prompt_tokens_total", answers.prompt_tokens),
            ("understudy_cached_prompt_tokens_total", answers.cached_prompt_tokens),
            ("understudy_generated_tokens_total", answers.generated_tokens),
            ("understudy_device_seconds_total", share.device_s),
            ("understudy_energy_joules_total", share.energy_joules),
            ("understudy_cost_usd_total", meter.usd(engine.name)),
        ):
            metrics.count_to(name, total, **labels)
        for name, value in (
            ("understudy_weights_bytes", memory.get("weights_bytes")),
            ("understudy_shared_weights_bytes", memory.get("shared_weights_bytes")),
            ("understudy_adapter_bytes", memory.get("adapter_bytes")),
            ("understudy_kv_reserved_bytes", memory.get("kv_reserved_bytes")),
            ("understudy_kv_used_ratio", engine.traffic.kv_used_fraction),
            ("understudy_process_resident_bytes", meter.resident_bytes(engine)),
            ("understudy_process_peak_allocated_bytes", (memory.get("allocator") or {}).get("peak_allocated_bytes")),
        ):
            metrics.set(name, value, **labels)
    idle = meter.idle()
    metrics.count_to("understudy_idle_device_seconds_total", idle.device_s)
    metrics.count_to("understudy_idle_energy_joules_total", idle.energy_joules)
    metrics.set("understudy_shadow_device_ratio", meter.caps.rates()[0])
    metrics.set("understudy_shadow_usd_per_hour", meter.shadow_usd_per_hour())
    metrics.set("understudy_cap_reached", meter.caps.over() is not None)
    metrics.set("understudy_meter_ok", meter.device_fault is None)
    for device, reading in meter.devices.items():
        throttle = reading.throttle_reasons
        for name, value in (
            ("understudy_device_memory_used_bytes", reading.memory_used_bytes),
            ("understudy_device_memory_total_bytes", reading.memory_total_bytes),
            ("understudy_device_power_watts", reading.power_watts),
            ("understudy_device_utilization_ratio", reading.utilization_fraction),
            ("understudy_device_clock_hertz", reading.clock_hz),
            ("understudy_device_temperature_celsius", reading.temperature_celsius),
            ("understudy_device_throttled", None if throttle is None else bool(throttle)),
        ):
            metrics.set(name, value, device=device)


def publish_status(status: Mapping[str, Any], metrics: Metrics) -> None:
    """Everything that /shadow/status counts."""
    metrics.set("understudy_shadowing", status["phase"] == "shadowing")
    metrics.count_to("understudy_swallowed_errors_total", sum(status["lane"]["swallowed"].values()))
    metrics.set("understudy_recording", status["record"]["recording"])
    metrics.count_to("understudy_record_lost_total", status["record"].get("lost"))
    champion = status["champion"]
    metrics.set("understudy_ready", champion["ready"], role="champion", model=champion["name"])
    for one in status["challengers"]:
        name, counts = one["name"], one["counts"]
        metrics.set("understudy_ready", one["ready"], role="challenger", model=name)
        metrics.set("understudy_breaker_closed", one["breaker"] == "closed", model=name)
        metrics.set("understudy_verdict", VERDICTS.get(one["verdict"].get("verdict")), model=name)
        metrics.count_to("understudy_offered_total", counts["offered"], model=name)
        metrics.count_to("understudy_sampled_total", counts["sampled"], model=name)
        metrics.set("understudy_pending", counts["pending"], model=name)
        for state in ("compared", "expired", "cancelled"):
            metrics.count_to("understudy_ended_total", counts[state], model=name, state=state, reason="")
        for state in ("shed", "failed"):
            for reason, count in counts[state].items():
                metrics.count_to("understudy_ended_total", count, model=name, state=state, reason=reason)
