"""What a study found: a line for each batch size, and what all of them come to. Values; finds nothing itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.score.target import Target
from fedsim.studies.fit import Fit
from fedsim.studies.grades import Cell
from fedsim.studies.host import Host
from fedsim.studies.measures import Estimate
from fedsim.studies.plan import Plan, Row


@dataclass(frozen=True)
class Line:
    """What a row of the table came to."""

    row: Row
    rates: Mapping[str, float]
    """The scenario's own rate, ``own``; those that end best at equal epochs and equal steps; and the first at the target, ``target``."""
    tried: Mapping[float, float]
    """By rate, the score at the end of its first seed; NaN where it diverged."""
    figures: Mapping[str, Estimate]
    arrived: Mapping[str, str]
    """How many seeds reached the target, like "2/3", at the rates ``tuned`` and ``own``."""
    cells: Mapping[str, Cell]
    notes: Sequence[str] = ()

    @property
    def taken(self) -> float:
        """Return how many examples an update had on the way to the target, the mean over updates; NaN where a seed did not reach it.

        No more than the row's size, and less where batches are ragged: of 29 examples batches of 16 leave one of 13.
        """
        steps = self.figures["steps_to_target"].mean
        return self.figures["examples_to_target"].mean / steps if steps > 0 else math.nan


@dataclass(frozen=True)
class Study:
    """All that a study found. *metric* is the score that generalisation is told by."""

    plan: Plan
    target: Target
    metric: str
    lines: Sequence[Line]
    fit: Fit | None
    folder: Path
    host: Host
    runs: int
    read: int
    notes: Sequence[str] = ()
