"""Support tickets with a known right answer, composed from a grammar and a seed.

A ticket is a customer's message that brings up one to three topics, of which exactly one still matters: its
label. The rest is greetings, fillers, settled matters and typos. The reply names the label on its first line,
then the customer and the item, so that it can be checked and still differs from ticket to ticket.

What it is not: real data. Nothing here says how well a model does on real support mail.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from understudy.demo import phrases
from understudy.demo.phrases import TOPICS, Topic

LABELS: tuple[str, ...] = tuple(topic.label for topic in TOPICS)
LABEL_PATTERN = r"label: (\w+)"
"""Finds the label in a reply (group 1)."""

Annotator = Literal["careful", "hasty"]
"""careful labels the topic that matters; hasty labels whichever topic comes first."""

RECENT_FRACTION = 0.08
"""Fraction of tickets, in today's traffic, whose complaint is worded as it only has been lately."""
_TYPO_FRACTION = 0.03  # of words
_HELD_OUT_BUCKETS, _NUM_BUCKETS = 2, 10


@dataclass(frozen=True, slots=True)
class Ticket:
    """One ticket: the customer's text, its label, and the answer to be learnt, label line first."""

    text: str
    label: str
    reply: str


def chat_messages(ticket: Ticket) -> list[dict[str, str]]:
    """Return the conversation a client sends for this ticket."""
    return [{"role": "user", "content": ticket.text}]


def train_tickets(
    num_tickets: int,
    *,
    seed: int = 0,
    recent_fraction: float = RECENT_FRACTION,
    annotator: Annotator = "careful",
) -> list[Ticket]:
    """Return training tickets; no text among them can occur in held_out_tickets, whatever the seeds."""
    stream = _stream(f"train-{seed}", recent_fraction, annotator)
    return list(islice((t for t in stream if not is_held_out(t.text)), num_tickets))


def held_out_tickets(num_tickets: int, *, seed: int = 0) -> list[Ticket]:
    """Return tickets as today's traffic has them, labelled with care, never used in training."""
    stream = _stream(f"held-out-{seed}", RECENT_FRACTION, "careful")
    return list(islice((t for t in stream if is_held_out(t.text)), num_tickets))


def is_held_out(text: str) -> bool:
    """Say on which side of the train / held-out split a text lies: a function of the text alone."""
    return zlib.crc32(text.encode()) % _NUM_BUCKETS < _HELD_OUT_BUCKETS


def _stream(seed: str, recent_fraction: float, annotator: Annotator) -> Iterator[Ticket]:
    rng = random.Random(seed)  # seeded with a string: independent of PYTHONHASHSEED
    while True:
        yield _compose(rng, recent_fraction, annotator)


def _compose(rng: random.Random, recent_fraction: float, annotator: Annotator) -> Ticket:
    topic, first_settled, last_settled = rng.sample(TOPICS, 3)
    settled = rng.choices(("none", "before", "after", "both"), weights=(44, 22, 24, 10))[0]
    before = _settled(rng, first_settled, phrases.SETTLED_BEFORE) if settled in ("before", "both") else ""
    after = _settled(rng, last_settled, phrases.SETTLED_AFTER) if settled in ("after", "both") else ""
    urgent, named, numbered = rng.random() < 0.25, rng.random() < 0.85, rng.random() < 0.8
    introduced = named and rng.random() < 0.4

    filler = rng.choice(phrases.FILLERS) if rng.random() < 0.4 else ""
    parts = [
        rng.choice(phrases.GREETINGS),
        rng.choice(phrases.INTRODUCTIONS) if introduced else "",
        before,
        f"{filler} {_complaint(rng, topic, recent_fraction)}.".lstrip(),
        rng.choice(phrases.ORDER_SENTENCES) if numbered else "",
        after,
        rng.choice(phrases.URGENCIES) if urgent else "",
        rng.choice(phrases.CLOSINGS) if named and not introduced else "",
    ]
    slots = {
        "item": rng.choice(phrases.ITEMS),
        "order": str(rng.randrange(1000, 10_000)),
        "name": rng.choice(phrases.NAMES),
    }
    words = " ".join(part for part in parts if part).split(" ")
    text = " ".join(_with_typo(rng, word) for word in words).format(**slots)
    labelled = first_settled if annotator == "hasty" and before else topic
    reply = _reply(labelled, name=slots["name"] if named else "there", item=slots["item"], urgent=urgent)
    return Ticket(text=text, label=labelled.label, reply=reply)


def _complaint(rng: random.Random, topic: Topic, recent_fraction: float) -> str:
    recent = rng.random() < recent_fraction
    return rng.choice(topic.recent_complaints if recent else topic.complaints)


def _settled(rng: random.Random, topic: Topic, templates: tuple[str, ...]) -> str:
    template = rng.choice(templates)
    return template.replace("{mention}", rng.choice(topic.mentions)).replace(
        "{complaint}", rng.choice(topic.complaints)
    )


def _with_typo(rng: random.Random, word: str) -> str:
    """Swap, drop or double a letter of a few words; slots such as {order} stay whole."""
    if rng.random() >= _TYPO_FRACTION or not word.isalpha() or len(word) < 4:
        return word
    at = rng.randrange(1, len(word) - 1)
    kind = rng.choice(("swap", "drop", "double"))
    if kind == "swap":
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at + 1 :] if kind == "drop" else word[:at] + word[at] + word[at:]


def _reply(topic: Topic, *, name: str, item: str, urgent: bool) -> str:
    apology = topic.apology.format(item=item)
    action = topic.action.format(when="today" if urgent else "within two days")
    return f"label: {topic.label}\nreply: Hi {name}, {apology}. {action}."
