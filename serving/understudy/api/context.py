"""What one HTTP request carries to the fork and back: its facts in, its exchanges out, once it was answered."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from understudy.types import RequestFacts


@dataclass(slots=True)
class RequestContext:
    """``answered`` collects what the fork hands over until the last byte was sent; then it is closed.

    ``body`` holds the request's own chunks by reference, and only where a challenger must render it again.
    """

    facts: RequestFacts
    answered: list[Any] = field(default_factory=list)
    open: bool = True
    body: list[bytes] = field(default_factory=list)

    def facts_with_body(self) -> RequestFacts:
        """The facts for the exchange; joins the body, off the answer's path."""
        return replace(self.facts, body=b"".join(self.body)) if self.body else self.facts


current: ContextVar[RequestContext | None] = ContextVar("understudy_request", default=None)
NO_HTTP = RequestFacts()
