from __future__ import annotations

import re
from collections import Counter

import pytest

from understudy.demo.tickets import (
    LABEL_PATTERN,
    LABELS,
    Ticket,
    held_out_tickets,
    is_held_out,
    train_tickets,
)

NUM_TICKETS = 2000


def test_the_same_seed_gives_the_same_tickets() -> None:
    assert train_tickets(200, seed=3) == train_tickets(200, seed=3)
    assert held_out_tickets(200, seed=3) == held_out_tickets(200, seed=3)


def test_a_shorter_draw_is_the_beginning_of_a_longer_one() -> None:
    assert train_tickets(50, seed=1) == train_tickets(200, seed=1)[:50]


def test_another_seed_gives_other_tickets() -> None:
    first, second = ({ticket.text for ticket in held_out_tickets(200, seed=seed)} for seed in (0, 1))
    assert len(first & second) < 10


@pytest.mark.parametrize("seeds", [(0, 0), (1, 2), (5, 0)])
def test_no_training_text_is_held_out(seeds: tuple[int, int]) -> None:
    train_seed, held_out_seed = seeds
    train = {ticket.text for ticket in train_tickets(NUM_TICKETS, seed=train_seed)}
    held_out = {ticket.text for ticket in held_out_tickets(NUM_TICKETS, seed=held_out_seed)}
    assert not train & held_out
    assert not any(map(is_held_out, train))
    assert all(map(is_held_out, held_out))


@pytest.mark.parametrize("draw", [train_tickets, held_out_tickets])
def test_labels_are_balanced(draw: object) -> None:
    assert callable(draw)
    counts = Counter(ticket.label for ticket in draw(NUM_TICKETS))
    assert set(counts) == set(LABELS)
    fair = NUM_TICKETS / len(LABELS)
    assert all(0.75 * fair < count < 1.25 * fair for count in counts.values()), counts


def test_a_reply_begins_with_its_label_line() -> None:
    for ticket in held_out_tickets(NUM_TICKETS):
        first, second = ticket.reply.split("\n")
        match = re.fullmatch(LABEL_PATTERN, first)
        assert match is not None
        assert match[1] == ticket.label
        assert second.startswith("reply: Hi ")
        assert re.findall(LABEL_PATTERN, ticket.reply) == [ticket.label]


def test_replies_depend_on_the_ticket() -> None:
    tickets = held_out_tickets(NUM_TICKETS)
    assert len({ticket.reply for ticket in tickets}) > NUM_TICKETS / 2
    for ticket in tickets:
        name = re.search(r"Hi (\w+),", ticket.reply)
        assert name is not None
        assert name[1] == "there" or name[1] in ticket.text


def test_a_hasty_annotator_only_changes_labels_and_some_of_them() -> None:
    careful, hasty = train_tickets(NUM_TICKETS, seed=3), train_tickets(NUM_TICKETS, seed=3, annotator="hasty")
    assert [ticket.text for ticket in careful] == [ticket.text for ticket in hasty]
    wrong = sum(ours.label != theirs.label for ours, theirs in zip(careful, hasty, strict=True))
    assert 0.2 < wrong / NUM_TICKETS < 0.45


def test_texts_have_no_unfilled_slots_or_doubled_spaces() -> None:
    for ticket in train_tickets(NUM_TICKETS):
        assert not re.search(r"[{}]|  ", ticket.text + ticket.reply), ticket


def test_tickets_are_frozen() -> None:
    ticket = held_out_tickets(1)[0]
    with pytest.raises(AttributeError):
        ticket.label = "billing"  # type: ignore[misc]
    assert isinstance(ticket, Ticket)


def test_recent_wordings_are_absent_when_asked() -> None:
    old = train_tickets(NUM_TICKETS, recent_fraction=0.0)
    new = train_tickets(NUM_TICKETS, recent_fraction=1.0)
    assert sum("five stars" in ticket.text for ticket in old) == 0
    assert sum("five stars" in ticket.text for ticket in new) > 50
