"""What a real server leaves behind: private, provable, with the identities of real models, and of use afterwards."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from tests.serving.models import make
from tests.serving.process import Running, running

from understudy.cli import cli
from understudy.config import RecordSpec
from understudy.record import scan
from understudy.record.care import erase_now
from understudy.record.signing import make_key
from understudy.record.sources import Source
from understudy.record.sql import query

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}
MAIL = "ann.miller@example.org"
OPEN, PRIVATE = "my order did not arrive", f"my order did not arrive, write to {MAIL} please"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("record")


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    return make_key(folder / "key.pem")


@pytest.fixture(scope="module")
def answered(folder: Path, key: str) -> dict[str, str]:
    """A server that has lived: exchanges by what they were, paused and resumed, given feedback, stopped."""
    models = make(folder / "models")
    config = {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challenger": {"model": models["llama"], "lora": models["lora"], "name": "lora", "engine_args": SMALL},
        "record": {"url": str(folder / "data"), "text": "redacted", "signing_key": str(folder / "key.pem")},
        "gates": [{"metric": "missing", "margin": 0.1}],
    }
    with running(config, folder) as server:
        done = ask(server)
        assert server.stop(signal.SIGTERM) == 0
    return done


def ask(server: Running) -> dict[str, str]:
    done: dict[str, str] = {}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        for name, text, headers in (
            ("open", OPEN, {"x-understudy-tags": json.dumps({"user": "bob", "session": "1"})}),
            ("private", PRIVATE, {"x-understudy-tags": json.dumps({"user": MAIL, "session": "2"})}),
            ("out", "OPTED-OUT", {"x-understudy-shadow": "off"}),
        ):
            messages: list[Any] = [{"role": "user", "content": text}]
            answer = client.chat.completions.create(
                model="champ", messages=messages, max_tokens=8, temperature=0, extra_headers=headers
            )
            done[name] = answer.id
    server.settled()
    server.post("pause")
    server.post("resume")
    assert server.post("feedback", request_id=done["open"], label="refund")["known"]
    assert not server.post("feedback", request_id="not yet", value=3.5, name="revenue_usd")["known"]
    assert server.status()["record"]["feedback_waiting"] == 1
    return done


@pytest.fixture
def url(folder: Path, answered: dict[str, str]) -> str:
    assert answered
    return str(folder / "data")


def everything(url: str) -> bytes:
    parts = [path.read_bytes() for path in Path(url).rglob("*") if path.is_file()]
    for log in Path(url).iterdir():
        source = Source.at(log) if (log / "manifests").is_dir() else None
        for number in source.sealed() if source else []:
            parts += [repr(row).encode() for row in source.open_sealed(number).rows(["document", "tags"])]  # type: ignore[union-attr]
    return b"\n".join(parts)


def test_what_must_not_be_written_is_nowhere(url: str, answered: dict[str, str]) -> None:
    content = everything(url)
    assert answered["private"].encode() in content
    for trace in (b"ann.miller", b"example.org", b"OPTED-OUT", answered["out"].encode()):
        assert trace not in content
    views = {view["request_id"]: view for view in scan(url)}
    private, clear = views[answered["private"]], views[answered["open"]]
    assert (private["champion"]["prompt_token_ids"], private["champion"]["num_prompt_tokens"] > 5) == ([], True)
    assert json.loads(private["body"])["messages"][0]["content"].endswith("write to [email] please")
    assert len(clear["champion"]["prompt_token_ids"]) > 5
    assert json.loads(clear["body"])["messages"][0]["content"] == OPEN
    assert clear["feedback"][0]["label"] == "refund"
    for view in (private, clear):
        assert view["challengers"]["lora"]["state"] == "compared"
        scores = view["challengers"]["lora"]["observation"]["scores"]
        assert len(scores[0]["logprobs"]) == len(scores[0]["ranks"]) > 0
        assert not scores[0]["top1"]
        assert view["parameters"]["max_tokens"] == 8


def test_it_says_what_was_compared_and_who_did_what(url: str) -> None:
    rows = query(url, "SELECT action, rollout, document FROM controls ORDER BY at_unix_s")[1]
    actions = [action for action, _, _ in rows]
    assert [action for action in actions if action != "checkpoint"] == ["identity", "start", "pause", "resume", "stop"]
    assert actions[-1] == "checkpoint"  # one a minute, and one at the end
    (rollout,) = {rollout for _, rollout, _ in rows}
    assert query(url, "SELECT DISTINCT rollout FROM records WHERE kind <> 'feedback'")[1] == [(rollout,)]
    detail = json.loads(rows[0][2])["detail"]
    champion, (challenger,) = detail["champion"], detail["challengers"]
    assert champion["weights"] == challenger["weights"] != None  # noqa: E711  # the same base, and not unknown
    assert challenger["adapter"]
    assert champion["tokenizer"]
    assert champion["chat_template"]
    assert detail["gates"][0]["margin"] == 0.1
    assert json.loads(rows[1][2])["detail"]["gates_sha256"] == detail["gates_sha256"]


def test_nobody_touched_it(url: str, key: str, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(cli, ["audit", "verify", url, "--public-key", key])
    assert (done.exit_code, "nothing was found" in done.output) == (0, True), done.output
    log = max((Path(url) / "replica-0").glob("segment-*.jsonl"))
    before = log.read_bytes()
    log.write_bytes(before.replace(b'"label":"refund"', b'"label":"defund"'))
    done = run(cli, ["audit", "verify", url, "--public-key", key])
    log.write_bytes(before)
    assert done.exit_code == 1
    assert "(feedback" in done.output
    assert "changed" in done.output


def test_it_can_be_forgotten_and_still_verifies(url: str, key: str, answered: dict[str, str]) -> None:
    """The last test: it changes the record. The tag was written as a pseudonym, and is found by the real value."""
    spec = RecordSpec(url=url, signing_key=str(Path(url).parent / "key.pem"))
    said = list(erase_now(spec, [f"user={MAIL}"]))
    assert "replica-0: 2 records erased" in said
    assert {view["request_id"] for view in scan(url)} == {answered["open"]}
    assert answered["private"].encode() not in everything(url)
    done = CliRunner().invoke(cli, ["audit", "verify", url, "--public-key", key])
    assert (done.exit_code, "(2 erased)" in done.output) == (0, True), done.output
