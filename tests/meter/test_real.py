"""The meter on real engines: two small models in one engine process, behind Ray Serve, asked by the openai client."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.models import make
from tests.serving.process import Running, free_port, running, wait_for
from tests.test_dashboards import DEPLOY, alerts, vllm_names

from understudy.meter.metrics import METRICS

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(600)]

SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}
# Several KV blocks of 128 tokens, so that there is something for the prefix cache.
PROMPT = " ".join(["the quick brown fox jumps over the lazy dog and then once more over the other dog"] * 8)
ALLOWED_SHARE = 0.05


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("meter")
    models = make(folder)
    config = {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challengers": [{"model": models["llama"], "lora": models["lora"], "name": "tuned", "engine_args": SMALL}],
        "record": {"url": str(folder / "record")},
        # Answers that the champion drafted say nothing of a challenger's own cost: no projection from them.
        "shadow": {"speculative": "never", "limits": {"max_device_share": ALLOWED_SHARE}},
        "prices": {"usd_per_device_hour": 3.6},
    }
    with running(config, folder) as server:
        yield server


@pytest.fixture(scope="module")
def exchanges(server: Running) -> list[dict[str, Any]]:
    """A stream, the same prompt once more (cached then), and two answers at once that do not stream."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        arguments: dict[str, Any] = {"model": "champ", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        arguments["extra_body"] = {"min_tokens": 24}
        chunks = list(client.completions.create(**arguments, stream=True))
        ids = [chunks[0].id]
        server.settled()
        ids.append(client.completions.create(**arguments).id)
        ids.append(client.completions.create(**arguments | {"n": 2, "temperature": 0.5}).id)
    return [server.exchanges(one)[0] for one in ids]


def series(server: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus would read: (name, labels) -> value."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).raise_for_status().text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(found: dict[Any, float], name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    values = [value for (known, of), value in found.items() if known == name and labels.items() <= dict(of).items()]
    assert values, (name, labels)
    return sum(values)


def test_both_sides_of_an_exchange_have_the_engines_own_times(exchanges: list[dict[str, Any]]) -> None:
    for exchange in exchanges:
        champion, challenger = exchange["champion"], exchange["challengers"]["tuned"]["observation"]
        for side in (champion, challenger):
            took, timings = side["measured"], side["timings"]
            engine_s = took["queue_s"] + took["prefill_s"] + took["decode_s"]
            assert took["queue_s"] >= 0
            assert took["prefill_s"] > 0
            assert took["decode_s"] > 0
            assert engine_s <= timings["finished_s"] - timings["arrived_s"]  # waiting and HTTP are outside
            assert took["batch_size"] >= 0.5
            assert timings["arrived_s"] < timings["first_token_s"] < timings["finished_s"]


def test_only_a_stream_has_gaps_and_it_has_one_between_any_two_outputs(exchanges: list[dict[str, Any]]) -> None:
    streamed, *whole = exchanges
    gaps = streamed["champion"]["measured"]["gaps"]
    assert 10 <= sum(count for _, count in gaps) <= 23  # vLLM may hand over several tokens in one output
    for exchange in whole:
        assert exchange["champion"]["measured"]["gaps"] == []


def test_cache_hits_are_told(exchanges: list[dict[str, Any]]) -> None:
    first, second, _ = exchanges
    assert first["champion"]["measured"]["cached_prompt_tokens"] == 0
    assert second["champion"]["measured"]["cached_prompt_tokens"] > 0


def test_memory_by_model_with_what_cannot_be_told_apart(server: Running, exchanges: list[dict[str, Any]]) -> None:
    meter = server.status()["meter"]
    champion, tuned = meter["models"]["champ"]["memory"], meter["models"]["tuned"]["memory"]
    for memory in (champion, tuned):
        assert 60 * 2**20 < memory["kv_reserved_bytes"] <= 64 * 2**20
        assert memory["process_resident_bytes"] > memory["kv_reserved_bytes"]
        assert 0.0 <= memory["kv_used_fraction"] <= 1.0
        assert memory["allocator"] is None  # that is CUDA's
    assert 1e5 < champion["weights_bytes"] < 1e7
    assert champion["shared_weights_bytes"] == 0
    assert tuned["weights_bytes"] + tuned["shared_weights_bytes"] >= champion["weights_bytes"]
    assert champion["adapter_bytes"] == 0 < tuned["adapter_bytes"]
    assert any("cannot be told apart" in words for words in meter["cannot_say"])


def test_cost_by_model_and_idle_apart(server: Running, exchanges: list[dict[str, Any]]) -> None:
    meter = wait_for(lambda: priced(server))
    champion, tuned = meter["models"]["champ"]["cost"], meter["models"]["tuned"]["cost"]
    for cost in (champion, tuned):
        assert cost["usd"] == pytest.approx(cost["device_s"] / 1000)
        assert cost["usd_per_answer"] > 0
        assert cost["usd_per_million_output_tokens"] > 0
    assert meter["idle"]["device_s"] > champion["device_s"]
    promoted = meter["models"]["tuned"]["promoted"]
    assert "as many answers as the champion gives" in promoted["assumption"]
    assert promoted["usd_per_day"] > 0
    assert meter["shadow"]["usd"] == pytest.approx(tuned["usd"])


def priced(server: Running) -> dict[str, Any] | None:
    meter = server.status()["meter"]
    ready = all(meter["models"][name]["cost"]["usd_per_answer"] for name in ("champ", "tuned"))
    return meter if ready else None


def test_every_metric_of_the_table_is_exported(server: Running, exchanges: list[dict[str, Any]]) -> None:
    """But those of devices and joules that this machine does not have."""
    found = wait_for(lambda: published(server))
    names = {name for name, _ in found}
    nothing_measures = {
        "understudy_process_peak_allocated_bytes",
        "understudy_energy_joules_total",
        "understudy_device_power_watts",
    }
    nothing_measures |= {
        "understudy_device_clock_hertz",
        "understudy_device_temperature_celsius",
        "understudy_device_throttled",
    }
    nothing_measures |= {metric.name for metric in METRICS if "draft" in metric.name}  # it generates without
    for metric in METRICS:
        name = metric.name + ("_count" if metric.kind == "histogram" else "")
        assert name in names or metric.name in nothing_measures, metric.name
    assert value(found, "understudy_answers_total", role="champion", model="champ") == 4  # n=2 is two
    assert value(found, "understudy_scores_total", model="tuned") >= 4
    assert value(found, "understudy_ended_total", state="compared") == 3
    assert value(found, "understudy_ttft_seconds_count", role="challenger") == 3
    assert value(found, "understudy_stream_gap_seconds_count", role="champion") == 1  # one of the three was streamed


def published(server: Running) -> dict[Any, float] | None:
    found = series(server)
    done = [number for (name, _), number in found.items() if name == "understudy_ended_total"]
    return found if sum(done) >= 3 else None


def test_vllms_metrics_of_both_engines_are_apart(server: Running, exchanges: list[dict[str, Any]]) -> None:
    found = series(server)
    of_champion = value(found, "vllm:generation_tokens_total", role="champion", model="champ")
    of_tuned = value(found, "vllm:generation_tokens_total", role="challenger", model="tuned")
    assert of_champion == 24 * 4
    assert of_tuned > of_champion  # its answers, and a token for each scoring pass
    roles = {dict(labels).get("role") for name, labels in found if name.startswith("vllm:")}
    assert roles == {"champion", "challenger"}


def test_the_dashboards_vllm_metrics_are_vllms(server: Running, exchanges: list[dict[str, Any]]) -> None:
    names = {name for name, _ in series(server)}
    assert vllm_names()
    assert not {name for name in vllm_names() if name not in names}


def test_a_real_prometheus_scrapes_it_and_loads_the_rules(
    server: Running, exchanges: list[dict[str, Any]], tmp_path: Path
) -> None:
    """As shipped, but for the port and the interval."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not here (Debian: apt-get install prometheus)")
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={url}"], stdout=log, stderr=log)
    try:
        found = wait_for(lambda: query(url, 'understudy_answers_total{role="champion"}'), 30)
        assert found[0]["value"][1] == "4"
        assert query(url, 'up{job="understudy"}')[0]["value"][1] == "1"
        rules = httpx.get(f"http://{url}/api/v1/rules", timeout=10).json()["data"]["groups"][0]["rules"]
        assert {rule["name"] for rule in rules} == {rule["alert"] for rule in alerts()}
        assert all(rule["health"] in ("ok", "unknown") for rule in rules)
    finally:
        process.terminate()
        process.wait(30)


def query(url: str, expression: str) -> Any:
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(f"http://{url}/api/v1/query", params={"query": expression}, timeout=10)
        return answer.json()["data"]["result"] if answer.status_code == 200 else None
    return None


def test_a_cap_stops_the_lane_and_says_so(server: Running, exchanges: list[dict[str, Any]]) -> None:
    """Last: from here on this server's shadow has had its share of the minute."""

    def asked_and_shed() -> dict[str, Any] | None:
        body = {"model": "champ", "prompt": PROMPT, "max_tokens": 64, "min_tokens": 64}
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status()
        status = server.status()
        return status if status["counts"]["shed"].get("max_device_share") else None

    status = wait_for(asked_and_shed)
    assert f"{ALLOWED_SHARE} is allowed" in status["meter"]["shadow"]["stopped"]
    assert status["reason"].startswith("stopped by a cap, max_device_share")
    assert wait_for(lambda: value(series(server), "understudy_cap_reached")) == 1
