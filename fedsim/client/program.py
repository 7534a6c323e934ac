"""The one client program: what a client does with one message, in the simulator and on a real Flower node alike.

``plan`` decides (which examples, in which order, with what luck), ``finish`` answers. Both are pure; the arithmetic
between them is the engine's, the time around them the simulator's. Nothing else knows what a client does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from fedsim.client.kept import Kept, Parts
from fedsim.core.keys import Key
from fedsim.core.state import State
from fedsim.core.types import FloatArray, IntArray, Params, Seconds
from fedsim.learn.job import Job
from fedsim.learn.pace import When
from fedsim.learn.work import Result, Row, Start, Task


class Unable(Exception):
    """A client cannot do what it was asked for: the words say why, after its name. It answers with an error, and changes nothing."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a message asks of a client: a job, and the parameters to start from; in which *round* of the server, from 1.

    *version* is how often the server had aggregated; 0 where no schedule goes by it.
    """

    job: Job
    start: Start
    round: int = 1
    version: int = 0

    def when(self, kept: Kept, now: Seconds) -> When:
        """Return what the clocks of a schedule show where the client acts on it *now*."""
        return When(kept.steps, self.round, self.version, now)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client sends back: parameters, *given* by name or as the row where they lie stacked, none for an evaluation; and *metrics*."""

    given: Params | Row
    metrics: Mapping[str, float | int]

    @property
    def params(self) -> Params:
        """Return the parameters."""
        return self.given.stack.row(self.given.at) if isinstance(self.given, Row) else self.given


@dataclass(frozen=True, slots=True)
class News:
    """What came of a client's task besides its reply: examples tested, in order, and alarms.

    Shapes: items, y, prediction, loss (tested,); alarms: items after whose labels the detector signalled drift.
    """

    items: IntArray
    y: IntArray
    prediction: IntArray
    loss: FloatArray
    alarms: IntArray


@dataclass(frozen=True, slots=True)
class Finished:
    """What a task ends with: the *reply*, the *parts* of what its client keeps that changed, and what there is to tell."""

    reply: Reply
    parts: Parts = field(default_factory=dict[str, State])
    news: News | None = None


class Program(Protocol):
    """What one client does. Pure functions of (order, what the client keeps, now); *now* in virtual seconds."""

    @property
    def chained(self) -> bool:
        """Return whether a training task needs the numbers of the client's task before."""
        ...

    @property
    def leaves(self) -> bool:
        """Return whether a training task leaves more behind than its reply, and so is computed though that is lost."""
        ...

    @property
    def tells(self) -> tuple[str, ...]:
        """Return the names of the metrics that a training reply has besides those of its result."""
        ...

    def ready_s(self, order: Order, kept: Kept, now: Seconds) -> Seconds:
        """Return when the client acts on *order*, which is there *now*: a trigger may hold it; infinity for never."""
        ...

    def ended(self, kept: Kept, now: Seconds) -> bool:
        """Return whether nothing is left to train on, now or ever: its stream has ended."""
        ...

    def plan(self, order: Order, kept: Kept, now: Seconds = 0.0) -> tuple[Task, Kept]:
        """Return the task that *order* makes here *now*, and what the client keeps once it has begun. Raises Unable."""
        ...

    def finish(self, task: Task, result: Result, kept: Kept) -> Finished:
        """Return what *task* ends with once its numbers are known; *kept* is what ``plan`` returned beside it.

        Asked once per task, late ones too, in each client's order of tasks. Unless ``chained``, no plan reads what it changes.
        """
        ...

    def held(self, kept: Kept) -> tuple[int, int]:
        """Return how many examples the client remembers, and how many it may."""
        ...


def next_task(client: int, root: Key, kept: Kept, training: bool, steps: int = 0) -> tuple[int, Key, Kept]:
    """Return the number and the key of the client's next task, and what it keeps once that has begun.

    Tasks of the two kinds are counted apart, so that evaluating moves no draw of training. It takes *steps* local steps.
    """
    trained, evaluated = kept.trained + training, kept.evaluated + (not training)  # By hand: ``replace`` takes as long as the rest.
    after = Kept(trained, evaluated, kept.until_s, kept.before_s, kept.seen, kept.steps + steps, kept.parts)
    count = kept.trained if training else kept.evaluated
    return count, _tasks(root, client, "task" if training else "evaluation").fold(count), after


@lru_cache(maxsize=1 << 14)  # Most clients are asked again, and three quarters of a name are the client's.
def _tasks(root: Key, client: int, what: str) -> Key:
    return root.fold("client", client, what)


def reply_to(task: Task, result: Result, more: Mapping[str, float | int] | None = None) -> Reply:
    """Return what a client sends for *result*; ``num-examples`` is Flower's weight for averages."""
    return Reply(result.given, {"num-examples": task.examples, **result.metrics, **(more or {})})


def reply_metrics(job: Job, scores: tuple[str, ...], tells: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names of the metrics in a reply to *job*: what its size is made of, known before any number is.

    *scores* are the names that the objective reports, *tells* those that the program adds.
    """
    if job.kind == "evaluate":
        return ("num-examples", *scores)
    more = (*(job.algorithm.metrics if job.algorithm else ()), *(["steps"] if job.stopping else []))
    more = (*more, *(["padding"] if job.bucketing else []))
    return ("num-examples", "train_loss", *(["initial_loss"] if job.initial_loss else []), *more, *tells)
