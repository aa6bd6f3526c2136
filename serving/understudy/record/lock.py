"""One writer for each folder; one who seals."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from weakref import WeakSet

from understudy.errors import Locked


class FolderLock:
    """The right to write in a folder, until close() or the end of the process."""

    def __init__(self, folder: Path, name: str = "lock") -> None:
        """Take it. Other names are other rights.

        Raises:
            Locked: another writer has it.
            OSError: the store does not allow it.
        """
        path = folder / name
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(self._fd, b"%-20d\n" % os.getpid(), 0)  # always as long: a full disk has room for it
        except BlockingIOError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            doing = "writer" if name == "lock" else "sealer"
            raise Locked(f"{folder} has a {doing} already, process {holder or 'unknown'}") from error
        except BaseException:
            os.close(self._fd)
            raise
        _held.add(self)

    def close(self) -> None:
        """Give it back. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


# A child forked while the lock is held would keep it beyond the death of the writer, and the replica's
# successor could not start: the child closes its copy at once. A program that is exec'ed does not inherit it
# (O_CLOEXEC).
_held: WeakSet[FolderLock] = WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_close_in_child)
