"""The Ray Serve deployment: a thin shell around server.Server, one a replica."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ray import serve

from understudy.door import Guest
from understudy.meter.metrics import Sink
from understudy.ray_metrics import RaySink
from understudy.server import Server

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter when the loop wants it. With Python's 5 ms the loop that answers users
woke 5.2 ms late (median) while a thread computed; with this 0.7."""
MAX_ONGOING_REQUESTS = 4096  # vLLM's scheduler queues; Ray Serve's default of 5 would hold requests back


@serve.deployment(
    name="understudy",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    graceful_shutdown_timeout_s=60,
    health_check_period_s=1,  # a champion without an engine is to be replaced soon
    max_constructor_retry_count=1,
    logging_config={"enable_access_log": False},  # a line for every request is time on the answer's path
)
@serve.ingress()
class Replica:
    """Serves vLLM's app over the fork, and /shadow beside it."""

    _server: Server | None = None
    _guest: Guest | None = None

    async def __init__(self, raw_config: Mapping[str, Any], door: str | None) -> None:  # type: ignore[misc]  # awaited
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        rank = own_seat()
        self._server = await Server.start(raw_config, replica=rank, sinks=sinks(rank, door))
        if door is not None:
            self._guest = await Guest.enter(door)
            self._guest.serve(self._server.app)

    def __serve_build_asgi_app__(self) -> Any:
        """Ray Serve asks for the app once the constructor is through."""
        assert self._server is not None
        return self._server.app

    def check_health(self) -> None:
        """Raises when the champion's engine or the HTTP server is gone: Ray Serve then replaces this replica."""
        try:
            if self._server is not None:
                self._server.check_health()
            if self._guest is not None:
                self._guest.check_health()
        except Exception:
            if self._guest is not None:
                self._guest.refuse()  # the next replica answers what comes now
            raise

    async def __del__(self) -> None:
        try:
            if self._guest is not None:
                await self._guest.leave()
        finally:
            if self._server is not None:
                await self._server.close()


def sinks(rank: int, door: str | None) -> list[Sink]:
    """Where metrics go beside /metrics: to Ray's, but not to those of a Ray that `understudy serve` started for itself.

    Nobody scrapes these, and they take 30 us of the event loop for each side of an exchange.
    """
    return [RaySink(str(rank))] if door is None else []


def own_seat() -> int:
    """The seat of the replica that this process is."""
    context = serve.get_replica_context()
    return seat(context.rank.rank, context.world_size)


def seat(rank: int, num_replicas: int) -> int:
    """Which folder of the record is this replica's: from 0 to ``num_replicas`` - 1.

    Ray counts on while the replica that is replaced still ends: the only replica's successor may have rank 1. It takes
    the folder of the one that it replaces, so that it goes on counting where that one stopped.
    """
    return rank % max(1, num_replicas)
