"""A promotion: somebody decides that a challenger is to take the champion's place.

It is a decision and an entry in the record, and a configuration in which the two have changed places. No model of a
running server is swapped: the champion goes on until the server is started with that configuration, and the one from
before leads back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from understudy.config import parse
from understudy.errors import ConfigError, Refused
from understudy.record.codec import without_surrogates

MAX_REASON: Final = 1000
OF_THE_ROLE: Final = ("gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs")
"""Engine arguments that say how much traffic a model is to take: they stay where they are, the others go along."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """What was asked for.

    Attributes:
        challenger: its name.
        despite: why, although its verdict is no GO.
        config_sha256: of the configuration that is to be changed; the server's must be the same. None: not checked.
    """

    challenger: str
    despite: str | None = None
    config_sha256: str | None = None

    @staticmethod
    def read(body: Mapping[str, Any]) -> Promotion:
        """From the body of a request, with U+FFFD for each half of a surrogate pair that stands alone.

        Raises:
            ConfigError: naming the key, the value and the rule.
        """
        body = without_surrogates(dict(body))
        unknown = sorted(body.keys() - set(Promotion.__slots__))
        if unknown:
            raise ConfigError(f"{unknown[0]}: unknown key; known here: {', '.join(Promotion.__slots__)}")
        if not isinstance(body.get("challenger"), str):
            raise ConfigError(f"challenger: {body.get('challenger')!r} must be the name of a challenger")
        for name in ("despite", "config_sha256"):
            if not isinstance(body.get(name), str | None):
                raise ConfigError(f"{name}: {body[name]!r} must be text or null")
        despite = body.get("despite")
        if despite is not None and not 0 < len(despite.strip()) <= MAX_REASON:
            raise ConfigError(f"despite: must be a reason of 1 to {MAX_REASON} characters")
        return Promotion(body["challenger"], despite, body.get("config_sha256"))


def decided(asked: Promotion, verdict: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The detail of the entry, where the rules allow it. ``identity``: identity.py's detail, with the rollout.

    Raises:
        Refused: they do not.
    """
    mine = identity.get("config_sha256")
    if asked.config_sha256 not in (None, mine):
        raise Refused(
            f"this server runs another configuration (config_sha256 {mine}) than the one given ({asked.config_sha256})"
        )
    if verdict["verdict"] != "GO" and asked.despite is None:
        raise Refused(
            f"{asked.challenger} is {verdict['verdict']} now, and only GO is promoted: {verdict['reason']} "
            f"(whoever decides otherwise gives a reason: despite)"
        )
    challenger = next((each for each in identity.get("challengers", ()) if each["name"] == asked.challenger), None)
    champion = identity.get("champion")
    return {
        "challenger": asked.challenger,
        "champion": None if champion is None else champion["name"],
        "verdict": dict(verdict),
        "despite": asked.despite,
        "rollout": identity.get("rollout"),
        "config_sha256": mine,
        "identity": {"champion": champion, "challenger": challenger},
    }


def swapped(raw: Mapping[str, Any], challenger: str) -> dict[str, Any]:
    """A configuration in which the challenger of this name is the champion, and the champion the challenger.

    Both keep their names, which the record knows them by. What says how much traffic a model takes stays with the role.
    Clients that ask for the old champion's name get the new one's answers, unless that is an adapter.

    Raises:
        ConfigError: it is no configuration, or has no such challenger.
    """
    config = parse(raw)
    known = [each.name for each in config.challengers]
    if challenger not in known:
        raise ConfigError(f"challengers: none is called {challenger!r}; there are {', '.join(known) or 'none'}")
    listed = [dict(each) for each in ([raw["challenger"]] if "challenger" in raw else raw["challengers"])]
    place = known.index(challenger)
    old = {**raw["champion"], "name": config.champion.name}
    new = {**listed[place], "name": challenger}
    mine, theirs = dict(new.get("engine_args") or {}), dict(old.get("engine_args") or {})
    served = theirs.pop("served_model_name", config.champion.name)
    for name in OF_THE_ROLE:
        if name in mine or name in theirs:
            mine[name], theirs[name] = theirs.get(name), mine.get(name)
    names = [challenger, *([served] if isinstance(served, str) else served)]
    if new.get("lora") is None:  # an adapter is served under its own name alone
        mine["served_model_name"] = list(dict.fromkeys(names))
    listed[place] = _with_args(old, theirs)
    done = {name: value for name, value in raw.items() if name != "challenger"}
    done |= {"champion": _with_args(new, mine), "challengers": listed}
    parse(done)
    return done


def _with_args(model: Mapping[str, Any], engine_args: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in engine_args.items() if value is not None}
    rest = {name: value for name, value in model.items() if name != "engine_args"}
    return rest | ({"engine_args": given} if given else {})
