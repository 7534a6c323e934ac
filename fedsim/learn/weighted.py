"""Weighted sums of many clients' parameters, wherever they lie, in the order and the bits of one by one. Knows no message, and no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.core.types import Array, FloatArray, IntArray, Params
from fedsim.learn.work import Row, Stacked

BLOCK_NUMBERS = 1 << 18
"""Numbers gathered at a time: arrays of more than that a client are added one by one, with nothing gathered."""
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def weighted(each: Sequence[Params | Row], factors: Sequence[float]) -> Params | None:
    """Return the sum over clients of their arrays times their *factors*, as ``total += array * factor`` in the order given has it.

    All have arrays of the same names. None where some array is neither float32 nor float64: what numpy then makes of types is its own.
    """
    stacks: dict[int, tuple[Stacked, list[int], list[int]]] = {}  # Whose rows of each are whose among all.
    alone: list[tuple[int, Params]] = []
    for i, one in enumerate(each):
        if isinstance(one, Row):
            _, places, rows = stacks.setdefault(id(one.stack), (one.stack, [], []))
            places.append(i)
            rows.append(one.at)
        else:
            alone.append((i, one))
    if not alone and stacks:  # Where they all lie on a GPU, they stay there.
        there = next(iter(stacks.values()))[0].summed(list(stacks.values()), factors)
        if there is not None:
            return there
    first = each[0]
    names = first.stack.names if isinstance(first, Row) else tuple(first)
    parts = [(stack.arrays, np.array(places), np.array(rows)) for stack, places, rows in stacks.values()]
    total: Params = {}
    for k, name in enumerate(names):
        pieces = [(arrays[k], places, rows) for arrays, places, rows in parts]
        own = [(i, params[name]) for i, params in alone]
        shape = pieces[0][0].shape[1:] if pieces else own[0][1].shape
        types = {piece.dtype for piece, _, _ in pieces} | {array.dtype for _, array in own}
        if len(types) != 1 or (dtype := types.pop()) not in FLOATS:
            return None
        total[name] = _sum(pieces, own, np.array(factors, dtype=dtype), shape)
    return total


def _sum(
    pieces: Sequence[tuple[Array, IntArray, IntArray]], own: Sequence[tuple[int, Array]], factors: FloatArray, shape: tuple[int, ...]
) -> Array:
    """Return the sum of rows of *pieces* and arrays of their *own* times *factors*, in the order of their places."""
    count, size = len(factors), int(np.prod(shape))
    step = max(0, BLOCK_NUMBERS // max(1, size) - 1)
    if step < 2:
        return _one_by_one(pieces, own, factors, shape)
    total, begun = np.empty(0, dtype=factors.dtype), False
    for begin in range(0, count, step):
        end = min(begin + step, count)
        block = np.empty((end - begin + begun, max(size, 2)), dtype=factors.dtype)  # A sum over rows of one number is made otherwise.
        mine = block[begun:, :size]
        for array, places, rows in pieces:
            here = np.flatnonzero((places >= begin) & (places < end))
            mine[places[here] - begin] = array[rows[here]].reshape(len(here), size)
        for i, array in own:
            if begin <= i < end:
                mine[i - begin] = array.reshape(size)
        mine *= factors[begin:end, None]
        if begun:
            block[0, :size] = total
        if size < 2:
            block[:, size:] = 0.0
        total, begun = np.add.reduce(block, axis=0)[:size], True
    return total.reshape(shape)


def _one_by_one(
    pieces: Sequence[tuple[Array, IntArray, IntArray]], own: Sequence[tuple[int, Array]], factors: FloatArray, shape: tuple[int, ...]
) -> Array:
    rows: dict[int, Array] = dict(own)
    for array, places, numbers in pieces:
        rows.update((place, array[row]) for place, row in zip(places.tolist(), numbers.tolist(), strict=True))
    total, scratch = np.empty(shape, dtype=factors.dtype), np.empty(shape, dtype=factors.dtype)
    np.multiply(rows[0], factors[0], out=total)
    for i in range(1, len(factors)):
        np.multiply(rows[i], factors[i], out=scratch)
        np.add(total, scratch, out=total)
    return total
