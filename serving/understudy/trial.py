"""Checks of ``understudy doctor`` that try what a start does, with the same code: it would fail there, without a fix.

An object store is written to (one small object, removed again), a key is read, and the modules that the configuration
names are imported, so whatever they do when imported is done. Nothing else is left or changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from uuid import uuid4

from understudy.compare import load as load_comparator
from understudy.compare.callables import UserComparator
from understudy.config import Config
from understudy.errors import ConfigError
from understudy.finding import Finding, State
from understudy.meter.traces import need_exporter
from understudy.record.redactors import load as load_redactors
from understudy.record.signing import Signer
from understudy.record.store import Store, is_local, store_at

STORE_WAIT_S = 30.0
"""Clients of object stores try again for minutes where nobody answers."""
IMPORTED = "it must be importable where the server runs: install its package, or correct the name"


def store(config: Config) -> Iterator[Finding]:
    """Whether sealed segments can be put into the object store, and removed from it."""
    url = config.record.url
    if is_local(url):
        return
    try:
        there = store_at(url)
    except Exception as fault:  # noqa: BLE001  # shown: it is whatever the store's package raises
        yield Finding("store", State.WRONG, _words(fault), _remedy(url))
        return
    refused = _within(STORE_WAIT_S, lambda: _put_and_remove(there))
    if refused is None:
        yield Finding("store", State.OK, f"{url} was written to, read and cleaned up")
        return
    fix = "see that the bucket is there, and that the credentials of this user may write, read and delete in it"
    yield Finding("store", State.WRONG, f"{url} does not do its work: {_words(refused)}", fix)


def record_extras(config: Config) -> Iterator[Finding]:
    """The signing key and the redactors."""
    spec = config.record
    if spec.signing_key is not None:
        path, fix = spec.signing_key, "understudy audit keygen makes one"
        yield _tried("signing key", lambda: f"{path}, its public key is {Signer(path).public_key}", fix)
    for name in () if spec.text == "full" else spec.redactors:
        yield _tried("redactor", partial(_redactor, name), IMPORTED)


def comparators(config: Config) -> Iterator[Finding]:
    """Those that need a package, and the user's own."""
    for name in config.compare.names:
        found = _tried("comparator", partial(_comparator, name, config), IMPORTED)
        if found.state is State.WRONG:
            yield found
    for name, path in config.compare.callables.items():
        yield _tried("comparator", partial(_callable, name, path), IMPORTED)


def tracing(config: Config) -> Iterator[Finding]:
    """The extra for traces. Whether the collector answers is not asked: it may come and go while we serve."""
    endpoint = config.traces.endpoint
    if endpoint is not None:
        yield _tried("traces", partial(_exporter, endpoint), "pip install 'understudy[traces]'")


def _tried(area: str, attempt: Callable[[], str], fix: str) -> Finding:
    try:
        return Finding(area, State.OK, attempt())
    except Exception as fault:  # noqa: BLE001  # shown: a module of somebody's may raise anything when imported
        return Finding(area, State.WRONG, _words(fault), fix)


def _comparator(name: str, config: Config) -> str:
    load_comparator(name, config.compare)
    return name


def _callable(name: str, path: str) -> str:
    return f"{UserComparator(name, path).name}: {path}"


def _exporter(endpoint: str) -> str:
    need_exporter()
    return f"to {endpoint}"


def _redactor(name: str) -> str:
    if name == "presidio":  # made, it would load its model, and may download one
        if find_spec("presidio_analyzer") is None:
            raise ConfigError("record.redactors: 'presidio' needs presidio-analyzer and a model")
        return "presidio is installed; its model is looked for at the start"
    load_redactors([name])
    return name


def _put_and_remove(there: Store) -> None:
    name, content = f".understudy-doctor-{uuid4().hex}", b"understudy doctor\n"
    there.write(name, content)
    try:
        if there.read(name) != content:
            raise OSError("what was written is not what is read")
    finally:
        there.delete(name)


def _within(seconds: float, work: Callable[[], None]) -> Exception | None:
    """What it raised, or a TimeoutError. In a daemon thread, so that one that hangs does not hold up the end."""
    outcome: list[Exception | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except Exception as fault:  # noqa: BLE001  # handed to the waiting side
            outcome.append(fault)

    thread = threading.Thread(target=run, daemon=True, name="doctor-store")
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else TimeoutError(f"no answer within {seconds:.0f} s")


def _remedy(url: str) -> str:
    """The package that fsspec has for this scheme, as it is called on PyPI."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(url.partition("://")[0])
    if known is None:
        return "correct record.url: fsspec knows no such store"
    package = str(known["class"]).partition(".")[0]
    return known.get("err", "correct record.url") if package == "fsspec" else f"pip install {package}"


def _words(fault: Exception) -> str:
    return str(fault) if isinstance(fault, ConfigError) else f"{type(fault).__name__}: {fault}"
