"""Writes grafana.json (the dashboard) and metrics.md (the list of our metrics). To be run after a change of either.

    .venv/bin/python deploy/dashboard.py

Both are made from the table in serving/understudy/meter/metrics.py; tests/test_dashboards.py fails where they are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from understudy.meter.metrics import METRICS

HERE = Path(__file__).parent
WIDTH, HEIGHT = 8, 7  # of a panel; a row has 24 columns
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    """One graph. ``queries`` are PromQL with the legend of their series; ``unit`` is Grafana's word."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def quantiles(name: str) -> tuple[tuple[str, str], ...]:
    """p50 and p95 of a histogram, by role and model."""
    return tuple(
        (
            f"histogram_quantile({fraction}, sum by (le, role, model) (rate({name}_bucket[$__rate_interval])))",
            f"{{{{role}}}} {{{{model}}}} p{fraction * 100:.0f}",
        )
        for fraction in (0.5, 0.95)
    )


def ratio(over: str, under: str, by: str = "role, model", legend: str = "{{role}} {{model}}") -> tuple[tuple[str, str]]:
    """One counter for each of another."""
    return (
        (f"sum by ({by}) (rate({over}[$__rate_interval])) / sum by ({by}) (rate({under}[$__rate_interval]))", legend),
    )


def rate(name: str, by: str = "role, model", legend: str = "{{role}} {{model}}") -> tuple[tuple[str, str], ...]:
    """A counter, by the second."""
    return ((f"sum by ({by}) (rate({name}[$__rate_interval]))", legend),)


BOTH = "{{role}} {{model}}"
ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel("Verdict (1 GO, -1 NO-GO)", "short", (("understudy_verdict", "{{model}}"),)),
        Panel(
            "Up",
            "short",
            (
                ("understudy_ready", BOTH + " ready"),
                ("understudy_shadowing", "shadowing"),
                ("understudy_recording", "recording"),
                ("understudy_breaker_closed", "{{model}} breaker closed"),
                ("understudy_meter_ok", "meter"),
            ),
        ),
        Panel(
            "Shadow: share of its device, and whether a cap stops it",
            "percentunit",
            (("understudy_shadow_device_ratio", "share"), ("understudy_cap_reached", "stopped")),
        ),
    ),
    "Exchanges": (
        Panel(
            "Sampled and offered",
            "reqps",
            (
                *rate("understudy_offered_total", "model", "{{model}} offered"),
                *rate("understudy_sampled_total", "model", "{{model}} sampled"),
            ),
        ),
        Panel("How they ended", "reqps", rate("understudy_ended_total", "state, reason", "{{state}} {{reason}}")),
        Panel("Waiting or under way", "short", (("understudy_pending", "{{model}}"),)),
        Panel(
            "Token agreement",
            "percentunit",
            ratio("understudy_token_agreement_sum", "understudy_token_agreement_count", "model", "{{model}} mean"),
        ),
        Panel(
            "Drafts: tokens kept, and how often it found its way back",
            "percentunit",
            (
                *ratio(
                    "understudy_accepted_draft_tokens_total",
                    "understudy_drafted_tokens_total",
                    "model",
                    "{{model}} kept",
                ),
                *ratio("understudy_realigned_drafts_total", "understudy_lost_drafts_total", "model", "{{model}} found"),
            ),
        ),
        Panel(
            "Errors kept from the champion, events lost by the record",
            "short",
            (
                ("increase(understudy_swallowed_errors_total[$__rate_interval])", "swallowed"),
                ("increase(understudy_record_lost_total[$__rate_interval])", "lost"),
            ),
        ),
    ),
    "Latency inside the engines (sampled exchanges)": (
        Panel("Time to first token", "s", quantiles("understudy_ttft_seconds")),
        Panel("Queue", "s", quantiles("understudy_queue_seconds")),
        Panel("Prefill", "s", quantiles("understudy_prefill_seconds")),
        Panel("Decode", "s", quantiles("understudy_decode_seconds")),
        Panel("p95 gap of a stream, at the fork", "s", quantiles("understudy_stream_gap_seconds")),
        Panel("Tokens a second of one request", "short", quantiles("understudy_decode_tokens_per_second")),
        Panel("Batch size: to compare like with like", "short", quantiles("understudy_batch_size")),
        Panel(
            "Prompt tokens found in the prefix cache",
            "percentunit",
            ratio("understudy_cached_prompt_tokens_total", "understudy_prompt_tokens_total"),
        ),
    ),
    "Traffic": (
        Panel(
            "Requests",
            "reqps",
            (
                *rate("understudy_answers_total", legend=BOTH + " answers"),
                *rate("understudy_scores_total", legend=BOTH + " scores"),
            ),
        ),
        Panel("Generated tokens", "short", rate("understudy_generated_tokens_total")),
        Panel("Prompt tokens", "short", rate("understudy_prompt_tokens_total")),
    ),
    "What it takes": (
        Panel(
            "Device seconds a second",
            "percentunit",
            (
                *rate("understudy_device_seconds_total"),
                ("rate(understudy_idle_device_seconds_total[$__rate_interval])", "idle"),
            ),
        ),
        Panel(
            "Power, attributed",
            "watt",
            (
                *rate("understudy_energy_joules_total"),
                ("rate(understudy_idle_energy_joules_total[$__rate_interval])", "idle"),
            ),
        ),
        Panel(
            "US dollars an hour",
            "currencyUSD",
            (
                ("3600 * sum by (role, model) (rate(understudy_cost_usd_total[$__rate_interval]))", BOTH),
                ("understudy_shadow_usd_per_hour", "the shadow, last minute"),
            ),
        ),
        Panel(
            "Device seconds an answer",
            "s",
            ratio("understudy_device_seconds_total", "understudy_answers_total"),
        ),
    ),
    "Memory": (
        Panel(
            "Of the models",
            "bytes",
            (
                ("understudy_weights_bytes", BOTH + " weights"),
                ("understudy_shared_weights_bytes", BOTH + " shared weights"),
                ("understudy_adapter_bytes", BOTH + " adapters"),
                ("understudy_kv_reserved_bytes", BOTH + " KV cache"),
            ),
        ),
        Panel("KV cache in use", "percentunit", (("understudy_kv_used_ratio", BOTH),)),
        Panel("Resident, by engine process", "bytes", (("understudy_process_resident_bytes", BOTH),)),
        Panel(
            "Peak allocated on CUDA, by engine process", "bytes", (("understudy_process_peak_allocated_bytes", BOTH),)
        ),
    ),
    "Devices": (
        Panel(
            "Memory",
            "bytes",
            (
                ("understudy_device_memory_used_bytes", "{{device}} used"),
                ("understudy_device_memory_total_bytes", "{{device}} total"),
            ),
        ),
        Panel("Power", "watt", (("understudy_device_power_watts", "{{device}}"),)),
        Panel("Utilisation", "percentunit", (("understudy_device_utilization_ratio", "{{device}}"),)),
        Panel("Temperature", "celsius", (("understudy_device_temperature_celsius", "{{device}}"),)),
        Panel("Clock", "hertz", (("understudy_device_clock_hertz", "{{device}}"),)),
        Panel("Throttled", "short", (("understudy_device_throttled", "{{device}}"),)),
    ),
    "vLLM's own, by role": (
        Panel(
            "Running and waiting",
            "short",
            (
                ("vllm:num_requests_running", BOTH + " running"),
                ("vllm:num_requests_waiting", BOTH + " waiting"),
            ),
        ),
        Panel("Time to first token, every request", "s", quantiles("vllm:time_to_first_token_seconds")),
        Panel("Inter-token latency, every request", "s", quantiles("vllm:inter_token_latency_seconds")),
        Panel("End to end, every request", "s", quantiles("vllm:e2e_request_latency_seconds")),
        Panel("Preemptions", "short", rate("vllm:num_preemptions_total")),
        Panel("KV cache", "percentunit", (("vllm:kv_cache_usage_perc", BOTH),)),
    ),
}


def dashboard() -> dict[str, Any]:
    """Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(_panel(len(panels), "row", title, 0, y, 24, 1) | {"collapsed": False, "panels": []})
        y += 1
        for number, panel in enumerate(row):
            x, line = number % 3, number // 3
            panels.append(_graph(len(panels), panel, x * WIDTH, y + line * HEIGHT))
        y += HEIGHT * ((len(row) + 2) // 3)
    return {
        "title": "Understudy",
        "uid": "understudy",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


def _panel(number: int, kind: str, title: str, x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {"id": number + 1, "type": kind, "title": title, "gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _graph(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    targets = [
        {"refId": "ABCDEFGH"[index], "expr": expression, "legendFormat": legend, "datasource": DATASOURCE}
        for index, (expression, legend) in enumerate(panel.queries)
    ]
    return _panel(number, "timeseries", panel.title, x, y, WIDTH, HEIGHT) | {
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
    }


def grafana() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=1) + "\n"


def metrics() -> str:
    """The list, as Markdown."""
    lines = [
        "# Metrics",
        "",
        "Written by dashboard.py from understudy/meter/metrics.py. vLLM's own (`vllm:...`) are at /metrics too,",
        "with the labels `role` and `model` added to vLLM's. In Ray's metrics (a cluster's, `serve run`) ours have the",
        "prefix `ray_` and the tag `replica`. Latencies are the engine's own times of exchanges that were sampled;",
        "vLLM's are of every request.",
        "",
        "| name | type | unit | labels | meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{one.name}` | {one.kind} | {one.unit} | {', '.join(one.labels)} | {one.meaning} |" for one in METRICS
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "grafana.json").write_text(grafana(), encoding="utf-8")
    (HERE / "metrics.md").write_text(metrics(), encoding="utf-8")
