"""Of several pieces of feedback for one exchange: which one stands, and which would change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from understudy.record.schema import Feedback

View = Mapping[str, Any]


def latest(given: Iterable[Feedback], name: str) -> Feedback | None:
    """Of those with this name the one that stands: by ``at_unix_s``, and of equal times the one that came last."""
    found: Feedback | None = None
    for one in given:
        if one.name == name and (found is None or one.at_unix_s >= found.at_unix_s):
            found = one
    return found


def current_label(view: View) -> Feedback | None:
    """The right answer to an exchange, as it stands. A label with a name says something else of it, such as a survey's.

    Args:
        view: of the exchange, with its ``feedback`` in the order in which it came.
    """
    return latest((one for one in feedback_of(view) if one.label), "")


def is_given(given: Feedback, before: Iterable[Feedback]) -> bool:
    """Whether giving it changes nothing: what stands says the same, or is later and this one is among ``before``."""
    known = list(before)
    stands = latest(known, given.name)
    if stands is None:
        return False
    if (stands.label, stands.value) == (given.label, given.value):
        return True
    there = ((one.label, one.value, one.name, one.at_unix_s) for one in known)
    return stands.at_unix_s > given.at_unix_s and (given.label, given.value, given.name, given.at_unix_s) in there


def feedback_of(view: View) -> list[Feedback]:
    """What was given for an exchange, as if it had been given for that one alone."""
    return [as_given(view["exchange_id"], one) for one in view.get("feedback") or ()]


def as_given(id: str, one: View) -> Feedback:
    """One piece of feedback as a view shows it, for ``id``."""
    return Feedback(id, one["label"] or "", one["at_unix_s"], one.get("value"), one.get("name") or "")
