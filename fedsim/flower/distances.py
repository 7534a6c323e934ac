"""Squared distances between replies, as exact as float64 is: what Krum and its kin choose by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord

from fedsim.core.types import FloatArray

BLOCK = 1 << 16
"""Numbers of each reply that are looked at together: a float64 copy of whole models would take twice their memory."""


def squared_distances(records: Sequence[ArrayRecord]) -> FloatArray:
    """Return the squared Euclidean distance between every two of *records*. Shapes: (n,) -> (n, n).

    Differences are taken first, in float64. Flower takes |x|² + |y|² - 2 x·y in the type of the payload: with float32
    and small steps what is left of that is rounding (it can even be negative), and Krum picks by it.
    """
    count = len(records)
    found = np.zeros((count, count))
    each = [[array.numpy().reshape(-1) for array in record.values()] for record in records]
    for arrays in zip(*each, strict=True):
        for first in range(0, arrays[0].size, BLOCK):
            rows = np.stack([array[first : first + BLOCK] for array in arrays]).astype(np.float64)
            for i in range(count - 1):
                difference = rows[i + 1 :] - rows[i]
                found[i, i + 1 :] += np.einsum("ij,ij->i", difference, difference)
    return found + found.T
