"""How long are the answers, and how did they end?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from understudy.compare.base import Pair
from understudy.compare.pairs import MISSING
from understudy.types import Answer

NAMES = {
    "finish_reason_match": "fraction of the answers that ended for the same reason, 0 to 1; a missing one has none",
    "length_ratio": "characters of the challenger's answers over those of the champion's; absent where either has none",
    "champion_truncated": "fraction of the champion's answers that were cut off at the limit of tokens, 0 to 1",
    "challenger_truncated": "the same of the challenger's",
    "champion_missing": "fraction of the answers that the champion lacks or failed to finish, 0 to 1",
    "challenger_missing": "the same of the challenger's",
}


def compare(pair: Pair) -> Mapping[str, float]:
    """Text, not tokens, so that two vocabularies can be laid side by side."""
    if not pair.answers:
        return {}
    theirs, mine = zip(*pair.answers, strict=True)
    characters = [sum(len(answer.text) for answer in side) for side in (theirs, mine)]
    values = {
        "finish_reason_match": pair.mean(lambda a, b: float(a.finish_reason == b.finish_reason)),
        "champion_truncated": _fraction(theirs, was_cut),
        "challenger_truncated": _fraction(mine, was_cut),
        "champion_missing": _fraction(theirs, _is_missing),
        "challenger_missing": _fraction(mine, _is_missing),
    }
    return values | ({"length_ratio": characters[1] / characters[0]} if all(characters) else {})


def was_cut(answer: Answer) -> bool:
    """Whether the model had more to say."""
    return answer.finish_reason == "length"


def _is_missing(answer: Answer) -> bool:
    return answer is MISSING


def _fraction(answers: tuple[Answer, ...], holds: Callable[[Answer], bool]) -> float:
    return sum(holds(answer) for answer in answers) / len(answers)
