"""Looks: what an engine sees of tasks besides their training: predictions, losses, gradients of single examples. It changes no number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.state import State
from fedsim.core.types import FloatArray, IntArray, Params
from fedsim.learn.batching import opening
from fedsim.learn.engine.persample import noise, noises
from fedsim.learn.engine.scoring import Scorer
from fedsim.learn.engine.starts import Starts
from fedsim.learn.kept import Kept
from fedsim.learn.objectives import Objective
from fedsim.learn.store import Store
from fedsim.learn.work import Task, Watching


class Looks:
    """Looks at tasks of one model by what they start from; *kept* is what the model keeps between calls."""

    def __init__(self, model: nn.Module, objective: Objective, store: Store, starts: Starts, scorer: Scorer, kept: Kept) -> None:
        self._model, self._objective, self._store = model, objective, store
        self._starts, self._scorer, self._kept = starts, scorer, kept

    def predicted(self, task: Task) -> Params:
        """Return target, prediction and loss of each example that *task* tests, before it trains. Shapes: (tested,)."""
        if task.test is None or not len(task.test):  # Labels may come when no example does.
            return {}
        local = task.parts.get("local")
        x, y, _ = self._store.pool([task])
        return self._scorer.each(self._starts.local(task, local) if local else self._starts.of(task), x, y, task.test)

    def scores(self, task: Task) -> dict[str, float]:
        """Return the scores of what *task* starts from over its examples."""
        x, y, _ = self._store.pool([task])
        places = torch.tensor(task.positions)
        return self._scorer.scores(self._starts.of(task), x[places], y[places])

    def losses(self, task: Task) -> FloatArray:
        """Return the loss of each of the examples of *task* by the parameters that came. Shapes: -> (positions,)."""
        x, y, _ = self._store.pool([task])
        return self._scorer.each(self._starts.of(task), x, y, task.positions)["loss"]

    def loss(self, pool: tuple[Tensor, Tensor], places: Tensor, params: list[Tensor]) -> float:
        """Return the loss of *params* on some examples of the *pool*, in the middle of a task; infinity for none."""
        if not len(places):
            return math.inf
        before = Kept(self._model, self._objective) if self._kept.moves else self._kept
        x, y = pool
        loss = self._scorer.scores(params, x[places], y[places])["loss"]
        before.back()
        return loss

    def gauged(self, task: Task) -> State:
        """Return the noise in the gradients of the first examples that *task* reads, at what it started from."""
        x, y, _ = self._store.pool([task])
        places = torch.from_numpy(opening(task)).to(x.device)
        self._kept.as_built()
        trace, square = noise(self._model, self._objective, self._starts.of(task), x[places], y[places])
        return {"trace": np.array([trace]), "square": np.array([square])}

    def noise(self, tasks: Sequence[Task], x: Tensor, y: Tensor, offsets: IntArray) -> list[State]:
        """Return signal and noise of the gradients of single examples at the start of *tasks*, of those that are watched so closely.

        *offsets* turn a task's positions into rows of (x, y).
        """
        watched: list[State] = [{} for _ in tasks]
        closely = [i for i, task in enumerate(tasks) if task.watching is not None and len(task.watching.each) > 1]
        # Clients with statistics of their own do not start alike.
        for _, group in groupby(closely, key=lambda i: (tasks[i].start.content, i if tasks[i].job.own_statistics else 0)):
            rows = list(group)
            each = [cast(Watching, tasks[i].watching).each + offsets[i] for i in rows]
            places, sizes = torch.from_numpy(np.concatenate(each)).to(x.device), [len(mine) for mine in each]
            self._kept.as_built()
            found = noises(self._model, self._objective, self._starts.of(tasks[rows[0]]), x[places], y[places], sizes)
            for i, (trace, signal), size in zip(rows, found, sizes, strict=True):
                watched[i]["noise"] = np.array([signal, trace, size])
        return watched
