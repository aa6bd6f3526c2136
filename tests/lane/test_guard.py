"""The guard swallows errors, counts and logs them, and lets cancellation pass."""

from __future__ import annotations

import asyncio
import logging

import pytest

from understudy.lane.guard import Guard


def test_an_error_is_swallowed_counted_by_operation_and_logged_with_its_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = Guard()
    for operation in ("record", "record", "intake"):
        with guard(operation):
            raise ValueError("it broke")
    with guard("record"):
        pass
    assert guard.swallowed == {"record": 2, "intake": 1}
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3
    assert caplog.records[0].getMessage() == "swallowed in record"
    assert "it broke" in caplog.text


@pytest.mark.parametrize("fault", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_cancellation_and_exits_pass_uncounted(fault: type[BaseException]) -> None:
    guard = Guard()
    with pytest.raises(fault), guard("record"):
        raise fault
    assert guard.swallowed == {}


def test_guards_may_be_inside_one_another() -> None:
    guard = Guard()
    with guard("outer"):
        with guard("inner"):
            raise ValueError
        raise ValueError
    assert guard.swallowed == {"inner": 1, "outer": 1}
