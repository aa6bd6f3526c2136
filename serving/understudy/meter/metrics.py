"""Every metric of ours, one row each. /metrics, Ray, the dashboard, the alerts and deploy/metrics.md are made from it.

Base units in the names (seconds, bytes, joules, ratios from 0 to 1), counters end in ``_total``. Labels are few: the
role and the name of a model, the device, and for exchanges their state and reason (words from a fixed list, or the
class of an error). vLLM's own metrics are beside them, with the same two labels (exposition.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["counter", "gauge", "histogram"]
Labels = Mapping[str, str]

MODEL = ("role", "model")
CHALLENGER = ("model",)
DEVICE = ("device",)
LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATIO = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
BATCH = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
RATE = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. ``buckets`` are upper bounds, for histograms."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: tuple[Metric, ...] = (
    # What happens to exchanges (law 4)
    Metric("understudy_shadowing", "gauge", "bool", "1 while exchanges are being shadowed, 0 while paused or off"),
    Metric("understudy_offered_total", "counter", "exchanges", "exchanges that reached the lane", CHALLENGER),
    Metric("understudy_sampled_total", "counter", "exchanges", "of these, chosen to be shadowed", CHALLENGER),
    Metric("understudy_pending", "gauge", "exchanges", "sampled, and not in a terminal state yet", CHALLENGER),
    Metric(
        "understudy_ended_total",
        "counter",
        "exchanges",
        "in a terminal state: compared, shed, failed, expired or cancelled, with the reason of shed and failed",
        ("model", "state", "reason"),
    ),
    Metric("understudy_swallowed_errors_total", "counter", "errors", "that the lane's guard kept from the champion"),
    # The models
    Metric("understudy_ready", "gauge", "bool", "1 while the model can take work", MODEL),
    Metric("understudy_breaker_closed", "gauge", "bool", "1 unless repeated faults stopped its shadowing", CHALLENGER),
    Metric("understudy_cap_reached", "gauge", "bool", "1 while a cap on device share or cost stops the lane"),
    Metric("understudy_verdict", "gauge", "verdict", "1 GO, 0 NOT ENOUGH DATA, -1 NO-GO", CHALLENGER),
    Metric(
        "understudy_token_agreement",
        "histogram",
        "ratio",
        "tokens on which a challenger's answer agrees with the champion's, by compared exchange",
        CHALLENGER,
        RATIO,
    ),
    # Latency: the engine's own times of sampled exchanges, without waiting in the lane or in HTTP
    Metric("understudy_queue_seconds", "histogram", "seconds", "in the engine's queue", MODEL, LATENCY_S),
    Metric(
        "understudy_prefill_seconds", "histogram", "seconds", "from the first step to the first token", MODEL, LATENCY_S
    ),
    Metric(
        "understudy_ttft_seconds", "histogram", "seconds", "to the first token: queue and prefill", MODEL, LATENCY_S
    ),
    Metric("understudy_decode_seconds", "histogram", "seconds", "from the first token to the last", MODEL, LATENCY_S),
    Metric(
        "understudy_stream_gap_seconds",
        "histogram",
        "seconds",
        "the p95 of the gaps of one streamed answer, measured at the fork (within 5%)",
        MODEL,
        LATENCY_S,
    ),
    Metric(
        "understudy_decode_tokens_per_second",
        "histogram",
        "tokens/s",
        "after its first token",
        MODEL,
        RATE,
    ),
    Metric("understudy_batch_size", "histogram", "requests", "mean batch during a request", MODEL, BATCH),
    # Traffic: every request of the engine, sampled or not
    Metric("understudy_answers_total", "counter", "requests", "finished generations", MODEL),
    Metric("understudy_scores_total", "counter", "requests", "finished scoring passes", MODEL),
    Metric("understudy_prompt_tokens_total", "counter", "tokens", "read for answers, those in the cache too", MODEL),
    Metric("understudy_cached_prompt_tokens_total", "counter", "tokens", "of these, found in the prefix cache", MODEL),
    Metric("understudy_generated_tokens_total", "counter", "tokens", "written in answers", MODEL),
    # The champion's answers as drafts of a challenger's own (compared exchanges)
    Metric("understudy_drafted_tokens_total", "counter", "tokens", "proposed, and verified by it", CHALLENGER),
    Metric("understudy_accepted_draft_tokens_total", "counter", "tokens", "of these, its own as well", CHALLENGER),
    Metric("understudy_lost_drafts_total", "counter", "times", "that it left its draft", CHALLENGER),
    Metric("understudy_realigned_drafts_total", "counter", "times", "that it was found in it again", CHALLENGER),
    # What it takes
    Metric("understudy_device_seconds_total", "counter", "seconds", "device time in which it was stepped", MODEL),
    Metric("understudy_energy_joules_total", "counter", "joules", "attributed by device time; idle is apart", MODEL),
    Metric("understudy_cost_usd_total", "counter", "USD", "device time and energy at the configured prices", MODEL),
    Metric("understudy_idle_device_seconds_total", "counter", "seconds", "device time in which no model was stepped"),
    Metric("understudy_idle_energy_joules_total", "counter", "joules", "of that time"),
    Metric("understudy_shadow_device_ratio", "gauge", "ratio", "share of its device, over the last minute"),
    Metric("understudy_shadow_usd_per_hour", "gauge", "USD/h", "what the shadow costs, over the last minute"),
    # Memory
    Metric("understudy_weights_bytes", "gauge", "bytes", "parameters and buffers of the model's own", MODEL),
    Metric("understudy_shared_weights_bytes", "gauge", "bytes", "parameters that are another model's memory", MODEL),
    Metric("understudy_adapter_bytes", "gauge", "bytes", "reserved for LoRA adapters", MODEL),
    Metric("understudy_kv_reserved_bytes", "gauge", "bytes", "KV cache, reserved at the start", MODEL),
    Metric("understudy_kv_used_ratio", "gauge", "ratio", "of it in use at the last step", MODEL),
    Metric("understudy_process_resident_bytes", "gauge", "bytes", "resident, of the engine process", MODEL),
    Metric(
        "understudy_process_peak_allocated_bytes",
        "gauge",
        "bytes",
        "the most that torch's allocator held on CUDA: weights, KV cache and activations of all models of the process",
        MODEL,
    ),
    # Devices
    Metric("understudy_device_memory_used_bytes", "gauge", "bytes", "whoever uses it", DEVICE),
    Metric("understudy_device_memory_total_bytes", "gauge", "bytes", "of the device", DEVICE),
    Metric("understudy_device_power_watts", "gauge", "watts", "as the device averages it", DEVICE),
    Metric("understudy_device_utilization_ratio", "gauge", "ratio", "of the time in which anything ran", DEVICE),
    Metric("understudy_device_clock_hertz", "gauge", "hertz", "of the multiprocessors", DEVICE),
    Metric("understudy_device_temperature_celsius", "gauge", "celsius", "of the chip", DEVICE),
    Metric("understudy_device_throttled", "gauge", "bool", "1 while it runs slower than it could", DEVICE),
    # Understudy itself
    Metric("understudy_recording", "gauge", "bool", "1 while the record is being written"),
    Metric("understudy_record_lost_total", "counter", "events", "that could not be recorded"),
    Metric("understudy_meter_ok", "gauge", "bool", "1 while the devices answer the meter"),
)
BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


class Sink(Protocol):
    """Where values go: prometheus_client (exposition.py), Ray (ray_metrics.py)."""

    def add(self, metric: Metric, amount: float, labels: Labels) -> None:
        """Count."""

    def set(self, metric: Metric, value: float, labels: Labels) -> None:
        """Set a gauge."""

    def observe(self, metric: Metric, value: float, labels: Labels) -> None:
        """Put a value into a histogram."""


class Metrics:
    """Values by name, to every sink. A name that is not in the table is a KeyError."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def set(self, name: str, value: float | None, **labels: str) -> None:
        """A gauge; None leaves it as it was, and unborn where it was not."""
        if value is not None:
            for sink in self._sinks:
                sink.set(BY_NAME[name], float(value), labels)

    def observe(self, name: str, value: float | None, **labels: str) -> None:
        """One value of a histogram; None is no value."""
        if value is not None:
            for sink in self._sinks:
                sink.observe(BY_NAME[name], value, labels)

    def count(self, name: str, amount: float, **labels: str) -> None:
        """More of a counter."""
        for sink in self._sinks:
            sink.add(BY_NAME[name], float(amount), labels)

    def count_to(self, name: str, total: float | None, **labels: str) -> None:
        """Bring a counter to a total that is counted elsewhere. One that has fallen stays where it was."""
        if total is None:
            return
        key = name, tuple(sorted(labels.items()))
        before = self._totals.get(key)
        if before is None or total > before:
            self._totals[key] = total
            for sink in self._sinks:
                sink.add(BY_NAME[name], total - (before or 0.0), labels)
