"""understudy shadow, against a server that notes what it is asked."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from understudy.commands.shadow import command
from understudy.errors import UnderstudyError

STATUS = {
    "phase": "shadowing",
    "challengers": [
        {"name": "a", "ready": True, "detail": ""},
        {"name": "b", "ready": False, "detail": "its quarantine is lifted"},
    ],
}


class Noting(HTTPServer):
    asked: list[tuple[str, str | None]]
    actors: list[str | None]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Noting)
        self.server.asked.append((self.path, self.headers.get("authorization")))
        self.server.actors.append(self.headers.get("x-understudy-actor"))
        known = "nobody" not in self.path
        body = json.dumps(STATUS if known else {"error": {"message": "no challenger is called 'nobody'"}}).encode()
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Noting]:
    with Noting(("127.0.0.1", 0), Handler) as server:
        server.asked, server.actors = [], []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("words", "path", "key"),
    [
        (["pause"], "/shadow/pause", None),
        (["resume"], "/shadow/resume", None),
        (["resume", "--challenger", "b"], "/shadow/resume?challenger=b", None),
        (["resume", "--key", "secret"], "/shadow/resume", "Bearer secret"),
    ],
)
def test_it_asks_the_server_and_shows_the_challengers(server: Noting, words: list[str], path: str, key: str) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    done = CliRunner().invoke(command, [words[0], url, *words[1:]], catch_exceptions=False)
    assert server.asked == [(path, key)]
    assert done.output.splitlines() == ["phase: shadowing", "  a: ready", "  b: not ready: its quarantine is lifted"]


def test_it_says_what_is_done_and_not_recorded(server: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATUS, "entry", {"recorded": False, "detail": "the disk is full"})
    done = CliRunner().invoke(command, ["pause", f"http://127.0.0.1:{server.server_port}"], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, "Done, and not in the record yet: the disk is full\n")


def test_it_says_who_does_it(server: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setattr("socket.gethostname", lambda: "laptop")
    for words in (["pause", url], ["resume", url, "--by", "ops"]):
        CliRunner().invoke(command, words, catch_exceptions=False)
    assert server.actors == ["ann@laptop", "ops"]

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    CliRunner().invoke(command, ["pause", url], catch_exceptions=False)
    assert server.actors[-1] == f"uid-{os.getuid()}@laptop"


def test_what_the_server_refuses_and_no_server_are_errors(server: Noting) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(UnderstudyError, match=r"404.*no challenger is called 'nobody'"):
        CliRunner().invoke(command, ["resume", url, "--challenger", "nobody"], catch_exceptions=False)
    with pytest.raises(UnderstudyError, match="cannot be asked"):
        CliRunner().invoke(command, ["resume", "http://127.0.0.1:1"], catch_exceptions=False)
