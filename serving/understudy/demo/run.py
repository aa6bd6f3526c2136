"""``understudy demo``: real models, a real server, a real client, and the verdicts at the end.

What is a demo here is only the traffic: tickets instead of users, and their labels come back at once.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from understudy.demo.models import DemoModels, build
from understudy.demo.tickets import LABEL_PATTERN, Ticket, chat_messages, held_out_tickets
from understudy.launch import free_port, running
from understudy.report.fetch import fetch
from understudy.report.table import print_report

CONCURRENCY = 8
MAX_TOKENS = 64
SHADOW_TIMEOUT_S = 240.0
MIN_WIDTH = 100  # of the table, in columns


def run(models_folder: Path, *, num_tickets: int, port: int, out: Path) -> int:
    """The whole demo. Returns the exit code: 0 when every ticket was answered and every exchange accounted for."""
    console, started = Console(), time.monotonic()
    console.width = max(console.width, MIN_WIDTH)
    console.rule("1. demo models")
    models = build(models_folder, progress=console.print)
    console.print(models.table())
    console.rule("2. server")
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "replica-0", ignore_errors=True)  # an earlier demo's record would count into these verdicts
    with running(config(models, out), port=port or free_port(), quiet=True) as url:
        console.rule("3. tickets")
        tickets = held_out_tickets(num_tickets, seed=1)
        ids, seconds = send(url, tickets, console)
        console.print(f"{len(ids)} of {num_tickets} tickets answered in {seconds:.1f} s; their labels are fed back")
        feed_back(url, ids, tickets)
        status = wait_for_shadow(url, console)
        console.rule("4. verdicts")
        report = httpx.get(f"{url}/shadow/report", timeout=60).text
        print_report(*fetch(url), console)
    page = out / "report.html"
    page.write_text(report)
    console.print(f"report: {page.resolve()}")
    console.print(f"record: {out.resolve()}; demo took {time.monotonic() - started:.0f} s")
    return 0 if len(ids) == num_tickets and adds_up(status["counts"]) else 1


def config(models: DemoModels, out: Path) -> dict[str, Any]:
    """The demo's configuration: every challenger in the shared placement, judged by accuracy."""
    # Models of a million parameters: compiling four of them would take longer than all their answers.
    small = {"max_model_len": 1024, "kv_cache_memory_bytes": 256 * 2**20, "enforce_eager": True}
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    return {
        "champion": {"model": str(models.champion), "name": "triage", "engine_args": small},
        "challengers": [
            {"model": str(models.champion), "name": "lora", "lora": str(models.lora), "engine_args": small},
            {"model": str(models.int8), "name": "int8", "engine_args": small},
            {"model": str(models.worse), "name": "worse", "engine_args": small},
        ],
        "placement": "shared",
        "shadow": {"limits": {"max_pending": 4096, "max_concurrency": 16, "deadline_s": SHADOW_TIMEOUT_S}},
        "compare": {"label_pattern": LABEL_PATTERN},
        "record": {"url": str(out)},
        "gates": [
            {"metric": "accuracy", "pattern": LABEL_PATTERN, "margin": 0.05},
            {"metric": "missing", "margin": 0.05},
            {"metric": "agreement", "margin": 0.1, "advisory": True},
        ],
    }


def send(url: str, tickets: Sequence[Ticket], console: Console) -> tuple[dict[int, str], float]:
    """Send every ticket, every other one streaming. Returns the response ids by ticket, and the seconds it took."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    started = time.monotonic()
    ids: dict[int, str] = {}
    with progress(console) as bar, ThreadPoolExecutor(CONCURRENCY) as pool:
        task = bar.add_task("tickets answered", total=len(tickets))
        for index, response_id in enumerate(
            pool.map(lambda n: ask(client, tickets[n], n % 2 == 0), range(len(tickets)))
        ):
            ids[index] = response_id
            bar.advance(task)
    return ids, time.monotonic() - started


def ask(client: openai.OpenAI, ticket: Ticket, stream: bool) -> str:
    """One ticket to the champion; the id of its response."""
    messages: Any = chat_messages(ticket)
    if not stream:
        whole = client.chat.completions.create(model="triage", messages=messages, max_tokens=MAX_TOKENS, temperature=0)
        return whole.id
    response_id = ""
    for chunk in client.chat.completions.create(
        model="triage", messages=messages, max_tokens=MAX_TOKENS, temperature=0, stream=True
    ):
        response_id = chunk.id
    return response_id


def feed_back(url: str, ids: Mapping[int, str], tickets: Sequence[Ticket]) -> None:
    """The true label of every ticket, by the id of its response."""
    with httpx.Client(timeout=60) as client:
        for index, response_id in ids.items():
            body = {"request_id": response_id, "label": tickets[index].label}
            client.post(f"{url}/shadow/feedback", json=body).raise_for_status()


def wait_for_shadow(url: str, console: Console) -> dict[str, Any]:
    """Until nothing is pending, with progress. Returns the last status."""
    deadline_s = time.monotonic() + SHADOW_TIMEOUT_S
    with progress(console) as bar:
        task = bar.add_task("shadow exchanges", total=None)
        while True:
            status: dict[str, Any] = httpx.get(f"{url}/shadow/status", timeout=60).json()
            counts = status["counts"]
            bar.update(task, total=counts["sampled"], completed=counts["sampled"] - counts["pending"])
            if counts["pending"] == 0 or time.monotonic() > deadline_s:
                return status
            time.sleep(0.5)


def adds_up(counts: Mapping[str, Any]) -> bool:
    """Law 4, and nothing left to do."""
    ended = counts["compared"] + counts["expired"] + counts["cancelled"]
    ended += sum(counts["shed"].values()) + sum(counts["failed"].values())
    return bool(counts["sampled"] == ended and counts["sampled"] > 0 and counts["pending"] == 0)


def progress(console: Console) -> Progress:
    """A bar with counts and the time so far."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
