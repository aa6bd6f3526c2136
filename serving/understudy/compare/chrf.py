"""chrF of the challenger's answer against the champion's (Popovic 2015), by sacrebleu, an extra: ``understudy[chrf]``.

Character n-grams up to 6, recall weighted twice: what the champion said and the challenger left out costs more than
what it added. Not the same with the sides swapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

from understudy.compare.base import Pair
from understudy.compare.options import CompareSpec
from understudy.compare.text import differing
from understudy.errors import ConfigError

NAMES = {"chrf": "chrF2 of the answers with the champion's as the reference, 0 to 1"}


def check(options: CompareSpec) -> None:
    """Raises ConfigError without sacrebleu."""
    del options
    if find_spec("sacrebleu") is None:
        raise ConfigError("compare.use: 'chrf' needs the package sacrebleu: pip install 'understudy[chrf]'")


def compare(pair: Pair) -> Mapping[str, float]:
    """In any vocabulary. Two empty answers are the same.

    Of texts beyond ``max_characters`` what both begin and end with counts as the same, chrF is that of the first
    ``max_characters`` of the rest, and what is beyond counts as different: a mean weighted by characters.
    """
    if not pair.answers:
        return {}
    limit = pair.options.max_characters
    return {"chrf": pair.mean(lambda theirs, mine: _chrf(theirs.text, mine.text, limit))}


def _chrf(reference: str, text: str, limit: int) -> float:
    if reference == text:
        return 1.0
    if max(len(reference), len(text)) <= limit:
        return _score(reference, text)
    same, theirs, mine = differing(reference, text, limit)
    return (2 * same + (len(theirs) + len(mine)) * _score(theirs, mine)) / (len(reference) + len(text))


def _score(reference: str, text: str) -> float:
    return float(_metric().sentence_score(text, [reference]).score) / 100


@cache
def _metric() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
