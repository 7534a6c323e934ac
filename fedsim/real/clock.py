"""The clock of a run on real clients: seconds since it began, and what other machines' clocks say on it. Draws nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedsim.core.types import Seconds

SLACK_S = 0.25
"""How far a moment that a client tells may lie outside what its server saw, before it is a contradiction: clocks are read apart."""


@dataclass(frozen=True, slots=True)
class RunClock:
    """Seconds of a run: *scale* of them in a real one, told from a clock that never jumps. *began_wall_s* is when it began, since 1970."""

    scale: float = 1.0
    began_wall_s: float = field(default_factory=time.time)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def now(self) -> Seconds:
        """Return the seconds since the run began."""
        return (time.monotonic() - self.began_s) * self.scale

    def real(self, duration_s: Seconds) -> float:
        """Return how long *duration_s* of the run takes, in real seconds."""
        return duration_s / self.scale

    def told(self, wall_s: float, ahead_s: float) -> Seconds:
        """Return the moment that a clock which is *ahead_s* of ours calls *wall_s*, in seconds of the run."""
        return (wall_s - ahead_s - self.began_wall_s) * self.scale


@dataclass(frozen=True, slots=True)
class Window:
    """What is known of how far a clock is ahead of ours, in real seconds: between *least_s* and *most_s*.

    A moment that a client tells lies between the sending of the message and the coming of the reply, by our clock.
    """

    least_s: float
    most_s: float


def ahead_of(windows: Iterable[Window]) -> tuple[float, bool]:
    """Return how far a clock is ahead, the least that *windows* leave possible, and whether it jumped: no one answer fits them all.

    >>> ahead_of([Window(-2.0, 1.0), Window(-3.0, 0.5)]), ahead_of([Window(3599.0, 3601.0)]), ahead_of([Window(-1, 0), Window(50, 51)])
    ((0.0, False), (3599.0, False), (0.0, True))
    """
    known = list(windows)
    if not known:
        return 0.0, False
    least, most = max(w.least_s for w in known), min(w.most_s for w in known)
    if least > most + 2 * SLACK_S:
        return _nearest(known[0]), True
    return _nearest(Window(min(least, most), max(least, most))), False


def _nearest(window: Window) -> float:
    """Return what is nearest to no difference at all."""
    if window.least_s - SLACK_S <= 0.0 <= window.most_s + SLACK_S:
        return 0.0
    return window.least_s if window.least_s > 0.0 else window.most_s
