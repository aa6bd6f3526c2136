"""The champion's answer as a draft of the challenger's own: where the challenger is in it, and how much to propose.

A Draft is fed the challenger's tokens one by one. While they agree it moves along; after a mismatch it looks for the
place where the challenger's last tokens stand in the champion's answer, so that tokens inserted, left out or replaced
cost a few mismatches and not the rest of the answer. Nothing here can change what the challenger says: the engine
verifies each proposed token, and a bad draft only costs time.

Pure Python on token ids; a few microseconds a token, O(len(answer)) memory.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from understudy.engines.step_cost import Price

MAX_CONTEXT = 8
"""Tokens that are compared to tell one place from another."""
MAX_PLACES = 32
"""Places of a token that are looked at after a mismatch, the nearest ones."""
MAX_ROUNDS = 8
MARGIN = 1.25
"""What a step with drafts must promise against one without: 0.8 of the time a token. Part of its cost lies outside the
model runner, and requests that draft well leave the others behind in smaller, dearer steps."""
ANY_PRICE = Price()


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


@dataclass(slots=True)
class Habits:
    """How often a challenger's drafts were right of late, over all its requests: what a new one begins with.

    At first it is taken to resemble its champion, as most do.
    """

    after_match: Rate = field(default_factory=lambda: Rate(9.8, 10.0, decay=0.998))
    after_mismatch: Rate = field(default_factory=lambda: Rate(1.0, 2.0, decay=0.998))

    @property
    def odds(self) -> Odds:
        """Of the first draft of a request."""
        return Odds(self.after_match.value, self.after_match.value)


@dataclass(frozen=True, slots=True)
class Odds:
    """The probability that the next draft token is right, and that each one after a right one is."""

    first: float
    rest: float

    def worthwhile(self, least: float, limit: int) -> int:
        """How many draft tokens are right with a probability of at least ``least``."""
        if self.first < least:
            return 0
        if self.rest >= 1.0 or least <= 0.0:
            return limit
        if self.rest <= 0.0:
            return min(1, limit)
        return min(limit, 1 + int(math.log(least / self.first) / math.log(self.rest)))

    def right(self, length: int) -> float:
        """How many of so many draft tokens are right on average."""
        if self.rest >= 1.0:
            return self.first * length
        return self.first * (1.0 - self.rest**length) / (1.0 - self.rest)


class Draft:
    """One champion answer beside one challenger generation. Feed it every generated token, in order.

    Args:
        answer: the champion's tokens.
        habits: the challenger's, which are kept up to date.

    Attributes:
        num_fed: tokens it was fed.
        num_lost: mismatches that came after a match.
        num_realigned: matches that came after a mismatch: how often it was found again.
    """

    def __init__(self, answer: Sequence[int], habits: Habits | None = None) -> None:
        self._answer = tuple(answer)
        self._places: dict[int, list[int]] | None = None  # of each token; built at the first mismatch
        self._recent: deque[int] = deque(maxlen=MAX_CONTEXT)
        self._cursor = 0  # the champion's token that comes next, if the challenger says the same
        self._is_lost = False
        self._habits = habits or Habits()
        self.after_match = Rate(10 * self._habits.after_match.value, 10.0)
        self.after_mismatch = Rate(2 * self._habits.after_mismatch.value, 2.0)
        self.num_fed = self.num_lost = self.num_realigned = 0

    def feed(self, token: int) -> None:
        """The challenger said ``token``."""
        self.num_fed += 1
        self._recent.append(token)
        if self._cursor < len(self._answer):
            is_right = token == self._answer[self._cursor]
            for rates in (self, self._habits):
                (rates.after_mismatch if self._is_lost else rates.after_match).add(is_right)
            if is_right:
                self.num_realigned += self._is_lost
                self._is_lost = False
                self._cursor += 1
                return
        self.num_lost += not self._is_lost
        self._is_lost = True
        self._cursor = self._found(token)

    @property
    def odds(self) -> Odds:
        """Of what it would propose."""
        first = self.after_mismatch if self._is_lost else self.after_match
        return Odds(first.value, self.after_match.value)

    def left(self) -> int:
        """How many tokens of the answer may still come."""
        return len(self._answer) - self._cursor

    def next(self, length: int) -> list[int]:
        """The tokens that probably come next."""
        return list(self._answer[self._cursor : self._cursor + length])

    def propose(self, limit: int, price: Price = ANY_PRICE) -> list[int]:
        """At most ``limit`` tokens that probably come next, in a step of one row."""
        return self.next(lengths([(self.odds, min(limit, self.left()))], 1, price)[0])

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
        """How many of the challenger's last tokens stand before and at ``place``; the one at it is the last one."""
        recent = self._recent
        if place == 0 or len(recent) < 2 or self._answer[place - 1] != recent[-2]:
            return 1  # as for most places, and this is asked 7 times a mismatch
        length = 0
        for said, token in zip(reversed(recent), self._answer[place::-1], strict=False):
            if said != token:
                break
            length += 1
        return length


def _needed(distance: int) -> int:
    """Tokens of context beyond which a place at this distance is believed."""
    return 0 if distance <= 4 else 1 if distance <= 32 else 2


def lengths(rows: Sequence[tuple[Odds, int]], num_rows: int, price: Price) -> list[int]:
    """How many tokens to draft for each row, so that the step's tokens are cheapest; all 0 where that saves too little.

    A step without drafts says num_rows tokens for ``price.plain``. A drafted token is worth proposing where it is right
    with at least the probability ``price.token`` times the tokens that the best step says for its price; that best step
    is found by taking the rate of the last guess as the next one's measure (Dinkelbach 1967, Management Science 13:7),
    which only rises and stands still after two or three rounds.

    Args:
        rows: odds, and the most that may be proposed, of each row with a draft.
        num_rows: of the step, those without a draft too.
        price: of a step with so many rows.
    """
    plain_rate = rate = num_rows / price.plain
    best = [0] * len(rows)
    for _ in range(MAX_ROUNDS):
        least = rate * price.token
        tried = [odds.worthwhile(least, limit) for odds, limit in rows]
        num_drafted = sum(tried)
        if not num_drafted:
            break
        said = num_rows + sum(odds.right(length) for (odds, _), length in zip(rows, tried, strict=True))
        found = said / (price.plain + price.drafted + price.token * num_drafted)
        if found <= rate:
            break
        is_settled = found < rate * 1.001
        rate, best = found, tried
        if is_settled:
            break
    return best if rate >= MARGIN * plain_rate else [0] * len(rows)


def realignments(answer: Sequence[int], generated: Sequence[int]) -> tuple[int, int]:
    """How often a draft of ``answer`` was lost and found again over a whole generation: (lost, realigned)."""
    draft = Draft(answer)
    for token in generated:
        draft.feed(token)
    return draft.num_lost, draft.num_realigned
