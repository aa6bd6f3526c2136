"""What is written is what is read, for every kind of event and every value they can hold."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as replace_struct

from understudy.errors import RecordError
from understudy.record import Accepted, Control, Ended, Event, decode, encode, from_json
from understudy.record.codec import decode_head
from understudy.record.lines import frame, is_whole, links_of, record_of
from understudy.record.schema import head_of
from understudy.types import (
    NOT_MEASURED,
    NOT_WEIGHED,
    Answer,
    Comparison,
    Ending,
    Exchange,
    Observation,
    Outcome,
    RequestFacts,
    State,
    Timings,
)

from .builders import accepted, ended, feedback, plain

CANCELLED = Observation("b", Outcome.CANCELLED, (), (), Timings(1.0, None, 1.0), error="gone", rendered="own_template")
BARE = Exchange("e", "r", 0.0, RequestFacts(), {"n": 1}, None, CANCELLED)
EVENTS: list[Event] = [
    accepted(1, "b", "c", offered={"b": 7, "c": 9}),
    replace(accepted(2), exchange=BARE, challengers=()),
    replace(accepted(3), exchange=replace(BARE, facts=RequestFacts(shadow_off=True, body=b"\xff\x00\n"))),
    replace(accepted(4), exchange=replace(BARE, prompt_text="half a pair \ud800", facts=RequestFacts())),
    ended(1),
    ended(1, state=State.SHED, reason="pressure"),
    replace(ended(1), ending=Ending(State.FAILED, "engine_dead", "line 1\nline 2", CANCELLED)),
    feedback("chatcmpl-1", "good\n"),
    Control("pause", 12.5, {"by": "someone", "why": [1, None]}, {"b": 3}, num_lost=4),
    Control("stop", 12.5),
    accepted(5, "endpoint", "detail", offered={"a": 1, "endpoint": 7, "detail": 9}),
    Ended('e,"detail":1', 'b","detail":{', Ending(State.SHED, 'why,"detail":', "more"), 1.0),
    replace(accepted(6), offered={f"challenger-{number}": number for number in range(500)}),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_round_trip(event: Event) -> None:
    line = frame(encode(event, plain))
    assert line.count(b"\n") == 1
    assert is_whole(line)
    assert from_json(decode(line)) == event
    assert decode_head(line) == head_of(event)
    json.loads(line)  # plain JSON for other tools


def test_a_head_is_read_without_what_is_behind_it() -> None:
    for event in (accepted(1), ended(1)):
        line = frame(encode(event, plain))
        assert decode_head(line[: len(line) // 2]) == head_of(event)  # whether a line is whole is asked before


def test_an_observation_written_before_there_were_measurements_still_reads() -> None:
    document = decode(encode(accepted(1), plain))
    for name in ("measured", "draft", "taken"):
        del document["champion"][name]
    event = from_json(document)
    assert isinstance(event, Accepted)
    assert event.exchange.champion.measured == NOT_MEASURED
    assert event.exchange.champion.measured.ttft_s is None
    assert event.exchange.champion.draft is None
    assert event.exchange.champion.taken == NOT_WEIGHED


def with_logprobs(*values: float) -> Accepted:
    event = accepted(1)
    answers = (replace(event.exchange.champion.answers[0], logprobs=values),)
    champion = replace(event.exchange.champion, answers=answers)
    return replace(event, exchange=replace(event.exchange, champion=champion))


def logprobs(event: Event) -> tuple[float, ...] | None:
    assert isinstance(event, Accepted)
    return event.exchange.champion.answers[0].logprobs


def test_numbers_that_are_not_finite() -> None:
    values = {"a": math.inf, "b": -math.inf, "c": 0.1}
    event = Ended("e", "b", Ending(State.COMPARED, comparison=Comparison(values)), 1.0)
    assert from_json(decode(encode(event, plain))) == event
    read = logprobs(from_json(decode(encode(with_logprobs(math.nan, -math.inf, -2.0), plain))))
    assert str(read) == "(nan, -inf, -2.0)"
    assert b"NaN" not in encode(with_logprobs(math.nan), plain)


def test_logprobs_are_float32_and_other_numbers_exact() -> None:
    event = with_logprobs(*(float(np.float32(value)) for value in (-0.1, -1 / 3, -123.456, -1e-30)))
    assert from_json(decode(encode(event, plain))) == event
    assert b"f32+" in encode(event, plain)
    assert logprobs(from_json(decode(encode(with_logprobs(-1e300, -0.5), plain)))) == (-math.inf, -0.5)
    surrogates = with_logprobs(-0.5)
    surrogates = replace(surrogates, exchange=replace(surrogates.exchange, prompt_text="half a pair \ud800"))
    assert logprobs(from_json(decode(encode(surrogates, plain)))) == (-0.5,)
    named = Comparison({"a": 0.1, "b": -1e-300, "c": 1 / 3, "d": 5e-324})
    compared = Ended("e", "b", Ending(State.COMPARED, comparison=named), 1.0)
    assert from_json(decode(encode(compared, plain))) == compared


def test_a_prompt_that_is_the_champions_is_not_written_twice() -> None:
    event = replace(ended(1), same_prompt=True)
    document = decode(encode(event, plain))
    assert document["observation"]["prompt_token_ids"] is None
    read: Any = from_json(document)
    assert read.same_prompt
    assert read.ending.challenger.prompt_token_ids == ()


VERSION_1 = """\
{"crc":"%08x","v":1,"kind":"accepted","exchange_id":"ex-1","request_id":"r","client_request_id":null,\
"arrived_unix_s":1.5,"challengers":["b"],"offered":{"b":1},"endpoint":"/v1/completions","tags":{"session":"s"},\
"shadow_off":false,"body":null,"prompt_text":"hi","parameters":{"n":1},"champion":{"model":"m","outcome":"finished",\
"rendered":"token_ids","error":null,"prompt_token_ids":[1,2],"timings":{"arrived_s":1.0,"first_token_s":null,\
"finished_s":2.0},"answers":[{"text":"f32+","finish_reason":"stop","token_ids":[3],"logprobs":["-inf",-0.1]}],\
"scores":[]}}
"""


def test_records_of_version_1_still_read() -> None:
    covered = VERSION_1.partition(",")[2][:-1]
    line = (VERSION_1 % zlib.crc32(covered.encode())).encode()
    assert is_whole(line)
    assert not is_whole(line.replace(b"hi", b"ho"))
    event: Any = from_json(decode(line))
    assert event.exchange.champion.answers[0] == Answer((3,), "f32+", "stop", (-math.inf, -0.1))
    assert decode_head(line) == replace_struct(head_of(event), v=1)
    assert links_of(line) is None
    assert decode(record_of(line)) == {name: value for name, value in decode(line).items() if name != "crc"}


def test_what_json_does_not_know_is_written_as_its_repr() -> None:
    class Odd:
        def __repr__(self) -> str:
            return "Odd()"

    event = accepted(1, parameters={"odd": Odd(), "seed": 1 << 70, "bias": {5: 1.0}})
    assert decode(encode(event, plain))["parameters"] == {"odd": "Odd()", "seed": 1 << 70, "bias": {"5": 1.0}}


def test_unknown_fields_are_skipped_and_missing_ones_have_their_default() -> None:
    event = accepted(1)
    document = {**decode(encode(event, plain)), "later": [1]}
    del document["offered"]
    assert from_json(document) == event
    assert decode_head(json.dumps(document).encode()) == head_of(event)


@pytest.mark.parametrize(
    "line",
    [b"[1]", b"{}", b'{"v":9,"kind":"ended"}', b'{"v":1,"kind":"other"}', b'{"v":1,"kind":3}', b"{", b"\xff"],
)
def test_what_is_no_event_is_an_error(line: bytes) -> None:
    for read in (decode, decode_head):
        with pytest.raises(RecordError):
            read(line)


@pytest.mark.parametrize("missing", ["exchange_id", "champion", "challengers"])
def test_a_document_without_what_matters_is_an_error(missing: str) -> None:
    document: dict[str, Any] = decode(encode(accepted(1), plain))
    del document[missing]
    with pytest.raises(RecordError, match=missing):
        from_json(document)


def test_tags_stay_immutable() -> None:
    read: Any = from_json(decode(encode(accepted(1), plain)))
    assert isinstance(read.exchange.facts.tags, MappingProxyType)
