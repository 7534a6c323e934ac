"""The job: what a message orders of a client, and what follows from it and from a number of examples alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from fedsim.core.types import IntArray

if TYPE_CHECKING:
    from fedsim.learn.algorithms import Algorithm
    from fedsim.learn.bucketing import Bucketing
    from fedsim.learn.clipping import Clipping
    from fedsim.learn.curriculum import Curriculum
    from fedsim.learn.mixing import Mixing
    from fedsim.learn.optim import Optimizer
    from fedsim.learn.pace import Clock, Pace
    from fedsim.learn.stopping import Stopping

FULL = 0
"""The batch size that stands for "all examples of the client" (McMahan's B = infinity)."""
Sampling: TypeAlias = Literal["reshuffle", "replacement", "sequential"]
"""How a client's examples come into mini-batches: in a fresh order each epoch, each drawn anew, or as they lie."""
ROUNDING = 1e-12
"""By how much a share of an epoch's batches may exceed a whole number and be that: 0.1 times 30 is 3.0000000000000004."""


@dataclass(frozen=True, slots=True)
class Job:
    """The order form that a message carries: what to do with the parameters that come with it.

    Either *epochs* or *steps* is positive, the other is 0. Epochs that are no whole number end in the middle of one, after that
    share of its batches, rounded up. *batch_size* 0 means the client's whole data. *drop_last* leaves a
    short last batch of an epoch out; a client with fewer examples than a batch has one batch all the same, of all that it has.
    With *accumulate* k a batch is what one update is made from: k micro-batches of *batch_size*, whose gradients are averaged.
    *at_once* cuts a batch further, into micro-batches that a device can hold; 0 does not.
    *proximal_mu* is FedProx's (Li et al. 2020): mu / 2 times the squared distance to the start is added to the loss.
    *initial_loss* orders the loss over the client's data before training, which costs a forward pass.
    *clocks* are those that its client goes by besides *pace*.
    *optimizer*, *algorithm*, *stopping*, *pace*, *sampling*, *accumulate*, *clocks*, *clipping*, *mixing*, *curriculum* and *bucketing*
    are the scenario's, on both sides: they never travel. None: SGD as the fields say, no algorithm, as many epochs as were ordered, one
    learning rate throughout, gradients as they are, and batches from all of a client's examples alike.
    Nor does *own_statistics*: the model's buffers are then the client's own, and stay.
    """

    kind: Literal["train", "evaluate"] = "train"
    epochs: float = 1
    steps: int = 0
    batch_size: int = FULL
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    proximal_mu: float = 0.0
    initial_loss: bool = False
    drop_last: bool = False
    optimizer: Optimizer | None = None
    algorithm: Algorithm | None = None
    stopping: Stopping | None = None
    pace: Pace | None = None
    sampling: Sampling = "reshuffle"
    accumulate: int = 1
    at_once: int = 0
    clipping: Clipping | None = None
    own_statistics: bool = False
    clocks: tuple[Clock, ...] = ()
    mixing: Mixing | None = None
    curriculum: Curriculum | None = None
    bucketing: Bucketing | None = None

    @property
    def keeping(self) -> tuple[str, ...]:
        """Return the parts of what a client keeps that its tasks of this job read and change."""
        if self.optimizer is None and self.algorithm is None and not self.own_statistics:
            return ()
        optimizer = self.optimizer is not None and self.optimizer.state == "keep"
        algorithm = self.algorithm is not None and len(self.algorithm.keeps) > 0
        own = ["statistics"] if self.own_statistics else []
        return (*(["algorithm"] if algorithm else []), *(["optimizer"] if optimizer else []), *own)

    @property
    def whole(self) -> bool:
        """Return whether a task ends where an epoch does."""
        return self.epochs > 0 and self.epochs == int(self.epochs)

    @property
    def cut(self) -> bool:
        """Return whether an update may be made from several passes."""
        return self.at_once > 0 or (self.accumulate > 1 and self.batch_size != FULL)

    def size(self, examples: int) -> int:
        """Return the batch size on a client with *examples* examples: what one update is made from."""
        return examples if self.batch_size == FULL else min(self.batch_size * self.accumulate, examples)

    def micro(self, size: int) -> list[int]:
        """Return the sizes of the micro-batches that a batch of *size* examples is cut into, in order.

        >>> Job(batch_size=4, accumulate=3).micro(10), Job(batch_size=4).micro(10)
        ([4, 4, 2], [10])
        """
        if not self.cut:
            return [size]
        most = self.at_once or self.batch_size
        whole, rest = divmod(size, most)
        return [most] * whole + ([rest] if rest else [])

    def goes_by(self, clock: Clock) -> bool:
        """Return whether a client that plans a task of it looks at *clock*."""
        return clock in self.clocks or (self.pace is not None and self.pace.needs(clock))

    def passes(self, held: IntArray) -> tuple[IntArray, IntArray]:
        """Return how many examples pass through the model at once, and how many in the short last pass of an epoch; 0 for none.

        Shapes: how many examples clients hold, (n,) -> (n,), (n,).

        >>> [sizes.tolist() for sizes in Job(batch_size=4, accumulate=2).passes(np.array([3, 8, 17]))]
        [[3, 4, 4], [0, 0, 1]]
        """
        if self.batch_size == FULL:
            return held, np.zeros_like(held)
        size = np.minimum(held, self.batch_size)
        if self.drop_last:  # Only who has less than a batch reads a rest.
            held = np.where(held < self.batch_size * self.accumulate, held, 0)
        return size, held % np.maximum(size, 1)

    def read(self, examples: int) -> int:
        """Return how many of a client's *examples* an epoch reads: all, or with *drop_last* those that fill batches."""
        return examples - examples % self.size(examples) if self.drop_last else examples

    def batches(self, examples: int) -> int:
        """Return the number of local steps on a client with *examples* examples.

        >>> [Job(epochs=epochs, batch_size=10).batches(25) for epochs in (2, 0.5, 0.01, 2.4)]
        [6, 2, 1, 8]
        """
        epoch = math.ceil(self.read(examples) / self.size(examples))
        if self.steps or isinstance(self.epochs, int):
            return self.steps or int(self.epochs) * epoch
        return max(1, math.ceil(self.epochs * epoch * (1 - ROUNDING)))

    def sizes(self, examples: int) -> IntArray:
        """Return the size of each batch, in order; a short last batch of an epoch is kept or left out. Shapes: -> (steps,).

        >>> Job(epochs=2, batch_size=10).sizes(25).tolist()
        [10, 10, 5, 10, 10, 5]
        >>> job = Job(epochs=2, batch_size=10, drop_last=True)
        >>> job.sizes(25).tolist(), job.sizes(7).tolist()
        ([10, 10, 10, 10], [7, 7])
        >>> Job(batch_size=5, accumulate=2).sizes(25).tolist()
        [10, 10, 5]
        """
        size, read = self.size(examples), self.read(examples)
        epoch = [size] * (read // size) + ([read % size] if read % size else [])
        return np.resize(np.asarray(epoch, dtype=np.int64), self.batches(examples))

    def seen(self, examples: int) -> int:
        """Return how many examples pass through the model, each pass counted; a short last batch counts as it is.

        >>> Job(epochs=2, batch_size=10).seen(25), Job(epochs=0, steps=3, batch_size=10).seen(15)
        (50, 25)
        """
        read = self.read(examples)
        whole, rest = divmod(self.batches(examples), math.ceil(read / self.size(examples)))
        return whole * read + min(rest * self.size(examples), read)
