"""The composition root for Ray Serve: ``serve run`` and ``serve deploy`` with deploy/serve.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from understudy.config import Config, parse
from understudy.engines.placements import gpu_present


def build(args: Mapping[str, Any]) -> serve.Application:
    """The Serve application for a configuration, the same YAML as ``understudy serve`` takes.

    Raises:
        ConfigError: naming the key, the value and the rule; nothing was started then.
    """
    return application(args)


def application(args: Mapping[str, Any], door: str | None = None) -> serve.Application:
    """The same; with ``door`` the replica takes its connections there, past Ray Serve's proxies (see door.py)."""
    config = parse(args)
    from understudy.deployment import Replica

    replica = Replica.options(ray_actor_options={"num_gpus": num_gpus(config)})  # type: ignore[attr-defined]
    bound: serve.Application = replica.bind(dict(args), door)
    return bound


def num_gpus(config: Config) -> int:
    """GPUs that a replica asks Ray for: enough for the highest index named, else one, and none on a CPU."""
    named = [device for model in (config.champion, *config.challengers) for device in model.devices]
    return max(named) + 1 if named else int(gpu_present())
