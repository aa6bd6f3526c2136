"""Where a challenger is in the champion's answer, and how much of the rest is worth proposing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import pytest

from understudy.engines.draft import ANY_PRICE, MARGIN, Draft, Habits, Odds, lengths, realignments
from understudy.engines.step_cost import Price

ANSWER = tuple(range(100, 160))  # each token once
LIMIT = 32


def after(answer: Sequence[int], generated: Sequence[int]) -> Draft:
    draft = Draft(answer)
    for token in generated:
        draft.feed(token)
    return draft


def drafts(answer: Sequence[int], generated: Sequence[int]) -> list[int]:
    """How the engine would go: the length of each step's draft. A step says what was right of it, and one more."""
    draft, lengths = Draft(answer), []
    while draft.num_fed < len(generated):
        rest = generated[draft.num_fed :]
        proposed = draft.propose(LIMIT)
        agreed = next((i for i, (a, b) in enumerate(zip(proposed, rest, strict=False)) if a != b), len(proposed))
        for token in rest[: agreed + 1]:
            draft.feed(token)
        lengths.append(len(proposed))
    return lengths


def cost(answer: Sequence[int], generated: Sequence[int]) -> float:
    """In steps of one token; plain generation costs len(generated)."""
    made = drafts(answer, generated)
    return len(made) + ANY_PRICE.drafted * sum(map(bool, made)) + ANY_PRICE.token * sum(made)


def test_an_answer_said_again_is_proposed_to_its_end() -> None:
    assert Draft(ANSWER).propose(5) == [100, 101, 102, 103, 104]
    assert after(ANSWER, ANSWER[:50]).propose(LIMIT) == list(ANSWER[50:])
    assert after(ANSWER, ANSWER).propose(LIMIT) == []
    assert after(ANSWER, [*ANSWER, 7, 8]).propose(LIMIT) == []


@pytest.mark.parametrize(
    ("said", "then"),
    [
        ((*ANSWER[:10], 7, 111), 112),  # replaced
        ((*ANSWER[:10], 7, 110), 111),  # inserted
        ((*ANSWER[:10], 7, 8, 9, 110, 111), 112),  # three inserted
        ((*ANSWER[:10], 111), 112),  # left out
        ((*ANSWER[:10], *ANSWER[40:43]), 143),  # a long piece left out
        ((*ANSWER[:40], *ANSWER[5:8]), 108),  # a piece said again
        ((7, *ANSWER[:2]), 102),  # something else before it all
        ((*ANSWER, *ANSWER[:3]), 103),  # all of it again
    ],
)
def test_after_a_mismatch_it_goes_on_where_the_challenger_does(said: tuple[int, ...], then: int) -> None:
    draft = after(ANSWER, said)
    assert draft.next(1) == [then]


def test_a_place_far_away_needs_more_than_one_token() -> None:
    answer = (*ANSWER[:10], 5, *ANSWER[10:], 5, 6)
    assert after(answer, (*ANSWER[:10], 6)).next(1) == [ANSWER[10]]  # 6 is 50 tokens away: taken for a replacement
    assert after(answer, (*ANSWER[:10], 159, 5, 6)).next(LIMIT) == []  # three tokens in a row: the end of it


def test_of_a_token_that_is_everywhere_the_nearest_places_count() -> None:
    answer = [token for number in range(100, 200) for token in (5, number)]
    assert after(answer, (*answer[:160], 9, 5)).next(1) == [180]


def test_the_place_that_fits_best_is_taken() -> None:
    answer = (1, 2, 9, 50, 3, 2, 9, 60, 4, 2, 9, 70)
    assert after(answer, (1, 7, 7, 3, 2, 9)).next(1) == [60]
    assert after(answer, (1, 7, 7, 4, 2, 9)).next(1) == [70]


@pytest.mark.parametrize("kinds", ["s", "i", "d", "D", "sid"])
@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_any_edits_cost_a_few_steps_each_and_not_the_rest_of_the_answer(kinds: str, rate: float) -> None:
    chance = random.Random(f"{kinds}{rate}")
    num_edits = tokens = total = 0
    for _ in range(20):
        answer = words(chance, 256)
        generated, edits = edited(answer, rate, kinds, chance)
        num_edits, tokens, total = num_edits + edits, tokens + len(generated), total + len(drafts(answer, generated))
    assert total < tokens / 20 + 4 * num_edits
    assert total < tokens / 3


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_it_never_costs_much_more_than_plain_generation(rate: float) -> None:
    chance = random.Random(f"cost{rate}")
    for _ in range(20):
        answer = words(chance, 256)
        generated, _ = edited(answer, rate, "sidDI", chance)
        assert cost(answer, generated) < 1.1 * len(generated) + 4


def test_a_stranger_is_soon_generated_plainly_and_drafted_again_when_it_agrees() -> None:
    stranger = tuple(range(500, 560))
    lost = after(ANSWER, stranger)
    assert lost.propose(LIMIT) == []
    for token in ANSWER[:20]:
        lost.feed(token)
    assert len(lost.propose(LIMIT)) > 4


@pytest.mark.parametrize("answer", [(), (1,), (1, 1), (1,) * 500])
def test_answers_without_shape(answer: tuple[int, ...]) -> None:
    for generated in ((), (1,), (2,), (1,) * 600, (1, 2) * 300):
        assert len(after(answer, generated).propose(LIMIT)) <= LIMIT


def test_being_lost_and_found_is_counted() -> None:
    assert realignments(ANSWER, ANSWER) == (0, 0)
    assert realignments(ANSWER, (*ANSWER[:10], 7, *ANSWER[11:20], 8, 9, *ANSWER[22:])) == (2, 2)
    assert realignments(ANSWER, (*ANSWER[:10], 7, 8, 9)) == (1, 0)
    assert realignments((), ANSWER) == (1, 0)


def rate_of(rows: Sequence[tuple[Odds, int]], drafted: Sequence[int], num_rows: int, price: Price) -> float:
    """Tokens for the price of a step, term by term."""
    said = num_rows + sum(
        odds.first * odds.rest**right
        for (odds, _), length in zip(rows, drafted, strict=True)
        for right in range(length)
    )
    return said / (price.plain + (price.drafted if any(drafted) else 0) + price.token * sum(drafted))


@pytest.mark.parametrize(
    "price", [Price(1.0, 0.25, 0.02), Price(1.3, 0.0, 0.2), Price(2.0, 1.0, 0.001), Price(1, 3, 0)]
)
@pytest.mark.parametrize("seed", range(30))
def test_no_other_lengths_make_the_steps_tokens_cheaper(price: Price, seed: int) -> None:
    chance = random.Random(seed)
    rows = [
        (
            Odds(chance.choice([0.0, 0.1, 0.5, 0.9, 1.0]), chance.choice([0.0, 0.3, 0.8, 0.97, 1.0])),
            chance.randint(0, 6),
        )
        for _ in range(3)
    ]
    num_rows = len(rows) + chance.choice([0, 5])
    chosen = lengths(rows, num_rows, price)
    every = product(*(range(limit + 1) for _, limit in rows))
    best = max(rate_of(rows, drafted, num_rows, price) for drafted in every)
    plain = num_rows / price.plain
    if best < MARGIN * plain * 0.998:
        assert not any(chosen)
    elif best > MARGIN * plain * 1.002:
        assert rate_of(rows, chosen, num_rows, price) > 0.997 * best
    assert all(0 <= length <= limit for length, (_, limit) in zip(chosen, rows, strict=True))


def test_a_full_batch_proposes_less_and_none_at_all_where_tokens_cost_as_much_as_rows() -> None:
    def longest(num_rows: int, row: float) -> int:
        price = Price(1.0 + row * num_rows, 0.25, 0.02)
        return max(lengths([(Odds(0.9, 0.9), LIMIT)] * num_rows, num_rows, price))

    few = [longest(num_rows, 0.02) for num_rows in (1, 4, 16, 64)]
    assert few == sorted(few, reverse=True)
    assert few[0] > 3 * few[2]
    assert longest(64, 0.02) == 0  # 64 rows for 2.28 steps: each drafted token must be right with 0.56 and save more


def test_rows_that_fit_are_drafted_beside_rows_that_do_not() -> None:
    good, bad = (Odds(0.99, 0.99), LIMIT), (Odds(0.02, 0.5), LIMIT)
    drafted = lengths([bad, good, bad], 3, ANY_PRICE)
    assert drafted[0] == drafted[2] == 0
    assert drafted[1] > 10


def test_a_new_request_begins_with_what_the_challengers_others_were_like() -> None:
    habits, chance = Habits(), random.Random(7)
    first = len(Draft(ANSWER, habits).propose(LIMIT))
    for _ in range(10):
        draft = Draft(ANSWER, habits)
        for token in ANSWER:
            draft.feed(token if chance.random() < 0.3 else 7)
    assert len(Draft(ANSWER, habits).propose(LIMIT)) < first / 3
    assert habits.odds.first == pytest.approx(0.3, abs=0.15)
    for _ in range(40):
        draft = Draft(ANSWER, habits)
        for token in ANSWER:
            draft.feed(token)
    assert len(Draft(ANSWER, habits).propose(LIMIT)) == first


def words(chance: random.Random, number: int) -> list[int]:
    """Tokens as frequent as words: a few of them stand everywhere."""
    return chance.choices(range(2000), [1 / (rank + 1) for rank in range(2000)], k=number)


def edited(answer: Sequence[int], rate: float, kinds: str, chance: random.Random) -> tuple[list[int], int]:
    """Replaced (s), inserted (i, I many) and left out (d, D many) at random."""
    made: list[int] = []
    place = num_edits = 0
    while place < len(answer):
        if chance.random() >= rate:
            made.append(answer[place])
            place += 1
            continue
        kind, num_edits = chance.choice(kinds), num_edits + 1
        if kind in "sd":
            place += 1
        if kind in "si":
            made.append(chance.randrange(2000))
        if kind == "D":
            place += chance.randint(5, 30)
        if kind == "I":
            made += words(chance, chance.randint(5, 30))
    return made, num_edits
