"""The champion of a record: which model it was, and its tokenizer, to make words of recorded token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from understudy.identity import folder_of
from understudy.recorded import identities

Decode = Callable[[Sequence[int]], str]


def champion_in(record: str, spool: Path | None = None) -> dict[str, Any] | None:
    """The newest champion that the record names, as the configuration has it; None in a record that names none.

    Raises:
        RecordError: there is no record.
    """
    known = identities(record, spool)
    if not known:
        return None
    said = known[-1]["champion"]
    return {"model": said["model"], "name": said["name"], "engine_args": said.get("engine_args") or {}}


def decoder_of(champion: dict[str, Any] | None) -> Decode | None:
    """Token ids to text, where the champion's tokenizer is on this machine: in its folder or in the local cache."""
    if champion is None:
        return None
    folder = folder_of(str(champion["engine_args"].get("tokenizer", champion["model"])))
    path = None if folder is None else folder / "tokenizer.json"
    if path is None or not path.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(path))
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))
