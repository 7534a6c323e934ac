"""Processes of ours beside this one: how they are started, and what is said of one that ended. Knows nothing of what they do."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def interpreter_flags() -> list[str]:
    """Return the flags that Python was started with, as another process takes them: -O, -X and their kin.

    Not -I and -E, for a worker is told where modules lie by its environment; nor -B, which changes nothing that is computed.
    """
    letters = {"no_user_site": "s", "no_site": "S"}
    plain = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    plain += [f"-{letter}" for name, letter in letters.items() if getattr(sys.flags, name)]
    given = sys._xoptions  # pyright: ignore[reportPrivateUsage]  # Documented as the place where -X stands.
    return plain + [word for name, value in given.items() for word in ("-X", name if value is True else f"{name}={value}")]


def command(module: str, *words: str) -> list[str]:
    """Return the command that runs *module* as this Python would.

    -P: the working directory must not stand before everything else.
    """
    return [sys.executable, *interpreter_flags(), "-P", "-m", module, *words]


def environment() -> dict[str, str]:
    """Return the environment of a process that computes: one thread, and modules found where this process finds them."""
    found = os.pathsep.join(str(Path(place or ".").absolute()) for place in sys.path)
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": found}


def ended(code: int) -> str:
    """Return how a process ended that left *code*.

    >>> ended(3), ended(-9)
    ('ended with exit code 3', 'was killed by SIGKILL')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
