"""Work as values: the task that a client makes of a job, and the result that an engine returns.

A task holds all that its result depends on, and nothing of Flower, SimPy or torch: it can be pickled, sent to
another process, computed now or later, alone or beside others, with the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any, Literal, Protocol, TypeAlias, cast

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.state import State, joined, parted
from fedsim.core.types import Array, FloatArray, IntArray, Params
from fedsim.core.values import quick
from fedsim.learn.job import Job

Mark: TypeAlias = tuple[str, int, int]
"""A task among all of a run: its job's kind, the client, and its number there."""
NOISE = "noise"
"""The part of a result that says how noisy gradients were at the start: ``trace`` and ``square``, (1,) each."""


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


@quick
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
    def by_count(self) -> bool:
        """Return whether its steps, and what they cost, follow from its job and from how many positions it has."""
        if self.batches is not None or self.rehearsing is not None or self.easiest is not None:
            return False
        return not (self.gauged or self.tested or self.measured)

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
        values = [*_values(self)]  # ``replace`` takes as long as the rest of planning.
        values[_WATCHING] = watching
        return Task(*values)

    @property
    def mark(self) -> Mark:
        """Return what this task is among all of a run."""
        return self.job.kind, self.client, self.number

    @property
    def label(self) -> str:
        """Return how error lines call this task."""
        return f"client {self.client}, task {self.number}"


_NAMES = [each.name for each in fields(Task)]
_WATCHING, _values = _NAMES.index("watching"), attrgetter(*_NAMES)


class Stacked(Protocol):
    """Arrays called *names* of several clients, wherever they lie."""

    @property
    def names(self) -> Sequence[str]:
        """Return what the arrays are called."""
        ...

    @property
    def arrays(self) -> Sequence[Array]:
        """Return them as numpy's, in the order of their names. Shapes: each (clients, ...)."""
        ...

    def row(self, i: int) -> Params:
        """Return those of client *i* as numpy's."""
        ...

    def digest(self, i: int, salt: str) -> str:
        """Return the digest over *salt* and those of client *i*, as ``digest_of`` has it."""
        ...

    def mark(self, i: int) -> str:
        """Return what stands for those of client *i* in a digest; empty where they are hashed themselves."""
        ...

    @property
    def forms(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Return type and shape of each array of one client, by name, types as numpy writes them."""
        ...

    def summed(self, stacks: Sequence[tuple[Stacked, Sequence[int], Sequence[int]]], factors: Sequence[float]) -> Params | None:
        """Return the sum of rows of *stacks* times *factors* where these lie; None where it has to be done elsewhere."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One client's parameters among those that lie stacked."""

    stack: Stacked
    at: int


STEP_COLUMNS = ("step", "loss", "gradient", "update", "lr", "batch")
"""What is watched of a step: its number in the task, from 0; the loss of its batch before the update; the lengths (L2) of the gradient
and of the update over all parameters; the learning rate; how many examples the update is made from."""


@quick
@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came of a task: parameters and an algorithm's extra arrays (training only), *metrics* by name, a digest of all that is here.

    *given* are the parameters by name, or as a row of a stack, where they stay until somebody reads them.
    *outputs* are for whoever watches: of each example tested, its target, prediction and loss. *parts* are for the
    client's next task. *sealed* is the digest where it was computed elsewhere, beside the numbers. *mark* is that of its task.
    *watched* is what was seen of it as it trained, and is in no digest: ``steps``, with a row for each of STEP_COLUMNS and a column for
    each watched step; ``noise``, where gradients were taken one by one: |G|^2, tr(Sigma) and the number of examples.
    """

    metrics: Mapping[str, float]
    given: Params | Row = field(default_factory=dict[str, Array], repr=False)
    outputs: Params = field(default_factory=dict[str, Array])
    parts: Mapping[str, State] = field(default_factory=dict[str, State])
    sealed: str = field(default="", repr=False)
    mark: Mark | None = None
    watched: State = field(default_factory=dict[str, Array])
    _read: Params | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[type[Result], tuple[Any, ...]]:
        """Return it with its parameters read: where it is sent there is no stack."""
        return Result, (self.metrics, self.params, self.outputs, self.parts, self.sealed, self.mark, self.watched)

    @property
    def params(self) -> Params:
        """Return the parameters, as numpy's."""
        if not isinstance(self.given, Row):
            return self.given
        if self._read is None:
            object.__setattr__(self, "_read", self.given.stack.row(self.given.at))
        return cast(Params, self._read)

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

        There an array of a part is called ``state/PART/NAME``, and one of the part ``rehearsal`` ``state/NAME``. Of parameters that lie
        on a GPU it is over their names, types and shapes, and a fingerprint that was computed there.
        """
        if self.sealed:
            return self.sealed
        numbers = ",".join(f"{name}={float(value).hex()}" for name, value in sorted(self.metrics.items()))
        given = self.given
        if isinstance(given, Row) and (mark := given.stack.mark(given.at)):
            numbers += "".join(f"|{name}:{dtype}:{shape}|" for name, (dtype, shape) in given.stack.forms.items()) + mark
            return digest_of(self._beside(), numbers)
        if not self.outputs and not self.parts:
            return given.stack.digest(given.at, numbers) if isinstance(given, Row) else digest_of(given, numbers)
        return digest_of({**self.params, **self._beside()}, numbers)

    def _beside(self) -> Params:
        """Return the arrays besides the parameters, as they are hashed."""
        state = joined({name: part for name, part in self.parts.items() if name != "rehearsal"}) | self.parts.get("rehearsal", {})
        return joined({kind: dict(sorted(arrays.items())) for kind, arrays in (("outputs", self.outputs), ("state", state))})


def digest_of(params: Params, salt: str = "") -> str:
    """Return the SHA-256, in hex, over *salt* and each array's name, type, shape and bytes, in the given order."""
    mark = hashlib.sha256(salt.encode())
    for name, array in params.items():
        mark.update(header(name, array.dtype, array.shape))
        mark.update(np.ascontiguousarray(array).data)
    return mark.hexdigest()


@lru_cache(maxsize=4096)
def header(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what a digest says of an array before its bytes."""
    return f"|{name}:{dtype.str}:{shape}|".encode()
