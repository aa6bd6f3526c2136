"""OpenTelemetry traces of exchanges, an extra: ``understudy[traces]``, switched on by ``traces.endpoint``.

A span for the champion's answer, in the client's trace where it sent a ``traceparent``, and one for each challenger's
work, where anything of it was seen, in a trace of its own with a link to the champion's. A link and no child: the
challenger works after the answer was sent, and nobody is to read a request's time off a tree that goes on without its
user.

Spans are made after the fact, off the answer's path, from what the record has too; a thread of the SDK exports them.
Attributes are those of OpenTelemetry's conventions for generative AI (gen_ai.*); ours are understudy.*. No text of a
prompt or an answer is in them. What clients chose (the session, the request's id) and the words of an error are in them
only where ``record.text`` is ``full``; else of an error there is its kind.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from understudy.errors import ConfigError
from understudy.types import Ending, Exchange, Observation

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanContext

MAX_OPEN = 10_000
"""Champion spans that a challenger's may still have to be linked to; the oldest go first."""
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}


def need_exporter() -> None:
    """Raises ConfigError: the extra is not installed."""
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:  # not even a package above it
        found = None
    if found is None:
        raise ConfigError("traces.endpoint: needs OpenTelemetry: pip install 'understudy[traces]'")


def exporting(endpoint: str, *, full: bool) -> Traces:
    """Traces to an OTLP/HTTP collector, such as ``http://localhost:4318/v1/traces``; ``full``: see Traces.

    Raises:
        ConfigError: the extra is not installed.
    """
    need_exporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "understudy"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Traces(provider, full=full)


class Traces:
    """Hears of exchanges as the record keeper does (lane.Witnesses).

    Args:
        full: whether what clients chose and the words of errors may leave (``record.text: full``).
    """

    def __init__(
        self,
        provider: TracerProvider,
        *,
        full: bool,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("understudy")
        self._full = full
        self._clock = clock
        self._unix_clock = unix_clock
        self._champions: OrderedDict[str, SpanContext] = OrderedDict()

    def accepted(self, exchange: Exchange, _challengers: Sequence[str], _offered: Mapping[str, int]) -> None:
        """The champion's span, from the request's arrival to its last token."""
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = exchange.facts.traceparent
        parent = TraceContextTextMapPropagator().extract({"traceparent": sent}, Context()) if sent else Context()
        attributes = self._attributes(exchange, exchange.champion, "champion")
        if self._full:
            attributes["gen_ai.response.id"] = exchange.request_id
        context = self._span(exchange.champion, attributes, parent, ())
        self._champions[exchange.exchange_id] = context
        while len(self._champions) > MAX_OPEN:
            self._champions.popitem(last=False)

    def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
        """A challenger's span, where there is an observation of it: what else ended has no times and is counted."""
        from opentelemetry.context import Context
        from opentelemetry.trace import Link

        seen = ending.challenger
        if seen is None:
            return
        champion = self._champions.get(exchange.exchange_id)
        links = () if champion is None else (Link(champion, {"understudy.role": "champion"}),)
        compared = {} if ending.comparison is None else ending.comparison.values
        numbers = {f"understudy.comparison.{name}": float(value) for name, value in compared.items()}
        ours = {"understudy.challenger": challenger, "understudy.ending": ending.state.value}
        self._span(seen, self._attributes(exchange, seen, "challenger") | numbers | ours, Context(), links)

    def close(self) -> None:
        """Export what is left and end the SDK's thread. Idempotent."""
        self._provider.shutdown()

    def _span(self, seen: Observation, attributes: dict[str, Any], parent: Any, links: Any) -> SpanContext:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = attributes["gen_ai.operation.name"]
        unix_s = self._unix_clock() - self._clock()  # what has to be added to a monotonic time
        span = self._tracer.start_span(
            f"{operation} {seen.model}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
            links=links,
            start_time=_ns(seen.timings.arrived_s + unix_s),
        )
        if seen.timings.first_token_s is not None:
            span.add_event("first_token", timestamp=_ns(seen.timings.first_token_s + unix_s))
        if seen.error is not None:
            kind = _kind(seen.error)
            span.set_status(Status(StatusCode.ERROR, seen.error if self._full else kind))
            span.set_attribute("error.type", kind)
        span.end(_ns(seen.timings.finished_s + unix_s))
        return span.get_span_context()

    def _attributes(self, exchange: Exchange, seen: Observation, role: str) -> dict[str, Any]:
        took = seen.measured
        known = {
            "gen_ai.operation.name": OPERATIONS.get(exchange.facts.endpoint, "generate_content"),
            "gen_ai.provider.name": "vllm",
            "gen_ai.request.model": seen.model,
            "gen_ai.response.model": seen.model,
            "gen_ai.response.finish_reasons": [str(answer.finish_reason) for answer in seen.answers],
            "gen_ai.usage.input_tokens": len(seen.prompt_token_ids),
            "gen_ai.usage.output_tokens": seen.num_generated_tokens,
            "gen_ai.usage.cache_read.input_tokens": took.cached_prompt_tokens,
            "gen_ai.conversation.id": exchange.facts.session if self._full else None,
            "understudy.role": role,
            "understudy.exchange_id": exchange.exchange_id,
            "understudy.engine.queue_s": took.queue_s,
            "understudy.engine.prefill_s": took.prefill_s,
            "understudy.engine.decode_s": took.decode_s,
            "understudy.engine.batch_size": took.batch_size,
        }
        return {name: value for name, value in known.items() if value is not None}


def _kind(error: str) -> str:
    """The class of an error, which is ours; its words may be anybody's."""
    kind = error.partition(":")[0]
    return kind if kind.isidentifier() else "error"


def _ns(unix_s: float) -> int:
    return round(unix_s * 1e6) * 1000  # a double has no nanoseconds left
