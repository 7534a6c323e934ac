"""Carbon: grams of CO2 that a kilowatt hour costs, as a number or as a grid's trace by the hour. Knows no device and no message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.core.types import FloatArray
from fedsim.cost.pieces import Pieces
from fedsim.cost.sheet import read
from fedsim.data.source import Find

KEY = "clients.energy.intensity"
WORLD = "world"
WORLD_G_PER_KWH = 475.0
"""What a kilowatt hour costs in the mean of the world's grids. International Energy Agency, Global Energy & CO2 Status Report 2019."""
J_PER_KWH = 3.6e6
HOUR_S = 3600.0


class Intensity(Protocol):
    """Grams of CO2 for a kilowatt hour, at any moment."""

    @property
    def files(self) -> dict[str, str]:
        """Return the files that it was read from, each with its SHA-256."""
        ...

    @property
    def constants(self) -> dict[str, float]:
        """Return the numbers that it rests on: its mean over time is the one that matters."""
        ...

    def mean(self, begins: FloatArray, ends: FloatArray) -> FloatArray:
        """Return the mean from each of *begins* to its end, or what it is then where these are one. Shapes: (n,), (n,) -> (n,)."""
        ...


@dataclass(frozen=True, slots=True)
class Flat:
    """The same at any moment."""

    g_per_kwh: float
    files: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def constants(self) -> dict[str, float]:
        """Return the one number."""
        return {"g_per_kwh": self.g_per_kwh}

    def mean(self, begins: FloatArray, ends: FloatArray) -> FloatArray:
        """Return the one number for each. Shapes: (n,), (n,) -> (n,)."""
        return np.full(len(begins), self.g_per_kwh, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Traced:
    """As it was recorded, piece by piece, and again from its beginning."""

    pieces: Pieces
    files: dict[str, str]

    @property
    def constants(self) -> dict[str, float]:
        """Return its mean over time, its least and its most."""
        values = self.pieces.values
        return {"mean_g_per_kwh": self.pieces.mean, "least_g_per_kwh": float(values.min()), "most_g_per_kwh": float(values.max())}

    def mean(self, begins: FloatArray, ends: FloatArray) -> FloatArray:
        """Return the integral over the time; exact, since what is summed is piecewise constant. Shapes: (n,), (n,) -> (n,).

        >>> day = Traced(Pieces.of(np.array([0.0, 10.0]), np.array([100.0, 300.0])), {})
        >>> day.mean(np.array([5.0, 12.0, 0.0]), np.array([15.0, 12.0, 40.0])).tolist()
        [200.0, 300.0, 200.0]
        """
        starts, values, length_s = self.pieces.starts, self.pieces.values, self.pieces.length_s
        edges = np.append(starts, length_s)
        sums = np.concatenate([[0.0], np.cumsum(values * np.diff(edges))])

        def until(moments: FloatArray) -> FloatArray:
            turns = np.floor(moments / length_s)
            return turns * sums[-1] + np.interp(moments - turns * length_s, edges, sums)

        lasted = ends - begins
        place = np.searchsorted(starts, begins - np.floor(begins / length_s) * length_s, side="right") - 1
        then = values[np.clip(place, 0, len(values) - 1)]
        return np.where(lasted > 0, (until(ends) - until(begins)) / np.where(lasted > 0, lasted, 1.0), then)


def intensity(given: float | str | None, find: Find) -> Intensity | None:
    """Return what a scenario says of it: a number, "world", or a file with the columns hour and g_per_kwh; None where it says nothing.

    Raises ScenarioError in the reader's words.

    >>> intensity("world", lambda path: path).constants
    {'g_per_kwh': 475.0}
    """
    if given is None:
        return None
    if not isinstance(given, str):
        return Flat(float(given))
    if given == WORLD:
        return Flat(WORLD_G_PER_KWH)
    sheet = read(given, find, KEY)
    values = sheet.numbers("g_per_kwh", least=0.0)
    if not len(values):
        raise ScenarioError(f"{KEY} = {given!r}: has no rows.")
    return Traced(Pieces.of(sheet.times("hour", np.arange(len(values))) * HOUR_S, values), sheet.files)
