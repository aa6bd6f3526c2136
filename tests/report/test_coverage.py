"""Whose exchanges were compared: by prompt length, tool use and tenant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from itertools import count
from typing import Any

import pytest
from rich.console import Console
from tests.builders import answer, exchange, observation

from understudy.report import coverage as coverage_module
from understudy.report.coverage import (
    MAX_NEWEST,
    MAX_TENANTS,
    MAX_TENANTS_SHOWN,
    OTHERS,
    Coverage,
    coverage_figures,
    tools_group,
)
from understudy.report.summary import ChallengerSummary
from understudy.report.table import print_report
from understudy.report.tally import Tallies
from understudy.types import Comparison, Ending, Exchange, Outcome, RequestFacts, State, unseen

COMPARED = Ending(State.COMPARED, challenger=observation(answer(1)), comparison=Comparison({}))
SHED = Ending(State.SHED, "queue_full")
NUMBERS = count()


def asked(num_tokens: int, tenant: str = "", **body: object) -> Exchange:
    tags = {"tenant": tenant} if tenant else {}
    facts = RequestFacts(tags=tags, body=json.dumps(body).encode())
    return exchange(f"x{next(NUMBERS)}", facts=facts, prompt_token_ids=tuple(range(num_tokens)))


def coverage(*ended: tuple[Exchange, Ending]) -> Sequence[Coverage]:
    tallies = Tallies()
    for one, ending in ended:
        tallies.ended(one, "a", ending)
    (summary,) = tallies.summaries({"a": None})
    return summary.coverage


def test_long_prompts_tools_and_a_tenant_that_were_shed_show() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = coverage(
        (asked(256, "one"), COMPARED),
        (asked(257, "one"), COMPARED),
        (asked(257, "two", tools=tools), SHED),
        (asked(20_000, "two"), Ending(State.EXPIRED)),
        (asked(20_000), Ending(State.FAILED, "engine_dead")),
    )
    assert set(found) == {
        Coverage("prompt", "up to 256 tokens", 1, 1),
        Coverage("prompt", "up to 1,024 tokens", 2, 1),
        Coverage("prompt", "over 16,384 tokens", 2, 0),
        Coverage("tools", "without", 4, 2),
        Coverage("tools", "with", 1, 0),
        Coverage("tenant", "one", 2, 2),
        Coverage("tenant", "two", 2, 0),
        Coverage("tenant", "not named", 1, 0),
    }
    assert [(row.name, row.challenger, row.note) for row in coverage_figures(found)] == [
        ("compared, prompt over 16,384 tokens", "0.0%", "of 2 exchanges"),
        ("compared, prompt up to 1,024 tokens", "50.0%", "of 2 exchanges"),
        ("compared, prompt up to 256 tokens", "100.0%", "of 1 exchanges"),
        ("compared, tools with", "0.0%", "of 1 exchanges"),
        ("compared, tools without", "50.0%", "of 4 exchanges"),
        ("compared, tenant not named", "0.0%", "of 1 exchanges"),
        ("compared, tenant two", "0.0%", "of 2 exchanges"),
        ("compared, tenant one", "100.0%", "of 2 exchanges"),
    ]


def test_what_the_challenger_did_not_owe_is_no_bias() -> None:
    left = exchange(outcome=Outcome.CANCELLED)
    foreign = Ending(State.SHED, "other_model")
    assert coverage((left, Ending(State.CANCELLED)), (exchange(), foreign)) == ()


def test_where_all_was_compared_there_is_nothing_to_say() -> None:
    assert coverage_figures(coverage((asked(1), COMPARED), (asked(9000), COMPARED))) == ()


def test_the_only_tenant_that_names_itself_shows_beside_the_rest() -> None:
    found = coverage((asked(1, "batch"), SHED), (asked(1), COMPARED))
    assert ("compared, tenant batch", "0.0%") in [(row.name, row.challenger) for row in coverage_figures(found)]


def test_a_tenant_cannot_control_the_terminal() -> None:
    found = coverage((asked(1, "evil\x1b[2J"), SHED), (asked(1), COMPARED))
    console = Console(file=StringIO(), width=100)
    print_report({"challengers": [{"name": "a"}]}, [ChallengerSummary("a", coverage=tuple(found))], console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "evil" in said
    assert "\x1b" not in said


def test_what_was_not_kept_has_a_group_of_its_own() -> None:
    found = coverage((unseen("x", 1.0), Ending(State.SHED, "inbox_full")), (asked(1), COMPARED))
    assert Coverage("prompt", "not known", 1, 0) in found
    assert Coverage("tools", "not known", 1, 0) in found


def test_an_exchange_is_looked_at_once_for_all_challengers(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    monkeypatch.setattr(coverage_module, "tools_group", lambda facts: looked.append(facts) or "without")
    tallies, exchanges = Tallies(), [asked(1) for _ in range(2 * MAX_NEWEST)]
    for first in range(0, len(exchanges), 16):  # the challengers' work overlaps
        for name in "abc":
            for one in exchanges[first : first + 16]:
                tallies.ended(one, name, COMPARED)
    assert len(looked) == len(exchanges)
    assert [len(one.coverage) for one in tallies.summaries(dict.fromkeys("abc"))] == [3, 3, 3]
    assert len(tallies._groups._newest) == MAX_NEWEST


@pytest.mark.parametrize(
    ("body", "group"),
    [
        (b'{"messages": [{"content": "say \\"tools\\": [1]"}]}', "without"),
        (b'{"metadata": {"tools": "x"}}', "without"),
        (b'{"tools": []}', "without"),
        (b'{"tools": null, "functions": [{"name": "f"}]}', "with"),
        (b'{"tools": [{"name": "f"}]}', "with"),
        (b'{"tools": [', "not known"),
        (b'["tools"]', "not known"),
        (None, "not known"),
    ],
)
def test_tools_are_those_that_the_request_offers(body: bytes | None, group: str) -> None:
    assert tools_group(RequestFacts(body=body)) == group


def test_many_tenants_take_bounded_memory_and_few_lines() -> None:
    ended = [(asked(1, f"tenant-{number:04d}"), SHED) for number in range(MAX_TENANTS + 7)]
    found = [one for one in coverage(*ended) if one.kind == "tenant"]
    assert len(found) == MAX_TENANTS + 1
    assert Coverage("tenant", OTHERS, 7, 0) in found
    rows = coverage_figures(found)
    assert len(rows) == MAX_TENANTS_SHOWN
    assert "96 more tenants" in rows[-1].note
