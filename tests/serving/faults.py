"""Faults of a challenger, on demand, inside the real engine process of a real server.

``prepare(folder)`` gives the environment under which a server is to be started. Its engine processes then look, at
each step of a core, for the file that ``inject`` writes; the first core of that name takes it and does what it says.
``never_loads`` is no fault of a step: every core of that name hangs while it is built.
"""

from __future__ import annotations

import os
from pathlib import Path

HOOK = """
import sys
if "understudy.engines.host" in sys.orig_argv:
    import ctypes, os, signal, time
    from pathlib import Path
    from understudy.engines.core import Core

    ORDER, step, build = Path(os.environ["UNDERSTUDY_TEST_FAULT"]), Core.step, Core.__init__

    def hang():
        ctypes.PyDLL(None).sleep(3600)  # as native code that holds the interpreter's lock does

    def out_of_memory():
        raise MemoryError("told to")

    def fail():
        raise RuntimeError("told to")

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def crash():
        os.kill(os.getpid(), signal.SIGSEGV)

    FAULTS = {name: globals()[name] for name in ("hang", "out_of_memory", "fail", "kill", "crash")}

    def faulty(self, max_tokens):
        if ORDER.exists():
            name, what = ORDER.read_text().split()
            if name == self.name:
                ORDER.unlink()
                inside_the_forward_pass(self.runner.model, FAULTS[what])
        return step(self, max_tokens)

    def inside_the_forward_pass(model, fault):
        compute_logits = model.compute_logits

        def once(*args, **kwargs):
            model.compute_logits = compute_logits
            return fault() or compute_logits(*args, **kwargs)

        model.compute_logits = once

    def built(self, plan, *args, **kwargs):
        if ORDER.exists() and ORDER.read_text().split() == [plan.name, "never_loads"]:
            hang()
        build(self, plan, *args, **kwargs)

    Core.step, Core.__init__ = faulty, built
"""


def prepare(folder: Path) -> dict[str, str]:
    """The environment for the server."""
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "UNDERSTUDY_TEST_FAULT": str(folder / "fault")}


def inject(folder: Path, name: str, what: str) -> None:
    """The next step of the core called ``name`` does it, after its layers: hang, out_of_memory, fail, kill or crash.

    ``never_loads`` stays until it is replaced.
    """
    fresh = folder / "fault.new"
    fresh.write_text(f"{name} {what}")
    fresh.replace(folder / "fault")
