"""Where one core of an engine process leaves hidden states for another: the champion's rows, until a challenger comes.

Bounded in bytes: what is oldest goes first, and a challenger that finds nothing has no divergence for that exchange.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from understudy.engines.heads import Head

MAX_BYTES = 256 * 2**20
"""32,768 rows of a hidden size of 4,096 in bfloat16."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Hidden states [num_targets, hidden_size] of one answer, and the head that they belong to."""

    hidden: torch.Tensor
    head: Head

    @property
    def num_bytes(self) -> int:
        """Of the hidden states; the head is the model's own."""
        return int(self.hidden.nbytes)


@dataclass
class Shelf:
    """One for a process; only the driver's thread touches it."""

    max_bytes: int = MAX_BYTES
    num_bytes: int = field(default=0, init=False)
    """What lies here now: counted as it comes and goes, because a shelf of short answers has thousands of entries."""
    _kept: dict[str, Kept] = field(default_factory=dict, init=False)

    def put(self, key: str, kept: Kept) -> None:
        """Keep it; one that is larger than the shelf is not kept."""
        if key in self._kept:
            self._drop(key)
        self._kept[key] = kept
        self.num_bytes += kept.num_bytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._kept)))

    def get(self, key: str) -> Kept | None:
        """What was left under this key. It stays, because several challengers may come."""
        kept = self._kept.get(key)
        if kept is not None and kept.hidden.is_cuda:  # it comes from another core's stream, and may go while it is read
            kept.hidden.record_stream(torch.cuda.current_stream())
        return kept

    def _drop(self, key: str) -> None:
        self.num_bytes -= self._kept.pop(key).num_bytes


SHELF = Shelf()
