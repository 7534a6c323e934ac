"""Watching: how long gradients and updates are at some steps of a chunk's tasks. Reads parameters and writes none; knows no batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import FloatArray, IntArray
from fedsim.learn.engine.chunks import Rate
from fedsim.learn.engine.lengths import squared_lengths
from fedsim.learn.engine.rows import Rows
from fedsim.learn.engine.updates import Which
from fedsim.learn.work import STEP_COLUMNS, Task


@dataclass(slots=True)
class _Step:
    """A step that is being watched: its number, the rows among those that take it, and their parameters before."""

    at: int
    mine: IntArray
    before: list[Tensor]
    gradients: Tensor | None = None


@dataclass(slots=True)
class Watcher:
    """Watches those of the tasks in *rows* that ask for it, at every so many steps. The first *trained* tensors are parameters.

    A plain step is one operation and writes no gradient: its length is that of the update over the learning rate (no number where that
    is 0). Of another rule it is that of the gradient that the rule is given.
    """

    rows: Rows
    trained: int
    every: int
    _asked: IntArray
    _now: _Step | None = None
    _room: list[Tensor] = field(default_factory=list[Tensor])  # One for all steps: fresh memory each time costs more than the copy.
    _found: list[tuple[int, IntArray, Tensor, Tensor]] = field(default_factory=list[tuple[int, IntArray, Tensor, Tensor]])

    @classmethod
    def of(cls, tasks: Sequence[Task], rows: Rows, trained: int) -> Watcher | None:
        """Return who watches *tasks*; None where nobody asks for it."""
        watching = [task.watching for task in tasks]
        asked = np.array([each is not None for each in watching])
        return cls(rows, trained, next(each.every for each in watching if each), asked) if asked.any() else None

    def begin(self, at: int, which: Which) -> None:
        """Take that the rows *which* are about to make their step number *at*."""
        self._now = None
        if at % self.every:
            return
        mine = np.arange(which.start, which.stop) if isinstance(which, slice) else which
        mine = mine[self._asked[mine]]
        if not len(mine):
            return
        params, at_rows = self.rows.params[: self.trained], _index(mine)
        if not self._room:
            self._room = [torch.empty_like(param) for param in params]
        before = [room[: len(mine)] for room in self._room]
        for room, param in zip(before, params, strict=True):
            room.copy_(param[at_rows])
        self._now = _Step(at, mine, before)

    def gradients(self, which: Which, gradients: Sequence[Tensor]) -> None:
        """Take the *gradients* of rows, before the rule makes something else of them; some of those that the step is of."""
        now = self._now
        if now is None:
            return
        rows = np.arange(which.start, which.stop) if isinstance(which, slice) else which
        if now.gradients is None:
            now.gradients = torch.full((len(now.mine),), torch.nan, dtype=torch.float64, device=now.before[0].device)
        to, of = np.searchsorted(now.mine, rows), np.arange(len(rows))
        there = (to < len(now.mine)) & (now.mine[np.minimum(to, len(now.mine) - 1)] == rows)
        if there.any():
            now.gradients[torch.from_numpy(to[there])] = squared_lengths([gradient[_index(of[there])] for gradient in gradients]).sqrt()

    def end(self, rate: Rate) -> None:
        """Take that the step is made, at the learning rate *rate*: one, or one for each row."""
        now, self._now = self._now, None
        if now is None:
            return
        for before, param in zip(now.before, self.rows.params, strict=False):
            torch.sub(param[_index(now.mine)], before, out=before)
        updates = squared_lengths(now.before).sqrt()
        lengths = now.gradients
        if lengths is None:
            own = torch.from_numpy(np.broadcast_to(rate, len(self._asked))[now.mine]).to(updates)
            lengths = torch.where(own != 0.0, updates / own, torch.nan)
        self._found.append((now.at, now.mine, lengths, updates))

    def told(self, losses: FloatArray, sizes: IntArray, rates: FloatArray) -> list[State]:
        """Return what was watched of each row, as ``Result.watched`` has it. Shapes: all (rows, steps); *rates* may be (steps,)."""
        steps = np.arange(0, sizes.shape[1], self.every)
        table = np.full((len(STEP_COLUMNS), len(losses), len(steps)), np.nan)
        table[0], table[1], table[4], table[5] = steps, losses[:, steps], rates[..., steps], sizes[:, steps]
        for at, mine, *lengths in self._found:
            for to, length in zip(table[2:4], lengths, strict=True):
                to[mine, at // self.every] = length.cpu().numpy()
        taken = (table[5] > 0).sum(axis=1).tolist()
        return [{"steps": table[:, row, : taken[row]]} if self._asked[row] else {} for row in range(len(losses))]


def _index(rows: IntArray) -> slice | Tensor:
    """Return *rows*, ascending, as a slice where they lie side by side: a view then, and no copy."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else torch.from_numpy(rows)
