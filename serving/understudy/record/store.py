"""Where sealed segments are: a folder, or an object store through fsspec. Whole objects, each written at once.

A write is durable when it returns, and nobody ever sees half of one: locally it is a temporary file, fsync, rename
and fsync of the folder; an object store puts an object as a whole. Files are 0600, folders 0700.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

from understudy.errors import ConfigError

TEMPORARY = ".writing"


class Store(Protocol):
    """Paths are relative, with slashes. Every method raises OSError where the store does not do it."""

    @property
    def url(self) -> str:
        """For people."""

    def write(self, path: str, content: bytes) -> None:
        """Replace or make an object, durably."""

    def read(self, path: str) -> bytes:
        """All of it. Raises FileNotFoundError where there is none."""

    def open(self, path: str) -> IO[bytes]:
        """For reading parts of it."""

    def exists(self, path: str) -> bool:
        """Whether it is there."""

    def version(self, path: str) -> Hashable:
        """Another one when the object was replaced, where that costs nothing to ask; else always the same."""

    def list(self, prefix: str = "") -> list[str]:
        """Every object below a folder, sorted."""

    def delete(self, path: str) -> None:
        """Remove it, durably. No error where there is none."""

    def dataset(self, paths: Sequence[str], schema: Any) -> Any:
        """Parquet files as a pyarrow.dataset.Dataset of this schema, read when asked; what a file lacks is null."""

    def inside(self, folder: str) -> Store:
        """The store of a folder in this one."""


class LocalStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.folder)

    def write(self, path: str, content: bytes) -> None:
        """See Store."""
        target = self.folder / path
        make_folders(target.parent)
        temporary = target.with_name(target.name + TEMPORARY)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        temporary.replace(target)
        sync_folder(target.parent)

    def read(self, path: str) -> bytes:
        """See Store."""
        return (self.folder / path).read_bytes()

    def open(self, path: str) -> IO[bytes]:
        """See Store."""
        return (self.folder / path).open("rb")

    def exists(self, path: str) -> bool:
        """See Store."""
        return (self.folder / path).exists()

    def version(self, path: str) -> Hashable:
        """See Store."""
        found = (self.folder / path).stat()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def list(self, prefix: str = "") -> list[str]:
        """See Store; what a dead writer left half-written is not among them."""
        return sorted(self._list(prefix))

    def delete(self, path: str) -> None:
        """See Store."""
        target = self.folder / path
        target.unlink(missing_ok=True)
        if target.parent.is_dir():
            sync_folder(target.parent)

    def dataset(self, paths: Sequence[str], schema: Any) -> Any:
        """See Store."""
        from pyarrow import dataset

        return dataset.dataset([str(self.folder / path) for path in paths], schema=schema)

    def inside(self, folder: str) -> LocalStore:
        """See Store."""
        return LocalStore(self.folder / folder)

    def _list(self, prefix: str) -> Iterator[str]:
        for root, _, names in os.walk(self.folder / prefix):
            inside = Path(root).relative_to(self.folder)
            yield from ((inside / name).as_posix() for name in names if not name.endswith(TEMPORARY))


class RemoteStore:
    """Anything fsspec knows: s3://bucket/folder (with s3fs installed), gs://, memory:// in tests.

    These packages raise errors of many kinds, their clients' own among them; here each is an OSError.
    """

    def __init__(self, url: str, fs: Any = None, root: str = "") -> None:
        """Raises ConfigError where fsspec does not know the URL or its package is not installed."""
        self.url, self._fs, self._root = url, fs, root
        if fs is None:
            with suppress(OSError):  # no credentials, no network: each call tries again, and says so
                self._connect()

    def write(self, path: str, content: bytes) -> None:
        """See Store."""
        with self._asked() as fs:
            fs.pipe_file(self._at(path), content)

    def read(self, path: str) -> bytes:
        """See Store."""
        with self._asked() as fs:
            found: bytes = fs.cat_file(self._at(path))
        return found

    def open(self, path: str) -> IO[bytes]:
        """See Store."""
        with self._asked() as fs:
            return cast(IO[bytes], _RemoteFile(fs.open(self._at(path), "rb")))

    def exists(self, path: str) -> bool:
        """See Store."""
        with self._asked() as fs:
            return bool(fs.exists(self._at(path)))

    def version(self, path: str) -> Hashable:
        """See Store: a request for each record that is found would cost too much."""
        return None

    def list(self, prefix: str = "") -> list[str]:
        """See Store."""
        try:
            with self._asked() as fs:
                found = fs.find(self._at(prefix), withdirs=False)
        except FileNotFoundError:
            return []
        # A console marks a folder with an empty object of that name.
        return sorted(posixpath.relpath(path, self._root) for path in found if not path.endswith("/"))

    def delete(self, path: str) -> None:
        """See Store."""
        with self._asked() as fs:
            if fs.exists(self._at(path)):
                fs.rm_file(self._at(path))

    def dataset(self, paths: Sequence[str], schema: Any) -> Any:
        """See Store."""
        from pyarrow import dataset

        with self._asked() as fs:
            return dataset.dataset([self._at(path) for path in paths], filesystem=fs, schema=schema)

    def inside(self, folder: str) -> RemoteStore:
        """See Store."""
        return RemoteStore(f"{self.url.rstrip('/')}/{folder}", self._fs, self._at(folder))

    def _at(self, path: str) -> str:
        return posixpath.join(self._root, path) if path else self._root

    def _connect(self) -> None:
        import fsspec

        try:
            # other processes erase and seal in it: what was listed, and how large it was, must not be remembered
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"record.url: {self.url!r} cannot be had: {error}") from error
        except Exception as error:
            raise OSError(f"{self.url} cannot be had: {type(error).__name__}: {error}") from error

    @contextmanager
    def _asked(self) -> Iterator[Any]:
        if self._fs is None:
            self._connect()
        with _as_os_error(self.url):
            yield self._fs


class _RemoteFile(io.RawIOBase):
    """A file of an object store; what goes wrong in it is an OSError."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        with _as_os_error("reading"):
            found: bytes = self._file.read(size)
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with _as_os_error("reading"):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _as_os_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{what}: {type(error).__name__}: {error}") from error


def store_at(url: str | Path) -> Store:
    """The store of ``record.url``: a folder, file:///folder, or what fsspec knows."""
    text = str(url)
    if is_local(text):
        return LocalStore(Path(text.removeprefix("file://")))
    return RemoteStore(text)


def is_local(url: str) -> bool:
    """Whether the URL is a folder of this machine."""
    return "://" not in url or url.startswith("file://")


def open_private(path: Path, mode: Literal["w", "wb"] = "w") -> IO[Any]:
    """A file to write, new or emptied, for its owner alone (0600): it will have texts of users in it. UTF-8.

    What is no file, such as /dev/stdout, stays as it is. Raises OSError.
    """

    def private(name: str, flags: int) -> int:
        fd = os.open(name, flags, 0o600)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.fchmod(fd, 0o600)  # it may have been there, for others to read
        return fd

    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=private)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """A folder and those it is in, durably; what is made here is 0700. Raises OSError."""
    if not folder.exists():
        make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
