"""How much of the device the shadow gets: how large a challenger's next step may be, and what it is owed.

StepLimit   keeps the longest slice of a challenger's steps under shadow.max_step_ms, from measured steps
Share       what shadow.min_device_share guarantees to the challengers while the champion is busy
"""

from __future__ import annotations

from collections import deque

ROOM = 0.8  # the limit grows only while slices take less than this part of what they may
GROWTH = 1.25
AMPLE_ROOM = 0.5  # below this part it grows faster, so that what noise took is soon given back
FAST_GROWTH = 2.0
MAX_SHRINK = 0.5
MIN_TOKENS = 16
"""No step is made smaller: up to here a layer takes what reading its weights takes. On the CPU, with 113 M parameters,
1.3 ms for 4 tokens and 9.7 for 100, so that one token would cost as much as thirteen."""
SUSPECT_AFTER, WITHIN = 2, 4  # too long twice within four steps: one slow step is often somebody else's fault


class StepLimit:
    """Tokens that a challenger's next step may have.

    A slice's time grows with the tokens in the step, by how much depends on the model, the device and on what the
    tokens are for. So it is measured: steps whose longest slice took too long, SUSPECT_AFTER of WITHIN, make the next
    one smaller in proportion; one that used its limit up in less than ROOM of the time lets it grow.

    One step alone moves nothing: on a machine that does other things too, slices of a few tokens are now and then too
    long for no fault of theirs, and a limit that followed them would make the shadow crawl (eight tokens a step, a
    fifth of the work done in the same busy time).

    Args:
        max_slice_s: what the longest slice of a step may take.
        max_tokens: vLLM's own limit, max_num_batched_tokens.
        first: the limit before anything is known.
    """

    __slots__ = ("_late", "_max_tokens", "_min_tokens", "max_slice_s", "tokens")

    def __init__(self, max_slice_s: float, max_tokens: int, first: int) -> None:
        self.max_slice_s = max_slice_s
        self._max_tokens = max_tokens
        self._late: deque[bool] = deque(maxlen=WITHIN)
        self._min_tokens = min(MIN_TOKENS, max_tokens)
        self.tokens = max(self._min_tokens, min(first, max_tokens))

    def saw(self, tokens: int, longest_slice_s: float) -> None:
        """A step with ``tokens`` had this longest slice."""
        if tokens <= 0:
            return
        self._late.append(longest_slice_s > self.max_slice_s)
        if self._late[-1]:
            if sum(self._late) >= SUSPECT_AFTER:
                self._late.clear()
                smaller = int(self.tokens * max(MAX_SHRINK, self.max_slice_s / longest_slice_s))
                self.tokens = max(self._min_tokens, smaller)
        elif tokens >= self.tokens and longest_slice_s < ROOM * self.max_slice_s:
            factor = FAST_GROWTH if longest_slice_s < AMPLE_ROOM * self.max_slice_s else GROWTH
            self.tokens = min(self._max_tokens, max(self.tokens + 1, int(self.tokens * factor)))


class Share:
    """A guarantee for the challengers: at least ``fraction`` of the device's time while they have work.

    The champion's time earns it, theirs spends it. It may be overdrawn by one slice, which is then earned back before
    the next, and it cannot be saved up beyond one slice: what the gaps gave is not asked for twice.

    Args:
        fraction: 0 is none at all.
        max_slice_s: how much may be saved up.
    """

    __slots__ = ("_fraction", "_max_slice_s", "_owed_s")

    def __init__(self, fraction: float, max_slice_s: float) -> None:
        self._fraction = fraction
        self._max_slice_s = max_slice_s
        self._owed_s = 0.0

    @property
    def is_owed(self) -> bool:
        """Whether a challenger with work is to go before the champion."""
        return self._owed_s > 0.0

    def champion_took(self, elapsed_s: float) -> None:
        """The champion worked while a challenger had work too."""
        self._owed_s = min(self._max_slice_s, self._owed_s + self._fraction * elapsed_s)

    def challenger_took(self, elapsed_s: float, *, champion_waited: bool) -> None:
        """A challenger worked. In a gap, which costs the champion nothing, it runs up no debt."""
        left = self._owed_s - elapsed_s
        self._owed_s = left if champion_waited else min(self._owed_s, max(0.0, left))
