"""understudy serve."""

from __future__ import annotations

import click


@click.command()
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--port", default=8000, show_default=True, help="TCP port of the server.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def command(config: str, port: int, host: str) -> None:
    """Serve the champion of CONFIG (YAML) with its challengers in the shadow, until Ctrl-C or SIGTERM."""
    from understudy.config import read_yaml
    from understudy.launch import serve_forever

    serve_forever(read_yaml(config), host=host, port=port)
