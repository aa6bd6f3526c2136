"""The file of ``understudy compare``, and models on its command line: what becomes of them, right or wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.record.builders import accepted, ended, flush, open_keeper

from understudy.commands.compare import command
from understudy.compare_run import not_done
from understudy.config import RecordSpec, parse
from understudy.errors import ConfigError
from understudy.offline import offline_config, take_folder
from understudy.prompts import Prompt, read_prompts
from understudy.record.recording import Recording
from understudy.types import State
from understudy.variants import model_of, with_gates, with_models

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def read(folder: Path, *lines: Any, **defaults: Any) -> list[Prompt]:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return read_prompts(path, defaults)


def error(folder: Path, *lines: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        read(folder, *lines)
    return str(raised.value)


def test_chats_completions_and_batch_lines(tmp_path: Path) -> None:
    chat, plain, batch = read(
        tmp_path,
        CHAT | {"label": "spam", "session": 7, "tags": {"tenant": "a"}, "id": "x", "params": {"temperature": 0.5}},
        "",
        {"prompt": "Once", "params": {"n": 2}},
        {"custom_id": "b-1", "method": "POST", "url": "/v1/responses", "body": {"input": "Hi", "model": "theirs"}},
        temperature=0.0,
        max_tokens=9,
    )
    assert chat == Prompt(1, "x", "/v1/chat/completions", chat.body, "spam", {"tenant": "a", "session": "7"})
    assert chat.body == CHAT | {"temperature": 0.5, "max_tokens": 9}
    assert (plain.line, plain.endpoint, plain.label) == (3, "/v1/completions", None)
    assert plain.body == {"prompt": "Once", "n": 2, "temperature": 0.0, "max_tokens": 9}
    assert plain.id.startswith("line-3-")
    assert (batch.id, batch.endpoint, batch.body) == ("b-1", "/v1/responses", {"input": "Hi"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "prompts.jsonl:2: is not JSON"),
        ('{"prompt": "a \\ud800 b"}', "prompts.jsonl:2: has half of a surrogate pair"),
        ("[" * 100_000, "prompts.jsonl:2: is not JSON"),
        ("[]", "prompts.jsonl:2: [] must be an object"),
        ({}, "must have either 'messages' (a chat) or 'prompt'"),
        (CHAT | {"prompt": "x"}, "must have either 'messages' (a chat) or 'prompt'"),
        ({"mesages": []}, "mesages: unknown key; did you mean 'messages'?"),
        ({"zzz": 1}, "zzz: unknown key; known: messages, prompt"),
        ({"messages": 7}, "messages: 7 must be a list of objects with a 'role'"),
        ({"messages": []}, "messages: [] must be a list"),
        ({"messages": [{"content": "x"}]}, "messages[0]: {'content': 'x'} must be"),
        ({"prompt": ""}, "prompt: '' must be text that is not empty"),
        ({"prompt": ["a"]}, "prompt: ['a'] must be text"),
        (CHAT | {"label": " "}, "label: ' ' must be text"),
        (CHAT | {"label": True}, "label: True must be text"),
        (CHAT | {"session": []}, "session: [] must be text"),
        (CHAT | {"tags": {"a": {}}}, "tags: {'a': {}} must be an object of texts"),
        (CHAT | {"tags": {"a": "x" * 5000}}, "tags: with the session they must have at most 4096 bytes"),
        (CHAT | {"id": "\N{SNOWMAN}"}, "id: '\N{SNOWMAN}' must be at most 200 printable ASCII characters"),
        (CHAT | {"id": "a\nb"}, "must be at most 200 printable ASCII"),
        (CHAT | {"params": 3}, "params: 3 must be an object"),
        (CHAT | {"params": {"stream": True}}, "params.stream: is not a parameter"),
        (CHAT | {"params": {"model": "m"}}, "params.model: is not a parameter"),
        (CHAT | {"url": "/v1/responses"}, "url: goes with 'body'"),
        ({"body": {}, "prompt": "x"}, "prompt: belongs into 'body'"),
        ({"body": [], "url": "/v1/responses"}, "body: [] must be an object"),
        ({"body": {}, "url": "/v1/embeddings"}, "url: '/v1/embeddings' must be one of /v1/chat/completions"),
        ({"body": {}}, "messages: None must be a list"),
        (CHAT | {"id": "twice"}, "id: 'twice' must be unique; line 1 has it too"),
    ],
)
def test_a_bad_line_is_named_with_its_key_its_value_and_the_rule(tmp_path: Path, line: Any, message: str) -> None:
    said = error(tmp_path, CHAT | {"id": "twice"}, line)
    assert message in said
    assert ":2: " in said


def test_every_bad_line_is_told_at_once_but_not_a_thousand(tmp_path: Path) -> None:
    said = error(tmp_path, *[{"prompt": ""}] * 25)
    assert said.count("must be text") == 10
    assert said.endswith("... and 15 more")


def test_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    assert error(tmp_path, "", " ").endswith("has no prompt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl", {})
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "bytes.jsonl", {})


def test_bad_lines_end_the_command_before_any_engine_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": 1}\n{"promt": "x"}\n')
    arguments = ["--champion", "m", "--challenger", "n", "--prompts", str(path), "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match=r"p.jsonl:2: promt: unknown key; did you mean 'prompt'"):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("org/model", {"model": "org/model"}),
        ("tuned=org/model", {"model": "org/model", "name": "tuned"}),
        ("org/model+/adapters/a", {"model": "org/model", "lora": "/adapters/a"}),
        ("t=org/model+/a+b", {"model": "org/model+/a", "lora": "b", "name": "t"}),
        ("/models/a=b", {"model": "/models/a=b"}),
    ],
)
def test_models_on_the_command_line(given: str, expected: dict[str, str]) -> None:
    assert model_of(given, {}) == expected


def test_a_path_that_exists_is_taken_whole(tmp_path: Path) -> None:
    odd = tmp_path / "a=b+c"
    odd.mkdir()
    assert model_of(str(odd), {}) == {"model": str(odd)}
    assert model_of(f"x={odd}", {}) == {"model": str(odd), "name": "x"}
    assert model_of(f"x={odd}+lora", {"seed": 1}) == {
        "model": str(odd), "name": "x", "lora": "lora", "engine_args": {"seed": 1},
    }  # fmt: skip


@pytest.mark.parametrize("given", ["", "+", "a=+b", "m+"])
def test_a_model_without_a_part_is_an_error(given: str) -> None:
    with pytest.raises(ConfigError, match=r"must be \[NAME=\]MODEL\[\+ADAPTER\]"):
        model_of(given, {})


def models(config: str | None = None, **given: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"champion": None, "challengers": (), "engine_args": None, "placement": None}
    return with_models(config, **(known | given))


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("champion: {model: a}\nchallenger: {model: b}\nplacement: dedicated\nserver: {seed: 1}\n")
    assert models(str(path))["challenger"] == {"model": "b"}
    raw = models(str(path), challengers=("x=c", "d"), placement="shared", engine_args='{"seed": 3}')
    assert raw == {
        "champion": {"model": "a"},
        "challengers": [
            {"model": "c", "name": "x", "engine_args": {"seed": 3}},
            {"model": "d", "engine_args": {"seed": 3}},
        ],
        "placement": "shared",
        "server": {"seed": 1},
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--champion: is required"),
        ({"champion": "a"}, "--challenger: at least one is required"),
        ({"champion": "a", "challengers": ("b",), "engine_args": "["}, "--engine-args: '\\[' must be a JSON object"),
        (
            {"champion": "a", "challengers": ("b",), "engine_args": "[]"},
            r"--engine-args: '\[\]' must be a JSON",
        ),
    ],
)
def test_models_that_are_missing_or_wrong_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models(**given)


def test_gates_are_the_files_or_fit_the_labels() -> None:
    own = [{"metric": "missing", "margin": 0.2}]
    assert with_gates({"gates": own}, None)["gates"] == own
    assert [gate["metric"] for gate in with_gates({}, None)["gates"]] == ["missing", "agreement"]
    with_labels = with_gates({"compare": {"label_json_path": "$.a"}}, "(a)")
    assert [gate["metric"] for gate in with_labels["gates"]] == ["accuracy", "missing", "agreement"]
    assert with_labels["compare"] == {"label_pattern": "(a)"}


def test_offline_nothing_is_shed_sampled_or_guarded(tmp_path: Path) -> None:
    raw = {
        "champion": {"model": "a"},
        "challengers": [{"model": "b"}],
        "shadow": {"sample": 0.1, "score": False, "limits": {"max_pending": 2, "max_tokens_per_s": 5, "hang_s": 7}},
        "record": {"url": "/elsewhere"},
        "auth": {"api_key": "k"},
    }
    for has_champion in (True, False):
        config = parse(offline_config(raw, out=tmp_path, concurrency=3, has_champion=has_champion))
        limits = config.shadow.limits
        assert (config.shadow.sample, config.shadow.score, limits.max_concurrency) == (1.0, False, 3)
        assert (limits.max_tokens_per_s, limits.hang_s) == (None, 7)
        assert min(limits.max_pending, limits.yield_above, limits.breaker_faults) >= 2**31
        assert limits.max_pending_bytes >= 2**60
        assert config.auth.api_key is None
        assert config.record.folder == tmp_path / "record"


def test_a_folder_is_gone_on_with_only_by_the_very_same_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    take_folder(out, {"a": 1})
    take_folder(out, {"a": 1})
    with pytest.raises(ConfigError, match="holds a run with other models or settings"):
        take_folder(out, {"a": 2})
    (tmp_path / "other" / "record").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a record that is not of such a run"):
        take_folder(tmp_path / "other", {"a": 1})


def test_everything_is_to_do_where_nothing_was_written(tmp_path: Path) -> None:
    prompts = read(tmp_path, CHAT)
    assert not_done(prompts, RecordSpec(url=str(tmp_path / "none")), ["b"]) == prompts
    (tmp_path / "record").mkdir()
    assert not_done(prompts, RecordSpec(url=str(tmp_path / "record")), ["b"]) == prompts


@pytest.mark.parametrize("text", ["full", "redacted"])
def test_a_prompt_that_has_ended_is_not_sent_again_whatever_its_id_says(tmp_path: Path, text: Any) -> None:
    """Under ``redacted`` an id with a hit is in the record as a pseudonym."""
    ids = ["a@example.com", "b@example.com", "plain"]
    prompts = read(tmp_path, *({**CHAT, "id": id} for id in ids))
    record = RecordSpec(url=str(tmp_path / "record"), text=text)
    recording = Recording.of(record, "replica-0")
    keeper = open_keeper(recording.log, privacy=recording.privacy)
    for number, (id, state) in enumerate(zip(ids, (State.COMPARED, State.CANCELLED, State.SHED), strict=True)):
        keeper.append(accepted(number, client_request_id=id))
        keeper.append(ended(number, state=state))
    flush(keeper)
    keeper.close()
    assert [prompt.id for prompt in not_done(prompts, record, ["b"])] == ["b@example.com"]
