"""One frozen configuration tree, parsed once at the edge.

Every dataclass field is an option; its metadata holds the rule in words and as a check. An unknown key is an
error that names it and the nearest known one; a bad value is an error that names the key, the value and the rule.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from understudy.compare.options import CompareSpec
from understudy.errors import ConfigError
from understudy.judge.gates import Gate

Section = TypeVar("Section")
NOTHING: Mapping[str, Any] = types.MappingProxyType({})


def option(default: Any, rule: str, check: Callable[[Any], bool]) -> Any:
    """A field with its rule; the rule's words are part of the error message."""
    return field(default=default, metadata={"rule": rule, "check": check})


def _key() -> Any:
    """No key at all is a choice; an empty one, such as a template leaves, would let everybody in."""
    return option(None, "text that is not empty, or null", lambda value: value is None or bool(value.strip()))


def _positive(default: float | None, rule: str = "a number above 0") -> Any:
    return option(default, rule, lambda value: value is None or value > 0)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model. ``engine_args`` go to vLLM as they are; ``devices`` are GPU indices, for ``dedicated``."""

    model: str
    name: str = ""
    lora: str | None = None
    engine_args: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    devices: tuple[int, ...] = option((), "indices from 0", lambda value: all(index >= 0 for index in value))

    @property
    def says_logprobs(self) -> bool:
        """Whether its ``logprobs`` are those of the model's own distribution, as a scoring pass has them."""
        return self.engine_args.get("logprobs_mode") in (None, "raw_logprobs")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the lane may take."""

    max_pending: int = _positive(1024, "a whole number above 0: exchanges that wait for one challenger")
    max_concurrency: int = _positive(16, "a whole number above 0: exchanges that one challenger works on at a time")
    deadline_s: float = _positive(120.0, "seconds above 0, from the end of the answer to the end of the shadow work")
    max_tokens_per_s: float | None = _positive(None, "tokens per second above 0, read and generated, or null")
    yield_above: int = _positive(32, "a whole number above 0: no shadow work starts while the champion has more")
    breaker_faults: int = _positive(5, "a whole number above 0: faults in a row that open the breaker")
    breaker_cooldown_s: float = _positive(30.0, "seconds above 0 before an open breaker lets one exchange through")
    max_device_share: float | None = option(
        None, "a fraction above 0 and up to 1, or null", lambda value: value is None or 0.0 < value <= 1.0
    )
    max_usd_per_hour: float | None = _positive(None, "US dollars an hour above 0, or null")
    hang_s: float = _positive(30.0, "seconds above 0: a challenger's step that takes longer is taken to hang")
    start_timeout_s: float = _positive(900.0, "seconds above 0 that one challenger may take to load")
    max_pending_bytes: int = _positive(256 * 2**20, "a whole number above 0: bytes held for one challenger")


@dataclass(frozen=True, slots=True)
class ShadowSpec:
    """What is shadowed and how."""

    sample: float = option(1.0, "a fraction from 0 to 1", lambda value: 0.0 <= value <= 1.0)
    score: bool = True
    generate: bool = True
    noise_floor: float = option(
        0.0,
        "a fraction from 0 to 1: of the sampled exchanges, those that the champion answers again",
        lambda value: 0.0 <= value <= 1.0,
    )
    divergence: float = option(
        0.0,
        "a fraction from 0 to 1: of the sampled exchanges, those on which whole distributions are compared",
        lambda value: 0.0 <= value <= 1.0,
    )
    max_step_ms: float | None = _positive(
        None,
        "milliseconds above 0 that the champion may have to wait for a challenger, or null: 3 on the CPU, 10 on a GPU",
    )
    min_device_share: float = option(
        0.01,
        "a fraction from 0 to 0.5: what challengers get while the champion is busy",
        lambda value: 0 <= value <= 0.5,
    )
    speculative: Literal["auto", "always", "never"] = "auto"
    """Whether challengers generate with the champion's answer as the draft; ``auto``: where that was measured."""
    limits: Limits = Limits()


_RETENTION = re.compile(r"([1-9]\d*)([dh])")


@dataclass(frozen=True, slots=True)
class RecordSpec:
    """Where the record is kept, what of a text is in it, and for how long."""

    url: str = option(
        "understudy-data",
        "a folder, file:///folder, or a store that fsspec knows, such as s3://bucket/folder",
        lambda value: bool(value) and (not value.startswith("file:") or value.startswith("file:///")),
    )
    spool: str = option("understudy-spool", "a local folder for the log, where url is none", bool)
    text: Literal["full", "redacted", "none"] = "full"
    redactors: tuple[str, ...] = option(
        ("patterns",), "at least one of patterns, presidio, package.module:function", bool
    )
    retention: str | None = option(
        None,
        "days or hours after which a segment is removed, such as 30d or 12h, or null",
        lambda value: value is None or _RETENTION.fullmatch(value) is not None,
    )
    signing_key: str | None = option(
        None,
        "the file of an Ed25519 key (understudy audit keygen), or null",
        lambda value: value is None or bool(value),
    )

    @property
    def folder(self) -> Path:
        """The local folder of the replicas' logs; sealed segments are there too, where ``url`` is local."""
        path = self.url.removeprefix("file://")
        return Path(self.spool if "://" in path else path)

    @property
    def retention_s(self) -> float | None:
        """Seconds, or None: nothing is removed."""
        if self.retention is None:
            return None
        found = _RETENTION.fullmatch(self.retention)
        assert found is not None  # the option's rule
        return int(found[1]) * {"d": 86400.0, "h": 3600.0}[found[2]]


@dataclass(frozen=True, slots=True)
class Prices:
    """What a device and its energy cost. Without them the meter shows seconds and joules, and no money."""

    usd_per_device_hour: float | None = _positive(None, "US dollars above 0 for one device and hour, or null")
    usd_per_kwh: float | None = _positive(None, "US dollars above 0; null where the device's price has it in it")


@dataclass(frozen=True, slots=True)
class Traces:
    """Where OpenTelemetry traces go (extra ``traces``): an OTLP/HTTP collector."""

    endpoint: str | None = option(
        None,
        "an http:// or https:// address, or null",
        lambda value: value is None or value.startswith(("http://", "https://")),
    )


@dataclass(frozen=True, slots=True)
class Auth:
    """Keys. ``shadow_key`` guards /shadow; it is required where the server listens beyond this machine."""

    api_key: str | None = _key()
    shadow_key: str | None = _key()


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. ``server`` holds options of vLLM's API server, such as tool_call_parser."""

    champion: ModelSpec
    challengers: tuple[ModelSpec, ...] = ()
    placement: Literal["shared", "dedicated"] = "shared"
    server: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    shadow: ShadowSpec = ShadowSpec()
    compare: CompareSpec = field(default_factory=CompareSpec)
    record: RecordSpec = RecordSpec()
    gates: tuple[Gate, ...] = ()
    prices: Prices = Prices()
    traces: Traces = Traces()
    auth: Auth = Auth()


def parse(raw: Mapping[str, Any]) -> Config:
    """The configuration from what YAML gives.

    Raises:
        ConfigError: naming the key, the value and the rule that was broken.
    """
    raw = dict(raw)
    if "challenger" in raw:
        if "challengers" in raw:
            raise ConfigError("challenger: give either 'challenger' or 'challengers', not both")
        raw["challengers"] = [raw.pop("challenger")]
    config = _section(Config, raw, "")
    if not config.shadow.score and not config.shadow.generate:
        raise ConfigError("shadow.score: false, and shadow.generate is false too: then there is nothing to compare")
    if config.shadow.limits.max_usd_per_hour is not None and config.prices == Prices():
        said = config.shadow.limits.max_usd_per_hour
        raise ConfigError(f"shadow.limits.max_usd_per_hour: {said} needs prices.usd_per_device_hour or usd_per_kwh")
    unfounded = next((gate.metric for gate in config.gates if gate.needs_floor), None)
    if unfounded is not None and config.shadow.noise_floor == 0:
        raise ConfigError(f"gates.metric: {unfounded!r} needs a noise floor: set shadow.noise_floor above 0")
    labelled = next((gate.metric for gate in config.gates if gate.needs_label), None)
    if labelled is not None and config.record.text == "none":
        lost = f"gates.metric: {labelled!r} needs the answers in the record, and record.text 'none' leaves them out"
        raise ConfigError(f"{lost}: a restart would lose its evidence; set record.text to 'redacted' or 'full'")
    divergence = config.shadow.divergence
    if divergence > 0 and config.placement != "shared":
        raise ConfigError(f"shadow.divergence: {divergence}: needs placement 'shared': both models in one process")
    if divergence > 0 and not config.shadow.score:
        raise ConfigError(f"shadow.divergence: {divergence}: needs shadow.score, of which it is a part")
    named = _with_names(config)
    names = [model.name for model in (named.champion, *named.challengers)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"name: {twice[0]!r} is given to two models; every model needs a name of its own")
    return named


def load(path: str | Path) -> Config:
    """The configuration from a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a configuration.
    """
    return parse(read_yaml(path))


def read_yaml(path: str | Path) -> Mapping[str, Any]:
    """A YAML mapping from a file. Raises ConfigError."""
    import yaml

    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read: {fault.strerror}") from fault
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: is not YAML: {fault}") from fault
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, this is {type(raw).__name__}")
    return raw


def unknown_key(path: str, key: str, known: Sequence[str]) -> ConfigError:
    """The error for a key nobody knows, with the nearest one that somebody does."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
    return ConfigError(f"{path}{key}: unknown key; {hint}")


def _with_names(config: Config) -> Config:
    champion = config.champion
    if not champion.name:
        champion = dataclasses.replace(champion, name=champion.model)
    challengers = tuple(
        challenger if challenger.name else dataclasses.replace(challenger, name=_default_name(challenger, index))
        for index, challenger in enumerate(config.challengers, 1)
    )
    return dataclasses.replace(config, champion=champion, challengers=challengers)


def _default_name(challenger: ModelSpec, index: int) -> str:
    return Path(challenger.lora or challenger.model).name or f"challenger-{index}"


def _section(kind: type[Section], raw: Any, path: str) -> Section:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path.rstrip('.') or 'configuration'}: {raw!r} must be a mapping of keys")
    hints = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            raise unknown_key(path, str(key), list(fields))
    values = {key: _value(hints[key], value, f"{path}{key}") for key, value in raw.items()}
    for name, each in fields.items():
        if name not in values and each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}{name}: is required")
        check = each.metadata.get("check")
        if name in values and check is not None and not check(values[name]):
            raise ConfigError(f"{path}{name}: {values[name]!r} must be {each.metadata['rule']}")
    return kind(**values)


def _value(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _section(hint, value if value is not None else {}, path + ".")  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: {value!r} must be a list")
        return tuple(_value(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{path}: {value!r} must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        return _value(next(each for each in arguments if each is not type(None)), value, path)
    if origin is not None:  # Mapping[str, Any]: passed on as it is
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: {value!r} must be a mapping of keys")
        return types.MappingProxyType(dict(value))
    return _scalar(hint, value, path)


def _scalar(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise ConfigError(f"{path}: {value!r} must be {words.get(hint, hint.__name__)}")
    return value
