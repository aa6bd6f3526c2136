"""The configuration: what a right one becomes, and that a wrong one names the key, the value and the rule."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from understudy.config import Config, Limits, ShadowSpec, load, parse, unknown_key
from understudy.errors import ConfigError

CHAMPION = {"champion": {"model": "org/champion"}}


def with_keys(**keys: Any) -> dict[str, Any]:
    return {**CHAMPION, **keys}


def with_limit(name: str, value: Any) -> dict[str, Any]:
    return with_keys(shadow={"limits": {name: value}})


def error_of(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(raw)
    return str(raised.value)


def test_the_smallest_configuration() -> None:
    config = parse(CHAMPION)
    assert config.champion.model == config.champion.name == "org/champion"
    assert config.challengers == ()
    assert config.placement == "shared"
    assert config.shadow == ShadowSpec()
    assert config.shadow.limits == Limits()
    assert config.gates == ()
    assert config.auth.shadow_key is None


def test_the_comparators_have_a_section_of_their_own() -> None:
    config = parse(
        with_keys(compare={"use": ["exact", "text"], "label_pattern": "is (a|b)", "callables": {"x": "a:b"}})
    )
    assert config.compare.names == ("exact", "text", "label")
    assert config.compare.callables == {"x": "a:b"}
    assert parse(CHAMPION).compare.label_pattern is None
    assert "compare.label_patern: unknown key; did you mean 'label_pattern'?" in error_of(
        with_keys(compare={"label_patern": "(a)"})
    )
    assert "compare.use: 'exakt' is no comparator" in error_of(with_keys(compare={"use": ["exakt"]}))
    assert "compare.max_characters: 'all' must be a whole number" in error_of(
        with_keys(compare={"max_characters": "all"})
    )


def test_the_whole_configuration_arrives() -> None:
    config = parse(
        {
            "champion": {
                "model": "a",
                "name": "lead",
                "engine_args": {"max_model_len": 512},
                "devices": [0, 1],
            },
            "challengers": [{"model": "b"}, {"model": "a", "lora": "/adapters/tuned", "name": "tuned"}],
            "placement": "dedicated",
            "server": {"tool_call_parser": "hermes"},
            "shadow": {
                "sample": 0.5,
                "score": False,
                "generate": True,
                "limits": {
                    "max_pending": 1,
                    "max_concurrency": 2,
                    "deadline_s": 3,
                    "max_tokens_per_s": 4.5,
                    "yield_above": 5,
                    "breaker_faults": 6,
                    "breaker_cooldown_s": 7,
                    "max_device_share": 1,
                    "max_usd_per_hour": 8,
                },
            },
            "record": {"url": "file:///var/lib/understudy"},
            "gates": [{"metric": "accuracy", "margin": 0.02, "pattern": "(x)", "min_units": 10}],
            "prices": {"usd_per_device_hour": 2.5, "usd_per_kwh": 0.25},
            "auth": {"api_key": "k1", "shadow_key": "k2"},
        }
    )
    assert config.champion.devices == (0, 1)
    assert config.champion.engine_args == {"max_model_len": 512}
    assert [challenger.name for challenger in config.challengers] == ["b", "tuned"]
    assert config.challengers[1].lora == "/adapters/tuned"
    assert config.server == {"tool_call_parser": "hermes"}
    assert dataclasses.astuple(config.shadow.limits)[:9] == (1, 2, 3.0, 4.5, 5, 6, 7.0, 1.0, 8.0)
    assert isinstance(config.shadow.limits.deadline_s, float)
    assert (config.shadow.sample, config.shadow.score, config.shadow.generate) == (0.5, False, True)
    assert config.record.folder == Path("/var/lib/understudy")
    assert (config.gates[0].metric, config.gates[0].margin, config.gates[0].alpha) == ("accuracy", 0.02, 0.05)
    assert (config.prices.usd_per_device_hour, config.prices.usd_per_kwh) == (2.5, 0.25)
    assert (config.auth.api_key, config.auth.shadow_key) == ("k1", "k2")


def test_a_configuration_is_frozen_and_the_callers_is_left_alone() -> None:
    raw = with_keys(challenger={"model": "b", "engine_args": {"seed": 1}})
    before = copy.deepcopy(raw)
    config = parse(raw)
    assert raw == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.placement = "dedicated"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.challengers[0].engine_args["seed"] = 2  # type: ignore[index]
    raw["challenger"]["engine_args"]["seed"] = 3
    assert config.challengers[0].engine_args == {"seed": 1}


def test_challenger_is_a_list_of_one() -> None:
    assert parse(with_keys(challenger={"model": "b"})) == parse(with_keys(challengers=[{"model": "b"}]))


def test_challenger_and_challengers_together_are_refused() -> None:
    for challengers in ([], [{"model": "c"}]):
        message = error_of(with_keys(challenger={"model": "b"}, challengers=challengers))
        assert message == "challenger: give either 'challenger' or 'challengers', not both"


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ([{"model": "org/b"}], ["b"]),
        ([{"model": "/models/b/"}], ["b"]),
        ([{"model": "a", "lora": "/adapters/tuned"}], ["tuned"]),
        ([{"model": "a", "name": "mine"}], ["mine"]),
        ([{"model": "."}, {"model": "."}], ["challenger-1", "challenger-2"]),
    ],
)
def test_default_names(models: list[dict[str, str]], names: list[str]) -> None:
    assert [challenger.name for challenger in parse(with_keys(challengers=models)).challengers] == names


@pytest.mark.parametrize(
    "keys",
    [
        {"challengers": [{"model": "x", "name": "twin"}, {"model": "y", "name": "twin"}]},
        {"challengers": [{"model": "org/twin"}, {"model": "other/twin"}]},
        {"champion": {"model": "twin"}, "challenger": {"model": "org/twin"}},
        {"champion": {"model": "a", "name": "twin"}, "challenger": {"model": "a", "lora": "/adapters/twin"}},
    ],
)
def test_two_models_of_one_name_are_refused(keys: dict[str, Any]) -> None:
    message = error_of(with_keys(**keys))
    assert message == "name: 'twin' is given to two models; every model needs a name of its own"


@pytest.mark.parametrize(
    ("raw", "key", "nearest"),
    [
        (with_keys(placment="shared"), "placment", "placement"),
        (with_keys(challanger={"model": "b"}), "challanger", "challengers"),
        ({"champion": {"modle": "a"}}, "champion.modle", "model"),
        ({"champion": {"model": "a", "engin_args": {}}}, "champion.engin_args", "engine_args"),
        (with_keys(challengers=[{"model": "b"}, {"nam": "c"}]), "challengers[1].nam", "name"),
        (with_keys(challenger={"device": [0]}), "challengers[0].device", "devices"),
        (with_keys(shadow={"limit": {}}), "shadow.limit", "limits"),
        (with_limit("max_pendng", 5), "shadow.limits.max_pendng", "max_pending"),
        (with_keys(record={"ulr": "x"}), "record.ulr", "url"),
        (with_keys(gates=[{"metric": "missing", "margn": 0.1}]), "gates[0].margn", "margin"),
        (with_keys(auth={"shadowkey": "x"}), "auth.shadowkey", "shadow_key"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(raw: dict[str, Any], key: str, nearest: str) -> None:
    assert error_of(raw) == f"{key}: unknown key; did you mean {nearest!r}?"


@pytest.mark.parametrize("key", ["zzz", 7, None, ""])
def test_an_unknown_key_that_is_near_nothing_gets_the_list(key: object) -> None:
    message = error_of(with_keys(auth={key: "x"}))
    assert message == f"auth.{key}: unknown key; known here: api_key, shadow_key"


def test_the_nearest_key_is_a_known_one() -> None:
    assert "did you mean 'b_longer'" in str(unknown_key("x.", "b_longr", ["a_longer", "b_longer"]))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "champion: is required"),
        ({"champion": None}, "champion.model: is required"),
        ({"champion": {}}, "champion.model: is required"),
        ({"champion": "a"}, "champion: 'a' must be a mapping of keys"),
        ({"champion": ["a"]}, "champion: ['a'] must be a mapping of keys"),
        ({"champion": {"model": None}}, "champion.model: None must be text"),
        ({"champion": {"model": 5}}, "champion.model: 5 must be text"),
        (
            {"champion": {"model": "a", "engine_args": None}},
            "champion.engine_args: None must be a mapping of keys",
        ),
        (
            {"champion": {"model": "a", "engine_args": [1]}},
            "champion.engine_args: [1] must be a mapping of keys",
        ),
        ({"champion": {"model": "a", "lora": 5}}, "champion.lora: 5 must be text"),
        ({"champion": {"model": "a", "devices": 0}}, "champion.devices: 0 must be a list"),
        ({"champion": {"model": "a", "devices": "01"}}, "champion.devices: '01' must be a list"),
        (
            {"champion": {"model": "a", "devices": [0, True]}},
            "champion.devices[1]: True must be a whole number",
        ),
        ({"champion": {"model": "a", "devices": [0.5]}}, "champion.devices[0]: 0.5 must be a whole number"),
        (with_keys(challenger=None), "challengers[0].model: is required"),
        (
            with_keys(challenger=[{"model": "b"}]),
            "challengers[0]: [{'model': 'b'}] must be a mapping of keys",
        ),
        (with_keys(challengers=None), "challengers: None must be a list"),
        (with_keys(challengers={"model": "b"}), "challengers: {'model': 'b'} must be a list"),
        (with_keys(challengers=["b"]), "challengers[0]: 'b' must be a mapping of keys"),
        (with_keys(placement="sharde"), "placement: 'sharde' must be one of shared, dedicated"),
        (with_keys(placement=None), "placement: None must be one of shared, dedicated"),
        (with_keys(placement=["shared"]), "placement: ['shared'] must be one of shared, dedicated"),
        (with_keys(server=[]), "server: [] must be a mapping of keys"),
        (with_keys(shadow="on"), "shadow: 'on' must be a mapping of keys"),
        (with_keys(shadow={"sample": 1.5}), "shadow.sample: 1.5 must be a fraction from 0 to 1"),
        (with_keys(shadow={"sample": -0.1}), "shadow.sample: -0.1 must be a fraction from 0 to 1"),
        (with_keys(shadow={"sample": float("nan")}), "shadow.sample: nan must be a fraction from 0 to 1"),
        (with_keys(shadow={"sample": "0.5"}), "shadow.sample: '0.5' must be a number"),
        (with_keys(shadow={"sample": True}), "shadow.sample: True must be a number"),
        (with_keys(shadow={"sample": None}), "shadow.sample: None must be a number"),
        (with_keys(shadow={"sample": [1]}), "shadow.sample: [1] must be a number"),
        (with_keys(shadow={"score": 1}), "shadow.score: 1 must be true or false"),
        (with_keys(shadow={"generate": "yes"}), "shadow.generate: 'yes' must be true or false"),
        (with_keys(shadow={"score": None}), "shadow.score: None must be true or false"),
        (with_limit("max_pending", True), "shadow.limits.max_pending: True must be a whole number"),
        (with_limit("max_pending", 1.5), "shadow.limits.max_pending: 1.5 must be a whole number"),
        (with_limit("max_pending", None), "shadow.limits.max_pending: None must be a whole number"),
        (with_limit("max_pending", 0), "shadow.limits.max_pending: 0 must be a whole number above 0"),
        (
            with_limit("max_concurrency", -1),
            "shadow.limits.max_concurrency: -1 must be a whole number above 0",
        ),
        (with_limit("deadline_s", 0), "shadow.limits.deadline_s: 0.0 must be seconds above 0"),
        (with_limit("deadline_s", float("nan")), "shadow.limits.deadline_s: nan must be seconds above 0"),
        (with_limit("deadline_s", "1m"), "shadow.limits.deadline_s: '1m' must be a number"),
        (
            with_limit("max_tokens_per_s", 0),
            "shadow.limits.max_tokens_per_s: 0.0 must be tokens per second above 0",
        ),
        (with_limit("max_device_share", 1.5), "shadow.limits.max_device_share: 1.5 must be a fraction above 0"),
        (with_limit("max_usd_per_hour", 2), "shadow.limits.max_usd_per_hour: 2.0 needs prices.usd_per_device_hour"),
        (with_keys(prices={"usd_per_kwh": 0}), "prices.usd_per_kwh: 0.0 must be US dollars above 0"),
        (with_limit("max_tokens_per_s", True), "shadow.limits.max_tokens_per_s: True must be a number"),
        (with_limit("yield_above", 0), "shadow.limits.yield_above: 0 must be a whole number above 0"),
        (with_limit("breaker_faults", 0), "shadow.limits.breaker_faults: 0 must be a whole number above 0"),
        (
            with_limit("breaker_cooldown_s", -1),
            "shadow.limits.breaker_cooldown_s: -1.0 must be seconds above 0",
        ),
        (
            with_keys(record={"url": ""}),
            "record.url: '' must be a folder, file:///folder, or a store that fsspec knows",
        ),
        (
            with_keys(record={"url": "file://host/x"}),
            "record.url: 'file://host/x' must be a folder, file:///",
        ),
        (with_keys(record={"url": None}), "record.url: None must be text"),
        (with_keys(record={"text": "some"}), "record.text: 'some' must be one of full, redacted, none"),
        (with_keys(record={"redactors": []}), "record.redactors: () must be at least one of patterns"),
        (with_keys(record={"retention": "30"}), "record.retention: '30' must be days or hours"),
        (with_keys(record={"signing_key": ""}), "record.signing_key: '' must be the file of an Ed25519 key"),
        (with_keys(auth={"shadow_key": ""}), "auth.shadow_key: '' must be text that is not empty, or null"),
        (
            with_keys(auth={"shadow_key": "  "}),
            "auth.shadow_key: '  ' must be text that is not empty, or null",
        ),
        (with_keys(auth={"api_key": ""}), "auth.api_key: '' must be text that is not empty, or null"),
        (with_keys(gates={"metric": "missing"}), "gates: {'metric': 'missing'} must be a list"),
        (with_keys(gates=[{"margin": 0.1}]), "gates[0].metric: is required"),
        (with_keys(gates=[{"metric": "missing", "margin": None}]), "gates[0].margin: None must be a number"),
        (
            with_keys(gates=[{"metric": "missing", "margin": "0.1"}]),
            "gates[0].margin: '0.1' must be a number",
        ),
        (with_keys(gates=[None]), "gates[0].metric: is required"),
        (
            with_keys(record={"text": "none"}, gates=[{"metric": "accuracy", "margin": 0.1, "pattern": "(.)"}]),
            "gates.metric: 'accuracy' needs the answers in the record, and record.text 'none' leaves them out",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_the_rule(raw: dict[str, Any], message: str) -> None:
    assert error_of(raw).startswith(message)


@pytest.mark.parametrize(
    ("gate", "key", "value"),
    [
        ({"metric": "acuracy", "margin": 0.1}, "metric", "'acuracy'"),
        ({"metric": "missing", "margin": 1.5}, "margin", "1.5"),
        ({"metric": "missing", "margin": 0.1, "alpha": 0.9}, "alpha", "0.9"),
        ({"metric": "missing", "margin": 0.1, "min_units": 0}, "min_units", "0"),
        ({"metric": "accuracy", "margin": 0.1}, "pattern", "None"),
    ],
)
def test_a_wrong_gate_is_named_too(gate: dict[str, Any], key: str, value: str) -> None:
    assert re.match(rf"gates.*\.{key}: {re.escape(value)}", error_of(with_keys(gates=[gate])))


def test_a_null_section_is_its_default() -> None:
    assert parse(with_keys(shadow=None, record=None, auth=None)) == parse(CHAMPION)
    assert parse(with_keys(shadow={"limits": None})).shadow == ShadowSpec()


def test_null_is_a_value_where_the_rule_says_so() -> None:
    config = parse(with_limit("max_tokens_per_s", None) | {"auth": {"shadow_key": None}})
    assert config.shadow.limits.max_tokens_per_s is None
    assert config.auth.shadow_key is None


def test_a_whole_number_is_a_number() -> None:
    assert parse(with_keys(shadow={"sample": 1})).shadow.sample == 1.0
    assert parse(with_keys(shadow={"sample": 0})).shadow.sample == 0.0


def test_engine_args_are_passed_on_as_they_are() -> None:
    args = {"anything": {"nested": [1, None, True]}, "max_model_len": "8k"}
    assert parse({"champion": {"model": "a", "engine_args": args}}).champion.engine_args == args


def all_options(kind: Any) -> list[dataclasses.Field[Any]]:
    """Every field with a rule, of a section and of the sections in it."""
    options = []
    for each in dataclasses.fields(kind):
        if dataclasses.is_dataclass(each.default):
            options += all_options(type(each.default))
        elif "rule" in each.metadata:
            options.append(each)
    return options


def test_every_option_with_a_rule_keeps_it_by_default() -> None:
    options = all_options(Config)
    assert len(options) >= 10
    for each in options:
        assert each.metadata["check"](each.default), each.name
        assert each.metadata["rule"]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "understudy.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_file_gives_what_its_yaml_says(tmp_path: Path) -> None:
    path = write(tmp_path, "champion: {model: a}\nchallenger: {model: b, name: Zweitbesetzung für a}\n")
    assert load(path) == load(str(path))
    assert load(path).challengers[0].name == "Zweitbesetzung für a"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("champion: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("\x01", "is not YAML"),
        (b"champion: {model: \xff}", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("", "a configuration is a mapping of keys, this is NoneType"),
        ("- champion", "a configuration is a mapping of keys, this is list"),
        ("champion", "a configuration is a mapping of keys, this is str"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {says}")):
        load(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read: No such file"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
