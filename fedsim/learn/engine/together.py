"""Rehearsal that depends on numbers, a chunk of clients per step: each client's turn by itself, then the arithmetic of all at once.

Whether a task trains so follows from its method, its policy and what the model can do, never from who else is there: it can where the
method says its losses (``aims``), and the policy is told losses at most. ``live`` trains all others one at a time.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import is_not, itemgetter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import must
from fedsim.core.state import State
from fedsim.core.types import Array, FloatArray, IntArray
from fedsim.learn.engine.aims import Aim
from fedsim.learn.engine.pupil import Pupil, finite
from fedsim.learn.engine.rows import Rows
from fedsim.learn.engine.starts import Starts
from fedsim.learn.engine.updates import Kind, Updates, Which
from fedsim.learn.engine.watching import Watcher
from fedsim.learn.objectives import Objective
from fedsim.learn.rehearsal import Live, Stacked, stacks
from fedsim.learn.rehearsal.lesson import Turn
from fedsim.learn.store import Store
from fedsim.learn.work import Task


def goes_together(task: Task) -> bool:
    """Return whether *task* rehearses in a way that can be stacked."""
    live = task.rehearsing
    if not isinstance(live, Live) or live.replay.candidates or live.replay.needs - {"losses"}:
        return False
    if live.rehearsal.way.numeric and not stacks(live.rehearsal):
        return False
    # A policy of a reader's own may draw another number each time: such a mini-batch has no kind.
    return live.planned is None or all(len({len(items) for items in step}) <= 1 for step in live.planned)


class Together:
    """Clients at their *tasks*, the longest first, a row of *rows* each; *offsets* turn their positions into places in the pool."""

    def __init__(
        self, model: nn.Module, objective: Objective, store: Store, tasks: Sequence[Task], starts: Starts, rows: Rows, trained: int,
        offsets: IntArray,
    ) -> None:  # fmt: skip
        # Cloned: which kernel reads a row may go by where it lies.
        now = [partial(lambda row: [param[row].clone() for param in rows.params], row) for row in range(len(tasks))]
        each = zip(tasks, now, strict=True)
        self._pupils = [Pupil(model, objective, store, task, starts.of(task), params, trained) for task, params in each]
        self._offsets, self._like, self._rates = offsets.tolist(), rows.params[0], tasks[0].step_rates
        must(all((task.step_rates == self._rates[: task.steps]).all() for task in tasks), "tasks of one chunk have the same rates")
        self._work, self._now = list[Any](), 0
        self._turns: dict[int, tuple[Turn, Sequence[Array]]] = {}
        self._handed: dict[tuple[int, ...], tuple[list[Sequence[Array]], list[Tensor]]] = {}

    @property
    def word(self) -> str:
        """Return what stands for the method, its settings and what its policy is told: what steps are compiled for, beside their kind."""
        pupil = self._pupils[0]
        with suppress(Exception):  # By value, since with each task that comes from another process a method is made anew.
            return hashlib.blake2b(pickle.dumps((pupil.method, sorted(pupil.live.replay.needs))), digest_size=16).hexdigest()
        return f"{pupil.method!r} {sorted(pupil.live.replay.needs)}"

    @property
    def sizes(self) -> IntArray:
        """Return the sizes of all mini-batches; 0 once a row is done. Shapes: -> (rows, steps)."""
        sizes = np.zeros((len(self._pupils), len(self._rates)), dtype=np.int64)
        for row, pupil in zip(sizes, self._pupils, strict=True):
            row[: len(pupil.live.sizes)] = pupil.live.sizes
        return sizes

    def aim(self, objective: Objective, kind: Kind) -> Aim:
        """Return what mini-batches of *kind* are trained on."""
        _, fresh, *forms = kind
        pupil = self._pupils[0]
        return Aim(objective, cast(Stacked, pupil.method), fresh, tuple(forms), told=bool(pupil.live.replay.needs))

    def train(self, updates: Updates, watcher: Watcher | None = None) -> tuple[list[dict[str, State]], FloatArray]:
        """Train all by *updates*, and return what each keeps of its task, and the losses. Shapes: -> (rows, steps).

        Raises RunError where a loss is no number.
        """
        updates.recalled, updates.shown = self._recalled, self._shown
        self._work = [pupil.begun() for pupil in self._pupils]
        sizes = self.sizes
        for step, rate in enumerate(self._rates.tolist()):
            self._now = step
            kinds = [(self._kind(row), row) for row in np.flatnonzero(sizes[:, step]).tolist()]
            for kind, group in groupby(sorted(kinds), key=itemgetter(0)):
                rows = [row for _, row in group]
                together = rows[-1] - rows[0] + 1 == len(rows)
                which = slice(rows[0], rows[-1] + 1) if together else np.array(rows)
                if watcher:
                    watcher.begin(step, which)
                updates.once(kind, which, np.stack([self._places(row) for row in rows]), step, rate)
                if watcher:
                    watcher.end(rate)
        losses = updates.losses(sizes.shape)
        for loss in losses[~np.isfinite(losses)].tolist()[:1]:
            finite(loss)
        return [pupil.ended(work) for pupil, work in zip(self._pupils, self._work, strict=True)], losses

    def _kind(self, row: int) -> Kind:
        """Return the kind of mini-batch that is next for *row*, and take its turn."""
        pupil, step = self._pupils[row], self._now
        turn = pupil.turn(step, pupil.draw(step))
        recalled = cast(Stacked, pupil.method).recalled(turn, self._work[row])
        self._turns[row] = turn, recalled
        forms = [tuple(array.shape) for array in recalled]
        return int(pupil.live.sizes[step]), len(turn.items), *forms

    def _places(self, row: int) -> IntArray:
        """Return where the examples of a turn lie in the pool."""
        turn = self._turns[row][0]
        items = np.concatenate([turn.items, *(drawn.items for drawn in turn.drawn)])
        return self._pupils[row].live.places[items] + self._offsets[row]

    def _recalled(self, which: Which) -> list[Tensor]:
        """Return what the losses of this step of the rows *which* recall, stacked."""
        rows = tuple(range(which.start, which.stop) if isinstance(which, slice) else which.tolist())
        each = [self._turns[row][1] for row in rows]
        before, handed = self._handed.get(rows, ([], []))
        if not before or any(len(a) != len(b) or any(map(is_not, a, b)) for a, b in zip(each, before, strict=True)):
            handed = [torch.from_numpy(np.stack(arrays)).to(self._like) for arrays in zip(*each, strict=True)]
            self._handed[rows] = each, handed
        return handed

    def _shown(self, which: Which, shown: Sequence[Tensor]) -> None:
        """Let methods note what the model put out for this step of the rows *which*, and policies be told losses."""
        rows = range(which.start, which.stop) if isinstance(which, slice) else which.tolist()
        outputs, *told = [each.cpu().numpy() for each in shown]
        for place, row in enumerate(dict.fromkeys(rows)):  # One that stands beside itself is told once.
            pupil, turn = self._pupils[row], self._turns[row][0]
            cast(Stacked, pupil.method).noted(turn, outputs[place], self._work[row])
            for losses in told:
                mine = losses[place].astype(np.float64)
                pupil.tell(turn, lambda _, cut, mine=mine: mine[cut])
