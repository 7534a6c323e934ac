"""Work as values: the job a message orders, the task a client makes of it, the result an engine returns.

A task holds all that its result depends on, and nothing of Flower, SimPy or torch: it can be pickled, sent to
another process, computed now or later, alone or beside others, with the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.state import State, joined, parted
from fedsim.core.types import FloatArray, IntArray, Params

if TYPE_CHECKING:
    from fedsim.learn.algorithms import Algorithm
    from fedsim.learn.bucketing import Bucketing
    from fedsim.learn.clipping import Clipping
    from fedsim.learn.curriculum import Curriculum
    from fedsim.learn.mixing import Mixing
    from fedsim.learn.optim import Optimizer
    from fedsim.learn.pace import Clock, Pace
    from fedsim.learn.stopping import Stopping

Mark: TypeAlias = tuple[str, int, int]
"""A task among all of a run: its job's kind, the client, and its number there."""
FULL = 0
"""The batch size that stands for "all examples of the client" (McMahan's B = infinity)."""
Sampling: TypeAlias = Literal["reshuffle", "replacement", "sequential"]
"""How a client's examples come into mini-batches: in a fresh order each epoch, each drawn anew, or as they lie."""
NOISE = "noise"
"""The part of a result that says how noisy gradients were at the start: ``trace`` and ``square``, (1,) each."""
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


@dataclass(frozen=True)
class Start:
    """Parameters to start from. Two starts with equal *content* are equal bit for bit."""

    params: Params

    @classmethod
    def known(cls, content: str, params: Params) -> Start:
        """Return the start of *params*, whose content id has been computed elsewhere."""
        start = cls(params)
        start.__dict__["content"] = content
        return start

    @cached_property
    def content(self) -> str:
        """Return the content id: a SHA-256 over names, shapes, types and bytes."""
        return digest_of(self.params)


Mix = Literal["concat", "sum", "ace"]
"""How a mini-batch of new and replayed examples becomes one loss: the mean over all of them, the sum of the two means,
or that sum with the new ones compared among the classes that are new there (ER-ACE)."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Mini-batches that were laid out when the task was made. Shapes: all (steps,).

    A task's positions, or *order* where it is there, are then one batch after the other, *sizes* long, of which the first *fresh* are
    new examples. Sequences in a batch are cut to its *widths*, of the *longest* that they all are otherwise; *real* steps are no padding.
    """

    sizes: IntArray
    fresh: IntArray
    mix: Mix = "concat"
    order: IntArray | None = None
    widths: IntArray | None = None
    longest: int = 0
    real: int = 0

    @property
    def padding(self) -> float:
        """Return which share of all steps that its batches take is padding."""
        return 0.0 if self.widths is None else 1.0 - self.real / float((self.sizes * self.widths).sum())

    def width(self, step: int) -> int:
        """Return what the batch of *step* is cut to; 0 where it is left whole."""
        return 0 if self.widths is None or self.widths[step] == self.longest else int(self.widths[step])


class Rehearsing(Protocol):
    """Training whose batches depend on numbers, so that the engine lays them out, one step at a time."""

    @property
    def sizes(self) -> IntArray:
        """Return the size of each batch, which follows from counts alone. Shapes: -> (steps,)."""
        ...

    @property
    def beside(self) -> tuple[int, int]:
        """Return how many examples pass through the model besides: forward only, and with a gradient."""
        ...


@dataclass(frozen=True, slots=True)
class Watching:
    """What is watched of a task as it trains: each *every*-th step, and the gradients of the examples at *each* one by one, at its start.

    It moves no number of the result.
    """

    every: int
    each: IntArray


@dataclass(frozen=True, slots=True)
class Task:
    """One client's work on one message: everything its result depends on.

    *number* counts the client's own tasks from 0; *positions* are places in the client's data, in the order in
    which a sequential pass would read them; *key* names every draw that the task may make.

    On a stream there may be more. *batches* are laid out already, or *rehearsing* says how the engine does that. *test*
    are the positions to be predicted before training; by the parameters in the part ``local``, where it is there, and by
    *start* otherwise. *parts* are what the client keeps and this task reads. *weight* is what the client counts
    for in the server's average; None: its examples. *rates* are the learning rates of its steps, (steps,); None: the
    job's. *held_back* are positions of examples by which it may stop early. Of its first *gauged* new examples the gradients are
    looked at one by one, before it trains. *watching* is for whoever looks on.
    *sources* say where each of its positions comes from, by number, for batches that are mixed; *easiest*, how many of them it trains on,
    which the engine chooses by their losses. None: all.
    """

    client: int
    number: int
    job: Job
    start: Start
    positions: IntArray
    key: Key
    batches: Batches | None = None
    rehearsing: Rehearsing | None = None
    test: IntArray | None = None
    parts: Mapping[str, State] = field(default_factory=dict[str, State])
    weight: int | None = None
    rates: FloatArray | None = None
    held_back: IntArray | None = None
    gauged: int = 0
    watching: Watching | None = None
    sources: IntArray | None = None
    easiest: int | None = None

    @property
    def measured(self) -> bool:
        """Return whether how long it takes depends on its own numbers."""
        return self.job.kind == "train" and self.job.stopping is not None

    @property
    def laid_out(self) -> bool:
        """Return whether its mini-batches are its own, and not what the job makes of a number of examples."""
        return self.batches is not None or self.rehearsing is not None

    @property
    def graded(self) -> bool:
        """Return whether which examples come into its batches goes by their losses when it begins."""
        return self.easiest is not None or (self.job.mixing is not None and self.job.mixing.by == "difficulty")

    @property
    def trained_on(self) -> int:
        """Return how many examples it trains on."""
        return len(self.positions) if self.easiest is None else self.easiest

    @property
    def sizes(self) -> IntArray:
        """Return the size of each mini-batch. Shapes: -> (steps,)."""
        laid_out = self.batches or self.rehearsing
        return self.job.sizes(self.trained_on) if laid_out is None else laid_out.sizes

    @property
    def step_rates(self) -> FloatArray:
        """Return the learning rate of each local step. Shapes: -> (steps,)."""
        return np.full(self.steps, self.job.lr) if self.rates is None else self.rates

    @property
    def steps(self) -> int:
        """Return the number of local steps."""
        return len(self.sizes) if self.laid_out else self.job.batches(self.trained_on)

    @property
    def seen(self) -> int:
        """Return how many examples pass through the model in training, each pass counted."""
        return int(self.sizes.sum()) if self.laid_out else self.job.seen(self.trained_on)

    @property
    def beside(self) -> tuple[int, int]:
        """Return how many examples pass besides those of mini-batches: forward only, and with a gradient."""
        return self.rehearsing.beside if self.rehearsing else (0, 0)

    @property
    def tested(self) -> int:
        """Return how many examples are predicted before training."""
        return 0 if self.test is None else len(self.test)

    @property
    def examples(self) -> int:
        """Return what the client counts for in the server's average."""
        return len(self.positions) if self.weight is None else self.weight

    def watched(self, watching: Watching) -> Task:
        """Return this task, watched so."""
        return Task(  # By hand: ``replace`` takes as long as the rest of planning.
            self.client, self.number, self.job, self.start, self.positions, self.key, self.batches, self.rehearsing, self.test,
            self.parts, self.weight, self.rates, self.held_back, self.gauged, watching, self.sources, self.easiest,
        )  # fmt: skip

    @property
    def mark(self) -> Mark:
        """Return what this task is among all of a run."""
        return self.job.kind, self.client, self.number

    @property
    def label(self) -> str:
        """Return how error lines call this task."""
        return f"client {self.client}, task {self.number}"


class Stacked(Protocol):
    """Parameters of several clients, wherever they lie."""

    def row(self, i: int) -> Params:
        """Return those of client *i* as numpy's."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One client's parameters among those that lie stacked."""

    stack: Stacked
    at: int


STEP_COLUMNS = ("step", "loss", "gradient", "update", "lr", "batch")
"""What is watched of a step: its number in the task, from 0; the loss of its batch before the update; the lengths (L2) of the gradient
and of the update over all parameters; the learning rate; how many examples the update is made from."""


@dataclass(frozen=True, slots=True, init=False, eq=False)
class Result:
    """What came of a task: *params* and an algorithm's extra arrays (training only), *metrics* by name, a digest of all that is here.

    *outputs* are for whoever watches: of each example tested, its target, prediction and loss. *parts* are for the
    client's next task. *sealed* is the digest where it was computed elsewhere, beside the numbers. *mark* is that of its task.
    *watched* is what was seen of it as it trained, and is in no digest: ``steps``, with a row for each of STEP_COLUMNS and a column for
    each watched step; ``noise``, where gradients were taken one by one: |G|^2, tr(Sigma) and the number of examples.
    Parameters given as a row of a stack stay where they are until somebody reads them.
    """

    metrics: Mapping[str, float]
    outputs: Params
    parts: Mapping[str, State]
    sealed: str = field(repr=False)
    mark: Mark | None
    watched: State
    _params: Params | Row = field(repr=False)

    def __init__(
        self, metrics: Mapping[str, float], params: Params | Row | None = None, outputs: Params | None = None,
        parts: Mapping[str, State] | None = None, sealed: str = "", mark: Mark | None = None, watched: State | None = None,
    ) -> None:  # fmt: skip
        rest = (outputs or {}, parts or {}, sealed, mark, watched or {}, {} if params is None else params)
        for name, value in zip(("metrics", "outputs", "parts", "sealed", "mark", "watched", "_params"), (metrics, *rest), strict=True):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[type[Result], tuple[Any, ...]]:
        """Return it with its parameters read: where it is sent there is no stack."""
        return Result, (self.metrics, self.params, self.outputs, self.parts, self.sealed, self.mark, self.watched)

    @property
    def params(self) -> Params:
        """Return the parameters, as numpy's."""
        if isinstance(self._params, Row):
            object.__setattr__(self, "_params", self._params.stack.row(self._params.at))
        return cast(Params, self._params)

    def arrays(self) -> Params:
        """Return all arrays by one name each: what ``of`` takes apart again."""
        return joined({"params": self.params, "outputs": self.outputs, "parts": joined(self.parts), "watched": self.watched})

    @classmethod
    def of(cls, metrics: Mapping[str, float], arrays: Params, sealed: str, mark: Mark) -> Result:
        """Return the result that *arrays* were of, whose digest is *sealed*, of the task that has that *mark*."""
        groups = parted(arrays)
        parts, watched = parted(groups.get("parts", {})), groups.get("watched", {})
        return cls(metrics, groups.get("params", {}), groups.get("outputs", {}), parts, sealed, mark, watched)

    @property
    def digest(self) -> str:
        """Return a SHA-256 over metrics, parameters, outputs and parts, by the names of fedsim-digest-1.

        There an array of a part is called ``state/PART/NAME``, and one of the part ``rehearsal`` ``state/NAME``.
        """
        if self.sealed:
            return self.sealed
        numbers = ",".join(f"{name}={float(value).hex()}" for name, value in sorted(self.metrics.items()))
        if not self.outputs and not self.parts:
            return digest_of(self.params, numbers)
        state = joined({name: part for name, part in self.parts.items() if name != "rehearsal"}) | self.parts.get("rehearsal", {})
        rest = joined({kind: dict(sorted(arrays.items())) for kind, arrays in (("outputs", self.outputs), ("state", state))})
        return digest_of({**self.params, **rest}, numbers)


def digest_of(params: Params, salt: str = "") -> str:
    """Return the SHA-256, in hex, over *salt* and each array's name, type, shape and bytes, in the given order."""
    mark = hashlib.sha256(salt.encode())
    for name, array in params.items():
        mark.update(f"|{name}:{array.dtype.str}:{array.shape}|".encode())
        mark.update(np.ascontiguousarray(array).data)
    return mark.hexdigest()
