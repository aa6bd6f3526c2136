"""What a text must not say is nowhere in the files: in no other field, not as token ids, not when a redactor fails."""

from __future__ import annotations

import json
import re
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from understudy.config import RecordSpec
from understudy.errors import ConfigError
from understudy.record import Accepted, Ended, Feedback, RecordReader, from_json
from understudy.record.codec import to_json
from understudy.record.patterns import OVERLAP, WINDOW, redact
from understudy.record.privacy import Privacy
from understudy.record.recording import Recording
from understudy.record.redactors import MODELS, load, presidio, redacting
from understudy.record.seal import seal
from understudy.record.sources import Source
from understudy.types import Answer, Ending, RequestFacts, Score, State

from .builders import accepted, ended, flush, observation, open_keeper, plain

MAIL = "ann@example.org"
FOUND = [
    ("write to ann.b+c@mail.example.org.", "write to [email]."),
    ("4111 1111 1111 1111", "[card]"),
    ("card 5500-0000-0000-0004.", "card [card]."),
    ("DE89 3704 0044 0532 0130 00 AND MORE", "[iban] AND MORE"),
    ("GB82WEST12345698765432", "[iban]"),
    ("from 10.0.0.1, 2001:db8::1", "from [ip], [ip]"),
    ("+49 30 1234567", "[phone]"),
    ("(212) 555-0123", "[phone]"),
    ("030/1234567", "[phone]"),
    ("sk-abcdefghijklmnop0123", "[key]"),
    ("AKIAIOSFODNN7EXAMPLE", "[key]"),
    ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: [key]"),
    ("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----", "[key]"),
]
NOT_FOUND = [
    "4111 1111 1111 1112",  # Luhn
    "0000 0000 0000 0000",
    "GB82WEST12345698765433",  # mod 97
    "at 12:30:45 on 2026-11-24T08:41:30Z",
    "version 1.2.3.4.5 and 0.32.0",
    "1,000,000 tokens, 20261124, 3.14159265358979",
    "a@b, @home, C++ :: D",
    "300.1.1.1",
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_found(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize("text", NOT_FOUND)
def test_not_found(text: str) -> None:
    assert redact(text) == text


def test_what_stands_across_two_windows_is_found() -> None:
    for shift in range(-len(MAIL) - 1, 2):
        text = " " * (WINDOW + shift) + MAIL + " x"
        assert redact(text) == " " * (WINDOW + shift) + "[email] x"
    assert (
        redact("-----BEGIN RSA PRIVATE KEY-----" + "A" * (OVERLAP - 100) + "-----END RSA PRIVATE KEY-----") == "[key]"
    )


def private(where: str) -> Accepted:
    """An exchange that says the address in one place alone."""
    event = accepted(1)
    exchange, facts = event.exchange, event.exchange.facts
    said = replace(exchange.champion, answers=(Answer((7, 8), f"I know {MAIL}", "stop", (-0.5, -0.5)),))
    changed: dict[str, Callable[[], Any]] = {
        "prompt": lambda: replace(exchange, prompt_text=f"I am {MAIL}"),
        "body": lambda: replace(
            exchange, facts=replace(facts, body=b'{"messages":[{"content":"ann\\u0040example.org"}]}')
        ),
        "bad body": lambda: replace(exchange, facts=replace(facts, body=f"\xff{MAIL}".encode("latin-1"))),
        "twice in the body": lambda: replace(
            exchange, facts=replace(facts, body=f'{{"user":"{MAIL}","user":"x","messages":[]}}'.encode())
        ),
        "body in UTF-16": lambda: replace(
            exchange, facts=replace(facts, body=f'{{"messages":[{{"content":"{MAIL}"}}]}}'.encode("utf-16-le"))
        ),
        "body in UTF-32 that is no JSON": lambda: replace(exchange, facts=replace(facts, body=MAIL.encode("utf-32"))),
        "float in the body": lambda: replace(exchange, facts=replace(facts, body=b'{"user":4111111111111111.0}')),
        "half a pair in the body": lambda: replace(
            exchange, facts=replace(facts, body=f'{{"messages":[{{"content":"\\ud800 {MAIL}"}}]}}'.encode())
        ),
        "traceparent": lambda: replace(exchange, facts=replace(facts, traceparent=f"00-{MAIL}")),
        "answer": lambda: replace(exchange, champion=said),
        "tag": lambda: replace(exchange, facts=replace(facts, tags=MappingProxyType({"user": MAIL}))),
        "tag name": lambda: replace(exchange, facts=replace(facts, tags=MappingProxyType({MAIL: "x"}))),
        "stop string": lambda: replace(exchange, parameters={"stop": [MAIL]}),
        "schema": lambda: replace(exchange, parameters={"structured_outputs": {"json": {"enum": [{MAIL: 1}]}}}),
        "number": lambda: replace(exchange, parameters={"extra_args": {"card": 4111111111111111}}),
        "error": lambda: replace(exchange, champion=replace(exchange.champion, error=f"ValueError: {MAIL}")),
        "client's id": lambda: replace(
            exchange, request_id=f"chatcmpl-{MAIL}", facts=replace(facts, client_request_id=MAIL)
        ),
    }
    return replace(event, exchange=changed[where]())


IN_A_BODY = ["body", "bad body", "twice in the body", "body in UTF-16", "body in UTF-32 that is no JSON",
             "float in the body", "half a pair in the body"]  # fmt: skip
PLACES = [*IN_A_BODY, "prompt", "traceparent", "answer", "tag", "tag name", "stop string", "schema", "number", "error",
          "client's id"]  # fmt: skip


def everything(folder: Path) -> bytes:
    """All bytes of a record, sealed segments decompressed."""
    seal(Source.at(folder), "r", include_newest=True)
    documents = [row["document"].encode() for row in Source.at(folder).open_sealed(1).rows(["document"])]
    rest = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return b"\n".join(documents + rest)


def written(folder: Path, privacy: Privacy, *events: Any) -> tuple[dict[str, Any], bytes]:
    keeper = open_keeper(folder, privacy=privacy)
    for event in events:
        keeper.append(event)
    flush(keeper)
    found = keeper.find("ex-1")[0]
    keeper.close()
    return found, everything(folder)


def no_trace(content: bytes) -> None:
    for trace in (b"ann@example", b"example.org", b"u0040", b"4111111111111111"):
        for encoding in ("utf-8", "utf-16-le", "utf-32-le"):
            assert trace.decode().encode(encoding) not in content
    assert b"ann@example" not in re.sub(rb"\\u0000|\0", b"", content)


@pytest.mark.parametrize(
    ("mode", "where"),
    [(mode, where) for mode in ("redacted", "none") for where in PLACES],
)
def test_nowhere(tmp_path: Path, where: str, mode: Any) -> None:
    found, content = written(tmp_path, Privacy(mode, (redact,), b"secret"), private(where))
    no_trace(content)
    champion = found["champion"]
    assert found["exchange_id"] == "ex-1"
    if mode == "none":
        assert (found["prompt_text"], found["body"], champion["prompt_token_ids"]) == (None, None, [])
        assert not any(one["token_ids"] or one["text"] for one in champion["answers"])
        assert b"1000" not in content  # a token id
        assert champion["num_prompt_tokens"] == 3
        assert "temperature" not in found["parameters"] or found["parameters"]["temperature"] == 0.0
    else:
        hit = where == "prompt" or (where in IN_A_BODY and where != "twice in the body")  # which the server never saw
        assert champion["prompt_token_ids"] == ([] if hit else [1, 2, 3])  # ids say what the text says
        kept = champion["answers"][0]["token_ids"]
        assert kept == ([] if where == "answer" else [1000, 1001, 1002])


def test_token_ids_whose_text_is_not_known_are_left_out(tmp_path: Path) -> None:
    event = accepted(1)
    unknown = replace(event.exchange, prompt_text=None, facts=RequestFacts())
    silent = replace(unknown.champion, answers=(Answer((7, 8), "", "stop"),))  # detokenize: false
    ending = replace(
        ended(1), ending=replace(ended(1).ending, challenger=replace(observation("b"), rendered="own_template"))
    )
    privacy = Privacy("redacted", (redact,), b"secret")
    found, _ = written(tmp_path, privacy, replace(event, exchange=replace(unknown, champion=silent)), ending)
    assert (found["champion"]["prompt_token_ids"], found["champion"]["num_prompt_tokens"]) == ([], 3)
    assert (found["champion"]["answers"][0]["token_ids"], found["champion"]["answers"][0]["num_tokens"]) == ([], 2)
    assert found["challengers"]["b"]["observation"]["prompt_token_ids"] == []


@pytest.mark.parametrize("prompt", [[777, 888, 999], [[777, 888, 999]], ["hello", [777, 888, 999]]])
def test_a_prompt_of_token_ids_is_a_text_that_nobody_knows(tmp_path: Path, prompt: Any) -> None:
    event = accepted(1)
    body = json.dumps({"model": "m", "prompt": prompt, "stop_token_ids": [5], "stop": ["x"]}).encode()
    asked = replace(event.exchange.facts, endpoint="/v1/completions", body=body)
    seen = replace(event.exchange.champion, prompt_token_ids=(777, 888, 999))
    event = replace(event, exchange=replace(event.exchange, prompt_text=None, facts=asked, champion=seen))
    found, content = written(tmp_path, Privacy("redacted", (redact,), b"secret"), event)
    assert b"888" not in content
    assert json.loads(found["body"]) == {"model": "m", "prompt": None, "stop_token_ids": [5], "stop": ["x"]}
    assert (found["champion"]["prompt_token_ids"], found["champion"]["num_prompt_tokens"]) == ([], 3)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"requests": [{"prompt": [777, 88888888]}]}, {"requests": [{"prompt": None}]}),
        ({"input": {"prompt_token_ids": [777, 88888888]}}, {"input": {"prompt_token_ids": None}}),
        ([{"prompt": [[777, 88888888]], "stop_token_ids": [5]}], [{"prompt": None, "stop_token_ids": [5]}]),
        (
            {
                "messages": [
                    {"content": [{"type": "prompt_embeds", "data": "AA88888888"}, {"type": "text", "text": "hi"}]}
                ]
            },
            {"messages": [{"content": [{"type": "prompt_embeds", "data": None}, {"type": "text", "text": "hi"}]}]},
        ),
        ({"messages": [{"prompt_embeds": "AA88888888"}]}, {"messages": [{"prompt_embeds": None}]}),
        ([777, 88888888], None),
        ([[777, 88888888], "hi"], None),
    ],
)
def test_a_prompt_in_numbers_is_found_however_deep(tmp_path: Path, body: Any, kept: Any) -> None:
    event = accepted(1)
    asked = replace(event.exchange.facts, body=json.dumps(body).encode())
    event = replace(event, exchange=replace(event.exchange, facts=asked))
    found, content = written(tmp_path, Privacy("redacted", (redact,), b"secret"), event)
    assert b"88888888" not in content
    assert (None if found["body"] is None else json.loads(found["body"])) == kept
    assert found["champion"]["prompt_token_ids"] == []
    assert (kept is None) == ("body_hmac" in found)


def test_a_schema_of_numbers_is_no_prompt(tmp_path: Path) -> None:
    event = accepted(1)
    schema = {"properties": {"n": {"enum": [1, 2, None]}, "enum": {"type": "integer", "examples": [3]}}}
    asked = {"messages": [{"content": "hi", "data": "x"}], "tools": [{"function": {"parameters": schema}}]}
    facts = replace(event.exchange.facts, body=json.dumps(asked).encode())
    event = replace(event, exchange=replace(event.exchange, facts=facts))
    found, _ = written(tmp_path, Privacy("redacted", (redact,), b"secret"), event)
    assert json.loads(found["body"]) == asked
    assert found["champion"]["prompt_token_ids"] == [1, 2, 3]


def test_a_body_that_is_clean_is_kept_and_read_again(tmp_path: Path) -> None:
    event = accepted(1)
    asked = {"messages": [{"content": "schön \ud800 \u2028"}], "temperature": 0.3333333333333333, "seed": 12345}
    facts = replace(event.exchange.facts, body=json.dumps(asked).encode())
    found, _ = written(
        tmp_path,
        Privacy("redacted", (redact,), b"secret"),
        replace(event, exchange=replace(event.exchange, facts=facts)),
    )
    assert json.loads(found["body"]) == asked
    assert found["champion"]["prompt_token_ids"] == [1, 2, 3]
    assert found["traceparent"] == event.exchange.facts.traceparent
    again = from_json({"v": 1, "kind": "accepted", "offered": {}, **found})
    assert isinstance(again, Accepted)
    assert json.loads(again.exchange.facts.body or b"") == asked


def test_what_the_challenger_says_and_what_failed(tmp_path: Path) -> None:
    seen = replace(observation("b"), answers=(Answer((7,), MAIL, "stop"),), error=f"EngineError: {MAIL}")
    ending = Ending(State.FAILED, "engine_error", f"it said {MAIL}", seen)
    events = (accepted(1), Ended("ex-1", "b", ending, 1.0), Feedback("ex-1", f"right, {MAIL}", 2.0))
    for mode in ("redacted", "none"):
        found, content = written(tmp_path / mode, Privacy(mode, (redact,), b"secret"), *events)
        no_trace(content)
        assert found["challengers"]["b"]["reason"] == "engine_error"
        assert found["feedback"][0]["label"] == "right, [email]"


@pytest.mark.parametrize("mode", ["redacted", "none"])
def test_the_challengers_first_choices_are_no_way_round(tmp_path: Path, mode: Any) -> None:
    """They are token ids, and nearly those of the champion's answer, which had a hit."""
    seen = observation("b", scores=(Score((-0.5,), (1,), (0.25,), (4242,)),))
    events = (private("answer"), Ended("ex-1", "b", Ending(State.COMPARED, challenger=seen), 1.0))
    found, content = written(tmp_path, Privacy(mode, (redact,), b"secret"), *events)
    assert b"4242" not in content
    scores = found["challengers"]["b"]["observation"]["scores"]
    assert scores == [{"logprobs": [-0.5], "ranks": [1], "entropies": [0.25], "top1": [], "busy_s": None}]


def test_a_redactor_that_fails_leaves_hashes_and_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(text: str) -> str:
        raise RuntimeError(f"cannot read {text}")  # as many errors do

    privacy = Privacy("redacted", (broken,), b"secret")
    found, content = written(tmp_path, privacy, private("prompt"), replace(ended(1), same_prompt=True))
    assert "cannot read" not in caplog.text
    no_trace(content)
    assert b"1000" not in content
    assert privacy.num_failed >= 2
    assert "redaction failed" in caplog.text
    assert found["challengers"]["b"]["comparison"] == {"top1": 0.5}
    not_text: Any = lambda text: None  # noqa: E731
    _, content = written(tmp_path / "2", Privacy("redacted", (not_text,), b"secret"), private("prompt"))
    no_trace(content)


def test_pseudonyms_are_the_same_for_the_same_and_found_by_the_real_id(tmp_path: Path) -> None:
    privacy = Privacy("redacted", (redact,), b"secret")
    keeper = open_keeper(tmp_path, privacy=privacy)
    keeper.append(private("client's id"))
    keeper.append(Feedback(MAIL, "good", 1.0))
    flush(keeper)
    found = keeper.find(MAIL)[0]
    assert found["client_request_id"] == privacy.pseudonym(MAIL)
    assert found["feedback"][0]["label"] == "good"
    keeper.close()
    assert Privacy("redacted", (redact,), b"other").pseudonym(MAIL) != privacy.pseudonym(MAIL)
    assert len(list(RecordReader(tmp_path).iterate())) == 1


def test_tags_with_a_meaning_keep_their_names(tmp_path: Path) -> None:
    for mode in ("redacted", "none"):
        privacy = Privacy(mode, (shout,), b"secret")  # type: ignore[arg-type]
        keeper = open_keeper(tmp_path / mode, privacy=privacy)
        keeper.append(accepted(1))
        flush(keeper)
        assert keeper.find("ex-1")[0]["tags"] == {"session": privacy.pseudonym("s1")}
        keeper.close()


def shout(text: str) -> str:
    return text.upper()


def test_a_users_redactor_and_what_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(shout=shout, word="x"))  # type: ignore[arg-type]
    privacy = Privacy("redacted", load(["patterns", "mine:shout"]), b"")
    assert privacy.redact(f"{MAIL} hi") == "[EMAIL] HI"
    for name, word in (
        ("nowhere:f", "cannot be imported"),
        ("mine:other", "cannot be imported"),
        ("mine:word", "not a function"),
        ("patern", "must be patterns, presidio or package.module:function"),
    ):
        with pytest.raises(ConfigError, match=word):
            load([name])


def test_what_an_analyzer_finds_is_gone_with_all_that_overlaps() -> None:
    class Analyzer:
        def analyze(self, text: str, language: str) -> list[Any]:
            assert (text, language) == ("I am Ann Bee of Rome.", "en")
            return [
                SimpleNamespace(start=9, end=20, entity_type="ORGANIZATION"),
                SimpleNamespace(start=5, end=12, entity_type="PERSON"),
                SimpleNamespace(start=5, end=8, entity_type="NRP"),
            ]

    assert redacting(Analyzer(), "en")("I am Ann Bee of Rome.") == "I am [person]."


def test_presidio_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(ConfigError, match=r"record.redactors: 'presidio' needs presidio-analyzer"):
        load(["presidio"])


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A spaCy model that knows words and no names: presidio's patterns are all there is."""
    pytest.importorskip("presidio_analyzer", reason="presidio-analyzer is not installed (extra presidio)")
    folder = tmp_path_factory.mktemp("spacy") / "blank"
    import_module("spacy").blank("en").to_disk(folder)
    return str(folder)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*asked: Any, **_: Any) -> Any:
        pytest.fail(f"something asked for {asked}")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.mark.usefixtures("no_network")
def test_the_real_presidio_redacts_a_record(blank: str) -> None:
    found = presidio(blank)
    said = "mail ann.miller@example.org, card 4111 1111 1111 1111, from 10.0.0.7 or 2001:db8::1"
    assert found(said) == "mail [email_address], card [credit_card], from [ip_address] or [ip_address]"
    assert found("") == ""
    assert found("nothing of anybody") == "nothing of anybody"
    event = accepted(1)
    facts = replace(event.exchange.facts, body=json.dumps({"messages": [{"content": said}]}).encode())
    document = to_json(replace(event, exchange=replace(event.exchange, facts=facts, prompt_text=said)), plain)
    privacy = Privacy("redacted", (found,), b"secret")
    content = repr(privacy.apply(document))
    assert privacy.num_failed == 0
    assert "[email_address]" in content
    for trace in ("ann.miller", "4111", "10.0.0.7", "2001:db8"):
        assert trace not in content


@pytest.mark.usefixtures("no_network")
def test_the_real_presidio_fetches_no_model(blank: str) -> None:
    assert blank
    if any(map(import_module("spacy").util.is_package, MODELS)):
        pytest.skip("a spaCy model is installed here: there is nothing to fetch")
    with pytest.raises(ConfigError, match=r"none of en_core_web_lg.*is installed"):
        load(["presidio"])


def test_replicas_share_a_secret_that_only_the_owner_reads(tmp_path: Path) -> None:
    spec = RecordSpec(url=str(tmp_path / "r"), text="redacted")
    one, other = Recording.of(spec, "replica-0"), Recording.of(spec, "replica-1")
    assert one.privacy.pseudonym("a") == other.privacy.pseudonym("a")
    files = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]
