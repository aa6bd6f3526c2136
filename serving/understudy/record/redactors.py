"""The redactors that ``record.redactors`` can name: ``patterns``, ``presidio``, or ``package.module:function``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from understudy.errors import ConfigError
from understudy.record.patterns import redact
from understudy.record.privacy import Redactor

MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm")
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


def presidio(model: str | None = None, language: str = "en") -> Redactor:
    """Microsoft's presidio-analyzer, which also finds names and places; its package and a model must be installed.

    Nothing is downloaded: presidio by itself would fetch a model of 400 MB where there is none, and its check of
    addresses a list of domains at the first one it sees.

    Args:
        model: a spaCy model, by the name of its package or as a folder; None: the best of MODELS that is installed.
        language: of the model and of the patterns.

    Raises:
        ConfigError: something is not installed.
    """
    try:
        spacy, analyzer = import_module("spacy"), import_module("presidio_analyzer")
        provider = import_module("presidio_analyzer.nlp_engine").NlpEngineProvider
        import_module("tldextract").tldextract.TLD_EXTRACTOR.suffix_list_urls = ()  # it has a copy of the list
        chosen = model or next((name for name in MODELS if spacy.util.is_package(name)), None)
        if chosen is None:
            raise OSError(f"none of {', '.join(MODELS)} is installed (python -m spacy download {MODELS[0]})")
        models = [{"lang_code": language, "model_name": chosen}]
        engine = provider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
        return redacting(analyzer.AnalyzerEngine(nlp_engine=engine, supported_languages=[language]), language)
    except (ImportError, OSError, ValueError) as fault:
        raise ConfigError(f"record.redactors: 'presidio' needs presidio-analyzer and a model: {fault}") from fault


def redacting(analyzer: Any, language: str) -> Redactor:
    """What an analyzer finds, as ``[kind]`` in its place; of what overlaps nothing stays."""

    def redacted(text: str) -> str:
        parts, at = [], 0
        for found in sorted(analyzer.analyze(text=text, language=language), key=lambda one: (one.start, -one.end)):
            if found.start >= at:  # of what overlaps, the one that begins first
                parts += [text[at : found.start], f"[{found.entity_type.lower()}]"]
            at = max(at, found.end)
        return "".join([*parts, text[at:]])

    return redacted
