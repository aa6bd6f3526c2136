"""The load generator tells the truth about a server that stalls."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from benchmarks.serving.bench_isolation import quantile_ratio
from benchmarks.serving.load import Seen, closed_loop, open_loop, poisson, summary

from understudy.door import Door, Guest
from understudy.launch import free_port

CHUNKS = (b'data: {"choices": [{"text": "a"}]}\n\n', b'data: {"choices": [{"text": "b"}]}\n\n', b"data: [DONE]\n\n")


class Server:
    """Streams two tokens; the first request is held until it is released."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.chunks = CHUNKS
        self.status = 200

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        await self.release.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def bodies() -> Iterator[bytes]:
    while True:
        yield b"{}"


async def loaded(server: Server, load: Any) -> list[Seen]:
    port = free_port()
    with Door("127.0.0.1", port) as door:
        guest = await Guest.enter(door.path)
        guest.serve(server)
        try:
            seen: list[Seen] = await load(f"http://127.0.0.1:{port}")
        finally:
            await guest.leave()
    return seen


def test_a_stall_is_counted_from_when_each_request_should_have_been_sent() -> None:
    """With coordinated omission only the first request would look slow."""

    async def scenario() -> list[Seen]:
        server = Server()
        asyncio.get_running_loop().call_later(0.5, server.release.set)
        return await loaded(server, lambda url: open_loop(url, bodies(), [0.0, 0.1, 0.2]))

    seen = asyncio.run(scenario())
    assert all(each.ok and each.text == "ab" and len(each.gaps_s) == 1 for each in seen)
    intended = [each.intended_s - seen[0].intended_s for each in seen]
    assert intended == pytest.approx([0.0, 0.1, 0.2])
    finished = min(each.finished_s for each in seen)  # nobody is answered before the release
    for each in seen:
        assert each.ttft_s >= finished - each.intended_s - 0.2
    assert seen[0].end_to_end_s > seen[2].end_to_end_s


def test_an_answer_that_breaks_off_and_a_status_are_errors() -> None:
    async def scenario(status: int, chunks: tuple[bytes, ...]) -> list[Seen]:
        server = Server()
        server.release.set()
        server.status, server.chunks = status, chunks
        return await loaded(server, lambda url: closed_loop(url, bodies(), 3, 2))

    broken = asyncio.run(scenario(200, CHUNKS[:2]))
    assert [each.error for each in broken] == ["the stream ended without [DONE]"] * 3
    refused = asyncio.run(scenario(503, ()))
    assert [each.error for each in refused] == ["status 503"] * 3
    assert summary(refused)["failed"] == 3


def test_poisson_moments_are_the_same_for_a_seed_and_have_their_rate() -> None:
    moments = poisson(50.0, 100.0, seed=3)
    assert moments == poisson(50.0, 100.0, seed=3)
    assert moments == sorted(moments)
    assert len(moments) == pytest.approx(5000, rel=0.05)


def test_a_ratio_of_quantiles_covers_the_truth() -> None:
    base = [[float(value) for value in range(1, 200)] for _ in range(4)]
    same = quantile_ratio(base, base, 50)
    assert same["ratio"] == 1.0
    assert same["low"] <= 1.0 <= same["high"]
    twice = quantile_ratio([[2 * value for value in values] for values in base], base, 95)
    assert twice["ratio"] == 2.0
    assert twice["low"] > 1.5
