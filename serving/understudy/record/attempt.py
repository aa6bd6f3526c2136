"""One call in a thread of its own, while its caller does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Attempt(Generic[Result]):
    """A call that may be made beside its caller.

    The thread is a daemon: a disk that hangs must not keep the process from ending.
    """

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._thread: threading.Thread | None = None
        self._done: list[Result] = []
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Make the call in a thread, from now on."""
        self._thread = threading.Thread(target=self._run, name="understudy-record-disk", daemon=True)
        self._thread.start()

    def result(self) -> Result:
        """What it returned, or what it raised; made here and now where it was not begun."""
        if self._thread is None:
            return self._call()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._done[0]

    def _run(self) -> None:
        try:
            self._done.append(self._call())
        except BaseException as error:  # noqa: BLE001  # raised again by result()
            self._error = error
