"""How fast a run goes, and how long it is going to take: from moments at which somebody looked. Reads no clock."""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import NamedTuple

APART_S = 0.2
"""Between two moments that are kept."""
MOST = 512
"""Moments that are kept; where there are more, every second one goes."""
LATELY_S = 10.0
"""Of how long ago tasks per second are told."""
LEAST_S = 1.0
"""What must have passed before anything is foretold."""


class Mark(NamedTuple):
    """A moment: *wall_s* of some clock, which *share* of the run was done by then, and how many client *tasks*."""

    wall_s: float
    share: float
    tasks: int


class Pace:
    """Takes moments, each later than the one before, and tells what follows from them."""

    def __init__(self) -> None:
        self._marks: list[Mark] = []

    def take(self, wall_s: float, share: float, tasks: int) -> None:
        """Take that at *wall_s* so much was done."""
        marks = self._marks
        if marks and wall_s - marks[-1].wall_s < APART_S:
            return
        if len(marks) >= MOST:
            self._marks = marks = marks[::2]
        marks.append(Mark(wall_s, share, tasks))

    def left_s(self, wall_s: float, share: float) -> float | None:
        """Return how many seconds are left at *wall_s*, by the later half of what is done; None where that tells nothing yet.

        The first half may have been slower: steps were compiled, memories were empty.

        >>> pace = Pace()
        >>> for second, share in ((0, 0.0), (8, 0.1), (10, 0.3), (12, 0.5)):
        ...     pace.take(second, share, 0)
        >>> pace.left_s(13, 0.6), pace.left_s(0.5, 0.0)
        (4.0, None)
        """
        marks = self._marks
        if not marks:
            return None
        since = marks[max(0, bisect_right(marks, share / 2, key=attrgetter("share")) - 1)]
        done, took_s = share - since.share, wall_s - since.wall_s
        return round((1.0 - share) * took_s / done, 6) if done > 0 and took_s >= LEAST_S else None

    def tasks_per_s(self) -> float | None:
        """Return how many tasks were done a second, lately; None where that tells nothing yet."""
        marks = self._marks
        if len(marks) < 2:
            return None
        since = marks[min(len(marks) - 2, bisect_right(marks, marks[-1].wall_s - LATELY_S, key=attrgetter("wall_s")))]
        took_s = marks[-1].wall_s - since.wall_s
        return (marks[-1].tasks - since.tasks) / took_s if took_s >= LEAST_S and marks[-1].tasks > since.tasks else None
