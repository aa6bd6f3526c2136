"""What is in the record: four kinds of event. SCHEMA.md lists every field of what they are written as.

    Accepted   an exchange was sampled            Ended     it ended for one challenger
    Feedback   what a user said of it, later      Control   something was done to the shadow or the record

``offered`` is cumulative and travels in events that are written anyway, so that offers that were not sampled
cost nothing and the last event read has the right number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from understudy.types import Ending, Exchange

VERSION: Final = 2
VERSIONS: Final = (1, 2)  # what can be read
SERVER: Final = "server"
DescribeParameters = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Accepted:
    """An exchange that was sampled for ``challengers``; ``offered``: see the top of this file."""

    exchange: Exchange
    challengers: tuple[str, ...]
    offered: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """The one terminal state of an exchange for one challenger.

    ``same_prompt``: the challenger's prompt token ids are the champion's, and are not written twice.
    """

    exchange_id: str
    challenger: str
    ending: Ending
    at_unix_s: float
    same_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a user says of an exchange, later. ``id`` is one of its three, and means each exchange that has it.

    A ``label`` is the right answer; a ``value`` is a number, a score or what it was worth, and ``name`` says which.
    Of several with the same name the latest stands.
    """

    id: str
    label: str
    at_unix_s: float
    value: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Control:
    """Something done to the shadow as a whole; ``actor``: by whom, SERVER for what nobody asked for."""

    action: str
    at_unix_s: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    offered: Mapping[str, int] = field(default_factory=dict)
    num_lost: int = 0
    actor: str | None = None


Event = Accepted | Ended | Feedback | Control


class Head(msgspec.Struct, frozen=True, gc=False):
    """The small fields of any kind of event: enough to count and to find, without decoding the large ones."""

    kind: str
    v: int = VERSION
    exchange_id: str = ""
    request_id: str | None = None
    client_request_id: str | None = None
    challengers: tuple[str, ...] = ()
    offered: dict[str, int] = {}
    challenger: str = ""
    state: str = ""
    reason: str | None = None
    id: str = ""
    num_lost: int = 0
    action: str = ""


def head_of(event: Event) -> Head:
    """What ``decode_head(encode(event))`` gives, without either."""
    match event:
        case Accepted(exchange, challengers, offered):
            return Head(
                "accepted",
                exchange_id=exchange.exchange_id,
                request_id=exchange.request_id,
                client_request_id=exchange.facts.client_request_id,
                challengers=challengers,
                offered=dict(offered),
            )
        case Ended(exchange_id, challenger, ending):
            state, reason = ending.state.value, ending.reason
            return Head("ended", exchange_id=exchange_id, challenger=challenger, state=state, reason=reason)
        case Feedback(id):
            return Head("feedback", id=id)
        case Control():
            return Head("control", offered=dict(event.offered), num_lost=event.num_lost, action=event.action)
