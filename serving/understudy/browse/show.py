"""One exchange in a terminal: the conversation, then each challenger's answers beside the champion's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from understudy.browse.conversation import content_of
from understudy.browse.select import Row, View
from understudy.browse.surprises import Decode, surprises
from understudy.browse.words import cut, printable, side_by_side
from understudy.compare.jsontext import is_container, read_loosely
from understudy.compare.structure import changes
from understudy.record.chat import messages_of

MAX_PROMPT_CHARACTERS = 4_000
MAX_CHANGES = 20
TAKEN: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "kv_peak_bytes": ("KV cache, at most", lambda value: f"{value / 2**20:.4g} MiB"),
    "kv_byte_s": ("KV cache x time", lambda value: f"{value / 2**20:.4g} MiB s"),
    "device_s": ("device time", lambda value: f"{value * 1e3:.4g} ms"),
    "usd": ("its price", lambda value: f"{value:.3g} USD"),
    "tokens_usd": ("price of the tokens", lambda value: f"{value:.3g} USD"),
}
NO_ANSWER: Mapping[str, Any] = {"text": "", "finish_reason": None, "token_ids": ()}


def shown(view: View, rows: Sequence[Row], decode: Decode | None = None) -> RenderableType:
    """Everything there is to see of it, for ``console.print``; ``decode`` makes words of the champion's token ids."""
    parts: list[RenderableType] = [_head(view), _conversation(view)]
    for row in rows:
        parts += ["", *_beside(row, decode)]
    return Group(*parts)


def _head(view: View) -> Table:
    arrived = datetime.fromtimestamp(view["arrived_unix_s"], UTC)
    facts = [
        ("exchange", view["exchange_id"]),
        ("request", view["request_id"]),
        ("client's id", view.get("client_request_id")),
        ("arrived", f"{arrived:%Y-%m-%d %H:%M:%S} UTC"),
        ("endpoint", view.get("endpoint")),
        ("tags", " ".join(f"{name}={value}" for name, value in (view.get("tags") or {}).items())),
        ("labels", ", ".join(_label(each) for each in view.get("feedback") or () if each["label"])),
    ]
    table = Table.grid(padding=(0, 2))
    for name, value in facts:
        if value:
            table.add_row(Text(name, "dim"), Text(printable(str(value))))
    return table


def _label(given: Mapping[str, Any]) -> str:
    return f"{given['name']}: {given['label']}" if given.get("name") else str(given["label"])


def _conversation(view: View) -> RenderableType:
    messages = messages_of(view)
    if messages is None:
        return Text("The text of the request is not recorded.", "dim")
    text = Text()
    for message in messages:
        text.append(f"\n{printable(str(message.get('role', '?')))}: ", "bold cyan")
        text.append(printable(cut(content_of(message), MAX_PROMPT_CHARACTERS)))
    return text


def _beside(row: Row, decode: Decode | None) -> Iterator[RenderableType]:
    end = row.end
    title = Text.assemble(
        (f" {end['state']} ", "reverse"), ("  challenger ", "dim"), (printable(row.challenger), "bold")
    )
    why = " ".join(printable(str(each)) for each in (end.get("reason"), end.get("detail")) if each)
    if why:
        title.append(f"   {why}")
    yield title
    champion = row.view["champion"]["answers"]
    challenger = (end.get("observation") or {}).get("answers") or ()
    if challenger:
        for index in range(max(len(champion), len(challenger))):
            theirs = champion[index] if index < len(champion) else None
            mine = challenger[index] if index < len(challenger) else None
            yield _answers(theirs, mine)
            yield from _structure(theirs, mine)
    else:
        yield _answers(champion[0] if champion else None, None)
    yield from _taken(row.view["champion"], end.get("observation") or {})
    surprised = surprises(row, decode)
    if surprised is not None:
        yield surprised
    if end.get("comparison"):
        yield _numbers(end["comparison"], (end.get("floor") or {}).get("comparison") or {})


def _answers(theirs: Mapping[str, Any] | None, mine: Mapping[str, Any] | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    table.add_column(f"champion {_ending(theirs)}", ratio=1, overflow="fold")
    table.add_column(f"challenger {_ending(mine)}", ratio=1, overflow="fold")
    left, right = side_by_side((theirs or NO_ANSWER)["text"], (mine or NO_ANSWER)["text"])
    table.add_row(_or_why_not(theirs, left), _or_why_not(mine, right))
    return table


def _or_why_not(answer: Mapping[str, Any] | None, text: Text) -> Text:
    if answer is None:
        return Text("no answer", "dim")
    return Text("not recorded", "dim") if answer.get("text_hmac") else text


def _ending(answer: Mapping[str, Any] | None) -> str:
    return "" if answer is None else f"({_num_tokens(answer)} tokens, {answer['finish_reason']})"


def _num_tokens(answer: Mapping[str, Any]) -> int:
    return int(answer.get("num_tokens") or len(answer["token_ids"]))


def _taken(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What each took of its device, where that is recorded."""
    table = Table("took", "champion", "challenger", box=box.SIMPLE, padding=(0, 1))
    for name, (title, words) in TAKEN.items():
        values = [(seen.get("taken") or {}).get(name) for seen in (theirs, mine)]
        if any(value is not None for value in values):
            table.add_row(title, *("-" if value is None else words(value) for value in values))
    if table.row_count:
        yield table


def _structure(theirs: Mapping[str, Any] | None, mine: Mapping[str, Any] | None) -> Iterator[RenderableType]:
    """Where both are JSON: the paths at which they differ."""
    read = [read_loosely((answer or NO_ANSWER)["text"]) for answer in (theirs, mine)]
    if not all(map(is_container, read)):
        return
    found = changes(*read)
    table = Table("path", "difference", "champion", "challenger", box=box.SIMPLE, padding=(0, 1))
    for change in found[:MAX_CHANGES]:
        values = (json.dumps(value, ensure_ascii=False) for value in (change.champion, change.challenger))
        table.add_row(*(Text(printable(each)) for each in (change.path, change.kind, *values)))
    if found:
        yield table
    if len(found) > MAX_CHANGES:
        yield Text(f"... and {len(found) - MAX_CHANGES} more differences", "dim")


def _numbers(comparison: Mapping[str, Any], floor: Mapping[str, Any]) -> RenderableType:
    """``floor`` is what the champion has against itself, on the slice where that was asked."""
    return Columns([_number(name, value, floor.get(name)) for name, value in comparison.items()])


def _number(name: str, value: Any, floor: Any) -> Text:
    against_itself = "" if floor is None else f" (itself {float(floor):.4g})"
    return Text.assemble((f"{name} ", "dim"), f"{float(value):.4g}{against_itself}  ")
