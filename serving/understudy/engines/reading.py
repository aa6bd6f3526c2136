"""What a scoring pass makes of the hidden states of one step: rows in, numbers of every target out.

The rows of all scoring requests of a step are scored in one call. A row is also kept for another core, or compared
with one that was kept (shelf.py), where the request says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from understudy.engines.heads import Head
from understudy.engines.scoring import COLUMNS, DIVERGENCE_COLUMNS, KEY
from understudy.engines.shelf import SHELF, Kept
from understudy_kernels import Scores, divergence

SLICE_ROWS = 64
"""Rows between two looks at the champion, on the CPU: lm_head is read once for each slice."""

Measure = Callable[[torch.Tensor, torch.Tensor], Scores]
Point = Callable[[], None]


def nothing() -> None:
    """Nobody waits."""


@dataclass(slots=True)
class Reading:
    """One scoring request.

    ``rows`` [num_targets, columns] have zeros, an impossible rank, until they are read, and NaN for a divergence.
    """

    first: int
    targets: torch.Tensor
    rows: torch.Tensor
    keep: str = ""
    hidden: torch.Tensor | None = None
    against: Kept | None = None

    @staticmethod
    def of(extra_args: Mapping[str, Any] | None, device: torch.device) -> Reading | None:
        """From a request's parameters; None where it is not for scoring."""
        asked = (extra_args or {}).get(KEY)
        if asked is None:
            return None
        targets = torch.tensor(asked["targets"], dtype=torch.int64, device=device)
        rows = torch.zeros(len(targets), len(COLUMNS), device=device)
        if "against" not in asked:
            return Reading(asked["first"], targets, rows, asked.get("keep", ""))
        unknown = torch.full((len(targets), len(DIVERGENCE_COLUMNS)), float("nan"), device=device)
        kept = SHELF.get(asked["against"])
        against = None if kept is None or len(kept.hidden) != len(targets) else kept
        return Reading(asked["first"], targets, torch.cat([rows, unknown], dim=1), against=against)

    @property
    def end(self) -> int:
        """One past the last row of the prompt that is scored."""
        return self.first + len(self.targets)

    def pick(self, hidden: torch.Tensor, low: int, high: int, head: Head | None, point: Point) -> None:
        """Keep the rows of the targets from ``low`` to ``high``, or compare them with those that were kept."""
        if head is None:
            return
        if self.keep:
            if self.hidden is None:
                self.hidden = hidden.new_empty(len(self.targets), hidden.shape[1])
            self.hidden[low:high] = hidden
            if high == len(self.targets):
                SHELF.put(self.keep, Kept(self.hidden, head))
        if self.against is not None and self.against.head.vocab_size == head.vocab_size:
            for start in range(low, high, SLICE_ROWS):
                end = min(start + SLICE_ROWS, high)
                point()
                champions, mine = self.against.hidden[start:end], hidden[start - low : end - low]
                compared = diverge(self.against.head, champions, head, mine, self.targets[start:end])
                self.rows[start:end, len(COLUMNS) :] = compared


def diverge(
    champion: Head, champions: torch.Tensor, challenger: Head, mine: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """[num_targets, len(DIVERGENCE_COLUMNS)] from both models' hidden states of the same tokens."""
    found = divergence(
        champions,
        champion.weight,
        mine,
        challenger.weight,
        targets,
        bias_p=champion.bias,
        bias_q=challenger.bias,
        scale_p=champion.scale,
        scale_q=challenger.scale,
        softcap_p=champion.softcap,
        softcap_q=challenger.softcap,
        vocab_size=champion.vocab_size,
    )
    return torch.stack([found.kl_pq, found.kl_qp, found.hellinger, found.entropy_p], dim=1)


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step computes of a scoring request: ``hidden[offset : offset + count]`` are its rows from ``start``."""

    reading: Reading
    start: int
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class Eye:
    """How one core reads: the scores of targets [n] from rows [n, hidden_size], and its head where that is usable."""

    measure: Measure
    head: Head | None = None
    point: Point = nothing


def read(chunks: Iterable[Chunk], hidden: torch.Tensor, eye: Eye) -> None:
    """Score the rows of one step, all requests in one call.

    Args:
        chunks: what the step computed of scoring requests.
        hidden: [num_tokens_of_the_step, hidden_size].
        eye: the core's.
    """
    pieces: list[tuple[Reading, int, int]] = []
    rows: list[torch.Tensor] = []
    for chunk in chunks:
        reading, shift = chunk.reading, chunk.offset - chunk.start
        low, high = max(reading.first, chunk.start), min(reading.end, chunk.start + chunk.count)
        if low < high:
            pieces.append((reading, low - reading.first, high - reading.first))
            rows.append(hidden[low + shift : high + shift])
    if not pieces:
        return
    scores = eye.measure(torch.cat(rows), torch.cat([reading.targets[low:high] for reading, low, high in pieces]))
    columns = (scores.logprob, scores.rank, scores.entropy, scores.argmax)
    measured = torch.stack([column.float() for column in columns], dim=1)
    parts = measured.split([len(each) for each in rows])
    for (reading, low, high), part, own in zip(pieces, parts, rows, strict=True):
        reading.rows[low:high, : len(COLUMNS)] = part
        reading.pick(own, low, high, eye.head, eye.point)
