"""Many exchanges as a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich import box
from rich.table import Table
from rich.text import Text

from understudy.browse.conversation import content_of
from understudy.browse.select import Row
from understudy.browse.words import printable
from understudy.record.chat import messages_of

ID_CHARACTERS = 12
MAX_CHARACTERS = 24
MIN_MESSAGE = 16


def listing(rows: Sequence[Row], number: str) -> Table:
    """One line each; ``number`` is the column of what they are ranked by. The last column takes what room is left."""
    headings = ("exchange", "arrived (UTC)", "challenger", "state", number, "label", "last message")
    cells = [_cells(row, number) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", padding=(0, 1))
    for index, heading in enumerate(headings):
        longest = max(len(heading), *(len(line[index]) for line in cells))
        is_last = index == len(headings) - 1
        table.add_column(
            heading,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if heading == number else "left",
            min_width=MIN_MESSAGE if is_last else min(longest, MAX_CHARACTERS),
        )
    for line in cells:
        table.add_row(*map(Text, line))
    return table


def _cells(row: Row, number: str) -> list[str]:
    arrived = datetime.fromtimestamp(row.view["arrived_unix_s"], UTC)
    value = row.number(number)
    cells = (
        str(row.view["exchange_id"])[:ID_CHARACTERS],
        f"{arrived:%m-%d %H:%M:%S}",
        row.challenger,
        row.ending,
        "-" if value is None else f"{value:.4g}",
        row.label or "",
        _last_message(row),
    )
    return [printable(" ".join(cell.split())) for cell in cells]


def _last_message(row: Row) -> str:
    messages = messages_of(row.view)
    return content_of(messages[-1])[:200] if messages else "(not recorded)"
