"""Two texts side by side, word by word, for a terminal.

What is recorded is other people's text: whatever is not printable is replaced, so that no control sequence reaches the
terminal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Indel
from rich.text import Text

MAX_WORDS = 4_000
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
ONLY_CHAMPION, ONLY_CHALLENGER = "bold red", "bold green"


def side_by_side(champion: str, challenger: str) -> tuple[Text, Text]:
    """Both texts, with what the other one lacks marked. Beyond ``MAX_WORDS`` only the common beginning is known."""
    theirs, mine = words(champion), words(challenger)
    left, right = Text(), Text()
    for tag, a0, a1, b0, b1 in _opcodes(theirs, mine):
        left.append(printable("".join(theirs[a0:a1])), None if tag == "equal" else ONLY_CHAMPION)
        right.append(printable("".join(mine[b0:b1])), None if tag == "equal" else ONLY_CHALLENGER)
    return left, right


def words(text: str) -> list[str]:
    """Words, runs of space, and single signs; together they are the text."""
    return _WORDS.findall(text)


def _opcodes(theirs: Sequence[str], mine: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    if max(len(theirs), len(mine)) <= MAX_WORDS:
        return [tuple(each) for each in Indel.opcodes(theirs, mine)]  # type: ignore[misc]
    same = next((index for index, (a, b) in enumerate(zip(theirs, mine, strict=False)) if a != b), None)
    same = min(len(theirs), len(mine)) if same is None else same
    return [("equal", 0, same, 0, same), ("replace", same, len(theirs), same, len(mine))]


def printable(text: str) -> str:
    """The text with everything replaced that is neither printable nor a line break or a tab."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def cut(text: str, max_characters: int) -> str:
    """The beginning, and how much more there is."""
    more = len(text) - max_characters
    return text if more <= 0 else f"{text[:max_characters]} ... {more:,} more characters"
