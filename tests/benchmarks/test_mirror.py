"""The mirror at a proxy that ours is compared with. Without nginx there is none, and nobody misses it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from benchmarks.serving.mirror import mirror, why_not
from tests.serving.process import wait_for


@contextmanager
def backend() -> Iterator[tuple[str, list[bytes]]]:
    """Answers everything with its port; gives its URL and the bodies that were posted to it."""
    posted: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["content-length"])))
            self.answer()

        def answer(self) -> None:
            body = str(self.server.server_address[1]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", posted
    finally:
        server.shutdown()
        server.server_close()


def test_without_nginx_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert why_not() == "nginx is not installed (Debian package nginx)"


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_only_one_of_the_two_urls_mirrors_and_both_answer_as_the_champion(tmp_path: Path) -> None:
    with (
        backend() as (champion, asked),
        backend() as (challenger, shadowed),
        mirror(champion, challenger, tmp_path / "nginx") as (plain, mirrored),
    ):
        for url, body in ((plain, b"one"), (mirrored, b"two")):
            assert httpx.post(f"{url}/v1/completions", content=body).text == champion.rpartition(":")[2]
        assert asked == [b"one", b"two"]
        wait_for(lambda: shadowed, 10)  # nobody waits for the mirror
        assert shadowed == [b"two"]
