"""``understudy serve``: a Ray of its own with the deployment in it, until a signal ends both.

Who has a Ray cluster uses ``serve run`` or ``serve deploy`` with understudy.app:build instead.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from understudy.api.routes import is_loopback
from understudy.config import parse
from understudy.door import Door
from understudy.errors import ConfigError, EngineStartError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RAY_SETTINGS = {
    "RAY_worker_niceness": "0",  # Ray's 15 would put the champion behind everything else on the machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_SERVE_ENABLE_TASK_EVENTS": "0",
}


def serve_forever(raw: Mapping[str, Any], *, host: str, port: int) -> None:
    """Start everything, say where it listens, and end everything on SIGINT or SIGTERM.

    Raises:
        ConfigError: the configuration is wrong; nothing was started.
        EngineStartError: the champion did not come up.
    """
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        with running(raw, host=host, port=port) as url:
            click.echo(f"understudy: serving on {url}; the shadow is at {url}/shadow/status")
            threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("understudy: ended")


def _interrupt(number: int, _frame: object) -> None:
    """Also in the middle of a start, which takes its time; a second signal must not leave half of it running."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    click.echo(f"understudy: {signal.Signals(number).name}, ending")
    raise KeyboardInterrupt


@contextmanager
def running(raw: Mapping[str, Any], *, host: str = "127.0.0.1", port: int = 8000, quiet: bool = False) -> Iterator[str]:
    """A server for the time of the block; gives its URL. ``quiet`` leaves the log to Ray's files."""
    config = parse(raw)
    if not is_loopback(host) and config.auth.shadow_key is None:
        raise ConfigError(f"auth.shadow_key: must be set where the server listens beyond this machine (--host {host})")
    with Door(host, port) as door, _deployed(raw, door.path, quiet=quiet):
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{port}"


@contextmanager
def _deployed(raw: Mapping[str, Any], door: str, *, quiet: bool) -> Iterator[None]:
    """Ray with the deployment in it, for the time of the block."""
    os.environ.update({name: os.environ.get(name, value) for name, value in RAY_SETTINGS.items()})
    started = time.monotonic()
    import ray
    from ray import serve

    from understudy.app import application

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    ray.init(address="local", include_dashboard=False, log_to_driver=not quiet, logging_level=logging.WARNING)
    for number, handler in handlers.items():  # Ray puts its own in place, which aborts on SIGTERM
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)
    try:
        serve.start(http_options={"location": "Disabled"})  # no proxy: the replica listens at the door
        try:
            serve.run(application(raw, door), name="understudy", route_prefix="/", blocking=False)
        except RuntimeError as fault:
            said = serve.status().applications["understudy"].deployments["understudy"].message
            raise EngineStartError(f"the champion did not come up: {last_line(said or str(fault))}") from fault
        click.echo(f"understudy: up after {time.monotonic() - started:.1f} s")
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def last_line(text: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0]]
    return (named or lines or ["no reason was given"])[-1]
