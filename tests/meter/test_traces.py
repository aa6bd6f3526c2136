"""Spans as an exporter gets them: names and attributes of OpenTelemetry's conventions, a link and no child."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from tests.builders import answer, exchange, observation

from understudy.config import parse
from understudy.errors import ConfigError
from understudy.meter import traces
from understudy.meter.traces import Traces
from understudy.types import Comparison, Ending, Measured, RequestFacts, State, Timings

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
FACTS = RequestFacts("/v1/chat/completions", tags={"session": "s1"}, traceparent=PARENT)
ONE = exchange(
    "x", answer(5, 6, 7), facts=FACTS, timings=Timings(100.0, 100.25, 101.0), measured=Measured(0.0, 0.2, 0.75, 2, 4.0)
)
RIVAL = observation(answer(5), model="rival", timings=Timings(110.0, 110.5, 111.0))
COMPARED = Ending(State.COMPARED, challenger=RIVAL, comparison=Comparison({"token_agreement": 0.5}))


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def heard(exporter: InMemorySpanExporter) -> Iterator[Traces]:
    found = traces_to(exporter, full=True)
    yield found
    found.close()


def traces_to(exporter: InMemorySpanExporter, *, full: bool) -> Traces:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traces(provider, full=full, clock=lambda: 1000.0, unix_clock=lambda: 1_700_001_000.0)


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_the_champions_span_is_in_the_clients_trace(heard: Traces, exporter: InMemorySpanExporter) -> None:
    heard.accepted(ONE, ["rival"], {})
    span = spans(exporter)["chat champion"]
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert (span.start_time, span.end_time) == (1_700_000_100 * 10**9, 1_700_000_101 * 10**9)
    assert [(event.name, event.timestamp) for event in span.events] == [("first_token", 1_700_000_100_250_000_000)]
    assert span.attributes is not None
    assert (
        dict(span.attributes).items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "champion",
            "gen_ai.response.id": "request-x",
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 3,
            "gen_ai.conversation.id": "s1",
            "understudy.role": "champion",
            "understudy.engine.prefill_s": 0.2,
        }.items()
    )


def test_the_challengers_is_linked_and_no_child(heard: Traces, exporter: InMemorySpanExporter) -> None:
    heard.accepted(ONE, ["rival"], {})
    heard.ended(ONE, "rival", COMPARED)
    champion, rival = spans(exporter)["chat champion"], spans(exporter)["chat rival"]
    assert champion.context is not None
    assert rival.context is not None
    assert rival.parent is None
    assert rival.context.trace_id != champion.context.trace_id
    assert [link.context.span_id for link in rival.links] == [champion.context.span_id]
    assert rival.attributes is not None
    assert rival.attributes["understudy.comparison.token_agreement"] == 0.5
    assert (rival.start_time or 0) > (champion.end_time or 0)


def test_no_text_is_exported(heard: Traces, exporter: InMemorySpanExporter) -> None:
    secret = exchange("y", answer(1, text="secret answer"), prompt_text="secret prompt")
    heard.accepted(secret, ["rival"], {})
    heard.ended(secret, "rival", COMPARED)
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_what_clients_chose_and_the_words_of_errors_are_exported_where_the_record_is_in_full() -> None:
    facts = RequestFacts("/v1/chat/completions", tags={"session": "secret session"})
    one = replace(exchange("y", answer(1), facts=facts), request_id="secret-request")
    for error, kind in (("ValueError: secret words", "ValueError"), ("secret words", "error")):
        for full in (False, True):
            exporter = InMemorySpanExporter()
            heard = traces_to(exporter, full=full)
            heard.accepted(replace(one, champion=replace(one.champion, error=error)), ["rival"], {})
            heard.ended(one, "rival", replace(COMPARED, challenger=replace(RIVAL, error=error)))
            heard.close()
            champion, rival = exporter.get_finished_spans()
            for span in (champion, rival):
                attributes = dict(span.attributes or {})
                assert attributes["error.type"] == kind
                assert span.status.description == (error if full else kind)
                assert attributes.get("gen_ai.conversation.id") == ("secret session" if full else None)
                assert ("secret" in span.to_json()) == full


@pytest.mark.parametrize("state", [State.FAILED, State.EXPIRED])
def test_whatever_a_challenger_was_seen_to_do_has_a_span(
    heard: Traces, exporter: InMemorySpanExporter, state: State
) -> None:
    heard.ended(ONE, "rival", Ending(state, "why", challenger=RIVAL))
    heard.ended(ONE, "rival", Ending(state, "why"))  # nothing was seen of it: it has no times
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["understudy.ending"] == state.value


def test_what_was_shed_has_no_span_and_a_failure_is_one(heard: Traces, exporter: InMemorySpanExporter) -> None:
    failed = replace(ONE, champion=replace(ONE.champion, error="RuntimeError: broken"))
    heard.accepted(failed, ["rival"], {})
    heard.ended(failed, "rival", Ending(State.SHED, "budget"))
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "RuntimeError"


def test_what_is_kept_for_links_is_bounded(heard: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_OPEN", 3)
    for number in range(10):
        heard.accepted(exchange(f"x-{number}"), ["rival"], {})
    assert list(heard._champions) == ["x-7", "x-8", "x-9"]


def test_a_bad_traceparent_is_no_parent(heard: Traces, exporter: InMemorySpanExporter) -> None:
    heard.accepted(exchange("z", facts=RequestFacts(traceparent="nonsense")), [], {})
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_without_the_extra_the_option_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"traces.endpoint: needs OpenTelemetry"):
        traces.exporting("http://localhost:4318/v1/traces", full=True)
    with pytest.raises(ConfigError, match=r"traces.endpoint: 'localhost' must be"):
        parse({"champion": {"model": "m"}, "traces": {"endpoint": "localhost"}})
