"""The champion's answer as a draft of the challenger's own: where the challenger is in it, and how much to propose.

A Draft is fed the challenger's tokens one by one. While they agree it moves along; after a mismatch it looks for the
place where the challenger's last tokens stand in the champion's answer, so that tokens inserted, left out or replaced
cost a few mismatches and not the rest of the answer. Nothing here can change what the challenger says: the engine
verifies each proposed token, and a bad draft only costs time.

Pure Python on token ids; a few microseconds a token, O(len(answer)) memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

MAX_CONTEXT = 8
"""Tokens that are compared to tell one place from another."""
MAX_PLACES = 32
"""Places of a token that are looked at after a mismatch, the nearest ones."""
TOKEN_COST = 0.04
"""Verifying one more token, in steps of one token. About 0.014 for a model of 1 M parameters on the CPU; more for
larger ones there, less on a GPU, where a small batch waits for memory and not for arithmetic."""


@dataclass(slots=True)
class Rate:
    """A fraction that remembers about 1 / (1 - decay) trials, so that it follows the text."""

    hits: float
    trials: float
    decay: float = 0.96

    def add(self, hit: bool) -> None:
        """One more trial."""
        self.hits = self.hits * self.decay + hit
        self.trials = self.trials * self.decay + 1

    @property
    def value(self) -> float:
        """The fraction."""
        return self.hits / self.trials


class Draft:
    """One champion answer beside one challenger generation. Feed it every generated token, in order.

    Attributes:
        num_fed: tokens it was fed.
        num_lost: mismatches that came after a match.
        num_realigned: matches that came after a mismatch: how often it was found again.
    """

    def __init__(self, answer: Sequence[int]) -> None:
        self._answer = tuple(answer)
        self._places: dict[int, list[int]] | None = None  # of each token; built at the first mismatch
        self._recent: deque[int] = deque(maxlen=MAX_CONTEXT)
        self._cursor = 0  # the champion's token that comes next, if the challenger says the same
        self._is_lost = False
        self._after_match = Rate(9.8, 10.0)  # the first draft is long: most challengers resemble their champion
        self._after_mismatch = Rate(1.0, 2.0)
        self.num_fed = self.num_lost = self.num_realigned = 0

    def feed(self, token: int) -> None:
        """The challenger said ``token``."""
        self.num_fed += 1
        self._recent.append(token)
        if self._cursor < len(self._answer):
            rate = self._after_mismatch if self._is_lost else self._after_match
            rate.add(token == self._answer[self._cursor])
            if token == self._answer[self._cursor]:
                self.num_realigned += self._is_lost
                self._is_lost = False
                self._cursor += 1
                return
        self.num_lost += not self._is_lost
        self._is_lost = True
        self._cursor = self._found(token)

    def propose(self, limit: int, num_rows: int = 1) -> list[int]:
        """At most ``limit`` tokens that probably come next; none where verifying would cost more than it saves.

        Args:
            num_rows: requests in the step that verifies them.
        """
        first = self._after_mismatch if self._is_lost else self._after_match
        length = worthwhile(first.value, self._after_match.value, num_rows, limit)
        return list(self._answer[self._cursor : self._cursor + length])

    def _found(self, token: int) -> int:
        """Where to go on after ``token`` did not come as expected: behind the place that its context fits best.

        A place far away needs more context than one near by. Where none fits, the token replaced the champion's.
        """
        best, cursor = (0, 0), self._cursor + 1
        for place in self._nearest(token):
            distance = abs(place - self._cursor)
            context = self._context(place)
            if context > _needed(distance) and (context, -distance) > best:
                best, cursor = (context, -distance), place + 1
        return min(cursor, len(self._answer))

    def _nearest(self, token: int) -> list[int]:
        if self._places is None:
            self._places = {}
            for place, each in enumerate(self._answer):
                self._places.setdefault(each, []).append(place)
        places = self._places.get(token, [])
        if len(places) <= MAX_PLACES:
            return places
        middle = bisect_left(places, self._cursor)
        start = max(0, min(middle - MAX_PLACES // 2, len(places) - MAX_PLACES))
        return places[start : start + MAX_PLACES]

    def _context(self, place: int) -> int:
        """How many of the challenger's last tokens stand before and at ``place``."""
        length = 0
        for said, token in zip(reversed(self._recent), self._answer[place::-1], strict=False):
            if said != token:
                break
            length += 1
        return length


def _needed(distance: int) -> int:
    """Tokens of context beyond which a place at this distance is believed."""
    return 0 if distance <= 4 else 1 if distance <= 32 else 2


def worthwhile(first: float, rest: float, num_rows: int, limit: int) -> int:
    """How many draft tokens make the row's tokens cheapest: the length with the most tokens for what its step costs.

    A draft of k tokens yields 1 + first * (1 + rest + ... + rest^(k-1)) tokens on average. It costs the row k + 1
    tokens of TOKEN_COST each, and its share of what a step costs however small it is, (1 - TOKEN_COST) / num_rows. The
    quotient rises to one maximum and falls; that is 0 where the first token is not worth verifying.

    Args:
        first: probability that the next draft token is right.
        rest: the same of each one after a right one.
        num_rows: requests in the step.
        limit: the most it may be.
    """
    cost = (1 - TOKEN_COST) / num_rows + TOKEN_COST
    said, right = 1.0, first
    for length in range(limit):
        if (said + right) / (cost + TOKEN_COST) <= said / cost:
            return length
        said, cost, right = said + right, cost + TOKEN_COST, right * rest
    return max(0, limit)


def realignments(answer: Sequence[int], generated: Sequence[int]) -> tuple[int, int]:
    """How often a draft of ``answer`` was lost and found again over a whole generation: (lost, realigned)."""
    draft = Draft(answer)
    for token in generated:
        draft.feed(token)
    return draft.num_lost, draft.num_realigned
