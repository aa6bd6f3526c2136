"""The redactors that ``record.redactors`` can name: ``patterns``, ``presidio``, or ``package.module:function``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from understudy.errors import ConfigError
from understudy.record.patterns import redact
from understudy.record.privacy import Redactor

IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load(names: Sequence[str]) -> tuple[Redactor, ...]:
    """The redactors of these names, in this order.

    Raises:
        ConfigError: one is not known, or cannot be imported.
    """
    return tuple(map(_load, names))


def _load(name: str) -> Redactor:
    if name == "patterns":
        return redact
    if name == "presidio":
        return presidio()
    if not IMPORT_PATH.fullmatch(name):
        raise ConfigError(f"record.redactors: {name!r} must be patterns, presidio or package.module:function")
    module, _, function = name.partition(":")
    try:
        found: Redactor = getattr(import_module(module), function)
    except (ImportError, AttributeError) as fault:
        raise ConfigError(f"record.redactors: {name!r} cannot be imported: {fault}") from fault
    if not callable(found):
        raise ConfigError(f"record.redactors: {name!r} is not a function of text")
    return found


def presidio(language: str = "en") -> Redactor:
    """Microsoft's presidio-analyzer, which also finds names and places; its package and a model must be installed.

    Raises:
        ConfigError: they are not.
    """
    try:
        analyzer: Any = import_module("presidio_analyzer").AnalyzerEngine()
    except (ImportError, OSError, ValueError) as fault:
        raise ConfigError(f"record.redactors: 'presidio' needs presidio-analyzer and a model: {fault}") from fault

    def analyze(text: str) -> str:
        parts, at = [], 0
        for found in sorted(analyzer.analyze(text=text, language=language), key=lambda one: (one.start, -one.end)):
            if found.start >= at:  # of what overlaps, the one that begins first
                parts += [text[at : found.start], f"[{found.entity_type.lower()}]"]
            at = max(at, found.end)
        return "".join([*parts, text[at:]])

    return analyze
