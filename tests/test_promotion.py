"""A promotion: what is refused, what is entered, and the configuration in which two models have changed places."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from click.testing import CliRunner

from understudy.commands.promote import command
from understudy.config import parse
from understudy.errors import ConfigError, Refused, UnderstudyError
from understudy.identity import config_digest
from understudy.promotion import Promotion, decided, swapped

IDENTITY = {
    "rollout": "r1",
    "config_sha256": "abc",
    "champion": {"name": "champ", "weights": "w1"},
    "challengers": [{"name": "a", "weights": "w2"}, {"name": "b", "weights": "w3"}],
}
GO = {"verdict": "GO", "reason": "everything holds", "gates": [{"metric": "missing", "interval": [0.0, 0.01]}]}
CONFIG: dict[str, Any] = {
    "champion": {
        "model": "org/big",
        "name": "champ",
        "engine_args": {"kv_cache_memory_bytes": 8, "dtype": "bfloat16", "max_num_seqs": 64},
    },
    "challengers": [
        {"model": "org/first"},
        {"model": "org/small", "engine_args": {"kv_cache_memory_bytes": 2, "quantization": "fp8"}},
    ],
    "record": {"url": "data"},
}


def test_only_go_is_promoted() -> None:
    entry = decided(Promotion("b"), GO, IDENTITY)
    assert entry == {
        "challenger": "b",
        "champion": "champ",
        "verdict": GO,
        "despite": None,
        "rollout": "r1",
        "config_sha256": "abc",
        "identity": {"champion": IDENTITY["champion"], "challenger": {"name": "b", "weights": "w3"}},
    }
    for word in ("NO-GO", "NOT ENOUGH DATA"):
        with pytest.raises(Refused, match=f"b is {word} now.*everything holds"):
            decided(Promotion("b"), GO | {"verdict": word}, IDENTITY)
        assert decided(Promotion("b", "I say so"), GO | {"verdict": word}, IDENTITY)["despite"] == "I say so"


def test_the_configuration_must_be_the_one_that_runs() -> None:
    assert decided(Promotion("b", None, "abc"), GO, IDENTITY)
    with pytest.raises(Refused, match=r"another configuration \(config_sha256 abc\)"):
        decided(Promotion("b", "I say so", "abd"), GO, IDENTITY)


def test_models_that_could_not_be_hashed_can_be_promoted() -> None:
    entry = decided(Promotion("b"), GO, {"rollout": ""})
    assert (entry["champion"], entry["identity"]) == (None, {"champion": None, "challenger": None})


def test_the_two_change_places_and_the_role_keeps_its_size() -> None:
    done = swapped(CONFIG, "small")
    assert done["champion"] == {
        "model": "org/small",
        "name": "small",
        "engine_args": {
            "kv_cache_memory_bytes": 8,
            "max_num_seqs": 64,
            "quantization": "fp8",
            "served_model_name": ["small", "champ"],
        },
    }
    assert done["challengers"] == [
        {"model": "org/first"},
        {"model": "org/big", "name": "champ", "engine_args": {"kv_cache_memory_bytes": 2, "dtype": "bfloat16"}},
    ]
    assert done["record"] == CONFIG["record"]
    back = swapped(done, "champ")
    assert back["champion"].pop("engine_args") == {
        **CONFIG["champion"]["engine_args"],
        "served_model_name": ["champ", "small"],
    }
    assert back["challengers"][1]["engine_args"] == CONFIG["challengers"][1]["engine_args"]


def test_the_short_form_and_adapters() -> None:
    done = swapped({"champion": {"model": "org/big"}, "challenger": {"model": "org/big", "lora": "/x/tuned"}}, "tuned")
    assert done["champion"] == {"model": "org/big", "lora": "/x/tuned", "name": "tuned"}
    assert done["challengers"] == [{"model": "org/big", "name": "org/big"}]
    assert "challenger" not in done
    with pytest.raises(ConfigError, match=r"none is called 'x'; there are first, small"):
        swapped(CONFIG, "x")


class Server(HTTPServer):
    asked: list[dict[str, Any]]
    answer: tuple[int, dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(asked | {"path": self.path, "by": self.headers["x-understudy-actor"]})
        status, body = self.server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked, server.answer = [], (200, {"entry": decided(Promotion("small"), GO, IDENTITY)})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def run(server: Server, *words: str) -> Any:
    url = f"http://127.0.0.1:{server.server_port}"
    return CliRunner().invoke(command, ["small", "--url", url, "--by", "ann", *words], catch_exceptions=False)


def test_the_command_writes_the_configuration(server: Server, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.yaml"
    done = run(server, "--config", str(config), "--out", str(out))
    assert done.exit_code == 0
    assert yaml.safe_load(out.read_text()) == swapped(CONFIG, "small")
    assert out.stat().st_mode & 0o777 == 0o600
    assert "goes on with champ" in done.output
    assert f"{config} leads back" in done.output
    sha = config_digest(parse(CONFIG))
    asked = {"challenger": "small", "despite": None, "config_sha256": sha, "path": "/shadow/promote", "by": "ann"}
    assert server.asked == [asked]


def test_the_command_prints_nothing_but_the_configuration(server: Server, config: Path) -> None:
    done = run(server, "--config", str(config), "--despite", "we know")
    assert yaml.safe_load(done.stdout) == swapped(CONFIG, "small")
    assert "Nothing was swapped" in done.stderr
    assert server.asked[0]["despite"] == "we know"
    assert "Give --config" in run(server).stdout


def test_nothing_is_entered_unless_its_configuration_can_be_written(
    server: Server, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    for folder in ("no-folder", config.name):
        with pytest.raises(ConfigError, match=rf"--out: .*{folder}/new.yaml cannot be written, and nothing is entered"):
            run(server, "--config", str(config), "--out", str(tmp_path / folder / "new.yaml"))
    with monkeypatch.context() as patched:
        patched.setattr("understudy.record.store.open_private", full)
        with pytest.raises(ConfigError, match=r"--out: .*No space left"):
            run(server, "--config", str(config), "--out", str(tmp_path / "new.yaml"))
    assert server.asked == []
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(UnderstudyError, match="it is entered, and --out"):
            run(server, "--config", str(config), "--out", str(tmp_path / "new.yaml"))
    assert len(server.asked) == 1
    (left,) = set(tmp_path.iterdir()) - {config}  # it is entered: the configuration is not thrown away
    assert yaml.safe_load(left.read_text()) == swapped(CONFIG, "small")


def test_the_configuration_replaces_what_a_link_leads_to_and_goes_through_a_pipe(
    server: Server, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.yaml").write_text("from before")
    (tmp_path / "link.yaml").symlink_to("old.yaml")
    run(server, "--config", str(config), "--out", str(tmp_path / "link.yaml"))
    assert (tmp_path / "link.yaml").is_symlink()
    assert yaml.safe_load((tmp_path / "old.yaml").read_text()) == swapped(CONFIG, "small")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        run(server, "--config", str(config), "--out", str(tmp_path / "pipe"))
        assert yaml.safe_load(os.read(reader, 65_536).decode()) == swapped(CONFIG, "small")
    finally:
        os.close(reader)


def test_what_is_refused_writes_nothing(server: Server, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.yaml"
    server.answer = (409, {"error": {"message": "small is NO-GO now"}})
    with pytest.raises(Refused, match="small is NO-GO now"):
        run(server, "--config", str(config), "--out", str(out))
    server.answer = (503, {"error": {"message": "the disk is full"}})
    with pytest.raises(UnderstudyError, match=r"503.*the disk is full"):
        run(server, "--config", str(config), "--out", str(out))
    assert list(tmp_path.iterdir()) == [config]
    out.write_text("from before")
    with pytest.raises(UnderstudyError, match="the disk is full"):
        run(server, "--config", str(config), "--out", str(out))
    assert out.read_text() == "from before"
    num_asked = len(server.asked)
    with pytest.raises(ConfigError, match=r"--out.*is --config"):
        run(server, "--config", str(config), "--out", str(config))
    assert "--out needs --config" in run(server, "--out", str(out)).output
    config.write_text(yaml.safe_dump(CONFIG | {"challengers": CONFIG["challengers"][:1]}))
    with pytest.raises(ConfigError, match="none is called 'small'"):
        run(server, "--config", str(config))
    assert len(server.asked) == num_asked  # none of these was entered
