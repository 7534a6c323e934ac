"""Chunks: which tasks train in one stacked step, and when each reads which examples.

How tasks are grouped is a fixed rule of sizes. It changes speed and no bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from fedsim.core.types import FloatArray, IntArray
from fedsim.learn import batching
from fedsim.learn.engine.step import Step
from fedsim.learn.job import Job
from fedsim.learn.work import Task

CHUNK_BYTES = 8 * 2**20
"""Parameters that one chunk may hold: about what stays in a core's share of the cache."""
CHUNK_ROWS = 256
"""Rows beyond which stacking small models saves no more dispatch."""
GPU_CHUNK_BYTES, GPU_CHUNK_ROWS = 2 * 2**30, 1024
"""The same on a GPU: bound by its memory, which gradients and activations share."""


def chunk_rule(parameter_bytes: int, device: str = "cpu") -> int:
    """Return how many clients train in one stacked step: a fixed rule of model and device, never a timing.

    Small models are bound by dispatch, so the whole cohort goes together; larger ones by cache, so few do. A GPU
    wants as many as fit beside their gradients.

    >>> chunk_rule(610 * 4), chunk_rule(199_210 * 4), chunk_rule(1_663_370 * 4)
    (256, 10, 1)
    """
    rows, room = (CHUNK_ROWS, CHUNK_BYTES) if device == "cpu" else (GPU_CHUNK_ROWS, GPU_CHUNK_BYTES)
    return max(1, min(rows, room // max(1, parameter_bytes)))


Rate = float | FloatArray
"""A learning rate: of all rows of a chunk, or of each. Shapes: (rows,)."""
_FRESH = 1 << 32  # Sizes below, new ones above, in one number.


@dataclass(frozen=True, slots=True)
class Chunk:
    """A few tasks of one job, longest first, and when each reads which examples."""

    tasks: list[Task]
    sizes: IntArray  # (rows, steps); 0 once a row is done
    fresh: IntArray  # (rows, steps): how many of a batch are new, where these have losses of their own; or what sequences are cut to
    begins: IntArray  # (rows, steps): where each batch begins in its row's order
    places: IntArray  # (rows, longest): rows of the pool in reading order, padded with the first
    rates: FloatArray  # (rows, steps): learning rates; those of the longest once a row is done

    @property
    def step_rates(self) -> list[Rate]:
        """Return the learning rates of each stacked step: one, or one for each row."""
        same = (self.rates == self.rates[:1]).all(axis=0)
        return [float(column[0]) if alike else column for column, alike in zip(self.rates.T, same.tolist(), strict=True)]

    def batches(self) -> Iterator[tuple[int, tuple[int, int], slice | IntArray, IntArray]]:
        """Yield (step, (batch size, new ones), rows, places): each stacked step that the chunk takes, in order.

        Rows side by side come as a slice, so that their parameters are a view and not a copy.
        """
        if (self.sizes == self.sizes[0]).all() and (self.fresh == self.fresh[0]).all():  # As with data dealt out evenly.
            columns = zip(self.begins[0].tolist(), self.sizes[0].tolist(), self.fresh[0].tolist(), strict=True)
            for step, (begin, size, fresh) in enumerate(columns):
                yield step, (size, fresh), slice(0, len(self.tasks)), self.places[:, begin : begin + size]
            return
        for step in range(self.sizes.shape[1]):
            column = self.sizes[:, step] + self.fresh[:, step] * _FRESH
            for kind in (column[:1] if (column == column[0]).all() else np.unique(column[column > 0])).tolist():
                fresh, size = divmod(kind, _FRESH)
                active = np.flatnonzero(column == kind)
                begins = self.begins[active, step]
                if (begins == begins[0]).all():
                    places = self.places[active, begins[0] : begins[0] + size]
                else:
                    places = np.take_along_axis(self.places[active], begins[:, None] + np.arange(size), axis=1)
                together = active[-1] - active[0] + 1 == len(active)
                yield step, (size, fresh), slice(int(active[0]), int(active[-1]) + 1) if together else active, places


def planned(job: Job, tasks: list[Task], offsets: IntArray) -> Chunk:
    """Return *tasks* of one job as a chunk; *offsets* turn each task's positions into rows of the pool."""
    alike = {count: job.sizes(count) for count in {len(task.positions) for task in tasks if task.batches is None}}
    batches = [alike[len(task.positions)] if task.batches is None else task.batches.sizes for task in tasks]
    sizes = np.zeros((len(tasks), max(map(len, batches))), dtype=np.int64)
    fresh = np.zeros_like(sizes)
    for row, batch in zip(sizes, batches, strict=True):
        row[: len(batch)] = batch
    for at, laid_out in enumerate(task.batches for task in tasks):
        if laid_out is None:
            continue
        if laid_out.mix != "concat":
            fresh[at, : len(laid_out.sizes)] = laid_out.fresh
        elif laid_out.widths is not None:
            fresh[at, : len(laid_out.sizes)] = [laid_out.width(step) for step in range(len(laid_out.sizes))]
    places = batching.orders(job, tasks) + offsets[:, None]
    return Chunk(tasks, sizes, fresh, np.cumsum(sizes, axis=1) - sizes, places, _rates(tasks, sizes.shape[1]))


def _rates(tasks: list[Task], steps: int) -> FloatArray:
    """Return the learning rates of *tasks*, longest first. Shapes: -> (tasks, steps)."""
    if all(task.rates is None for task in tasks):
        return np.broadcast_to(np.array([task.job.lr for task in tasks])[:, None], (len(tasks), steps))
    rates = np.tile(tasks[0].step_rates, (len(tasks), 1))
    for row, task in zip(rates, tasks, strict=True):
        row[: task.steps] = task.step_rates
    return rates


def ranked(tasks: Sequence[Task]) -> Iterator[tuple[Job, list[int]]]:
    """Yield (job, places of its tasks), longest first, so that a chunk's rows end at about the same step.

    Jobs that order no more than another learning rate are one. Ties go by their first rate, so that rows of one lie side by side, and
    then stay in order of submission.
    """
    names = {id(job): _order(job) for job in {id(task.job): task.job for task in tasks}.values()}
    kinds = [(names[id(task.job)], _layout(task)) for task in tasks]
    first = [task.job.lr if task.rates is None or not len(task.rates) else float(task.rates[0]) for task in tasks]
    order = sorted(range(len(tasks)), key=lambda i: (kinds[i], -tasks[i].steps, first[i]))
    for _, group in groupby(order, key=kinds.__getitem__):
        rows = list(group)
        yield tasks[rows[0]].job, rows


def _layout(task: Task) -> str:
    """Return how the batches of *task* are laid out: what must be the same within a chunk; of those that rehearse the rates, too."""
    if task.rehearsing is None:
        return task.batches.mix + " given" if task.batches else ""
    rates = task.step_rates[:1] if task.rates is None or (task.rates == task.rates[0]).all() else task.rates
    return f"live at {rates.tobytes().hex()}"


def _order(job: Job) -> str:
    """Return what *job* orders, as text, but for the rate of an update rule that goes by it in nothing but its steps: all of ours."""
    ours = all(rule is None or type(rule).__module__.startswith("fedsim.") for rule in (job.optimizer, job.algorithm))
    return repr(replace(job, lr=0.0) if ours else job)


def groups(
    step: Step, which: slice | IntArray, places: IntArray, *, alone: bool
) -> Iterator[tuple[slice | IntArray, IntArray]]:
    """Yield (rows, places) as *step* may take them: together, one doubled, or one after the other.

    A chunk of one row is *alone*: its memory is its own, and needs no copy.
    """
    if step.rows == "one" and not alone:
        rows = range(which.start, which.stop) if isinstance(which, slice) else which.tolist()
        for row, place in zip(rows, places, strict=True):
            yield np.array([row]), place[None]
    elif step.rows == "many" and len(places) == 1:  # Beside itself a row takes the kernel of many.
        row = which.start if isinstance(which, slice) else int(which[0])
        yield np.array([row, row]), np.repeat(places, 2, axis=0)
    else:
        yield which, places


def paced(step: Step, which: slice | IntArray, places: IntArray, rates: FloatArray) -> Iterator[tuple[slice | IntArray, IntArray, Rate]]:
    """Yield (rows, places, rate) of rows that have each its rate, among *rates* (rows of the chunk,), as a plain *step* may take them.

    All at once where it is spread, and otherwise those of one rate. Rows whose rate is 0 go by themselves: a library returns at once
    then, and leaves a zero its sign.
    """
    every, mine = np.arange(which.start, which.stop) if isinstance(which, slice) else which, rates[which]
    kinds = mine != 0.0 if step.spread else mine
    for kind in np.unique(kinds):
        at = np.flatnonzero(kinds == kind)
        rows, own = every[at], mine[at]
        beside = int(rows[-1]) - int(rows[0]) + 1 == len(rows)
        together = slice(int(rows[0]), int(rows[-1]) + 1) if beside else rows
        yield together, places[at], float(own[0]) if (own == own[0]).all() else own
