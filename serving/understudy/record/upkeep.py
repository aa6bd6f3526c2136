"""Care for the record in a process of its own: Parquet takes time and the GIL, and neither is to be the champion's.

    parent -> child   {"writer", "rollout", "spec", "adopt"}                  one line of JSON
    child -> parent   {"enter": action, "detail": {...}, "actor": name}       put this into your log
    parent -> child   {} or {"error": words}                                  it is durable, or it is not
    child -> parent   {"done": {...}, "adopted": [...], "failed": {...}} or {"error": words}   the last line

The child runs at the lowest priority. It may be killed at any moment: every step is whole or due again.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from understudy.config import RecordSpec
from understudy.errors import RecordError, UnderstudyError
from understudy.record.care import Enter, adopt, care
from understudy.record.recording import Recording
from understudy.record.schema import SERVER

Say = Callable[[Mapping[str, Any]], None]
AT_LOWEST_PRIORITY = "import os; os.nice(19); from understudy.record import upkeep; upkeep.main()"
"""Before it imports anything: that takes 0.2 s of a core, which on a small machine is one of the champion's."""
MAX_LINE_BYTES = 64 << 20  # an erasure names every record


async def run(recording: Recording, enter: Enter, *, adopting: bool = False) -> dict[str, Any]:
    """Start the child and serve it. A cancelled call kills it; what it has not finished is due again.

    Args:
        recording: whose record it is.
        enter: puts a control record into the log, durably; called in a thread.
        adopting: also care for the folders beside it whose writer is gone.

    Returns:
        The child's last line.

    Raises:
        RecordError: it could not do all of it.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AT_LOWEST_PRIORITY,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MAX_LINE_BYTES,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        order = {"writer": recording.writer, "spec": asdict(recording.spec), "adopt": adopting}
        child.stdin.write(json.dumps(order).encode() + b"\n")
        while said := await child.stdout.readline():
            message: dict[str, Any] = json.loads(said)
            if "enter" not in message:
                break
            answer = await asyncio.to_thread(_entered, enter, message)
            child.stdin.write(json.dumps(answer).encode() + b"\n")
        else:
            raise RecordError("the process that cares for the record ended early")
        if "error" in message:
            raise RecordError(f"caring for the record: {message['error']}")
        if message["failed"]:
            raise RecordError(f"caring for what has no writer: {message['failed']}")
        return message
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


def _entered(enter: Enter, message: Mapping[str, Any]) -> dict[str, str]:
    try:
        enter(message["enter"], message["detail"], message["actor"])
    except RecordError as error:
        return {"error": str(error)}
    return {}


def main() -> None:
    """The child."""
    say = _private_stdout()
    order = json.loads(sys.stdin.readline())
    spec = RecordSpec(**{**order["spec"], "redactors": tuple(order["spec"]["redactors"])})
    try:
        recording = Recording.of(spec, order["writer"])
        done = care(recording, partial(_ask, say))
        adopted, failed = adopt(recording, lambda name: Recording.of(spec, name)) if order["adopt"] else ([], {})
        say({"done": done, "adopted": adopted, "failed": failed})
    except (UnderstudyError, OSError) as error:
        say({"error": f"{type(error).__name__}: {error}"})


def _ask(say: Say, action: str, detail: Mapping[str, Any], actor: str | None = SERVER) -> None:
    say({"enter": action, "detail": detail, "actor": actor})
    answer = json.loads(sys.stdin.readline() or '{"error": "the server is gone"}')
    if "error" in answer:
        raise RecordError(answer["error"])


def _private_stdout() -> Say:
    """Keep stdout for the messages: what anybody else prints, such as a user's redactor, goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: Mapping[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    return say
