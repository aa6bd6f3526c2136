"""What the deployment decides itself."""

from __future__ import annotations

import pytest

from understudy.deployment import seat


@pytest.mark.parametrize(
    ("rank", "num_replicas", "expected"), [(0, 1, 0), (1, 1, 0), (0, 3, 0), (2, 3, 2), (3, 3, 0), (4, 3, 1), (0, 0, 0)]
)
def test_a_successor_takes_the_seat_of_who_it_replaces(rank: int, num_replicas: int, expected: int) -> None:
    assert seat(rank, num_replicas) == expected
