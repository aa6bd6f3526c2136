"""What a model costs: device seconds and joules, and money where prices were given.

    usd = device_s / 3600 * usd_per_device_hour + joules / 3.6e6 * usd_per_kwh

Without prices there is no money, only seconds and joules. Idle time is in no model's figures.

Three splits are by the engine's own time, because nothing measures them apart, and are assumptions to be named:

    input and output   a model's cost goes to prompt tokens by its prefill time, to generated ones by its decode time
    answers and scores a challenger's cost goes to its own answers by their share of its prefill and decode time
    promotion          a promoted challenger would answer as it did in the shadow: device seconds an answer times the
                       champion's answers a day. It answered in smaller batches than it would then, so where its
                       batches were smaller than the champion's this is more than it would really take
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy.config import Prices
from understudy.meter.attribution import Share
from understudy.meter.traffic import Kind, Traffic

SECONDS_PER_DAY = 86400.0
JOULES_PER_KWH = 3.6e6
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one model since the server started. None: there is nothing to divide by, no price, or no counter.

    Attributes:
        device_s: device seconds in which it was stepped.
        energy_joules: of these.
        usd: their price.
        answers: answers that it finished.
        usd_per_answer: of its answers' share.
        device_s_per_answer: the same in device seconds.
        joules_per_answer: the same in joules.
        usd_per_million_input_tokens: prompt tokens, those in the prefix cache among them.
        usd_per_million_output_tokens: generated tokens.
        usd_per_day: at the traffic since the start.
    """

    device_s: float
    energy_joules: float | None
    usd: float | None
    answers: int
    usd_per_answer: float | None
    device_s_per_answer: float | None
    joules_per_answer: float | None
    usd_per_million_input_tokens: float | None
    usd_per_million_output_tokens: float | None
    usd_per_day: float | None


@dataclass(frozen=True, slots=True)
class Projection:
    """A challenger in the champion's place, at the champion's traffic.

    Attributes:
        device_s_per_day: that it would take.
        usd_per_day: their price with its energy.
        saved_usd_per_day: less than the champion's; negative where it costs more.
        saved_device_fraction: less device time than the champion's.
        assumption: in words, with both batch sizes.
    """

    device_s_per_day: float
    usd_per_day: float | None
    saved_usd_per_day: float | None
    saved_device_fraction: float | None
    assumption: str


def usd(share: Share, prices: Prices) -> float | None:
    """The price of a share: of its device time and its energy, each where it has a price and was measured.

    None where neither is: no price was given, or only that of energy, which nothing measures. Energy that nothing
    measures is left out of the price of device time (the meter's cannot_say tells).
    """
    of_time = None if prices.usd_per_device_hour is None else share.device_s / 3600 * prices.usd_per_device_hour
    if prices.usd_per_kwh is None or share.energy_joules is None:
        return of_time
    return (of_time or 0.0) + share.energy_joules / JOULES_PER_KWH * prices.usd_per_kwh


def cost(share: Share, traffic: Traffic, seconds: float, prices: Prices) -> Cost:
    """The figures of a model from what it took and what it did in ``seconds``."""
    answers, scores = traffic.finished[Kind.ANSWER], traffic.finished[Kind.SCORE]
    answer_s = answers.prefill_s + answers.decode_s
    all_s = answer_s + scores.prefill_s + scores.decode_s
    of_answers = answer_s / all_s if all_s else 0.0
    price = usd(share, prices)
    mine = None if price is None else price * of_answers

    def each(total: float | None, count: float, fraction: float = 1.0) -> float | None:
        return None if total is None or not count else total * fraction / count

    return Cost(
        device_s=share.device_s,
        energy_joules=share.energy_joules,
        usd=price,
        answers=answers.requests,
        usd_per_answer=each(mine, answers.requests),
        device_s_per_answer=each(share.device_s * of_answers, answers.requests),
        joules_per_answer=each(share.energy_joules, answers.requests, of_answers),
        usd_per_million_input_tokens=each(
            mine, answers.prompt_tokens / MILLION, answers.prefill_s / answer_s if answer_s else 0.0
        ),
        usd_per_million_output_tokens=each(
            mine, answers.generated_tokens / MILLION, answers.decode_s / answer_s if answer_s else 0.0
        ),
        usd_per_day=each(price, seconds / SECONDS_PER_DAY),
    )


def projected(
    challenger: Cost, champion: Cost, seconds: float, batches: tuple[float | None, float | None]
) -> Projection | None:
    """The challenger at full traffic; None before both have answered. ``batches``: challenger's, champion's mean."""
    if not seconds or challenger.device_s_per_answer is None or champion.device_s_per_answer is None:
        return None
    answers_per_day = champion.answers / seconds * SECONDS_PER_DAY
    price = None if challenger.usd_per_answer is None else challenger.usd_per_answer * answers_per_day
    saved = None if price is None or champion.usd_per_day is None else champion.usd_per_day - price
    ratio = challenger.device_s_per_answer / champion.device_s_per_answer if champion.device_s_per_answer else None
    mine, its = (("an unknown number of" if batch is None else f"{batch:.1f}") for batch in batches)
    return Projection(
        device_s_per_day=challenger.device_s_per_answer * answers_per_day,
        usd_per_day=price,
        saved_usd_per_day=saved,
        saved_device_fraction=None if ratio is None else 1 - ratio,
        assumption=(
            f"as many answers as the champion gives, each as dear as the challenger's in the shadow, where it ran "
            f"{mine} requests at a time and the champion {its}; larger batches make an answer cheaper"
        ),
    )
