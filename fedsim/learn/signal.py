"""Signal and noise of gradients: the squared length of their mean, and the trace of their covariance. Knows no model.

The noise scale is their ratio, tr(Sigma) / |G|^2 (McCandlish et al. 2018, arXiv:1812.06162, appendix A): how many small gradients
must be averaged until the noise in the mean is as large as the mean. Both estimates are without bias, so that a signal may come out
below 0 where there is hardly any; their ratio is not. So averages are divided, and ratios never averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedsim.core.types import Array, FloatArray

PIECE = 1 << 17
"""Numbers that are looked at together, of all clients: what lies in a cache."""
BLOCK = 256
"""Squares that are added up in the numbers' own type, before float64 takes over: quick, and no sum is long."""


def two_batches(small: float, large: float, b_small: float, b_large: float) -> tuple[float, float]:
    """Return (|G|^2, tr(Sigma)) from the squared lengths of gradients over *b_small* and over *b_large* examples.

    E |G_b|^2 = |G|^2 + tr(Sigma) / b, solved for both.

    >>> two_batches(5.0, 3.0, 1.0, 2.0)
    (1.0, 4.0)
    """
    signal = (b_large * large - b_small * small) / (b_large - b_small)
    return signal, (small - large) / (1.0 / b_small - 1.0 / b_large)


def of_updates(
    start: Mapping[str, Array], ends: Sequence[Mapping[str, Array]], weights: Sequence[float], names: Sequence[str]
) -> tuple[float, float, float]:
    """Return (|G|^2, tr(Sigma), how many clients count) of what clients made of the parameters *start*, called *names*.

    A client's update is the small batch, of one; their weighted mean the large one. Updates are taken to have one mean and one
    covariance whatever the client's weight, so that with weights w that sum to one the weighted mean of the squares has the
    expectation |G|^2 + tr(Sigma), and the square of the weighted mean |G|^2 + tr(Sigma) * sum w^2: it is as good as a plain mean
    of 1 / sum w^2 clients (Kish's effective size). With equal weights that is how many there are.
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    squares, mean = np.zeros(len(ends)), 0.0
    for name in names:
        first, rest = start[name].reshape(-1), [end[name].reshape(-1) for end in ends]
        mine, width = shares.astype(first.dtype), max(1, min(len(first), max(BLOCK, PIECE // len(ends))))
        room = np.empty((len(ends), width), dtype=first.dtype)  # One for all pieces: a fresh one each costs more than the arithmetic.
        for begin in range(0, len(first), width):
            before = first[begin : begin + width]
            piece = room[:, : len(before)]
            for each, update in zip(rest, piece, strict=True):
                np.subtract(each[begin : begin + width], before, out=update)
            squares += squared(piece)
            together = (mine @ piece).astype(np.float64)
            mean += float(together @ together)
    counted = float(1.0 / np.sum(shares**2))
    return *two_batches(float(shares @ squares), mean, 1.0, counted), counted


def squared(rows: Array) -> FloatArray:
    """Return the squared length of each row, in float64. Shapes: (rows, n) -> (rows,)."""
    width = rows.shape[1] // BLOCK * BLOCK
    blocks = rows[:, :width].reshape(len(rows), -1, BLOCK)
    rest = rows[:, width:].astype(np.float64)
    return np.einsum("ijk,ijk->ij", blocks, blocks).astype(np.float64).sum(axis=1) + np.einsum("ij,ij->i", rest, rest)
