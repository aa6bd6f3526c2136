"""understudy compare and replay as users have them: real engines, an interrupt, a resumed run, and the same verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.serving.process import wait_for

from understudy.errors import RecordError
from understudy.record import scan

pytestmark = pytest.mark.slow
NUM_PROMPTS = 48
SMALL = {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TIMES = ("end_to_end", "ttft")


def prompts() -> list[dict[str, Any]]:
    """Chats and completions, with tools, a schema, several answers, bias; one that the champion must refuse."""
    chat: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": f"{number} quick brown foxes"}],
            "label": "e",
            "session": f"s{number % 7}",
        }
        for number in range(NUM_PROMPTS)
    ]
    several = {"max_tokens": 8, "n": 2, "temperature": 0.5, "seed": 3}
    chat[0] = {"prompt": "my order did not arrive", "params": several, "tags": {"kind": "plain"}}
    chat[1]["params"] = {"tools": TOOLS, "max_tokens": 8}
    chat[2]["params"] = {"response_format": JSON, "max_tokens": 24}
    chat[3]["params"] = {"logit_bias": {"300": 5.0}, "max_tokens": 8, "stop": ["zz"]}
    body = {"messages": [{"role": "user", "content": "help"}], "max_tokens": 8, "temperature": 0}
    chat[4] = {"custom_id": "batch-1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    chat[5]["params"] = {"max_tokens": 100_000}
    return chat


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).parent / "understudy"), *arguments]
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "160"})


def finish(process: subprocess.Popen[bytes], log: Path) -> tuple[int, str]:
    try:
        code = process.wait(300)
    finally:
        process.kill()
    return code, log.read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """compare, interrupted in the middle; the same again, to its end; and a replay of its record."""
    from tests.serving.models import make

    folder = tmp_path_factory.mktemp("offline")
    models = make(folder)
    file, out = folder / "prompts.jsonl", folder / "compare"
    file.write_text("\n".join(map(json.dumps, prompts())))
    challengers = {
        "same": models["llama"],
        "qwen": models["qwen2"],
        "lora": f"{models['llama']}+{models['lora']}",
        "other": models["other"],
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps({"server": {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}}))
    common = ["--config", str(config), "--champion", models["llama"], "--engine-args", json.dumps(SMALL)]
    common += ["--label-pattern", "([a-z])"]
    for name, model in challengers.items():
        common += ["--challenger", f"{name}={model}"]
    compare = ["compare", *common, "--prompts", str(file), "--out", str(out), "--concurrency", "2"]
    compare += ["--max-tokens", "48", "--temperature", "0"]
    seen: dict[str, Any] = {"compare": out, "replay": folder / "replay"}

    process = start(compare, folder / "1.log")
    wait_for(lambda: num_ended(out) >= 4 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    seen["interrupted"] = finish(process, folder / "1.log")
    seen["ended at the interrupt"] = num_ended(out)
    seen["finished"] = finish(start(compare, folder / "2.log"), folder / "2.log")
    replay = ["replay", *common, "--record", str(out / "record"), "--out", str(seen["replay"]), "--gate"]
    seen["replayed"] = finish(start(replay, folder / "3.log"), folder / "3.log")
    return seen


def num_ended(out: Path) -> int:
    """Exchanges that ended for every challenger."""
    try:
        states = [[each["state"] for each in view["challengers"].values()] for view in scan(out / "record")]
    except RecordError:
        return 0
    return sum("pending" not in each for each in states)


def ended(out: Path) -> dict[str, dict[str, Any]]:
    """By what was asked: how it ended for each challenger, where it did not expire."""
    found: dict[str, dict[str, Any]] = {}
    for view in scan(out / "record"):
        for name, end in view["challengers"].items():
            if end["state"] not in ("pending", "expired"):
                assert name not in found.setdefault(view["client_request_id"], {}), "ended twice"
                found[view["client_request_id"]][name] = end
    return found


def report(out: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((out / "report.json").read_text())
    return read


def test_ctrl_c_leaves_a_readable_record_and_a_report(runs: Mapping[str, Any]) -> None:
    code, log = runs["interrupted"]
    assert code == 130, log[-3000:]
    assert "interrupted: the record holds what was done" in log
    assert 4 <= runs["ended at the interrupt"] < NUM_PROMPTS - 1


def test_the_same_command_goes_on_and_every_prompt_ends(runs: Mapping[str, Any]) -> None:
    code, log = runs["finished"]
    assert "prompts are in the record already" in log
    assert code == 1, log[-3000:]  # one line was refused
    assert "line 6 was refused by the champion: 400:" in log
    found = ended(runs["compare"])
    assert len(found) == NUM_PROMPTS - 1
    for ends in found.values():
        assert set(ends) == {"same", "qwen", "lora", "other"}
        for name, end in ends.items():
            allowed = ("compared",) if name != "other" else ("compared", "shed")
            assert end["state"] in allowed, end
    # another tokenizer: the token ids of a bias mean nothing there, and it is said
    shed = [end["reason"] for ends in found.values() if (end := ends["other"])["state"] == "shed"]
    assert shed == ["token_id_parameters"]


def test_the_comparators_saw_the_requests_tools_and_schema(runs: Mapping[str, Any]) -> None:
    by_line = {key.split("-")[1]: ends for key, ends in ended(runs["compare"]).items() if key.startswith("line-")}
    assert "tool_decision_match" in by_line["2"]["qwen"]["comparison"]
    assert by_line["3"]["same"]["comparison"]["challenger_json_valid"] in (0.0, 1.0)
    assert "challenger_schema_valid" in by_line["3"]["lora"]["comparison"]
    assert "challenger_schema_valid" not in by_line["9"]["lora"]["comparison"]
    same = [ends["same"]["comparison"]["exact_match"] for ends in by_line.values()]
    assert sorted(same)[1:] == [1.0] * (len(same) - 1)  # the champion's own weights, greedy but for line 1
    assert any(ends["qwen"]["comparison"]["exact_match"] == 0.0 for ends in by_line.values())
    assert all("exact_match" not in (ends["other"]["comparison"] or {}) for ends in by_line.values())
    assert any("text_similarity" in (ends["other"]["comparison"] or {}) for ends in by_line.values())


def test_a_replay_gives_every_exchange_the_same_answers_and_numbers(runs: Mapping[str, Any]) -> None:
    code, log = runs["replayed"]
    assert code == 3, log[-3000:]  # NOT ENOUGH DATA
    live, again = ended(runs["compare"]), ended(runs["replay"])
    assert set(again) == set(live)
    for key, ends in live.items():
        for name, end in ends.items():
            other = again[key][name]
            assert (other["state"], other["reason"]) == (end["state"], end["reason"])
            if end["state"] != "compared":
                continue
            if key.startswith("line-1-"):  # sampled: seeded, but a batch of another size may round to another token
                continue
            answers = [[each["token_ids"] for each in seen["observation"]["answers"]] for seen in (end, other)]
            assert answers[0] == answers[1], (key, name)
            numbers = [
                {number: value for number, value in seen["comparison"].items() if not any(t in number for t in TIMES)}
                for seen in (end, other)
            ]
            assert numbers[1] == pytest.approx(numbers[0], rel=0.02, abs=0.05), (key, name)


def test_a_replay_gives_the_same_verdicts(runs: Mapping[str, Any]) -> None:
    judged = []
    for out in (runs["compare"], runs["replay"]):
        for challenger in report(out)["status"]["challengers"]:
            gates = [
                [gate[key] for key in ("metric", "decision", "units", "champion_mean", "challenger_mean", "interval")]
                for gate in challenger["verdict"]["gates"]
            ]
            judged.append([challenger["name"], challenger["verdict"]["verdict"], *gates])
    assert judged[:4] == judged[4:]
    accuracy = judged[0][2]
    assert accuracy[2] == 7  # the sessions, all of them closed, and what has no label is not among them


def test_the_report_is_the_same_table_and_page(runs: Mapping[str, Any]) -> None:
    for name in ("finished", "replayed"):
        log = runs[name][1]
        assert "NOT ENOUGH DATA" in log
        assert "token agreement" in log
    for out in (runs["compare"], runs["replay"]):
        assert "lora" in (out / "report.html").read_text()
    counts = report(runs["replay"])["status"]["counts"]
    assert counts["sampled"] == 4 * (NUM_PROMPTS - 1)
    assert counts["pending"] == 0
