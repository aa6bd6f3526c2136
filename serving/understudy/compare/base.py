"""The contract of a comparator: one file each, one line in the table in __init__.py.

A comparator is a pure function of a Pair. It returns numbers by name, each documented in its ``NAMES``; the first one
is its headline. What it cannot compute it leaves out, and never invents. It has no side effects: it runs in a
thread of the lane, and again in every replay. Tool calls are compared, never executed.

What every comparator does with answers that are not there, cut off or unreadable:

    not asked for    the challenger only scored: no number
    missing          failed, cancelled, or fewer than the other side's: the worst value there is, never a tie,
                     not even beside another missing one
    truncated        (finish_reason "length") read as far as it goes; what cannot be read then (JSON, a label, a tool
                     call) is wrong, on either side and on both: two unreadable answers do not agree
    too long         text comparisons read ``max_characters`` of what differs, and what is beyond lowers the value all
                     the same; JSON and tool calls are not read from answers of more than ten times as many: absent
    several answers  the mean over the pairs, by index

Where an exchange does not end as compared (failed, expired, shed) no comparator is asked, not even about the scores
that a failed one may have: gates count it as missing, and a report says beside each mean how many were. "Missing" above
is one answer of n, and what a user of ``Comparators`` hands over.

A number called ``champion_X`` has its twin ``challenger_X``; one that ends in ``_ratio`` is challenger over champion.
All others are the same with the sides swapped. Two comparators look from one side only, and swap nothing: in ``chrf``
the champion's answer is the reference, and ``likelihood`` is about the champion's tokens, so that its
``champion_logprob``, of these tokens under the challenger, has no twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Protocol

from understudy.compare.asked import Asked, ToolCall, asked_of
from understudy.compare.options import CompareSpec
from understudy.compare.pairs import answer_pairs, has_missing
from understudy.types import Answer, Exchange, Observation

PARSED_TIMES = 10
ParseTools = Callable[[str, Asked], Sequence[ToolCall] | None]


class Pair:
    """What a comparator gets: an exchange, the challenger's observation, and the options.

    Attributes:
        answers: (champion, challenger) by index, with ``MISSING`` where there is none; empty where the challenger was
            not asked to answer.
        same_vocabulary: whether token ids of both sides mean the same.
        asked: what the request asked for beside its messages: tools, JSON, a schema.
        options: the ``compare`` section of the configuration.
        parse_tools: vLLM's own tool parser where the server has one configured.
    """

    def __init__(
        self,
        exchange: Exchange,
        challenger: Observation,
        options: CompareSpec,
        parse_tools: ParseTools | None = None,
    ) -> None:
        self.exchange = exchange
        self.champion = exchange.champion
        self.challenger = challenger
        self.options = options
        self.parse_tools = parse_tools
        self.same_vocabulary = challenger.rendered == "token_ids"

    @cached_property
    def answers(self) -> list[tuple[Answer, Answer]]:
        """See the class."""
        return answer_pairs(self.champion, self.challenger)

    @cached_property
    def can_parse(self) -> bool:
        """Whether every answer is short enough for parsers; one cut short for them would be called invalid."""
        limit = PARSED_TIMES * self.options.max_characters
        return all(len(answer.text) <= limit for answers in self.answers for answer in answers)

    @cached_property
    def asked(self) -> Asked:
        """Reads the request's body once, and only where a comparator looks at it."""
        return asked_of(self.exchange)

    def mean(self, value: Callable[[Answer, Answer], float], missing: float = 0.0) -> float:
        """The mean of ``value`` over the pairs, of which one with a missing side counts as ``missing``."""
        values = [missing if has_missing(pair) else value(*pair) for pair in self.answers]
        return sum(values) / len(values)


class Comparator(Protocol):
    """``NAMES`` maps each number it can return to its meaning."""

    @property
    def NAMES(self) -> Mapping[str, str]:  # noqa: D102, N802
        ...

    def compare(self, pair: Pair) -> Mapping[str, float]:
        """Numbers by name; a subset of ``NAMES``."""
