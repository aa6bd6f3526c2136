"""Everything Understudy raises on purpose.

UnderstudyError
├── ConfigError          the key, the value and the rule that was broken
├── EngineError          an engine could not do what was asked
│   ├── EngineStartError     it did not come up
│   ├── EngineDead           its process or core is gone
│   ├── OutOfMemory          it gave this request up for lack of memory, and goes on
│   ├── NotFinite            what it computed is no number
│   └── Unsupported          this request cannot be shadowed on this engine; shed, not failed
├── DeadlineExceeded     the shadow work did not end in time
├── MeterError           a device cannot be measured
├── Refused              a decision that the rules do not allow
└── RecordError          the record cannot be read or written
    ├── Erased               this record was erased on purpose
    ├── NotKept              what was given cannot be recorded now
    └── Locked               somebody else writes or seals it
"""

from __future__ import annotations


class UnderstudyError(Exception):
    """Base of all errors here."""


class ConfigError(UnderstudyError):
    """A configuration that cannot be right. The message names the key, the value and the rule."""


class EngineError(UnderstudyError):
    """An engine could not do what was asked; ``reason`` is the word that is counted."""

    reason = "engine_error"


class EngineStartError(EngineError):
    """The engine did not come up."""

    reason = "start_failed"


class EngineDead(EngineError):
    """The engine's process or core is gone."""

    reason = "engine_dead"


class OutOfMemory(EngineError):
    """The engine gave this request up for lack of memory, and goes on."""

    reason = "out_of_memory"


class NotFinite(EngineError):
    """A logit or a log-probability of the engine is no number: its weights or its kernels are broken."""

    reason = "not_finite"


class Unsupported(EngineError):
    """This request cannot be shadowed on this engine. ``reason`` says why; the exchange is shed."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class MeterError(UnderstudyError):
    """A device cannot be measured."""


class Refused(UnderstudyError):
    """A decision that the rules do not allow; the message says which rule."""


class RecordError(UnderstudyError):
    """The record cannot be read or written."""


class Erased(RecordError):
    """This record was erased on purpose."""


class NotKept(RecordError):
    """What was given cannot be recorded now; who gave it has to give it again."""


class Locked(RecordError):
    """Somebody else writes or seals it."""
