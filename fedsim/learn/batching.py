"""Mini-batches: in which order a task reads its client's examples. Sizes are the job's own (work.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fedsim.core.keys import folded, picks, shuffles
from fedsim.core.types import IntArray
from fedsim.learn.job import FULL, Job
from fedsim.learn.mixing import mixed
from fedsim.learn.work import Task


def opening(task: Task) -> IntArray:
    """Return the positions of the first new examples that *task* reads, as many as are gauged. Shapes: -> (gauged,)."""
    if task.batches is not None and task.batches.order is not None:
        return task.batches.order[: task.gauged]
    if task.laid_out:  # New ones first, in each mini-batch.
        return task.positions[: task.gauged]
    return orders(dataclasses.replace(task.job, epochs=0, steps=1), [task])[0, : task.gauged]


def orders(job: Job, tasks: Sequence[Task]) -> IntArray:
    """Return the positions of each task in reading order, by the job's sampling.

    "reshuffle": one fresh permutation per epoch (random reshuffling), that of epoch e drawn from ``key.fold("batches", e)`` of the
    task. "replacement": each example drawn from all that the client has, for epoch e from ``key.fold("batches", "replacement",
    e)``: mini-batches are then independent, and some examples come twice in an epoch and others not at all. "sequential": each
    epoch reads the examples as they lie. So a longer task only appends to a shorter one, and no task's order depends on the others
    here. A full batch is read as it lies: its order would change nothing but the last bit of sums. With ``drop_last`` an epoch is
    the begin of its order. Batches that a task has laid out are read as they lie; mixed ones as ``mixing.mixed`` says.
    Shapes: n tasks -> (n, longest), each row its positions in order, then anything.
    """
    if tasks[0].batches is not None:
        laid_out = [task.positions if task.batches is None or task.batches.order is None else task.batches.order for task in tasks]
        found = np.zeros((len(tasks), max(map(len, laid_out))), dtype=np.int64)
        for row, order in zip(found, laid_out, strict=True):
            row[: len(order)] = order
        return found
    if job.mixing is not None:
        return mixed(job, job.mixing, list(tasks))
    counts = np.array([len(task.positions) for task in tasks])
    each, which = np.unique(counts, return_inverse=True)
    seen, read = (np.array([rule(count) for count in each.tolist()])[which] for rule in (job.seen, job.read))
    found = np.zeros((len(tasks), int(seen.max())), dtype=np.int64)
    epochs = -(-seen // read)
    for epoch in range(int(epochs.max())):
        rows = np.flatnonzero(epochs > epoch).tolist()
        sizes = counts[rows]
        if job.batch_size == FULL or job.sampling == "sequential":
            picked = np.broadcast_to(np.arange(sizes.max()), (len(rows), int(sizes.max())))
        elif job.sampling == "replacement":
            picked = picks(folded([tasks[row].key for row in rows], "batches", "replacement", epoch), sizes, int(read[rows].max()))
        else:
            picked = shuffles(folded([tasks[row].key for row in rows], "batches", epoch), sizes)
        for row, size, pick in zip(rows, read[rows].tolist(), picked, strict=True):
            begin = epoch * size
            end = min(begin + size, int(seen[row]))
            found[row, begin:end] = tasks[row].positions[pick[: end - begin]]
    return found
