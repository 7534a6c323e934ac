"""Length-bucketed mini-batches: sequences of like length together, each batch cut where its longest one ends. Knows no model.

Which batch has which examples follows from lengths and a key, so that what it takes is known when a task is planned.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from fedsim.core.types import Array, IntArray
from fedsim.learn import batching
from fedsim.learn.work import Batches, Task


@dataclass(frozen=True, slots=True)
class Bucketing:
    """Buckets are *width* steps wide; sequences end where nothing but *pad* follows. The examples of *together* batches are sorted at once.

    0 sorts a whole epoch's: the least padding, and the least luck in who meets whom. 1 sorts none, and only cuts.
    """

    width: int
    pad: int = 0
    together: int = 0

    def lengths(self, x: Array) -> IntArray:
        """Return how long each sequence is, one step at least. Shapes: (n, steps) -> (n,).

        >>> Bucketing(8).lengths(np.array([[3, 0, 4, 0], [0, 0, 0, 0]])).tolist()
        [3, 1]
        """
        return np.maximum(1, ((x != self.pad) * np.arange(1, x.shape[1] + 1)).max(axis=1, initial=1))

    def widths(self, lengths: IntArray, longest: int) -> IntArray:
        """Return where buckets of sequences of these *lengths* end; all of them end with the *longest*. Shapes: (n,) -> (n,)."""
        return np.minimum(longest, -(-lengths // self.width) * self.width)


def bucketed(task: Task, bucketing: Bucketing, x: Array) -> Task:
    """Return *task* with its batches laid out; *x* are the sequences at its positions. Shapes: x (positions, steps).

    The order is that of the sampling. In it the examples of each epoch, so many batches' at once, are sorted by bucket, cut into batches
    of the usual sizes (a short one anywhere among them, by luck, and read last), and these shuffled: by ``key.fold("batches",
    "bucket", epoch)``.
    """
    job, held, longest = task.job, len(task.positions), x.shape[1]
    sizes, lengths = job.sizes(held), bucketing.lengths(x)
    places = batching.orders(job, [dataclasses.replace(task, positions=np.arange(held))])[0]
    buckets, read = bucketing.widths(lengths, longest), job.read(held)
    epochs = range(-(-len(places) // read)) if bucketing.together != 1 else range(0)
    for epoch in epochs:
        mine = places[epoch * read : (epoch + 1) * read]
        count = -(-len(mine) // job.size(held))
        luck = task.key.fold("batches", "bucket", epoch).uniform(np.arange(2 * count))
        pool = (bucketing.together or count) * job.size(held)
        for first in range(0, len(mine), pool):
            part, own = mine[first : first + pool], luck[2 * (first // job.size(held)) :]
            mine[first : first + pool] = _batches(part[np.argsort(buckets[part], kind="stable")], job.size(held), own)
    widths = np.array([int(buckets[each].max()) for each in np.split(places, np.cumsum(sizes)[:-1])])
    laid_out = Batches(sizes, sizes, order=task.positions[places], widths=widths, longest=longest, real=int(lengths[places].sum()))
    return dataclasses.replace(task, batches=laid_out, weight=task.examples)


def _batches(ordered: IntArray, size: int, luck: Array) -> IntArray:
    """Return *ordered* cut into batches of *size* and these shuffled; a short one is cut out anywhere, and comes last."""
    whole, rest = divmod(len(ordered), size)
    begin = int(luck[0] * (whole + 1)) * size
    short, full = ordered[begin : begin + rest], np.delete(ordered, np.s_[begin : begin + rest])
    return np.concatenate([full.reshape(whole, size)[np.argsort(luck[1 : whole + 1], kind="stable")].ravel(), short])
