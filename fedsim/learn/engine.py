"""The engine: tasks go in as they are made, results come out when someone reads them, computed in cohorts.

How tasks are grouped changes speed and no bit: a row of a stacked step has the same bits whatever the number of
rows (one intra-op thread), and "serial" is the stacked step with one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]

from fedsim.core.errors import RunError
from fedsim.core.types import IntArray, Params
from fedsim.learn import batching
from fedsim.learn.models import params_of, trainable
from fedsim.learn.objectives import Objective
from fedsim.learn.optim import Rows
from fedsim.learn.store import Store
from fedsim.learn.trace import Gradient, gradient
from fedsim.learn.work import Job, Result, Task

CHUNK_BYTES = 8 * 2**20
"""Parameters that one chunk may hold: about what stays in a core's share of the cache."""
CHUNK_ROWS = 256
"""Rows beyond which stacking small models saves no more dispatch."""
EVALUATION_ROWS = 1024
"""Examples that one forward pass of an evaluation takes; fixed, so that a loss has the same bits everywhere."""


class Engine(Protocol):
    """Tasks to results. A result depends on its task alone, never on what else was submitted or when."""

    def submit(self, task: Task) -> int:
        """Take *task* and return its ticket; nothing is computed yet."""
        ...

    def collect(self, tickets: Sequence[int], others: Iterable[int] = ()) -> list[Result]:
        """Return the results of *tickets*, in their order, computing what is not yet computed.

        *others* are tickets that will be read later: they may ride in the same cohort.
        """
        ...

    def discard(self, ticket: int) -> None:
        """Forget a ticket that no one will read; its task is not computed if it was not yet."""
        ...


def chunk_rule(parameter_bytes: int) -> int:
    """Return how many clients train in one stacked step: a fixed rule of the model's size, never a timing.

    Small models are bound by dispatch, so the whole cohort goes together; larger ones by cache, so few do.

    >>> chunk_rule(610 * 4), chunk_rule(199_210 * 4), chunk_rule(1_663_370 * 4)
    (256, 10, 1)
    """
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, parameter_bytes)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run with one intra-op thread, then give the caller's setting back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A few tasks of one job, longest first, and when each takes which batch."""

    tasks: list[Task]
    sizes: IntArray  # (rows, steps); 0 once a row is done
    order: list[IntArray]  # per row, places in the pool in reading order
    starts: IntArray  # (rows, steps): where each batch begins in its row's order


class CohortEngine:
    """Runs tasks in this process, *chunk* clients at a time; ``chunk=1`` is the serial executor."""

    def __init__(self, model: nn.Module, objective: Objective, store: Store, *, chunk: int | None = None) -> None:
        parameters = list(trainable(model).values())
        self._model, self._objective, self._store = model, objective, store
        self._names = list(trainable(model))
        self.chunk = chunk or chunk_rule(sum(p.numel() * p.element_size() for p in parameters))
        self._device, self._dtype = parameters[0].device, parameters[0].dtype
        self._gradients: dict[int, Gradient] = {}
        self._pending: dict[int, Task] = {}
        self._done: dict[int, Result] = {}
        self._tickets = 0
        self._starts: dict[str, list[Tensor]] = {}

    def submit(self, task: Task) -> int:
        """Take *task* and return its ticket; nothing is computed yet."""
        self._tickets += 1
        self._pending[self._tickets] = task
        return self._tickets

    def discard(self, ticket: int) -> None:
        """Forget a ticket that no one will read."""
        self._pending.pop(ticket, None)
        self._done.pop(ticket, None)

    def collect(self, tickets: Sequence[int], others: Iterable[int] = ()) -> list[Result]:
        """Return the results of *tickets*, in their order."""
        due = [ticket for ticket in (*tickets, *others) if ticket in self._pending]
        if due:
            tasks = [self._pending.pop(ticket) for ticket in due]
            with one_thread():
                self._done.update(zip(due, self._run(tasks), strict=True))
        return [self._done.pop(ticket) for ticket in tickets]

    def evaluate(self, params: Params, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the scores of *params* over the examples (x, y), from sums over batches of fixed size."""
        with one_thread():
            return self._objective.scores(self._sums(self._tensors(params), x, y))

    def prepare(self, x: Tensor, y: Tensor) -> None:
        """Trace the step for a batch like (x, y), so that a model that cannot be trained is refused at the door."""
        with one_thread():
            self._gradient(x, y)

    def _run(self, tasks: list[Task]) -> list[Result]:
        # Longest first within a job, so that a chunk's rows end at about the same step. Ties in order of submission.
        ranked = sorted(
            range(len(tasks)), key=lambda i: (repr(tasks[i].job), -tasks[i].job.batches(len(tasks[i].positions)))
        )
        results: dict[int, Result] = {}
        for job, group in groupby(ranked, key=lambda i: tasks[i].job):
            rows = list(group)
            for first in range(0, len(rows), self.chunk):
                places = rows[first : first + self.chunk]
                chunk = [tasks[i] for i in places]
                run = self._train if job.kind == "train" else self._score
                try:
                    results.update(zip(places, run(job, chunk), strict=True))
                except (RuntimeError, MemoryError) as error:  # torch reports a full memory as a RuntimeError
                    names = "; ".join(task.label for task in chunk[:3]) + ("; ..." if len(chunk) > 3 else "")
                    raise RunError(f"training broke in {names}: {str(error).splitlines()[0][:200]}") from error
        self._starts.clear()
        return [results[i] for i in range(len(tasks))]

    def _score(self, job: Job, tasks: list[Task]) -> list[Result]:
        return [Result(self._scores(task)) for task in tasks]

    def _scores(self, task: Task) -> dict[str, float]:
        x, y, _ = self._store.pool([task])
        places = torch.tensor(task.positions)
        return self._objective.scores(self._sums(self._start(task), x[places], y[places]))

    def _train(self, job: Job, tasks: list[Task]) -> list[Result]:
        chunk = self._plan(job, tasks)
        x, y, offsets = self._store.pool(tasks)
        orders = [torch.from_numpy(order + offset) for order, offset in zip(chunk.order, offsets, strict=True)]
        starts = [self._start(task) for task in tasks]
        rows = Rows(job, [torch.stack([start[i] for start in starts]) for i in range(len(self._names))])
        steps = chunk.sizes.shape[1]
        losses = torch.zeros(len(tasks), steps, dtype=self._dtype, device=self._device)
        for step in range(steps):
            sizes = chunk.sizes[:, step]
            for size in np.unique(sizes[sizes > 0]).tolist():
                active = np.flatnonzero(sizes == size)
                which = _as_rows(active)
                places = torch.cat(
                    [orders[i][chunk.starts[i, step] : chunk.starts[i, step] + size] for i in active.tolist()]
                )
                bx = x.index_select(0, places).view(len(active), size, *x.shape[1:])
                by = y.index_select(0, places).view(len(active), size, *y.shape[1:])
                params = [param[which] for param in rows.params]
                loss, gradients = self._gradient(bx[0], by[0])(params, bx, by)
                rows.step(which, gradients, first=step == 0)
                losses[which, step] = loss
        return self._results(job, chunk, rows, losses)

    def _plan(self, job: Job, tasks: list[Task]) -> _Chunk:
        batches = [batching.sizes(job, len(task.positions)) for task in tasks]
        sizes = np.zeros((len(tasks), max(map(len, batches))), dtype=np.int64)
        for row, batch in zip(sizes, batches, strict=True):
            row[: len(batch)] = batch
        order = [batching.order(job, task.positions, task.key.fold("batches")) for task in tasks]
        return _Chunk(tasks, sizes, order, np.cumsum(sizes, axis=1) - sizes)

    def _results(self, job: Job, chunk: _Chunk, rows: Rows, losses: Tensor) -> list[Result]:
        # The mean over a row's own steps, summed in float64 and in order: padding with zeros moves no bit of it.
        steps = (chunk.sizes > 0).sum(axis=1)
        means = losses.double().cumsum(1)[:, -1].cpu().numpy() / steps
        arrays = [param.cpu().numpy() for param in rows.params]
        results: list[Result] = []
        for i, task in enumerate(chunk.tasks):
            metrics = {"train_loss": float(means[i])}
            if job.initial_loss:
                metrics["initial_loss"] = self._scores(task)["loss"]
            params = {name: array[i] for name, array in zip(self._names, arrays, strict=True)}
            results.append(Result(metrics, params))
        return results

    def _gradient(self, x: Tensor, y: Tensor) -> Gradient:
        if len(x) not in self._gradients:
            self._gradients[len(x)] = gradient(self._model, self._objective, x, y)
        return self._gradients[len(x)]

    def _start(self, task: Task) -> list[Tensor]:
        content = task.start.content
        if content not in self._starts:
            self._starts[content] = self._tensors(task.start.params)
        return self._starts[content]

    def _tensors(self, params: Params) -> list[Tensor]:
        return [torch.tensor(params[name], dtype=self._dtype, device=self._device) for name in self._names]

    def _sums(self, params: list[Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
        named = dict(zip(self._names, params, strict=True))
        totals: dict[str, float] = {}
        with torch.no_grad():
            for first in range(0, len(x), EVALUATION_ROWS):
                batch = slice(first, first + EVALUATION_ROWS)
                outputs = functional_call(self._model, named, (x[batch],))
                for name, value in self._objective.sums(outputs, y[batch]).items():
                    totals[name] = totals.get(name, 0.0) + float(value)
        return totals


def _as_rows(active: IntArray) -> slice | Tensor:
    # Rows that lie side by side are a view, updated in place; others are gathered and written back.
    if active[-1] - active[0] + 1 == len(active):
        return slice(int(active[0]), int(active[-1]) + 1)
    return torch.from_numpy(active)


def initial(model: nn.Module) -> Params:
    """Return the parameters that a federation starts from."""
    return params_of(model)
