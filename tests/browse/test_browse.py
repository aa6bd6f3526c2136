"""understudy exchanges: filters, ranking, side by side, export; and that nothing in a record can harm a terminal."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from tests.builders import answer, exchange, observation
from tests.record.builders import open_keeper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from understudy.browse.command import run
from understudy.browse.export import as_chat, export
from understudy.browse.select import Filters, Row, is_called, newest, worst
from understudy.browse.show import shown
from understudy.browse.words import cut, printable, side_by_side, words
from understudy.commands.exchanges import command
from understudy.compare import Comparators
from understudy.errors import ConfigError, RecordError
from understudy.prompts import read_prompts
from understudy.record import Accepted, Control, Ended, Feedback, scan
from understudy.record.chat import messages_of, parameters_of
from understudy.record.codec import to_json
from understudy.record.export import FORMS
from understudy.record.export import export as export_record
from understudy.types import Comparison, Ending, Exchange, Floor, RequestFacts, Score, State, Taken

NUM = 12
ANSI = "\x1b[2Jcleared"


def recorded(number: int) -> Exchange:
    """A chat; the higher its number the newer it is."""
    body = {
        "model": "champion",
        "messages": [{"role": "user", "content": f"question {number} {ANSI}"}],
        "max_tokens": 4,
        "stream": True,
    }
    facts = RequestFacts(
        endpoint="/v1/chat/completions",
        client_request_id=f"mine-{number}",
        tags={"tenant": "even" if number % 2 == 0 else "odd"},
        body=json.dumps(body).encode(),
    )
    whole = exchange(f"{number:032x}", answer(1, 2, 3, 4, text=f'{{"a": {number}, "b": [1]}}'), facts=facts)
    return replace(whole, arrived_unix_s=1_700_000_000.0 + 60 * number, parameters={"max_tokens": 4})


TOOK = Taken(kv_peak_bytes=3 * 2**19, device_s=0.0125, usd=0.0125 / 3600)


def mine(number: int) -> Any:
    """The challenger agrees with the champion on so many of four tokens."""
    tokens = [1, 2, 3, 4][: number % 5] + [9] * (4 - number % 5)
    return observation(answer(*tokens, text=f'{{"a": {number % 3}, "c": null}}'), model="rival", taken=TOOK)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record that its writer still holds: 12 exchanges, of which one was shed and one is pending."""
    url = tmp_path_factory.mktemp("record")
    keeper = open_keeper(url / "replica-0")
    compare = Comparators()
    for number in range(NUM):
        whole = recorded(number)
        keeper.append(Accepted(whole, ("rival",)))
        if number == 10:
            keeper.append(Ended(whole.exchange_id, "rival", Ending(State.SHED, "too_long", "99 tokens"), 1.0))
        elif number != 11:
            seen = mine(number)
            ending = Ending(State.COMPARED, None, None, seen, compare.compare(whole, seen))
            keeper.append(Ended(whole.exchange_id, "rival", ending, 1.0))
        if number < 3:
            keeper.append(Feedback(f"mine-{number}", "Spam" if number else "ham", 2.0))
    asyncio.run(keeper.flush())
    yield url
    keeper.close()


def invoke(record: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(record), *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())  # wherever the table breaks its lines


def numbers(output: str) -> list[int]:
    """The exchanges of a listing, in its order."""
    import re

    return [int(found) for found in re.findall(r"question (\d+)", output)]


def test_the_newest_come_first_while_a_writer_holds_the_record(record: Path) -> None:
    code, output = invoke(record, "--limit", "3")
    assert code == 0
    assert numbers(output) == [11, 10, 9]
    assert "pending" in output
    assert "shed too_long" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--state", "shed"], [10]),
        (["--reason", "too_long"], [10]),
        (["--state", "pending"], [11]),
        (["--tag", "tenant=odd", "--limit", "2"], [11, 9]),
        (["--label", "spam"], [2, 1]),
        (["--challenger", "rival", "--until", "2023-11-14T22:15:00+00:00"], [1, 0]),
        (["--since", "2023-11-14T22:23:00+00:00"], [11, 10]),
        (["--worst", "agreement", "--limit", "4"], [0, 5, 1, 6]),
        (["--worst", "agreement.first_divergence", "--limit", "2"], [0, 5]),
        (["--worst", "agreement", "--tag", "tenant=even", "--limit", "2"], [0, 6]),
        (["--worst", "end_to_end_ratio", "--limit", "1"], [0]),
        (["--worst", "agreement", "--reverse", "--limit", "4"], [4, 9, 3, 8]),
    ],
)
def test_filters_and_ranking(record: Path, arguments: list[str], expected: list[int]) -> None:
    assert numbers(invoke(record, *arguments)[1]) == expected


def test_the_ranked_number_is_shown(record: Path) -> None:
    _, output = invoke(record, "--worst", "agreement", "--limit", "3")
    assert "token_agreement" in output
    assert "0.25" in output
    assert "not ranked, for they have no token_agreement: 1 shed too_long, 1 pending (--state lists them)" in output
    assert "not ranked" not in invoke(record)[1]


@pytest.mark.parametrize(
    ("arguments", "fault", "message"),
    [
        (["--worst", "tone"], ConfigError, "'tone' is no comparator or number"),
        (["--challenger", "nobody"], RecordError, "no exchange is so"),
        (["--worst", "label"], RecordError, "no exchange is so and has label_match; not ranked"),
        (["--worst", "agreement", "--state", "shed"], RecordError, "no token_agreement: 1 shed too_long"),
        (["--show", "ffff00"], RecordError, "'ffff00': no exchange of that id"),
    ],
)
def test_what_cannot_be_found_is_said(record: Path, arguments: list[str], fault: type[Exception], message: str) -> None:
    with pytest.raises(fault, match=message):
        invoke(record, *arguments)


@pytest.mark.parametrize(
    "arguments", [["--reverse"], ["--since", "yesterday"], ["--tag", "tenant"], ["--state", "lost"]]
)
def test_wrong_options_are_usage_errors(record: Path, arguments: list[str]) -> None:
    code, output = invoke(record, *arguments)
    assert code == 2
    assert arguments[0] in output


def test_a_server_is_asked_only_for_one_exchange() -> None:
    with pytest.raises(ConfigError, match=r"a server shows one exchange \(--show ID\)"):
        CliRunner().invoke(command, ["http://127.0.0.1:1"], catch_exceptions=False)


@pytest.mark.parametrize("wanted", ["mine-4", "request-" + f"{4:032x}", f"{4:032x}"])
def test_one_exchange_is_found_by_each_of_its_ids(record: Path, wanted: str) -> None:
    _, output = invoke(record, "--show", wanted)
    assert "question 4" in output
    assert "exact_match 1" in output


def test_an_id_may_be_cut_but_not_to_nothing() -> None:
    view = {"exchange_id": "abcdef0123", "request_id": "r", "client_request_id": None}
    assert is_called(view, "abcdef")
    assert not is_called(view, "abcde")
    assert not is_called(view, "bcdef0")


def test_side_by_side_shows_labels_changes_and_why(record: Path) -> None:
    _, output = invoke(record, "--show", "mine-1")
    assert "labels Spam" in output
    assert "tags tenant=odd" in output
    assert "champion (4 tokens, stop)" in output
    assert '{"a": 1, "c": null}' in output
    for said in ("KV cache, at most - 1.5 MiB", "device time - 12.5 ms", "its price - 3.47e-06 USD"):
        assert said in output
    assert "price of the tokens" not in output  # nobody knows
    assert "$.b[0]" in output
    assert "champion only" in output
    _, output = invoke(record, "--show", "mine-10")
    assert "too_long 99 tokens" in output
    assert "no answer" in output


def test_no_control_sequence_of_a_record_reaches_the_terminal(record: Path) -> None:
    view = next(view for view in scan(record) if view["client_request_id"] == "mine-4")
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    console.print(shown(view, list(Filters().rows([view]))))
    run(str(record), Filters(), since=None, until=None, worst_by=None, show=None, export_to=None, answer="none",
        limit=None, key=None, spool=None, console=Console(file=stream, width=120))  # fmt: skip
    assert "question 4" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    assert printable("a\x1b[2Jb\x07\u202e\n") == "a\ufffd[2Jb\ufffd\ufffd\n"


def test_the_tokens_that_surprised_the_challenger_are_shown_with_their_words(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    words = Tokenizer(WordLevel({"the": 0, "quick": 1, "brown": 2, "fox": 3, "dog": 4}, unk_token="the"))
    words.save(str(tmp_path / "model" / "tokenizer.json"))
    said, dog = (0, 1, 2, 3), 4
    whole = exchange("x" * 32, answer(*said, text="the quick brown fox"))
    read = Score((-0.1,) * (len(said) - 1) + (-7.5,), (1,) * (len(said) - 1) + (9,), top1=(*said[:-1], dog))
    seen = observation(answer(*said, text="the quick brown fox"), model="rival", scores=(read,))
    floor = Floor(None, Comparison({"exact_match": 0.5}), None)
    keeper = open_keeper(tmp_path / "record" / "replica-0")
    model = {"name": "champion", "model": str(tmp_path / "model"), "engine_args": {}}
    keeper.append(Control("identity", 1.0, {"champion": model}))
    keeper.append(Accepted(replace(whole, parameters={}), ("rival",)))
    ending = Ending(State.COMPARED, None, None, seen, Comparison({"exact_match": 1.0}), floor)
    keeper.append(Ended(whole.exchange_id, "rival", ending, 1.0))
    asyncio.run(keeper.flush())
    keeper.close()
    _, output = invoke(tmp_path / "record", "--show", "x" * 32)
    assert "what surprised it most" in output
    assert "3 -7.50 9" in output
    assert "the quick brown fox dog" in output.replace("brownfox", "brown fox")
    assert "exact_match 1 (itself 0.5)" in output


def test_a_text_that_is_not_recorded_is_said_to_be_so_and_not_exported(tmp_path: Path) -> None:
    hidden = {"text": "", "text_hmac": "hmac:1", "token_ids": [], "num_tokens": 7, "finish_reason": "stop"}
    end = {"state": "compared", "reason": None, "observation": {"answers": [hidden]}, "comparison": {}}
    view = {
        "exchange_id": "x", "request_id": "r", "arrived_unix_s": 1.0, "body": None, "prompt_text": "Hi", "tags": {},
        "champion": {"model": "c", "answers": [hidden]}, "challengers": {"rival": end}, "feedback": [],
    }  # fmt: skip
    stream = io.StringIO()
    Console(file=stream, width=120).print(shown(view, list(Filters().rows([view]))))
    assert stream.getvalue().count("not recorded") == 2
    assert "champion (7 tokens, stop)" in stream.getvalue()
    row = Row(view, "rival", end)
    assert as_chat(row, "champion") is as_chat(row, "challenger") is None
    assert as_chat(row, "none") is not None


def test_words_that_only_one_side_has_are_marked_on_that_side() -> None:
    left, right = side_by_side("the quick brown fox", "the slow brown fox!")
    assert (left.plain, right.plain) == ("the quick brown fox", "the slow brown fox!")
    assert [left.plain[span.start : span.end] for span in left.spans if span.style] == ["quick"]
    assert [right.plain[span.start : span.end] for span in right.spans if span.style] == ["slow", "!"]
    assert "".join(words("a  b,c\n")) == "a  b,c\n"


def test_texts_without_end_are_shown_from_where_they_part() -> None:
    long = "word " * 5_000
    left, _ = side_by_side(long + "end", long + "other")
    assert [left.plain[span.start : span.end] for span in left.spans if span.style] == ["end"]
    assert cut("abc", 2) == "ab ... 1 more characters"


def test_ties_are_ranked_the_same_whatever_the_order() -> None:
    rows = [
        Row({"exchange_id": name, "arrived_unix_s": 1.0}, "b", {"comparison": {"exact_match": 0.0}}) for name in "dacb"
    ]
    for given in (rows, rows[::-1]):
        assert [row.view["exchange_id"] for row in worst(given, "exact_match", 3)] == ["a", "b", "c"]
        assert [row.view["exchange_id"] for row in newest(given, 3)] == ["a", "b", "c"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_export_gives_chats_that_end_in_the_answer_one_wants(record: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    invoke(record, "--state", "compared", "--export", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(lines(path)) == 10  # all, where no limit is given
    for who, text in (("champion", '{"a": 1, "b": [1]}'), ("challenger", '{"a": 1, "c": null}')):
        invoke(record, "--label", "spam", "--tag", "tenant=odd", "--export", str(path), "--answer", who)
        (line,) = lines(path)
        assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
        assert line["messages"][1]["content"] == text
        assert line["label"] == "Spam"
        assert line["params"] == {"max_tokens": 4}
        (challenger,) = line["metadata"]["challengers"].values()
        assert challenger["answer"] == '{"a": 1, "c": null}'
        assert line["metadata"]["exchange_id"] == f"{1:032x}"


def test_what_has_no_such_answer_is_left_out_and_counted(record: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    _, output = invoke(record, "--state", "shed", "--export", str(path), "--answer", "challenger")
    assert lines(path) == []
    assert "0 exchanges written" in output
    assert "1 left out" in output


def test_the_worst_go_straight_into_the_next_comparison(record: Path, tmp_path: Path) -> None:
    path = tmp_path / "hard.jsonl"
    invoke(record, "--worst", "agreement", "--limit", "2", "--export", str(path), "--answer", "none")
    prompts = read_prompts(path, {})
    assert [prompt.body["messages"][0]["content"] for prompt in prompts] == [f"question {n} {ANSI}" for n in (0, 5)]
    assert prompts[0].body["max_tokens"] == 4
    assert prompts[0].label == "ham"
    assert prompts[0].tags == {"tenant": "even"}


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a\u2028b\u2029c\x85d\x0be"}], "n": 2}),
    "plain": ("/v1/completions", {"prompt": "Once\x85upon", "max_tokens": 3}),
    "messages": (
        "/v1/messages",
        {"system": [{"type": "text", "text": "Be kind."}], "messages": [{"role": "user", "content": "Hi"}],
         "max_tokens": 5, "tools": [{"name": "find", "input_schema": {"type": "object"}}]},
    ),
    "responses": ("/v1/responses", {"instructions": "Be kind.", "input": "Hi", "max_output_tokens": 5}),
}  # fmt: skip


@pytest.mark.parametrize("kind", BODIES)
def test_an_exported_request_is_the_very_same_request_again(tmp_path: Path, kind: str) -> None:
    endpoint, body = BODIES[kind]
    sent = {**body, "model": "lead", "stream": True}
    facts = RequestFacts(endpoint=endpoint, body=json.dumps(sent).encode())
    view = documents(replace(exchange("x", facts=facts), parameters={}))
    row = Row(view, "rival", {"state": "compared", "reason": None, "comparison": None, "observation": None})
    export([row, row], tmp_path / "out.jsonl", "none")
    (tmp_path / "one.jsonl").write_text((tmp_path / "out.jsonl").read_text().partition("\n")[0])
    (prompt,) = read_prompts(tmp_path / "one.jsonl", {})
    assert (prompt.endpoint, prompt.body) == (endpoint, body)
    assert len((tmp_path / "out.jsonl").read_text().split("\n")) == 3


@pytest.mark.parametrize("kind", ["messages", "responses"])
def test_instructions_beside_the_messages_are_one(kind: str) -> None:
    endpoint, body = BODIES[kind]
    view = documents(exchange("x", facts=RequestFacts(endpoint=endpoint, body=json.dumps(body).encode())))
    first, user = messages_of(view) or ()
    assert (first["role"], user) == ("system", {"role": "user", "content": "Hi"})
    assert not {"system", "instructions"} & parameters_of(view).keys()


def test_half_a_surrogate_pair_stops_no_export(tmp_path: Path) -> None:
    body = b'{"messages": [{"role": "user", "content": "a \\ud800 b"}]}'
    view = documents(exchange("x", facts=RequestFacts(endpoint="/v1/chat/completions", body=body)))
    end = {"state": "compared", "reason": None, "comparison": None, "observation": view["champion"]}
    view["challengers"] = {"rival": end}
    export([Row(view, "rival", end)], tmp_path / "out.jsonl", "none")
    for form in FORMS:
        assert export_record([view], form, tmp_path / form).num_written == 1
    (prompt,) = read_prompts(tmp_path / "out.jsonl", {})
    assert prompt.body["messages"][0]["content"] == "a \ufffd b"
    for name in ("chat", "label-studio"):
        assert "a \ufffd b" in (tmp_path / name).read_text()


def documents(whole: Exchange) -> dict[str, Any]:
    """An exchange as a view has it."""
    return to_json(Accepted(whole, ("rival",)), lambda _: {}) | {"challengers": {}, "feedback": []}
