"""vLLM's own OpenAI app, unmodified, over any EngineClient."""

from __future__ import annotations

import dataclasses
import difflib
from argparse import Namespace
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.openai.models.protocol import LoRAModulePath
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

from understudy.api.middleware import App
from understudy.config import Config
from understudy.errors import ConfigError


async def build(client: EngineClient, config: Config) -> App:
    """The app that ``vllm serve`` would serve, with ``client`` where it would have its AsyncLLM.

    Raises:
        ConfigError: ``server`` has an option that vLLM's server does not have.
    """
    args = arguments(config)
    args.structured_outputs_config = client.vllm_config.structured_outputs_config  # as the engine resolved it
    if args.tool_parser_plugin and len(args.tool_parser_plugin) > 3:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin and len(args.reasoning_parser_plugin) > 3:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    tasks = await client.get_supported_tasks()
    app: Any = build_app(args, tasks, client.model_config)
    app.state.server = SimpleNamespace(should_exit=False)  # vLLM's error handlers tell its own server to end
    await init_app_state(client, app.state, args, tasks)
    return app  # type: ignore[no-any-return]


def arguments(config: Config) -> Namespace:
    """vLLM's server arguments: its defaults, the champion's engine arguments, then ``server``."""
    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    settings: dict[str, Any] = {**config.champion.engine_args, **config.server}
    if config.auth.api_key:
        settings["api_key"] = [config.auth.api_key]
    check_options(settings, vars(args))
    refuse_engine_options(config.server)
    for name, value in settings.items():
        setattr(args, name, value)
    args.model = args.model_tag = config.champion.model
    names = settings.get("served_model_name") or config.champion.name
    args.served_model_name = [names] if isinstance(names, str) else list(names)
    if config.champion.lora is not None:  # the champion's name means the adapter; the base keeps its own
        args.served_model_name = [config.champion.model]
        args.lora_modules = [LoRAModulePath(name=config.champion.name, path=config.champion.lora)]
    validate_parsed_serve_args(args)
    return args


def refuse_engine_options(server: Mapping[str, Any]) -> None:
    """Raise ConfigError for an engine's option under ``server``, from where it would not reach the engine."""
    engine = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in server:
        if name in engine:
            raise ConfigError(f"server.{name}: is an option of the engine; put it into champion.engine_args")


def check_options(settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that vLLM's server does not have."""
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see vllm serve --help"
            raise ConfigError(f"server.{name}: vLLM's server has no such option; {hint}")
