"""The mirror that a proxy can do: nginx sends each request to a second vLLM server as well, and drops its answer.

    with mirror(champion, challenger, folder) as (plain_url, mirrored_url):

Both URLs are one nginx before the same champion; only the second one mirrors, so the first is its baseline. nginx is
looked for in PATH (the Debian package ``nginx``).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving import servers
from understudy.launch import free_port

CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    proxy_read_timeout 300s;
    upstream champion {{ server 127.0.0.1:{champion}; keepalive 256; }}
    upstream challenger {{ server 127.0.0.1:{challenger}; keepalive 256; }}
    server {{
        listen 127.0.0.1:{plain};
        location / {{ proxy_pass http://champion; }}
    }}
    server {{
        listen 127.0.0.1:{mirrored};
        location / {{ mirror /mirror; proxy_pass http://champion; }}
        location = /mirror {{ internal; proxy_pass http://challenger$request_uri; }}
    }}
}}
"""
TIMEOUT_S = 30.0


def why_not() -> str | None:
    """Why there is no such mirror on this machine; None where there is one."""
    return None if shutil.which("nginx") else "nginx is not installed (Debian package nginx)"


@contextlib.contextmanager
def mirror(champion: str, challenger: str, folder: Path) -> Iterator[tuple[str, str]]:
    """nginx for the time of the block, before servers at these two URLs: the URL without the mirror, and with it."""
    plain, mirrored = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nginx.conf"
    ports = {"champion": port_of(champion), "challenger": port_of(challenger), "plain": plain, "mirrored": mirrored}
    path.write_text(CONFIG.format(folder=folder, **ports), encoding="utf-8")
    process = subprocess.Popen(["nginx", "-c", str(path), "-e", str(folder / "nginx.log")])
    try:
        for port in (plain, mirrored):
            _wait_for(f"http://127.0.0.1:{port}/v1/models", process, folder / "nginx.log")
        yield f"http://127.0.0.1:{plain}", f"http://127.0.0.1:{mirrored}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def two_servers(models: tuple[str, str], engine_args: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    """vLLM's own server twice, each with its own binding of threads; their URLs."""
    with (
        servers.vllm(models[0], engine_args, folder, "vllm-champion") as champion,
        servers.vllm(models[1], engine_args, folder, "vllm-challenger") as challenger,
    ):
        yield champion, challenger


def port_of(url: str) -> str:
    """The port of ``http://host:port``."""
    return url.rpartition(":")[2]


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=TIMEOUT_S).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nginx does not answer: {log.read_text(errors='replace')[-2000:] if log.exists() else ''}")
