"""What a real server leaves behind: private, provable, with the identities of real models, and of use afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from tests.serving.models import make
from tests.serving.process import Running, running

from understudy.cli import cli
from understudy.config import RecordSpec, load
from understudy.identity import config_digest
from understudy.record import scan
from understudy.record.care import erase_now
from understudy.record.signing import make_key
from understudy.record.sources import Source
from understudy.record.sql import query

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(600)]

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
        "prices": {"usd_per_device_hour": 3.6},
        "compare": {"token_prices": {"champ": {"input": 1.0, "output": 10.0}}},
    }
    with running(config, folder) as server:
        done = ask(server) | {"long": ask_at_length(server, folder)}
        promote(server, folder)
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
    headers = {"x-understudy-actor": "ann"}
    httpx.post(f"{server.url}/shadow/pause", headers=headers, timeout=60).raise_for_status()
    server.post("resume")
    assert server.post("feedback", request_id=done["open"], label="refund")["known"]
    assert not server.post("feedback", request_id="not yet", value=3.5, name="revenue_usd")["known"]
    assert server.status()["record"]["feedback_waiting"] == 1
    return done


def ask_at_length(server: Running, folder: Path) -> str:
    """An answer that fills many blocks of KV cache; what the engines said meanwhile is left in meter.json."""
    body = {"model": "champ", "prompt": OPEN, "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    held = []
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=120)
        while not answer.done():
            held.append(server.status()["meter"]["models"]["champ"]["memory"]["kv_used_fraction"])
    status = server.settled()
    busy_s = {each["name"]: each["steps"]["busy_s"] for each in (status["champion"], *status["challengers"])}
    (folder / "meter.json").write_text(json.dumps(status["meter"] | {"held": max(held), "busy_s": busy_s}))
    return str(answer.result().raise_for_status().json()["id"])


def promote(server: Running, folder: Path) -> None:
    """Refused, for nothing is known yet; then all the same, as a command of its own process."""
    words = ["promote", "lora", "--url", server.url, "--config", str(folder / "config.yaml"), "--by", "bob"]
    command = [sys.executable, "-m", "understudy.cli", *words, "--out", str(folder / "promoted.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "lora is NOT ENOUGH DATA now" in done.stderr) == (1, True), done
    assert not (folder / "promoted.yaml").exists()
    done = subprocess.run([*command, "--despite", "a drill"], capture_output=True, text=True, check=False)
    assert (done.returncode, "goes on with champ" in done.stdout) == (0, True), done
    other = {**yaml.safe_load((folder / "config.yaml").read_text()), "placement": "dedicated"}
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    command[command.index("--config") + 1] = str(folder / "other.yaml")
    done = subprocess.run([*command, "--despite", "a drill"], capture_output=True, text=True, check=False)
    assert (done.returncode, "runs another configuration" in done.stderr) == (1, True), done


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


def test_each_exchange_says_what_it_took_of_the_device(url: str, answered: dict[str, str], tmp_path: Path) -> None:
    meter = json.loads((Path(url).parent / "meter.json").read_text())
    view = next(view for view in scan(url) if view["request_id"] == answered["long"])
    champion, challenger = view["champion"], view["challengers"]["lora"]["observation"]
    memory = meter["models"]["champ"]["memory"]
    blocks = -(-(len(champion["prompt_token_ids"]) + 400 - 1) // memory["kv_block_tokens"])
    peak = champion["taken"]["kv_peak_bytes"]
    assert peak == blocks * memory["kv_block_bytes"]
    assert 0.5 * peak < meter["held"] * memory["kv_reserved_bytes"] < 1.2 * peak  # what vLLM's scheduler said
    assert challenger["taken"]["kv_peak_bytes"] >= peak  # scored: as long as the champion's
    for seen, name in ((champion, "champ"), (challenger, "lora")):
        took = seen["taken"]
        assert 0.0 < took["device_s"] <= meter["busy_s"][name]
        assert took["usd"] == pytest.approx(took["device_s"] / 1000)
        assert took["kv_byte_s"] > 0
        assert seen["measured"]["busy_s"] <= 1.1 * (seen["measured"]["prefill_s"] + seen["measured"]["decode_s"])
    assert champion["taken"]["device_s"] > 0.5 * champion["measured"]["decode_s"]  # it was alone
    assert champion["taken"]["tokens_usd"] == pytest.approx((len(champion["prompt_token_ids"]) + 4000) / 1e6)
    assert challenger["taken"]["tokens_usd"] is None
    run = CliRunner().invoke
    assert "KV cache, at most" in run(cli, ["exchanges", url, "--show", answered["long"]]).output
    asked = f"SELECT kv_peak_bytes, usd > 0 FROM exchanges WHERE request_id = '{answered['long']}'"
    assert query(url, asked)[1] == [(peak, True)]
    assert query(url, "SELECT count(*) FROM endings WHERE device_s > 0 AND usd > 0")[1] == [(3,)]
    done = run(cli, ["export", url, "--out", str(tmp_path / "out.parquet"), "--format", "parquet"])
    assert done.exit_code == 0, done.output
    assert peak in pq.read_table(tmp_path / "out.parquet")["champion_kv_peak_bytes"].to_pylist()


def test_it_says_what_was_compared_and_who_did_what(url: str) -> None:
    rows = query(url, "SELECT action, rollout, document FROM controls ORDER BY at_unix_s")[1]
    actions = [action for action, _, _ in rows]
    said = [action for action in actions if action != "checkpoint"]
    assert said == ["identity", "start", "pause", "resume", "promote", "stop"]
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
    actors = dict(query(url, "SELECT action, actor FROM controls")[1])
    assert actors["start"] == actors["checkpoint"] == "server"
    assert actors["pause"] == "ann (unauthenticated, from 127.0.0.1)"
    assert actors["resume"] == "unnamed (unauthenticated, from 127.0.0.1)"
    assert actors["promote"] == "bob (unauthenticated, from 127.0.0.1)"


def test_a_promotion_stands_in_the_record_and_leads_to_a_configuration(url: str) -> None:
    document = query(url, "SELECT document FROM controls WHERE action = 'promote'")[1][0][0]
    entry, folder = json.loads(document)["detail"], Path(url).parent
    assert (entry["challenger"], entry["champion"], entry["despite"]) == ("lora", "champ", "a drill")
    assert (entry["verdict"]["verdict"], entry["verdict"]["gates"][0]["metric"]) == ("NOT ENOUGH DATA", "missing")
    assert entry["identity"]["challenger"]["adapter"]
    assert entry["config_sha256"] == config_digest(load(folder / "config.yaml"))
    promoted = load(folder / "promoted.yaml")
    assert (promoted.champion.name, [each.name for each in promoted.challengers]) == ("lora", ["champ"])
    assert promoted.champion.lora is not None


def test_nobody_touched_it(url: str, key: str, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(cli, ["audit", "verify", url, "--public-key", key])
    assert (done.exit_code, "nothing was found" in done.output) == (0, True), done.output
    log = max((Path(url) / "replica-0").glob("segment-*.jsonl"))  # a file before it may have been sealed
    before = log.read_bytes()
    log.write_bytes(before.replace(b'"action":"stop"', b'"action":"halt"'))
    done = run(cli, ["audit", "verify", url, "--public-key", key])
    log.write_bytes(before)
    assert done.exit_code == 1
    assert "(control halt)" in done.output
    assert "changed" in done.output


def test_it_can_be_forgotten_and_still_verifies(url: str, key: str, answered: dict[str, str]) -> None:
    """The last test: it changes the record. The tag was written as a pseudonym, and is found by the real value."""
    spec = RecordSpec(url=url, signing_key=str(Path(url).parent / "key.pem"))
    said = list(erase_now(spec, [f"user={MAIL}"]))
    assert "replica-0: 2 records erased" in said
    assert {view["request_id"] for view in scan(url)} == {answered["open"], answered["long"]}
    assert answered["private"].encode() not in everything(url)
    done = CliRunner().invoke(cli, ["audit", "verify", url, "--public-key", key])
    assert (done.exit_code, "(2 erased)" in done.output) == (0, True), done.output
