"""The champion's tokens that surprised a challenger most, with what stood before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from understudy.archive import from_view
from understudy.browse.select import Row
from understudy.browse.words import printable
from understudy.compare.surprise import Surprise, surprising
from understudy.errors import RecordError

Decode = Callable[[Sequence[int]], str]
MAX_SHOWN = 5


def surprises(row: Row, decode: Decode | None) -> Table | None:
    """A table, worst first; None where the challenger did not read the answer or nothing surprised it.

    Words need the champion's tokenizer; without it the ids are shown.
    """
    try:
        exchange, endings = from_view(row.view)
    except RecordError:
        return None
    ending = endings.get(row.challenger)
    if ending is None or ending.challenger is None or not exchange.champion.prompt_token_ids:
        return None
    found = surprising(exchange, ending.challenger, MAX_SHOWN)
    if not found:
        return None
    table = Table(box=box.SIMPLE, padding=(0, 1), title="what surprised it most", title_justify="left")
    for heading in ("token", "logprob", "rank", "the champion said", "it would have said"):
        table.add_column(heading, justify="right" if heading in ("token", "logprob", "rank") else "left")
    for one in found:
        table.add_row(
            str(one.position), f"{one.logprob:.2f}", str(one.rank), _said(one, decode), _preferred(one, decode)
        )
    return table


def _said(one: Surprise, decode: Decode | None) -> Text:
    return Text.assemble(_text(one.before, decode), (_text((one.token_id,), decode), "bold red"))


def _preferred(one: Surprise, decode: Decode | None) -> Text:
    return Text("-" if one.preferred is None else _text((one.preferred,), decode), "bold green")


def _text(ids: Sequence[int], decode: Decode | None) -> str:
    """On one line, with spaces where breaks and tabs were."""
    if decode is None:
        return "".join(f"<{token}>" for token in ids)
    return printable(decode(ids)).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").replace("\t", " ")
