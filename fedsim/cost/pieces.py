"""Pieces: a rate that is one for some time, then another: what was recorded, gone through again from its beginning, and summed exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.core.types import FloatArray, Seconds


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

    @property
    def mean(self) -> float:
        """Return the mean over time.

        >>> Pieces.of(np.array([0.0, 1.0, 4.0]), np.array([2.0, 0.0, 1.0])).mean
        0.7142857142857143
        """
        return float((self.values * np.diff(self.starts, append=self.length_s)).sum()) / self.length_s

    def at(self, moment_s: Seconds) -> tuple[float, Seconds]:
        """Return the value at *moment_s*, from 0 on, and until when it is that: later than *moment_s*."""
        turn = math.floor(moment_s / self.length_s)
        begin = turn * self.length_s
        if begin > moment_s:  # The quotient may round across an edge.
            turn, begin = turn - 1, (turn - 1) * self.length_s
        place = int(np.searchsorted(self.starts, moment_s - begin, side="right")) - 1
        while True:
            until = begin + float(self.starts[place + 1]) if place + 1 < len(self.starts) else (turn + 1) * self.length_s
            if until > moment_s:
                return float(self.values[place]), until
            place += 1  # The sum may round to what is already over.
            if place == len(self.starts):
                place, turn = 0, turn + 1
                begin = turn * self.length_s
