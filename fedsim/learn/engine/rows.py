"""Stacked parameters of a chunk of clients, and what the terms of their update rule keep. Knows no batch and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import Array, FloatArray
from fedsim.learn.clipping import Clipping
from fedsim.learn.terms import Term


class Rows:
    """Parameters and buffers of tasks of one rule, a row each, updated in place.

    Shapes: every tensor is (rows, ...). *starts* are what the rows came from, possibly one set expanded to all rows, called *names*;
    the first *trained* of them are parameters. *sent* are what came beside them, by name and parameter. *kept* is what each row's
    client keeps of the terms' states, as ``kept`` gives it; nothing at first. *clipping* is what becomes of gradients before all else.
    """

    def __init__(
        self, terms: Sequence[Term], names: Sequence[str], starts: list[Tensor], trained: int, *,
        sent: Mapping[str, list[Tensor]] | None = None, kept: Sequence[Mapping[str, Array]] = (), clipping: Clipping | None = None,
    ) -> None:  # fmt: skip
        self.params = [start.clone(memory_format=torch.contiguous_format) for start in starts]
        self.terms, self._names, self._starts, self._sent = terms, list(names[:trained]), starts, sent or {}
        self._states = [{name: self._stacked(name, kept) for name in term.keeps} for term in terms]
        self._clipping, self._fresh = clipping, bool(terms) and getattr(terms[-1], "fresh", False)
        none = np.zeros(1, dtype=np.int64)
        self._before = np.concatenate([state.get(STEPS, none) for state in kept] or [np.zeros(len(starts[0]), dtype=np.int64)])

    def step(self, rows: slice | Tensor, gradients: list[Tensor], at: int, rate: float | FloatArray, ours: Sequence[bool] = ()) -> None:
        """Update *rows*, given their gradients, in the task's step number *at*, at the learning rate *rate*, one or one for each.

        *ours* says which of the gradients nobody else reads, or may be seen through: their memory is written over in the end.
        """
        steps = at + self._before[rows if isinstance(rows, slice) else rows.numpy()]
        if self._clipping is not None:
            gradients, ours = self._clipping.clipped(gradients), ()
        each = torch.from_numpy(rate).to(self.params[0]) if isinstance(rate, np.ndarray) else rate
        for i, (whole, given) in enumerate(zip(self.params, gradients, strict=False)):
            param, gradient = whole[rows], given  # A slice is a view; an index is a copy, written back below.
            factor = each.view(-1, *[1] * (param.ndim - 1)) if isinstance(each, Tensor) else each
            for term, states in zip(self.terms, self._states, strict=True):
                state = {name: arrays[i][rows] for name, arrays in states.items()}
                sent = {name: arrays[i][rows] for name, arrays in self._sent.items()}
                gradient = term.apply(gradient, param, self._starts[i][rows], state, sent, steps)
                if not isinstance(rows, slice):
                    for name, mine in state.items():
                        states[name][i][rows] = mine
            if self._fresh:
                param.sub_(gradient.mul_(factor))
            elif ours and ours[i] and (gradient is given or _apart(gradient, given)):
                param.sub_(torch.mul(gradient, factor, out=given))
            else:
                param.sub_(gradient * factor)
            if not isinstance(rows, slice):
                whole[rows] = param

    def kept(self, row: int, names: Sequence[str], steps: int) -> State:
        """Return what the client of *row* keeps of the states *names*, *steps* further on: one array for each and parameter."""
        found: State = {STEPS: self._before[row : row + 1] + steps}
        for states in self._states:
            for name in states.keys() & set(names):
                # A zero is kept without its sign: a product of zeros has one or the other, by how many rows there are.
                found |= {f"{name}/{param}": each[row].cpu().numpy() + 0 for param, each in zip(self._names, states[name], strict=True)}
        return found

    def own(self, row: int, names: Sequence[str]) -> State:
        """Return the buffers of *row*, which follow the parameters; *names* are those of both."""
        found = zip(names[len(self._names) :], self.params[len(self._names) :], strict=True)
        return {name: each[row].cpu().numpy() + 0 for name, each in found}

    def _stacked(self, name: str, kept: Sequence[Mapping[str, Array]]) -> list[Tensor]:
        """Return what *name* is for each parameter at first: what is kept, or zeros."""
        params = dict(zip(self._names, self.params, strict=False))
        stacked = {param: torch.zeros_like(rows) for param, rows in params.items()}
        for row, state in enumerate(kept):
            for param, rows in stacked.items():
                if f"{name}/{param}" in state:
                    rows[row] = torch.from_numpy(np.array(state[f"{name}/{param}"])).to(rows)
        return list(stacked.values())


def _apart(one: Tensor, two: Tensor) -> bool:
    return one.untyped_storage().data_ptr() != two.untyped_storage().data_ptr()


STEPS = "steps"
"""How many steps the states of a client have seen, among what it keeps."""
