"""How a run leaves its folder: whatever happens, each step by itself, and a second Ctrl-C waits until it is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fedsim.core.errors import reason

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PRESSES = 5


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, once there is a run folder: says which, and how far the run came."""


class Pruned(KeyboardInterrupt):
    """Whoever watches a run has seen enough of it: says why. The run is left there, as readable as one that was interrupted."""


class Spent(KeyboardInterrupt):
    """The wall time that was given is spent: says which. What was done is left as after Ctrl-C, but at the end of a round, or of a run."""


@dataclass
class Patience:
    """Lets the first signal through, and keeps those that come while a run leaves until it has left.

    ``leaving`` is set by whoever begins to leave, or by the first signal; ``kept`` counts what came after. Whoever insists
    (PRESSES times: the disk may hang) is let through.
    """

    leaving: bool = False
    kept: int = 0
    _before: dict[int, Any] = field(default_factory=dict[int, Any])

    @contextmanager
    def watching(self) -> Generator[None]:
        """Stand before the handlers that are there, while inside. Only a main thread has any."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):  # What the system handles, or ignores, stays as it is.
                    self._before[number] = handler
                    signal.signal(number, self._heard)
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: Any) -> None:
        if self.leaving and self.kept < PRESSES:
            self.kept += 1
            return
        self.leaving = True
        self._before[number](number, frame)


@dataclass
class Steps:
    """The steps of leaving, each of which may fail without costing the others; *lost* says what did."""

    lost: list[str] = field(default_factory=list[str])

    def take(self, what: str, step: Callable[[], Any]) -> bool:
        """Take *step* and return whether it went well; where not, *what* could not be done is added to *lost*."""
        try:
            step()
        except Exception as error:  # A full disk, a folder that is gone, a library's own errors.
            self.lost.append(f"{what} ({spoken(error)}).")
            return False
        return True


def spoken(error: BaseException) -> str:
    """Return *error* as a reader of a terminal knows it: the system's words for the system's errors.

    >>> spoken(OSError(28, "No space left on device")), spoken(ValueError("x"))
    ('No space left on device', 'ValueError: x')
    """
    return error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
