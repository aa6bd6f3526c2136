"""The contract of a metric: one file each, one line in the table in __init__.py.

A metric turns one exchange and its ending into a Reading: the champion's score beside the challenger's, both
in [0, 1], higher is better. It works in two steps, because the label often comes much later than the answers:
``keep`` takes the few short strings or numbers it needs and lets the texts go; ``read`` scores them.
"""

from __future__ import annotations

import hashlib
from math import fsum
from typing import ClassVar, NamedTuple, Protocol

from understudy.types import Ending, Exchange, Outcome, State

MAX_KEPT_CHARACTERS = 200
NOT_EXCHANGES = frozenset(
    {"beam_search", "label_read", "multimodal", "other_model", "prompt_embeds", "streaming_input"}
)
"""Reasons for which a request is shed before any challenger is asked (fork.py)."""


class Reading(NamedTuple):
    """One exchange, or the mean of one session, for one metric and one challenger. A tuple, for its hash in C.

    A challenger that did not answer has no score, only bounds: ``low`` if its answer had been as bad as can
    be, ``high`` if as good (Manski 1990). GO is proved from ``low`` and NO-GO from ``high``, so what is
    missing counts against whatever is claimed. Where nothing is missing both are the score.
    """

    champion: float
    low: float
    high: float
    missing: float

    @staticmethod
    def mean(readings: list[Reading]) -> Reading:
        """The mean of at least one reading. fsum is exact, so that the order does not matter."""
        num = len(readings)
        if num == 1:
            return readings[0]
        return Reading(
            fsum(reading.champion for reading in readings) / num,
            fsum(reading.low for reading in readings) / num,
            fsum(reading.high for reading in readings) / num,
            fsum(reading.missing for reading in readings) / num,
        )


class Metric(Protocol):
    """Built once per gate.

    Attributes:
        MEANING: one line for people.
        NEEDS_LABEL: no reading before feedback has come.
        NEEDS_FLOOR: no reading of an exchange that was not chosen for the noise floor.
        NEEDS_PATTERN: whether the gate must have a pattern; one that does not need it refuses it.
        DECIDES: False where it may only advise.
        WORSE, BETTER: the clause that says that the challenger is {bound} {points} points below, or above.
        HIGHEST: the largest possible D = challenger - champion: 1, or 0 where the champion scores 1 by
            definition.
    """

    MEANING: ClassVar[str]
    NEEDS_LABEL: ClassVar[bool]
    NEEDS_FLOOR: ClassVar[bool]
    NEEDS_PATTERN: ClassVar[bool]
    DECIDES: ClassVar[bool]
    HIGHEST: ClassVar[float]
    WORSE: ClassVar[str]
    BETTER: ClassVar[str]

    def __init__(self, pattern: str | None) -> None: ...

    def keep(self, exchange: Exchange, ending: Ending) -> object | None:
        """What ``read`` will need, short and without the texts; None if this exchange cannot count.

        Not called for what the user cancelled. Must be hashable and equal for equal input.
        """

    def read(self, kept: object, label: str | None) -> Reading | None:
        """The reading, or None while there is none. ``label`` went through ``normal``."""


def is_exchange(exchange: Exchange, ending: Ending) -> bool:
    """Whether the challenger had anything to answer.

    Not what the user cancelled or the champion failed, and not requests that are no exchange of this champion's.
    """
    if ending.state is State.CANCELLED or exchange.champion.outcome is not Outcome.FINISHED:
        return False
    return not (ending.state is State.SHED and ending.reason in NOT_EXCHANGES)


def is_missing(ending: Ending) -> bool:
    """Whether the challenger owes an answer to a sampled exchange: shed, failed, expired or cut off."""
    if ending.state is not State.COMPARED:
        return ending.state in (State.SHED, State.FAILED, State.EXPIRED)
    return ending.challenger is None or ending.challenger.outcome is not Outcome.FINISHED


def normal(text: str) -> str:
    """How labels and extracted answers are compared: stripped, caseless, and a digest where they are long."""
    text = text.strip().casefold()
    if len(text) <= MAX_KEPT_CHARACTERS:
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
