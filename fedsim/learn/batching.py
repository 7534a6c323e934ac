"""Mini-batches: in which order a task reads its client's examples, and where one batch ends.

Sizes follow from counts alone, so that time can be known before numbers; the order follows from the task's key.
"""

from __future__ import annotations

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.types import IntArray
from fedsim.learn.work import FULL, Job


def sizes(job: Job, examples: int) -> IntArray:
    """Return the size of each batch, in order; a short last batch of an epoch is kept. Shapes: -> (steps,).

    >>> sizes(Job(epochs=2, batch_size=10), 25).tolist()
    [10, 10, 5, 10, 10, 5]
    """
    size = job.size(examples)
    epoch = [size] * (examples // size) + ([examples % size] if examples % size else [])
    steps = job.batches(examples)
    return np.resize(np.asarray(epoch, dtype=np.int64), steps)


def order(job: Job, positions: IntArray, key: Key) -> IntArray:
    """Return the positions in reading order: one fresh permutation per epoch (random reshuffling).

    The permutation of epoch e is drawn from ``key.fold("epoch", e)``, so a longer task only appends to a shorter
    one. A full batch is read as it lies: its order would change nothing but the last bit of sums.
    Shapes: positions (n,) -> (sum of sizes,).
    """
    examples = len(positions)
    passes, rest = divmod(job.seen(examples), examples)
    if job.batch_size == FULL:
        return np.tile(positions, passes)
    shuffled = [key.fold("epoch", e).numpy().permutation(positions) for e in range(passes + (rest > 0))]
    return np.concatenate(shuffled)[: job.seen(examples)]
