"""Do both models call the same tools with the same arguments? Compared, never executed (calls.py reads them).

Parallel calls have no order: names and calls are compared as multisets, over the side that has more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from understudy.compare.asked import ToolCall
from understudy.compare.base import Pair
from understudy.compare.calls import calls_in
from understudy.compare.length import was_cut
from understudy.compare.pairs import MISSING, has_missing
from understudy.compare.schema import follows
from understudy.types import Answer

NAMES = {
    "tool_call_match": "calls with the same name and arguments, over the calls of the side with more, 0 to 1",
    "tool_name_match": "calls with the same name, over the calls of the side with more, 0 to 1",
    "tool_decision_match": "fraction of the answers in which both call a tool or neither does, 0 to 1; one cut off in "
    "its first call, before the name, agrees with none",
    "challenger_tool_valid": "fraction of the challenger's calls that name a tool of the request and fit its schema",
    "champion_tool_valid": "the same of the champion's",
}
Calls = Sequence[ToolCall]


def compare(pair: Pair) -> Mapping[str, float]:
    """Where the request has tools and may call them. A call that cannot be read matches none, not even its like."""
    asked = pair.asked
    if not pair.answers or not asked.tools or asked.tool_choice == "none" or not pair.can_parse:
        return {}
    both = [tuple(_calls(answer, pair) for answer in answers) for answers in pair.answers]
    decisions = [
        not has_missing(answers) and _agree(*map(_decision, answers, each))
        for answers, each in zip(pair.answers, both, strict=True)
    ]
    values = {"tool_decision_match": sum(decisions) / len(decisions)}
    called = [(theirs, mine) for theirs, mine in both if theirs or mine]
    if called:
        values["tool_name_match"] = sum(_overlap(*map(_names, each)) for each in called) / len(called)
        values["tool_call_match"] = sum(_overlap(*map(_whole, each)) for each in called) / len(called)
    for role, side in (("champion", 0), ("challenger", 1)):
        valid = [_is_valid(call, pair) for each in both for call in each[side]]
        if not valid and asked.tool_choice != "auto":  # it had to call one
            valid = [False]
        if valid:
            values[f"{role}_tool_valid"] = sum(valid) / len(valid)
    return values


def _calls(answer: Answer, pair: Pair) -> Calls:
    if answer is MISSING:
        return ()
    found = None if pair.parse_tools is None else pair.parse_tools(answer.text, pair.asked)
    return found or calls_in(answer.text, pair.asked, cut=was_cut(answer))


def _decision(answer: Answer, calls: Calls) -> bool | None:
    """Whether it calls a tool; None where it was cut off before anything of a call can be read."""
    if was_cut(answer) and calls and not any(call.name or call.arguments is not None for call in calls):
        return None
    return bool(calls)


def _agree(theirs: bool | None, mine: bool | None) -> bool:
    return theirs is not None and theirs == mine


def _names(calls: Calls) -> list[str]:
    """Each that cannot be read is unlike all others."""
    return [call.name or f"unreadable {id(call)}" for call in calls]


def _whole(calls: Calls) -> list[str]:
    """Name and arguments, with the keys in order; each unreadable one is unlike all others."""
    return [
        f"unreadable {id(call)}" if call.arguments is None else json.dumps([call.name, call.arguments], sort_keys=True)
        for call in calls
    ]


def _overlap(theirs: list[str], mine: list[str]) -> float:
    return (Counter(theirs) & Counter(mine)).total() / max(len(theirs), len(mine))


def _is_valid(call: ToolCall, pair: Pair) -> bool:
    """A schema that cannot be checked takes any arguments that are an object."""
    if call.name not in pair.asked.tools or not isinstance(call.arguments, dict):
        return False
    return follows(pair.asked.tools[call.name], call.arguments) is not False
