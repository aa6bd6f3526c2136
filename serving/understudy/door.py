"""Where ``understudy serve`` listens: the launcher holds the socket, the replica accepts from it.

Ray Serve's proxy is a process between client and replica: every chunk of a stream crosses it (measured in
benchmarks/serving/bench_throughput.py: half the requests per second). One replica needs no balancing, so it serves
with uvicorn, in the loop where vLLM's app and the lane live, as vLLM's own server does. Ray still starts, watches and
replaces it; while it does, connections wait in the socket's backlog and are not refused, and nobody else gets the port.

    launcher                            replica (any number of times)
    with Door(host, port) as door:      guest = await Guest.enter(path)
        deploy(..., door.path)          guest.serve(app)
                                        await guest.leave()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import shutil
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import uvicorn

from understudy.errors import ConfigError, EngineDead

log = logging.getLogger(__name__)
BACKLOG = 65_535
"""Connections that wait while a replica is replaced; the kernel allows net.core.somaxconn, which is 4096 by default."""
ADMIT_AT_ONCE = 32
"""Connections that the server takes on in one turn of the event loop, so that answers go on streaming in between."""
MAX_FILES = 65_535
"""As vLLM's own server: a connection for each request that waits."""
DRAIN_S = 50.0
"""Open answers get this long to end when the server is stopped; less than Ray Serve's graceful_shutdown_timeout_s."""
KEEP_ALIVE_S = 5
"""As vLLM's own server."""
RETRY_S = 0.5
"""Between two tries to accept, of launcher and replica, while there is no file descriptor left."""
TAKE_TIMEOUT_S = 30.0
"""A replica that gets no socket within this fails its start, and Ray tries the next one."""


class Door:
    """The listening socket, and a private Unix socket at ``path`` that hands it to whoever connects.

    Raises:
        ConfigError: the port cannot be had; nothing was started then.
    """

    def __init__(self, host: str, port: int) -> None:
        self._listening = listening_socket(host, port)
        self._folder = tempfile.mkdtemp(prefix="understudy-door-")  # 0700: of this user alone
        self.path = str(Path(self._folder) / "door")
        self._handing = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._handing.bind(self.path)
        self._handing.listen()
        self._closed = threading.Event()
        threading.Thread(target=self._hand_out, daemon=True, name="door").start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._handing.shutdown(socket.SHUT_RDWR)  # wakes the thread; close() alone would not
        self._handing.close()
        self._listening.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hand_out(self) -> None:
        while True:
            try:
                taker, _ = self._handing.accept()
            except OSError as fault:
                if self._closed.wait(RETRY_S):
                    return
                log.warning("the door could not accept, it goes on: %s", fault)  # too many open files, most likely
                continue
            with taker, contextlib.suppress(OSError):  # a replica that died while it asked
                socket.send_fds(taker, [b"door"], [self._listening.fileno()])


def listening_socket(host: str, port: int) -> socket.socket:
    """Bound, and not yet listening: clients are refused until the first replica is up.

    Raises:
        ConfigError: the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as fault:
        made.close()
        raise ConfigError(f"--port {port}: cannot listen on {host}: {fault.strerror}") from fault
    return made


def take_socket(path: str) -> socket.socket:
    """The launcher's listening socket, in this process. Blocks for as long as the launcher needs to answer.

    Raises:
        OSError: the launcher is gone, or says nothing for TAKE_TIMEOUT_S.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(TAKE_TIMEOUT_S)
        asking.connect(path)
        _, numbers, _, _ = socket.recv_fds(asking, 16, 1)
    if not numbers:
        raise ConnectionError("the launcher is gone")
    (number,) = numbers
    return socket.socket(fileno=number)


class Guest:
    """The replica's side: an HTTP server on the launcher's socket, in the running loop."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._server: _Accepting | None = None
        self._serving: asyncio.Task[None] | None = None

    @classmethod
    async def enter(cls, path: str) -> Self:
        """Take the socket, and allow this process as many connections as vLLM's own server has.

        Raises:
            OSError: the launcher is gone or does not answer.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))
        return cls(await asyncio.to_thread(take_socket, path))

    def serve(self, app: Any) -> None:
        """Accept connections from now on. The app's lifespan is Ray Serve's business."""
        config = uvicorn.Config(
            app,
            access_log=False,  # a line for every request is time on the answer's path
            log_level="warning",
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(DRAIN_S),
        )
        self._server = _Accepting(config, self._listening)
        self._serving = asyncio.create_task(self._server.serve(), name="http")

    def check_health(self) -> None:
        """Raise EngineDead where nobody accepts connections any more, although nobody asked for that."""
        if self._serving is not None and self._serving.done() and not (self._server and self._server.should_exit):
            raise EngineDead(f"the HTTP server ended: {self._serving.exception()!r}")

    def refuse(self) -> None:
        """Accept nothing more: what is to come waits in the backlog for the next replica."""
        if self._server is not None:
            self._server.refuse()

    async def leave(self) -> None:
        """Let open answers end, within ``DRAIN_S``. Idempotent."""
        self.refuse()
        if self._serving is not None:
            await self._serving
        self._listening.close()


class _Accepting(uvicorn.Server):
    """uvicorn, but that it empties the backlog, and that signals are the launcher's and Ray's.

    uvloop accepts one connection in a turn of the event loop, and a turn that streams many answers takes long. Under
    pressure the backlog is then full, the kernel answers with SYN cookies, and resets the clients that believed them.
    Here what came waits in the process, at the price of a file descriptor.
    """

    def __init__(self, config: uvicorn.Config, listening: socket.socket) -> None:
        super().__init__(config)
        self._listening = listening
        self._waiting: deque[socket.socket] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._accepts = False
        self._admits = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self._listening.setblocking(False)
        self._listening.listen(BACKLOG)
        self._loop = asyncio.get_running_loop()
        self._accepts = True
        self._watch()

    def refuse(self) -> None:
        """At once, and not when uvicorn looks the next time: what was accepted by then would be closed unread."""
        self.should_exit = True
        if self._accepts and self._loop is not None:
            self._accepts = False
            self._loop.call_soon_threadsafe(self._loop.remove_reader, self._listening)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._accepts = False
        asyncio.get_running_loop().remove_reader(self._listening)
        while self._waiting:
            self._admit()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        await super().shutdown(sockets)

    def _watch(self) -> None:
        if self._accepts:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        """Take all that waits in the kernel."""
        loop = asyncio.get_running_loop()
        while self._accepts:
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionAbortedError:  # it left while it waited
                continue
            except OSError as fault:
                log.warning("cannot accept for now: %s", fault)  # too many open files, most likely
                loop.remove_reader(self._listening)
                loop.call_later(RETRY_S, self._watch)
                break
            self._waiting.append(connection)
        if not self._admits:
            self._admit()

    def _admit(self) -> None:
        """Some of those that wait become connections of the server, and in the next turn more."""
        loop = asyncio.get_running_loop()
        for _ in range(min(ADMIT_AT_ONCE, len(self._waiting))):
            connecting = loop.create_task(self._connect(self._waiting.popleft()))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)
        self._admits = bool(self._waiting)
        if self._admits:
            loop.call_soon(self._admit)

    async def _connect(self, connection: socket.socket) -> None:
        loop, config = asyncio.get_running_loop(), self.config
        protocol: Any = config.http_protocol_class
        made = partial(
            protocol, config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
        )
        try:
            connection.setblocking(False)
            await loop.connect_accepted_socket(made, connection)
        except OSError as fault:  # it left meanwhile
            log.debug("a connection was not taken: %s", fault)
            connection.close()
