"""Clients that load a server: open loop (Poisson) and closed loop, streaming completions over HTTP.

    seen = await open_loop(url, bodies, poisson(rate_per_s=4.0, duration_s=30.0, seed=1))
    seen = await closed_loop(url, bodies, concurrency=8)

Open loop: when a request is to be sent is decided before the run, and every time counts from that moment, also when
the client was late: a server that stalls cannot hide its stall by holding the load back (coordinated omission).
All times are seconds on the client's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import aiohttp

from benchmarks.common import percentiles

TIMEOUT_S = 300.0
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
QUANTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as its client saw it. ``gaps_s`` are between one chunk of text and the next (ITL)."""

    intended_s: float
    first_s: float | None
    finished_s: float
    gaps_s: tuple[float, ...]
    status: int
    text: str
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the whole answer came."""
        return self.status == 200 and not self.error

    @property
    def ttft_s(self) -> float:
        """Time to first token, from when the request should have been sent."""
        return (self.finished_s if self.first_s is None else self.first_s) - self.intended_s

    @property
    def end_to_end_s(self) -> float:
        """To the last byte, from when the request should have been sent."""
        return self.finished_s - self.intended_s


def poisson(rate_per_s: float, duration_s: float, seed: int) -> list[float]:
    """Moments in [0, duration_s) of a Poisson process. The same seed gives the same moments."""
    chance, moments, now = random.Random(seed), [], 0.0
    while (now := now + chance.expovariate(rate_per_s)) < duration_s:
        moments.append(now)
    return moments


def completion(prompt: str, max_tokens: int, **more: Any) -> bytes:
    """The body of a streaming completion that always gives ``max_tokens`` tokens."""
    body = {"model": "champ", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return json.dumps(body | {"stream": True} | more).encode()


def prompts(num_words: int, seed: int) -> Iterator[str]:
    """Prompts of ``num_words`` random words without end; hardly any begins like an earlier one (prefix cache)."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "lazy",
        "dog",
        "my",
        "order",
        "did",
        "not",
        "arrive",
        "please",
        "help",
        "me",
    ]
    chance = random.Random(seed)
    while True:
        yield " ".join(chance.choices(words, k=num_words))


async def open_loop(url: str, bodies: Iterator[bytes], at_s: Sequence[float]) -> list[Seen]:
    """One request at each moment, however the server is doing; returns when all have ended."""
    async with client() as session:
        start_s = time.monotonic() + 0.05
        return await asyncio.gather(*(send_at(session, url, next(bodies), start_s + each) for each in at_s))


async def closed_loop(
    url: str,
    bodies: Iterator[bytes],
    num_requests: int,
    concurrency: int,
    headers: Mapping[str, str] = NO_HEADERS,
) -> list[Seen]:
    """``concurrency`` clients, each sends its next request when it has its answer."""
    left = iter(range(num_requests))

    async def one_client(session: aiohttp.ClientSession) -> list[Seen]:
        return [await send_at(session, url, next(bodies), time.monotonic(), headers) for _ in left]

    async with client() as session:
        by_client = await asyncio.gather(*(one_client(session) for _ in range(concurrency)))
    return [seen for one in by_client for seen in one]


def client() -> aiohttp.ClientSession:
    """Without a limit of its own on connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
    )


async def send_at(
    session: aiohttp.ClientSession, url: str, body: bytes, at_s: float, more_headers: Mapping[str, str] = NO_HEADERS
) -> Seen:
    """Send it at ``at_s`` and read the stream to its end. Errors become part of what was seen."""
    await asyncio.sleep(max(0.0, at_s - time.monotonic()))
    status, stamps, text, done = 0, [], [], False
    error = ""
    try:
        headers = {"content-type": "application/json", **more_headers}
        async with session.post(f"{url}/v1/completions", data=body, headers=headers) as response:
            status = response.status
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    done = True
                elif line.startswith(b"data: "):
                    stamps.append(time.monotonic())
                    text.append(line)
            error = "" if done else "the stream ended without [DONE]" if status == 200 else f"status {status}"
    except (aiohttp.ClientError, TimeoutError, OSError) as fault:
        error = f"{type(fault).__name__}: {fault}"
    gaps = tuple(later - earlier for earlier, later in pairwise(stamps))
    first = stamps[0] if stamps else None
    return Seen(at_s, first, time.monotonic(), gaps, status, text_of(text), error)


def text_of(lines: Sequence[bytes]) -> str:
    """The text of the chunks, joined; parsed after the stream has ended, so that parsing delays no stamp."""
    chunks = [json.loads(line[6:]) for line in lines]
    return "".join(choice.get("text", "") for chunk in chunks for choice in chunk.get("choices", ()))


def latencies(seen: Sequence[Seen]) -> dict[str, list[float]]:
    """TTFT, ITL and end-to-end in milliseconds, of the requests that were answered."""
    answered = [each for each in seen if each.ok]
    return {
        "ttft_ms": [each.ttft_s * 1e3 for each in answered],
        "itl_ms": [gap * 1e3 for each in answered for gap in each.gaps_s],
        "end_to_end_ms": [each.end_to_end_s * 1e3 for each in answered],
    }


def summary(seen: Sequence[Seen]) -> dict[str, Any]:
    """Counts, requests per second and quantiles; of nothing there are no quantiles."""
    answered = [each for each in seen if each.ok]
    span_s = max((each.finished_s for each in seen), default=0.0) - min((each.intended_s for each in seen), default=0.0)
    quantiles: Mapping[str, Any] = {
        name: percentiles(values, QUANTILES) for name, values in latencies(seen).items() if values
    }
    rate = len(answered) / span_s if span_s else 0.0
    return {"requests": len(seen), "failed": len(seen) - len(answered), "requests_per_s": rate, **quantiles}
