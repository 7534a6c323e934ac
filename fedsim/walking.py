"""Rounds that nobody rehearsed, walked through by what samples of others say. Functions of arrays; knows no scenario."""

from __future__ import annotations

import numpy as np

from fedsim.core.types import FloatArray, IntArray, Seconds

CELLS = 512
"""Into how many pieces the sampled span is cut when rounds are walked through."""
STRIDES = 20_000
"""Steps of that walk at most; with more rounds than this a step is several."""


def by_phase(table: FloatArray, span_s: Seconds) -> FloatArray:
    """Return what a round takes that begins in each cell of the span. Shapes: (n, 6) -> (CELLS, 5)."""
    phase = table[:, 0] % span_s
    at = (np.arange(CELLS) + 0.5) * span_s / CELLS
    return np.stack([np.interp(at, *_sorted(phase, table[:, i]), period=span_s) for i in range(1, 6)], axis=1)


def _sorted(phase: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return one mean value for each phase: interpolation wants no phase twice."""
    at, where = np.unique(phase, return_inverse=True)
    return at, np.bincount(where, weights=values) / np.bincount(where)


def walk(tables: FloatArray, now_s: Seconds, rounds: int, span_s: Seconds) -> FloatArray:
    """Return the sums over *rounds* rounds from *now_s* on, each as long as its table says. Shapes: (m, CELLS, 5) -> (m, 5)."""
    each: IntArray = np.arange(len(tables))
    stride = -(-rounds // STRIDES)
    sums = np.zeros((len(tables), 5))
    for first in range(0, rounds, stride):
        cell = ((now_s + sums[:, 0]) % span_s * (CELLS / span_s)).astype(np.int64) % CELLS
        sums += tables[each, cell] * min(stride, rounds - first)
    return sums
