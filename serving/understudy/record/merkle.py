"""Merkle trees as in RFC 6962, over the SHA-256 of records, and the proof that a record is one of the leaves.

    leaf = SHA-256(0x00 || sha of the record)        node = SHA-256(0x01 || left || right)

A tree of n leaves splits at the largest power of two below n. Nothing here but hashlib: a reader who trusts nobody
can rewrite ``root_from`` in ten lines of any language.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple


class Step(NamedTuple):
    """One step of a proof: the sibling's hash, and whether it stands to the left."""

    sibling: bytes
    is_left: bool


def root(shas: Sequence[bytes]) -> bytes:
    """The root over records' hashes, in their order. Of none it is the hash of nothing."""
    level = [sha256(b"\0" + sha).digest() for sha in shas]
    if not level:
        return sha256(b"").digest()
    while len(level) > 1:
        level = _next(level)
    return level[0]


def path(shas: Sequence[bytes], index: int) -> list[Step]:
    """The proof for the record at ``index``, from the leaf to the root."""
    level, steps = [sha256(b"\0" + sha).digest() for sha in shas], []
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            steps.append(Step(level[sibling], sibling < index))
        level, index = _next(level), index // 2
    return steps


def root_from(sha: bytes, steps: Sequence[Step]) -> bytes:
    """The root that a record's hash and its proof lead to."""
    node = sha256(b"\0" + sha).digest()
    for sibling, is_left in steps:
        pair = sibling + node if is_left else node + sibling
        node = sha256(b"\1" + pair).digest()
    return node


def _next(level: Sequence[bytes]) -> list[bytes]:
    # The last one of an odd level goes up as it is: level by level this is RFC 6962's tree.
    pairs = zip(level[::2], level[1::2], strict=False)
    above = [sha256(b"\1" + left + right).digest() for left, right in pairs]
    return [*above, level[-1]] if len(level) % 2 else above
