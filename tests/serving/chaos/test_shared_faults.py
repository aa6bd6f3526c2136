"""The fault drill in the shared placement: what breaks here is in the champion's own engine process, or in its API's.

One server, in the order of the tests: faults from which a challenger recovers first, then those that end one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.serving.chaos.drill import LIMITS, SMALL, Drill, drill, fill, small_disk
from tests.serving.models import make
from tests.serving.process import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    folder = tmp_path_factory.mktemp("chaos")
    models = make(folder / "models")
    config: dict[str, Any] = {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challengers": [
            {"model": models["qwen2"], "name": "rival", "engine_args": SMALL},
            {"model": models["other"], "name": "stranger", "engine_args": SMALL},
            {"model": models["qwen2"], "name": "scorer", "engine_args": SMALL},
        ],
        "shadow": {"limits": LIMITS},
        "record": {"url": str(folder / "record")},
    }
    with small_disk(folder / "record"), drill(config, folder) as here:
        yield here


def test_a_tokenizer_that_raises(here: Drill) -> None:
    with here.fault("tokenizer_raises"):
        here.until_more("stranger", "failed", "Injected")
        here.until_more("stranger", "shed", "breaker_open")
        here.until_more("rival", "compared")
    here.until_more("stranger", "compared")
    assert here.challenger("stranger")["breaker"] == "closed"


def test_a_comparator_that_raises(here: Drill) -> None:
    with here.fault("comparator_raises"):
        wait_for(lambda: here.server.status()["lane"]["swallowed"].get("compare agreement"))
        here.until_more("rival", "compared")
    here.until_more("rival", "compared")


def test_a_step_without_memory(here: Drill) -> None:
    """Once; a challenger that never has any is given up after a few steps, like one whose step raises."""
    with here.fault("step_out_of_memory", "rival"):
        here.until_more("rival", "failed", "out_of_memory")
    here.until_more("rival", "compared")


def test_a_challenger_that_is_a_hundred_times_slower(here: Drill) -> None:
    with here.fault("step_slow", "rival"):
        here.audience.go_on(here.audience.mark())
    here.until_more("rival", "compared")


def test_a_model_whose_layers_give_no_numbers(here: Drill) -> None:
    with here.fault("model_nan", "rival"):
        here.until_more("rival", "failed", "not_finite")
    here.until_more("rival", "compared")


def test_metrics_that_raise(here: Drill) -> None:
    def scrape() -> int:
        return httpx.get(f"{here.server.url}/metrics", timeout=30).status_code

    assert scrape() == 200
    with here.fault("metrics_raise"):
        wait_for(lambda: here.server.status()["lane"]["swallowed"].get("metrics"))
        assert scrape() == 500
        here.until_more("rival", "compared")
    assert scrape() == 200


@pytest.mark.parametrize("fault", ["disk_full", "disk_read_only"])
def test_a_disk_that_takes_nothing(here: Drill, fault: str) -> None:
    with here.fault(fault):
        wait_for(lambda: not here.server.status()["record"]["recording"])
        assert "recording is off" in here.server.status()["record"]["detail"]
        here.until_more("rival", "compared")
    wait_for(lambda: here.server.status()["record"]["recording"])
    assert here.server.status()["record"]["lost"] == 0


def test_a_disk_that_is_full(here: Drill) -> None:
    """The real thing, with everything that writes there, and not only the log."""
    if not here.record.is_mount():
        pytest.skip("no right to mount a small disk here: skipped")
    filler, since = here.record / "filler", here.audience.mark()
    here.look()
    fill(filler)
    try:
        wait_for(lambda: not here.server.status()["record"]["recording"])
        assert "No space left" in here.server.status()["record"]["detail"]
        here.until_more("rival", "compared")
        here.audience.go_on(since)
    finally:
        filler.unlink()
    wait_for(lambda: here.server.status()["record"]["recording"])
    assert here.server.status()["record"]["lost"] == 0
    here.audience.go_on(here.audience.mark(), 2)


def test_a_record_writer_that_raises(here: Drill) -> None:
    with here.fault("record_raises"):
        wait_for(lambda: here.server.status()["record"]["lost"])
        here.until_more("rival", "compared")
    wait_for(lambda: here.server.status()["record"]["recording"])


def test_a_score_that_raises(here: Drill) -> None:
    with here.fault("score_raises", "scorer"):
        wait_for(lambda: not here.challenger("scorer")["ready"])
        here.until_more("scorer", "shed", "challenger_not_ready")
    assert "a score that raises" in here.challenger("scorer")["detail"]
    here.until_more("rival", "compared")


def test_a_step_that_raises(here: Drill) -> None:
    with here.fault("step_raises", "rival"):
        wait_for(lambda: not here.challenger("rival")["ready"])
        here.until_more("rival", "shed", "challenger_not_ready")
    assert "a step that raises" in here.challenger("rival")["detail"]
    here.until_more("stranger", "compared")
