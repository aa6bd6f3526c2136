"""Who sits in front while things break behind: clients that ask all the time and know what they must be answered.

The answers are taken once of requests that are not shadowed; whatever is broken afterwards, every answer must be those
tokens.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from tests.serving.process import Running, wait_for

NUM_CLIENTS = 2
WORDS = ("the quick brown fox", "my order did not arrive", "the lazy dog", "please help me", "jumps over the lazy fox")
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0, "max_tokens": 16},
    {"temperature": 0.9, "seed": 5, "max_tokens": 12},
    {"temperature": 1.2, "seed": 6, "max_tokens": 8, "n": 2},
]


@dataclass(frozen=True)
class Ask:
    """One request, streamed or not."""

    words: str
    parameters: tuple[tuple[str, Any], ...]
    stream: bool

    def put(self, client: openai.OpenAI) -> list[str]:
        """The text of each choice."""
        messages: list[Any] = [{"role": "user", "content": self.words}]
        answer: Any = client.chat.completions.create(
            model="champ", messages=messages, stream=self.stream, **dict(self.parameters)
        )
        if not self.stream:
            return [choice.message.content for choice in answer.choices]
        texts: dict[int, str] = {}
        for chunk in answer:
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        return [texts[index] for index in sorted(texts)]


ASKS = [
    Ask(words, tuple(parameters.items()), stream)
    for words in WORDS
    for number, parameters in enumerate(SAMPLED)
    for stream in ((True, False) if number == 0 else (number == 1,))
]


@dataclass
class Audience:
    """``wrong`` collects every failed and every altered answer, and every status whose counts do not add up."""

    server: Running
    expected: dict[Ask, list[str]]
    wrong: list[str] = field(default_factory=list)
    failed: list[str] | None = None
    """Where requests may fail, as in ``may_fail``: how they did. An altered answer is wrong there, too."""
    num_answers: int = 0
    _leave: threading.Event = field(default_factory=threading.Event)

    def mark(self) -> int:
        """How many answers there were so far."""
        return self.num_answers

    def go_on(self, since: int, more: int = 10) -> None:
        """Return when ``more`` answers were given since ``mark()``; fail when anything was wrong with any."""
        wait_for(lambda: self.wrong or self.num_answers >= since + more, 60)
        assert not self.wrong, self.wrong[:5]

    @contextlib.contextmanager
    def may_fail(self) -> Iterator[list[str]]:
        """For the time of the block, in which the replica is replaced. Gives how requests failed."""
        failed: list[str] = []
        self.failed = failed
        try:
            yield failed
        finally:
            self.failed = None

    def ask_until_told(self, first: int) -> None:
        """One client."""
        with openai.OpenAI(base_url=f"{self.server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            number = first
            while not self._leave.is_set():
                ask = ASKS[number % len(ASKS)]
                number += 1
                try:
                    answer = ask.put(client)
                except (openai.OpenAIError, httpx.HTTPError, OSError) as fault:
                    if self.failed is None:
                        self.wrong.append(f"{ask}: {type(fault).__name__}: {fault}")
                    else:
                        self.failed.append(word_for(fault))
                    self._leave.wait(0.2)
                    continue
                if answer != self.expected[ask]:
                    self.wrong.append(f"{ask}: {answer} and not {self.expected[ask]}")
                self.num_answers += 1

    def watch_until_told(self) -> None:
        """The counts add up whenever somebody looks."""
        while not self._leave.wait(0.1):
            with contextlib.suppress(Exception):  # the clients above say what is wrong with the server
                status = self.server.status()
                for each in (status, *status["challengers"]):
                    if not adds_up(each["counts"]):
                        self.wrong.append(f"counts do not add up: {each['counts']}")


def word_for(fault: Exception) -> str:
    """The HTTP status, or the error's name where there is none: the connection broke, or a stream ended in an error."""
    return str(getattr(fault, "status_code", None) or type(fault).__name__)


def adds_up(counts: dict[str, Any]) -> bool:
    """Law 4."""
    ended = counts["compared"] + counts["expired"] + counts["cancelled"]
    ended += sum(counts["shed"].values()) + sum(counts["failed"].values())
    return bool(counts["sampled"] == counts["pending"] + ended)


def expected_answers(server: Running) -> dict[Ask, list[str]]:
    """Not shadowed, one request at a time. No pause: resuming would lift quarantines."""
    off = {"x-understudy-shadow": "off"}
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60, default_headers=off
    ) as client:
        return {ask: ask.put(client) for ask in ASKS}


@contextlib.contextmanager
def seated(server: Running) -> Iterator[Audience]:
    """An audience for the time of the block."""
    audience = Audience(server, expected_answers(server))
    threads = [threading.Thread(target=audience.ask_until_told, args=(7 * each,)) for each in range(NUM_CLIENTS)]
    threads.append(threading.Thread(target=audience.watch_until_told))
    for thread in threads:
        thread.start()
    try:
        yield audience
    finally:
        audience._leave.set()
        for thread in threads:
            thread.join()
