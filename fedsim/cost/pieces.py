"""Pieces: a rate that is one for some time, then another: what was recorded, gone through again from its beginning, and summed exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.types import FloatArray, IntArray, Seconds


@dataclass(frozen=True, slots=True)
class Pieces:
    """Values from moments on, ``starts`` (n,) from 0, until ``length_s``, and then again from the first. Shapes: both (n,)."""

    starts: FloatArray
    values: FloatArray
    length_s: Seconds

    @staticmethod
    def of(times: FloatArray, values: FloatArray) -> Pieces:
        """Return what was recorded at *times*, ascending; the last holds as long as the one before it, or 1 s where it is the only one.

        >>> Pieces.of(np.array([10.0, 12.0]), np.array([1.0, 3.0])).at(3.5)
        (3.0, 4.0)
        """
        last = float(times[-1] - times[-2]) if len(times) > 1 else 1.0
        return Pieces(times - times[0], values, float(times[-1] - times[0]) + last)

    def later(self, by_s: Seconds) -> Pieces:
        """Return the same, its first turn beginning *by_s* later, what comes before being the end of the turn before.

        >>> night = Pieces(np.array([0.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]), 10.0).later(13.0)
        >>> night.starts.tolist(), night.values.tolist()
        ([0.0, 3.0, 7.0, 9.0], [3.0, 1.0, 2.0, 3.0])
        """
        starts = (self.starts + by_s) % self.length_s
        order = np.argsort(starts, kind="stable")
        starts, values = starts[order], self.values[order]
        if starts[0] > 0.0:
            starts, values = np.concatenate([[0.0], starts]), np.concatenate([values[-1:], values])
        return Pieces(starts, values, self.length_s)

    @property
    def mean(self) -> float:
        """Return the mean over time.

        >>> Pieces.of(np.array([0.0, 1.0, 4.0]), np.array([2.0, 0.0, 1.0])).mean
        0.7142857142857143
        """
        return float((self.values * np.diff(self.starts, append=self.length_s)).sum()) / self.length_s

    def moment(self, nth: Any, ahead_s: Any) -> Any:
        """Return when the *nth* piece begins, counted from the first turn's first, on a clock that pieces are *ahead_s* of.

        Numbers, or arrays of them: the same bits either way.
        """
        return (nth // len(self.starts)) * self.length_s + self.starts[nth % len(self.starts)] - ahead_s

    def at(self, now: Seconds, ahead_s: Seconds = 0.0) -> tuple[float, Seconds]:
        """Return the value at *now*, from 0 on, and until when it is that: later than *now*, and up to there the same."""
        turn = math.floor((now + ahead_s) / self.length_s)
        place = int(np.searchsorted(self.starts, now + ahead_s - turn * self.length_s, side="right")) - 1
        nth = turn * len(self.starts) + place
        while self.moment(nth, ahead_s) > now:  # A quotient may round across an edge: go by the moments themselves.
            nth -= 1
        while self.moment(nth + 1, ahead_s) <= now:
            nth += 1
        return float(self.values[nth % len(self.starts)]), float(self.moment(nth + 1, ahead_s))

    def latest(self, ahead_s: FloatArray, now: Seconds) -> IntArray:
        """Return the number of the piece in which each of many clocks is at *now*, as ``at`` has it. Shapes: (n,) -> (n,)."""
        within = now + ahead_s
        turn = np.floor(within / self.length_s).astype(np.int64)
        nth = turn * len(self.starts) + np.searchsorted(self.starts, within - turn * self.length_s, side="right") - 1
        while (early := self.moment(nth, ahead_s) > now).any():
            nth = nth - early
        while (late := self.moment(nth + 1, ahead_s) <= now).any():
            nth = nth + late
        return nth

    @property
    def merged(self) -> Pieces:
        """Return the same without pieces that are as the one before; one that never changes is of one piece."""
        changed = self.values != np.roll(self.values, 1)
        if not changed.any():
            return Pieces(self.starts[:1], self.values[:1], self.length_s)
        return Pieces(self.starts[changed], self.values[changed], self.length_s)
