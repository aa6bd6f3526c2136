"""What does evidence cost? Scoring, and generating with the champion's answer as the draft, against plain generation.

    python -m benchmarks.serving.bench_shadow_cost [--full] [--repeats 4] [--models FOLDER]
    python -m benchmarks.serving.bench_shadow_cost --full --concurrency 8 --challenger lora --out FILE --beside

The second form measures a piece. With ``--beside`` it is put beside what the file of ``--out`` has of other cells and
challengers, so that a long grid can be measured in several runs.

The models are the demo's (about 1 M parameters, trained; built where they are not there yet): the champion itself,
its int8 quantisation, a LoRA adapter and the one that is really worse. The champion's answers are made first; then, for
each challenger and each cell (prompt tokens, output tokens, concurrency), the arms take turns:

    plain          the challenger generates
    speculative    the same requests, with the champion's answers as drafts
    plain again    A/A: its ratio to ``plain`` is the noise of the machine
    score          one pass over prompt and champion's answer, as the server does it (scoring.path says how)

Closed loop in this process, greedy, no end token, no prefix cache, and several rounds. What is measured ends when the
last request is taken in: until then as many are under way as the cell says, and who is done early makes room for the
next. What follows runs to its end and counts for nothing: with drafts requests end one by one, and a batch that empties
would be measured where one is claimed that is full. What became of the drafts is told of the requests that had ended
by then, over all repeats. The plain arms have an engine of their own that does not speculate; the other two share one,
as they do in the server. KV-token-seconds are tokens in the KV cache times how long they were there, for each token:
what a full cache costs others.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.common import finish, machine, parser, percentiles, ratio
from understudy.demo.models import DemoModels, build
from understudy.demo.tickets import chat_messages, train_tickets
from understudy.engines import placements, speculate

ARMS = ("plain", "speculative", "plain again", "score")
GOALS = {
    "speculative, same model": {"goal": 8, "stretch": 15},
    "speculative, int8": {"goal": 3, "stretch": 5},
    "score, concurrency 1": {"goal": 10, "stretch": 25},
    "score, concurrency 8": {"goal": 3, "stretch": 6},
}
PROMPTS, OUTPUTS, CONCURRENCY = (64, 512), (32, 256), (1, 8, 32)
FEW = ((64, 32, 1), (64, 256, 1), (512, 256, 1), (64, 256, 8), (512, 32, 8), (64, 256, 32))
CHALLENGERS = ("same", "int8", "lora", "worse")
ENGINE_ARGS = {
    "enable_prefix_caching": False,
    "max_model_len": 1024,
    "kv_cache_memory_bytes": 512 * 2**20,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One regime."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int

    @property
    def num_requests(self) -> int:
        """Enough for a measurable time, and rounds of the closed loop."""
        rounds = 5 if self.output_tokens < 100 else 3  # the last one is not measured
        return self.concurrency * rounds

    def is_one_of(
        self, prompts: Sequence[int] | None, outputs: Sequence[int] | None, concurrency: Sequence[int] | None
    ) -> bool:
        """Whether each of its numbers is among these; None is any."""
        asked = ((self.prompt_tokens, prompts), (self.output_tokens, outputs), (self.concurrency, concurrency))
        return all(among is None or number in among for number, among in asked)

    def __str__(self) -> str:
        return f"{self.prompt_tokens}/{self.output_tokens} x{self.concurrency}"


@dataclass(slots=True)
class Run:
    """One arm, once. Tokens, seconds and KV-token-seconds while the loop was full, and which requests ended in it."""

    seconds: float = 0.0
    tokens: int = 0
    kv_token_seconds: float = 0.0
    measured: tuple[str, ...] = ()
    outputs: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds_a_token(self) -> float:
        """Generated or scored."""
        return self.seconds / self.tokens

    def token_ids(self) -> list[list[int]]:
        """What was said, in the order of the requests."""
        return [list(self.outputs[name].outputs[0].token_ids) for name in sorted(self.outputs)]


@dataclass(frozen=True, slots=True)
class Challenger:
    """One model with two engines."""

    name: str
    plain: Engine
    speculative: Engine


class Engine:
    """One engine of this process."""

    def __init__(self, name: str, model: Path, adapter: Path | None, *, speculative: bool) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        from understudy.engines import scorer

        arguments = ENGINE_ARGS | {"model": str(model), "disable_log_stats": True, "seed": 0}
        arguments |= {"enforce_eager": not placements.has_cxx_compiler()}
        if adapter is not None:
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": placements.lora_rank(str(adapter))}
        if speculative:
            arguments |= speculate.speculative_args(arguments)
        self._lora = None if adapter is None else LoRARequest(name, 1, str(adapter))
        self._engine = LLM(**arguments).llm_engine
        core = self._engine.engine_core.engine_core
        speculate.attach(core)
        self.scoring = scorer.install(core) if speculative else None
        self._scheduler = core.scheduler
        self._held = 0
        schedule = self._scheduler.schedule

        def watched(*args: Any) -> Any:
            output = schedule(*args)
            self._held = sum(request.num_computed_tokens for request in self._scheduler.running)
            return output

        self._scheduler.schedule = watched

    def run(
        self, prompts: Sequence[list[int]], parameters: Sequence[Any], concurrency: int, tokens_each: int | None = None
    ) -> Run:
        """A closed loop over all requests; ``tokens_each`` is what one has scored when it ends, None: what it said."""
        waiting = [(f"{number:06}", *job) for number, job in enumerate(zip(prompts, parameters, strict=True))]
        waiting.reverse()
        run, in_flight, started = Run(), 0, time.perf_counter()
        while waiting or in_flight:
            while waiting and in_flight < concurrency:
                name, prompt, asked = waiting.pop()
                self._engine.add_request(name, {"prompt_token_ids": prompt}, asked, lora_request=self._lora)
                in_flight += 1
            if not waiting and not run.seconds:
                run.seconds = time.perf_counter() - started
                run.tokens = self._num_tokens(run, tokens_each)
                run.measured = tuple(run.outputs)
            before = time.perf_counter()
            for output in self._engine.step():
                if output.finished:
                    run.outputs[output.request_id] = output
                    in_flight -= 1
            if waiting:
                run.kv_token_seconds += self._held * (time.perf_counter() - before)
        return run

    def _num_tokens(self, run: Run, tokens_each: int | None) -> int:
        """Said by now, also by those who are still at it; or scored, by those who have ended."""
        if tokens_each is not None:
            return tokens_each * len(run.outputs)
        said = sum(len(output.outputs[0].token_ids) for output in run.outputs.values())
        return said + sum(int(request.num_output_tokens) for request in self._scheduler.running)


def main() -> None:
    """Every challenger in every cell; a table, and one JSON line at the end."""
    options = parser(__doc__)
    options.add_argument("--full", action="store_true", help="all 12 cells instead of 6")
    options.add_argument("--repeats", type=int, default=4)
    options.add_argument("--quick", action="store_true", help="one small cell, to see that it works")
    options.add_argument("--models", type=Path, default=Path("~/.cache/understudy/demo"))
    options.add_argument("--challenger", action="append", choices=CHALLENGERS, help="only this one; may be repeated")
    for name in ("prompt", "output", "concurrency"):
        options.add_argument(f"--{name}", action="append", type=int, help="only cells with this; may be repeated")
    options.add_argument("--beside", action="store_true", help="keep the other rows of the file of --out")
    given = options.parse_args()
    cells = [Cell(*each) for each in (product(PROMPTS, OUTPUTS, CONCURRENCY) if given.full else FEW)]
    if given.quick:
        cells, given.repeats = [Cell(64, 32, 1), Cell(64, 32, 8)], 2
    cells = [cell for cell in cells if cell.is_one_of(given.prompt, given.output, given.concurrency)]
    if not cells:
        options.error("no cell has all of these: see --full")
    regime = {"loop": "closed", "temperature": 0, "arms": ARMS, "engine_args": ENGINE_ARGS, "draft_tokens":
        speculate.NUM_DRAFT_TOKENS}  # fmt: skip
    others = rows_beside(given.out, regime) if given.beside else []
    os.environ.update({"VLLM_LOGGING_LEVEL": "ERROR"} | placements.environment(()))
    console = Console(stderr=True)
    models = build(given.models, progress=console.print)
    names = given.challenger or list(CHALLENGERS)
    challengers = start(models, names)
    champion = start(models, ["same"])[0] if challengers[0].name != "same" else challengers[0]
    rows = []
    with bar(console) as progress:
        task = progress.add_task("", total=len(cells) * len(challengers) * given.repeats)
        for cell in cells:
            prompts = make_prompts(models.champion, cell)
            plain = parameters_of(cell, [None] * len(prompts))
            answers = champion.plain.run(prompts, plain, cell.concurrency).token_ids()
            for challenger in challengers:
                progress.update(task, description=f"{challenger.name} {cell}")
                rows.append(measure(challenger, cell, prompts, answers, given.repeats, lambda: progress.advance(task)))
    console.print(table(rows))
    results = {"benchmark": "shadow_cost", "regime": regime, "machine": machine(), "goals": GOALS}
    merged = {place_of(row): row for row in others + rows}
    finish(results | {"cells": [merged[place] for place in sorted(merged)]}, given.out)


def rows_beside(out: Path | None, regime: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the file, before anything is measured.

    Raises:
        SystemExit: there are none, or they were measured under another regime or of another commit.
    """
    if out is None or not out.exists():
        raise SystemExit("--beside: --out is no file that has rows")
    before, commit = json.loads(out.read_text(encoding="utf-8")), machine()["commit"].rstrip("+")
    for what, theirs, mine in (
        ("regime", before.get("regime"), json.loads(json.dumps(regime))),
        ("commit", before["machine"]["commit"].rstrip("+"), commit),
    ):
        if theirs != mine:
            raise SystemExit(f"--beside: {out} was measured under the {what} {theirs}, not {mine}")
    rows: list[dict[str, Any]] = before["cells"]
    return rows


def place_of(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """Where a row stands in the grid."""
    return (
        row["concurrency"],
        row["prompt_tokens"],
        row["output_tokens"],
        CHALLENGERS.index(row["challenger"]),
    )


def start(models: DemoModels, names: Sequence[str]) -> list[Challenger]:
    """Their engines, one after the other."""
    from understudy.engines.host import prepare_cpu, skip_absent_head_adapter

    prepare_cpu()
    skip_absent_head_adapter()
    folders = {"same": models.champion, "int8": models.int8, "lora": models.champion, "worse": models.worse}
    made = []
    for name in names:
        adapter = models.lora if name == "lora" else None
        plain, speculative = (Engine(name, folders[name], adapter, speculative=which) for which in (False, True))
        made.append(Challenger(name, plain, speculative))
    return made


def make_prompts(champion: Path, cell: Cell) -> list[list[int]]:
    """Chats of the demo, cut at the front to the right length; each ends where the model answers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(champion)
    tickets = train_tickets(cell.num_requests * 12, seed=5, recent_fraction=0.3)
    prompts = []
    for number in range(cell.num_requests):
        some = tickets[12 * number : 12 * number + 12]
        texts = [
            tokenizer.apply_chat_template(chat_messages(ticket), add_generation_prompt=True, tokenize=False)
            for ticket in some
        ]
        prompts.append(tokenizer.encode("".join(texts), add_special_tokens=False)[-cell.prompt_tokens :])
    return prompts


def parameters_of(cell: Cell, drafts: Sequence[Sequence[int] | None]) -> list[Any]:
    """Greedy, to the last token."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return [
        speculate.with_draft(
            SamplingParams(
                temperature=0.0,
                max_tokens=cell.output_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
            () if draft is None else [draft],
        )
        for draft in drafts
    ]


def measure(
    challenger: Challenger,
    cell: Cell,
    prompts: list[list[int]],
    answers: list[list[int]],
    repeats: int,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """All arms of one challenger in one cell, in turn; the order turns round from repeat to repeat."""
    from understudy.engines import scoring

    pairs = list(zip(prompts, answers, strict=True))
    drafted = parameters_of(cell, answers)
    jobs: dict[str, tuple[list[list[int]], Sequence[Any]]] = {
        "plain": (prompts, parameters_of(cell, [None] * len(prompts))),
        "speculative": (prompts, drafted),
        "plain again": (prompts, parameters_of(cell, [None] * len(prompts))),
        "score": (
            [scoring.tokens_to_read(prompt, answer) for prompt, answer in pairs],
            [scoring.parameters(prompt, answer) for prompt, answer in pairs],
        ),
    }
    engines = {arm: challenger.plain if arm.startswith("plain") else challenger.speculative for arm in ARMS}
    for arm, (asked, parameters) in jobs.items():  # warm
        engines[arm].run(asked[:1], parameters[:1], 1)
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for repeat in range(repeats):
        for arm in ARMS if repeat % 2 == 0 else reversed(ARMS):
            scored = cell.output_tokens if arm == "score" else None
            runs[arm].append(engines[arm].run(*jobs[arm], cell.concurrency, scored))
        advance()
    return row(challenger, cell, runs, drafted, answers)


def row(
    challenger: Challenger, cell: Cell, runs: dict[str, list[Run]], drafted: Sequence[Any], answers: list[list[int]]
) -> dict[str, Any]:
    """One challenger in one cell, as figures."""
    seconds = {arm: [run.seconds_a_token for run in runs[arm]] for arm in ARMS}
    held = {arm: [run.kv_token_seconds / run.tokens for run in runs[arm]] for arm in ARMS}
    plain, speculative = runs["plain"][0].token_ids(), runs["speculative"][0].token_ids()
    counts = [
        speculate.counts(run.outputs[name].outputs, drafted[int(name)])
        for run in runs["speculative"]
        for name in run.measured
    ]
    proposed, accepted, lost, realigned = (
        sum(getattr(count, what) for count in counts if count is not None)
        for what in ("proposed", "accepted", "lost", "realigned")
    )
    return {
        "challenger": challenger.name,
        "scoring": challenger.speculative.scoring,
        "prompt_tokens": cell.prompt_tokens,
        "output_tokens": cell.output_tokens,
        "concurrency": cell.concurrency,
        "requests": cell.num_requests,
        "repeats": len(runs["plain"]),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "tokens_per_s": {arm: percentiles([1 / each for each in seconds[arm]]) for arm in ARMS},
        "plain / speculative": ratio(seconds["plain"], seconds["speculative"]),
        "plain / score": ratio(seconds["plain"], seconds["score"]),
        "plain / plain again": ratio(seconds["plain"], seconds["plain again"]),
        "kv_token_seconds_a_token": {arm: statistics.median(held[arm]) for arm in ARMS},
        "kv plain / speculative": ratio(held["plain"], held["speculative"]),
        "kv plain / score": ratio(held["plain"], held["score"]),
        "drafted": {"proposed": proposed, "accepted": accepted, "lost": lost, "realigned": realigned},
        "acceptance": accepted / proposed if proposed else None,
        "realignment": realigned / lost if lost else None,
        "same_as_champion": sum(a == b for a, b in zip(plain, answers, strict=True)) / len(plain),
        "speculative_is_plain": sum(a == b for a, b in zip(plain, speculative, strict=True)) / len(plain),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Medians with their interval; how much cheaper than plain generation."""
    made = Table(title="cheaper than plain generation by", title_justify="left")
    for heading in ("challenger", "prompt/output", "at once", "speculative", "score", "A/A", "kept", "found again"):
        made.add_column(heading, justify="left" if heading == "challenger" else "right")
    for one in rows:
        made.add_row(
            one["challenger"],
            f"{one['prompt_tokens']}/{one['output_tokens']}",
            str(one["concurrency"]),
            *(times(one[f"plain / {arm}"]) for arm in ("speculative", "score", "plain again")),
            *("-" if one[what] is None else f"{one[what]:.0%}" for what in ("acceptance", "realignment")),
        )
    return made


def times(ratios: dict[str, float]) -> str:
    """Such as 5.1x (4.8-5.3)."""
    return f"{ratios['median']:.2f}x ({ratios['low']:.2f}-{ratios['high']:.2f})"


def bar(console: Console) -> Progress:
    """With what is measured and how long it takes."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


if __name__ == "__main__":
    main()
