"""What the benchmarks of the record write: pairs of an exchange and its ending, as the lane would."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from understudy.record import Accepted, Ended, Event, RecordKeeper, WriterLimits
from understudy.types import (
    Answer,
    Comparison,
    Ending,
    Exchange,
    Observation,
    Outcome,
    RequestFacts,
    Score,
    State,
    Timings,
)

PARAMETERS = {
    "temperature": 0.7,
    "top_p": 0.95,
    "max_tokens": 256,
    "seed": 7,
    "stop": ["\n\n"],
    "logprobs": 1,
}


def make_events(num_exchanges: int, prompt_tokens: int, output_tokens: int) -> list[Event]:
    chance = random.Random(1)

    def observation(model: str, prompt: tuple[int, ...], scores: tuple[Score, ...] = ()) -> Observation:
        tokens = tuple(chance.randrange(150_000) for _ in range(output_tokens))
        logprobs = tuple(-chance.expovariate(1.0) for _ in tokens)
        answer = Answer(tokens, "word " * output_tokens, "stop", logprobs)
        return Observation(model, Outcome.FINISHED, prompt, (answer,), Timings(1.0, 1.1, 3.5), scores)

    events: list[Event] = []
    for number in range(num_exchanges):
        prompt = tuple(chance.randrange(150_000) for _ in range(prompt_tokens))
        champion = observation("champion", prompt)
        ranks = tuple(chance.randint(1, 9) for _ in range(output_tokens))
        score = Score(tuple(-chance.expovariate(1.0) for _ in ranks), ranks)
        ending = Ending(
            State.COMPARED,
            challenger=observation("challenger", prompt, (score,)),
            comparison=Comparison({f"number_{n}": chance.random() for n in range(12)}),
        )
        facts = RequestFacts("/v1/chat/completions", f"client-{number}", {"session": f"s{number % 50}"})
        text = "word " * prompt_tokens
        exchange = Exchange(
            f"{number:032x}", f"chatcmpl-{number:032x}", 1.7e9 + number, facts, PARAMETERS, text, champion
        )
        events.append(Accepted(exchange, ("challenger",), {"challenger": number}))
        events.append(Ended(exchange.exchange_id, "challenger", ending, 1.7e9 + number, same_prompt=True))
    return events


def open_keeper(folder: Path) -> RecordKeeper:
    return RecordKeeper.open(folder, describe_parameters=dict, limits=WriterLimits(max_queued=1 << 30))


def timed(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s
