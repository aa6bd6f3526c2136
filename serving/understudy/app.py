"""The composition root for Ray Serve: ``serve run understudy.app:build champion.model=...`` and serve.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from understudy.config import parse


def build(args: Mapping[str, Any]) -> serve.Application:
    """The Serve application for a configuration, the same YAML as ``understudy serve`` takes.

    Raises:
        ConfigError: naming the key, the value and the rule; nothing was started then.
    """
    parse(args)
    from understudy.deployment import Replica

    application: serve.Application = Replica.bind(dict(args))  # type: ignore[attr-defined]
    return application
