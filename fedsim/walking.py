"""Rounds that nobody rehearsed, walked through by what samples of others say. Functions of arrays; knows no scenario."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.core.types import BoolArray, FloatArray, IntArray, Seconds

CELLS = 512
"""Into how many pieces the sampled span is cut when rounds are walked through."""
STRIDES = 20_000
"""Steps of that walk at most; with more rounds than this a step is several."""


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of what a run may take: virtual seconds, and bytes down and up together. It ends after the round that takes the last."""

    left_s: Seconds = math.inf
    left_bytes: float = math.inf

    def holds(self, sums: FloatArray) -> BoolArray:
        """Return where *sums* of rounds leave something of both. Shapes: (..., 5) -> (...)."""
        return (sums[..., 0] < self.left_s) & (sums[..., 3] + sums[..., 4] < self.left_bytes)

    def rounds(self, mean: FloatArray, most: int) -> FloatArray:
        """Return how many rounds there are that all take what the *mean* one does, *most* at most. Shapes: (m, 5) -> (m,)."""
        with np.errstate(divide="ignore"):
            fit = np.minimum(self.left_s / mean[:, 0], self.left_bytes / (mean[:, 3] + mean[:, 4]))
        return np.minimum(np.maximum(1.0, np.ceil(fit)), most)


def by_phase(table: FloatArray, span_s: Seconds) -> FloatArray:
    """Return what a round takes that begins in each cell of the span. Shapes: (n, 6) -> (CELLS, 5)."""
    phase = table[:, 0] % span_s
    at = (np.arange(CELLS) + 0.5) * span_s / CELLS
    return np.stack([np.interp(at, *_sorted(phase, table[:, i]), period=span_s) for i in range(1, 6)], axis=1)


def _sorted(phase: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return one mean value for each phase: interpolation wants no phase twice."""
    at, where = np.unique(phase, return_inverse=True)
    return at, np.bincount(where, weights=values) / np.bincount(where)


def walk(
    tables: FloatArray, now_s: Seconds, rounds: int, span_s: Seconds, room: Room | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return the sums over *rounds* rounds from *now_s* on, each as long as its table says, and how many these are.

    Where there is no more *room* there are fewer. Shapes: (m, CELLS, 5) -> (m, 5), (m,).
    """
    each: IntArray = np.arange(len(tables))
    room = room or Room()
    rounds = _fewer(tables, rounds, room)
    stride = -(-rounds // STRIDES)
    sums, counts = np.zeros((len(tables), 5)), np.zeros(len(tables))
    for first in range(0, rounds, stride):
        cell = ((now_s + sums[:, 0]) % span_s * (CELLS / span_s)).astype(np.int64) % CELLS
        taken = min(stride, rounds - first) * room.holds(sums)
        sums += tables[each, cell] * taken[:, None]
        counts += taken
    return sums, counts


def _fewer(tables: FloatArray, rounds: int, room: Room) -> int:
    """Return how many rounds are walked at most: of those that there is no room for, no more than once again, or strides were too long."""
    with np.errstate(divide="ignore"):
        by_time = room.left_s * np.mean(1.0 / tables[..., 0], axis=1).max()
        by_bytes = room.left_bytes * np.mean(1.0 / (tables[..., 3] + tables[..., 4]), axis=1).max()
    most = min(by_time, by_bytes)
    return min(rounds, math.ceil(2.0 * most) + 1) if math.isfinite(most) else rounds
