"""Where a challenger is in the champion's answer, and how much of the rest is worth proposing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from understudy.engines.draft import TOKEN_COST, Draft, realignments, worthwhile

ANSWER = tuple(range(100, 160))  # each token once
LIMIT = 32


def after(answer: Sequence[int], generated: Sequence[int]) -> Draft:
    draft = Draft(answer)
    for token in generated:
        draft.feed(token)
    return draft


def steps(answer: Sequence[int], generated: Sequence[int]) -> tuple[int, int]:
    """How the engine would go: (steps, proposed tokens). A step says what was right of the draft, and one more."""
    draft = Draft(answer)
    num_steps = num_proposed = 0
    while draft.num_fed < len(generated):
        rest = generated[draft.num_fed :]
        proposed = draft.propose(LIMIT)
        agreed = next((i for i, (a, b) in enumerate(zip(proposed, rest, strict=False)) if a != b), len(proposed))
        for token in rest[: agreed + 1]:
            draft.feed(token)
        num_steps, num_proposed = num_steps + 1, num_proposed + len(proposed)
    return num_steps, num_proposed


def cost(answer: Sequence[int], generated: Sequence[int]) -> float:
    """In steps of one token; plain generation costs len(generated)."""
    num_steps, num_proposed = steps(answer, generated)
    return num_steps + TOKEN_COST * num_proposed


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
    assert draft.propose(1) == [then]


def test_a_place_far_away_needs_more_than_one_token() -> None:
    answer = (*ANSWER[:10], 5, *ANSWER[10:], 5, 6)
    assert after(answer, (*ANSWER[:10], 6)).propose(1) == [ANSWER[10]]  # 6 is 50 tokens away: taken for a replacement
    assert after(answer, (*ANSWER[:10], 159, 5, 6)).propose(LIMIT) == []  # three tokens in a row: the end of it


def test_of_a_token_that_is_everywhere_the_nearest_places_count() -> None:
    answer = [token for number in range(100, 200) for token in (5, number)]
    assert after(answer, (*answer[:160], 9, 5)).propose(1) == [180]


def test_the_place_that_fits_best_is_taken() -> None:
    answer = (1, 2, 9, 50, 3, 2, 9, 60, 4, 2, 9, 70)
    assert after(answer, (1, 7, 7, 3, 2, 9)).propose(1) == [60]
    assert after(answer, (1, 7, 7, 4, 2, 9)).propose(1) == [70]


@pytest.mark.parametrize("kinds", ["s", "i", "d", "D", "sid"])
@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_any_edits_cost_a_few_steps_each_and_not_the_rest_of_the_answer(kinds: str, rate: float) -> None:
    chance = random.Random(f"{kinds}{rate}")
    num_edits = tokens = total = 0
    for _ in range(20):
        answer = words(chance, 256)
        generated, edits = edited(answer, rate, kinds, chance)
        num_edits, tokens, total = num_edits + edits, tokens + len(generated), total + steps(answer, generated)[0]
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


@pytest.mark.parametrize("num_rows", [1, 2, 16, 100])
@pytest.mark.parametrize("rest", [0.0, 0.3, 0.8, 0.97, 1.0])
@pytest.mark.parametrize("first", [0.0, 0.02, 0.3, 0.97, 1.0])
def test_the_length_is_the_one_with_the_cheapest_tokens(first: float, rest: float, num_rows: int) -> None:
    def cheapness(length: int) -> float:
        said = 1 + first * sum(rest**right for right in range(length))
        return said / ((1 - TOKEN_COST) / num_rows + TOKEN_COST * (1 + length))

    length = worthwhile(first, rest, num_rows, LIMIT)
    assert 0 <= length <= LIMIT
    assert cheapness(length) == pytest.approx(max(map(cheapness, range(LIMIT + 1))))


def test_a_full_batch_proposes_less() -> None:
    lengths = [worthwhile(0.9, 0.9, num_rows, LIMIT) for num_rows in (1, 4, 16, 64)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 3 * lengths[-1]


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
