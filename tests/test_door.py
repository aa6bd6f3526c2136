"""The listening socket outlives the replicas that accept from it."""

from __future__ import annotations

import asyncio
import errno
import socket
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from understudy import door as door_module
from understudy.door import Door, Guest, take_socket
from understudy.errors import ConfigError, EngineDead
from understudy.launch import free_port


def app_that_says(word: str) -> Any:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": word.encode()})

    return app


async def get(port: int) -> str:
    async with httpx.AsyncClient(timeout=20) as client:
        return (await client.get(f"http://127.0.0.1:{port}/")).text


async def replaced(door: Door, port: int) -> list[str]:
    first = await Guest.enter(door.path)
    first.serve(app_that_says("first"))
    said = [await get(port)]
    await first.leave()
    waiting = asyncio.create_task(get(port))  # nobody accepts now, and it is not refused either
    await asyncio.sleep(0.05)
    assert not waiting.done()
    second = await Guest.enter(door.path)
    second.serve(app_that_says("second"))
    said.append(await waiting)
    await second.leave()
    await second.leave()  # once more does no harm
    return said


def test_a_request_that_comes_between_two_replicas_waits_for_the_second() -> None:
    port = free_port()
    with Door("127.0.0.1", port) as door:
        assert asyncio.run(replaced(door, port)) == ["first", "second"]


def test_who_comes_after_a_refusal_gets_the_next_replica_and_is_not_closed_unread() -> None:
    """uvicorn looks every tenth of a second whether it is to end; what is accepted until then it closes unread."""
    port, count = free_port(), 20

    async def scenario(path: str) -> list[bytes]:
        loop = asyncio.get_running_loop()
        first = await Guest.enter(path)
        first.serve(app_that_says("first"))
        await get(port)
        first.refuse()
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        await first.leave()
        second = await Guest.enter(path)
        second.serve(app_that_says("second"))
        answers = []
        for client in clients:
            client.setblocking(False)
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            received = b""
            while more := await loop.sock_recv(client, 4096):
                received += more
            answers.append(received)
            client.close()
        await second.leave()
        return answers

    with Door("127.0.0.1", port) as door, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers = runner.run(scenario(door.path))
    assert all(b"second" in each for each in answers), answers


def test_a_guest_that_refuses_ends_its_open_answers_first() -> None:
    port, release = free_port(), asyncio.Event()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        await release.wait()
        await send({"type": "http.response.body", "body": b"ended"})

    async def scenario(path: str) -> str:
        guest = await Guest.enter(path)
        guest.serve(slow)
        async with httpx.AsyncClient(timeout=20) as client, client.stream("GET", f"http://127.0.0.1:{port}/") as answer:
            chunks = answer.aiter_text()
            text = await anext(chunks)
            leaving = asyncio.create_task(guest.leave())
            await asyncio.sleep(0.05)
            assert not leaving.done()
            release.set()
            text += "".join([chunk async for chunk in chunks])
        await leaving
        return text

    with Door("127.0.0.1", port) as door:
        assert asyncio.run(scenario(door.path)) == "begun ended"


def test_clients_are_refused_before_the_first_replica_and_after_the_door_is_closed() -> None:
    port = free_port()
    with Door("127.0.0.1", port), socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_taken_port_is_a_config_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot listen on 127.0.0.1"):
            Door("127.0.0.1", port)


def test_only_its_owner_can_take_the_socket() -> None:
    with Door("127.0.0.1", free_port()) as door:
        folder = Path(door.path).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_a_server_that_ended_by_itself_is_a_fault_and_one_that_was_asked_to_end_is_not() -> None:
    async def scenario(path: str) -> None:
        guest = await Guest.enter(path)
        guest.check_health()  # before it serves
        guest.serve(app_that_says("hello"))
        guest.check_health()
        await guest.leave()
        guest.check_health()
        broken = await Guest.enter(path)
        broken._listening.close()
        broken.serve(app_that_says("hello"))
        assert broken._serving is not None
        await asyncio.wait([broken._serving])
        with pytest.raises(EngineDead, match="the HTTP server ended"):
            broken.check_health()

    with Door("127.0.0.1", free_port()) as door:
        asyncio.run(scenario(door.path))


def test_a_launcher_that_had_no_file_descriptor_left_hands_the_socket_out_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, faults = socket.socket.accept, [errno.EMFILE, errno.EMFILE]

    def accept(self: socket.socket) -> Any:
        if faults:
            raise OSError(faults.pop(), "Too many open files")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    monkeypatch.setattr(door_module, "RETRY_S", 0.01)
    with Door("127.0.0.1", free_port()) as door, take_socket(door.path) as taken:
        assert taken.getsockname() == door._listening.getsockname()
    assert faults == []


def connections(port: int, number: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_all_that_waits_is_accepted_within_a_few_turns_of_the_event_loop(new_loop: Any) -> None:
    number, port = 600, free_port()

    async def turns(path: str) -> int:
        guest = await Guest.enter(path)
        guest.serve(app_that_says("hello"))
        assert await get(port) == "hello"
        assert guest._server is not None
        clients, count = connections(port, number), 0  # the loop does not turn while they come
        while len(guest._server.server_state.connections) < number:
            await asyncio.sleep(0)
            count += 1
        for each in clients:
            each.close()
        await guest.leave()
        return count

    with Door("127.0.0.1", port) as door, asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(turns(door.path)) < 60  # uvloop's own server takes one in a turn


def test_who_was_accepted_and_not_yet_admitted_is_answered_by_a_server_that_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number, port = 30, free_port()
    monkeypatch.setattr(door_module, "ADMIT_AT_ONCE", 1)

    async def scenario(path: str) -> list[bytes]:
        guest = await Guest.enter(path)
        guest.serve(app_that_says("hello"))
        assert await get(port) == "hello"
        assert guest._server is not None
        clients = connections(port, number)
        for each in clients:
            each.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        guest._server._accept()
        assert len(guest._server._waiting) == number - 1
        await guest._server.shutdown()  # at once, and not at its next tick
        await guest.leave()
        said = [each.recv(1000) for each in clients]
        for each in clients:
            each.close()
        return said

    with Door("127.0.0.1", port) as door:
        said = asyncio.run(scenario(door.path))
    assert all(b"200 OK" in each for each in said)


def test_a_replica_that_had_no_file_descriptor_left_accepts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    async def scenario(path: str) -> str:
        guest = await Guest.enter(path)
        real, faults = socket.socket.accept, [errno.EMFILE, errno.ECONNABORTED, errno.EMFILE]

        def accept(self: socket.socket) -> Any:
            if faults:
                raise OSError(faults.pop(), "Too many open files")
            return real(self)

        monkeypatch.setattr(socket.socket, "accept", accept)
        guest.serve(app_that_says("hello"))
        said = await get(port)
        assert faults == []
        await guest.leave()
        return said

    monkeypatch.setattr(door_module, "RETRY_S", 0.01)
    with Door("127.0.0.1", port) as door:
        assert asyncio.run(scenario(door.path)) == "hello"


def test_a_launcher_that_does_not_answer_fails_the_start_and_does_not_hold_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(door_module, "TAKE_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(tmp_path / "door"))
        silent.listen()
        with pytest.raises(OSError, match="timed out"):
            take_socket(str(tmp_path / "door"))
