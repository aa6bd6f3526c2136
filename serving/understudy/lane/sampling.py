"""Which exchanges are taken: by a hash of the id, before either answer is seen."""

from __future__ import annotations

import hashlib


def is_sampled(exchange_id: str, fraction: float, salt: str = "") -> bool:
    """Nothing of the request or of either answer can sway it. Slices with different salts are independent."""
    digest = hashlib.blake2b(exchange_id.encode(), digest_size=8, salt=salt.encode()).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64
