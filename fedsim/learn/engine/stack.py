"""Stacks: trained parameters of a chunk of clients, where they were made. Knows no task, and not who reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from torch import Tensor

from fedsim.core.types import Array, Params
from fedsim.learn.work import header


class Stack:
    """Arrays called *names*, stacked over clients. Shapes: every tensor is (clients, ...). Nobody writes to them any more."""

    def __init__(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        self.names, self._tensors = tuple(names), tensors

    def row(self, i: int) -> Params:
        """Return the arrays of client *i*, which are views of the stack's."""
        return {name: array[i, ...] for name, array in zip(self.names, self.arrays, strict=True)}  # Never a scalar.

    def digest(self, i: int, salt: str) -> str:
        """Return what ``work.digest_of`` does of ``row(i)``, making no arrays of the row's own."""
        mark = hashlib.sha256(salt.encode())
        for about, rows in self._flat:
            mark.update(about)
            mark.update(rows[i])
        return mark.hexdigest()

    @property
    def arrays(self) -> Sequence[Array]:
        """Return the arrays of all clients as numpy's, in the order of their names. Shapes: each (clients, ...)."""
        return self._arrays

    @cached_property
    def _arrays(self) -> list[Array]:
        # All rows at once: on a CPU nothing is copied, and from a device one large copy is quicker than many small ones.
        return [tensor.cpu().numpy() for tensor in self._tensors]

    @cached_property
    def _flat(self) -> list[tuple[bytes, Array]]:
        """Return of each array what a digest says of it before its numbers, and these, a row for each client."""
        named = zip(self.names, self.arrays, strict=True)
        return [(header(name, each.dtype, each.shape[1:]), np.ascontiguousarray(each).reshape(len(each), -1)) for name, each in named]
