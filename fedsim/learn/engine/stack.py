"""Stacks: trained parameters of a chunk of clients, where they were made. Knows no task, and not who reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.core.types import Array, Params
from fedsim.learn.engine import fingerprints, sums
from fedsim.learn.work import Stacked, header


class Stack:
    """Arrays called *names*, stacked over clients. Shapes: every tensor is (clients, ...). Nobody writes to them any more.

    Where they lie on a device of their own, or are to be taken so (*away*), they stay there: rows have fingerprints, and are summed there,
    and are copied, all at once, only when somebody reads one.
    """

    def __init__(self, names: Sequence[str], tensors: Sequence[Tensor], *, away: bool | None = None) -> None:
        self.names, self._tensors = tuple(names), tensors
        self.away = tensors[0].device.type != "cpu" if away is None and tensors else bool(away)
        self._marks = fingerprints.fingerprints(tensors) if self.away else None  # Computed behind the training, waited for when read.

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
    def mark(self, i: int) -> str:
        """Return what stands for the arrays of client *i* in a digest, with no array read; empty where these are hashed themselves."""
        return f"{fingerprints.FORMAT}:{self._told[i].tobytes().hex()}" if self.away else ""

    @property
    def forms(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return type and shape of each array of one client, as numpy writes types."""
        return {
            name: (torch.empty(0, dtype=tensor.dtype).numpy().dtype.str, tuple(tensor.shape[1:]))
            for name, tensor in zip(self.names, self._tensors, strict=True)
        }

    def summed(self, stacks: Sequence[tuple[Stacked, Sequence[int], Sequence[int]]], factors: Sequence[float]) -> Params | None:
        """Return the sum of rows of *stacks*, this one among them, times *factors*, computed on their device.

        Each is a stack, the places that its rows have among all, and which rows they are. None where it has to be done elsewhere.
        """
        pieces = [(stack._tensors, places, rows) for stack, places, rows in stacks if isinstance(stack, Stack) and stack.away]
        types = {tensor.dtype for tensors, _, _ in pieces for tensor in tensors}
        devices = {tensor.device for tensors, _, _ in pieces for tensor in tensors}
        if len(pieces) < len(stacks) or len(devices) != 1 or not types <= {torch.float32, torch.float64}:
            return None
        return dict(zip(self.names, _at_home(sums.summed(pieces, factors)), strict=True))

    @property
    def arrays(self) -> Sequence[Array]:
        """Return the arrays of all clients as numpy's, in the order of their names. Shapes: each (clients, ...)."""
        return self._arrays

    @cached_property
    def _arrays(self) -> list[Array]:
        # All rows at once: on a CPU nothing is copied, and from a device one large copy is quicker than many small ones.
        return _at_home(self._tensors)

    @cached_property
    def _told(self) -> Array:
        assert self._marks is not None
        return self._marks.cpu().numpy()

    @cached_property
    def _flat(self) -> list[tuple[bytes, Array]]:
        """Return of each array what a digest says of it before its numbers, and these, a row for each client."""
        named = zip(self.names, self.arrays, strict=True)
        return [(header(name, each.dtype, each.shape[1:]), np.ascontiguousarray(each).reshape(len(each), -1)) for name, each in named]


def _at_home(tensors: Sequence[Tensor]) -> list[Array]:
    """Return *tensors* as numpy's; from a GPU by way of memory that it can write to by itself, all of them under way at once."""
    if not any(tensor.is_cuda for tensor in tensors):
        return [tensor.cpu().numpy() for tensor in tensors]
    mine = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for here, there in zip(mine, tensors, strict=True):
        here.copy_(there, non_blocking=True)
    torch.cuda.synchronize(tensors[0].device)
    return [here.numpy() for here in mine]
