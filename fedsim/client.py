"""The one client program: what a client does with one message, in the simulator and on a real Flower node alike.

``plan`` decides (which examples, in which order, with what luck), ``reply`` answers. Both are pure; the arithmetic
between them is the engine's, the time around them the simulator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.core.keys import Key
from fedsim.core.types import Params
from fedsim.data.federation import Federation
from fedsim.learn.work import Job, Result, Start, Task


@dataclass(frozen=True, slots=True)
class Order:
    """What a message asks of a client: a job, and the parameters to start from."""

    job: Job
    start: Start


@dataclass(frozen=True, slots=True)
class Memory:
    """What a client carries from one message to the next: how many training tasks it has begun, and evaluations."""

    trained: int = 0
    evaluated: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client sends back. *params* is empty for an evaluation."""

    params: Params
    metrics: Mapping[str, float | int]


@dataclass(frozen=True, slots=True)
class Client:
    """Client *number* of a federation. *key* is the root key; all of a client's luck hangs below its own name."""

    number: int
    federation: Federation
    key: Key

    def plan(self, order: Order, memory: Memory) -> tuple[Task, Memory]:
        """Return the task that *order* makes here, and the memory after it has begun."""
        if order.job.kind == "train":
            count, positions = memory.trained, self.federation.train(self.number)
            after = Memory(count + 1, memory.evaluated)
        else:
            count, positions = memory.evaluated, self.federation.validation(self.number)
            after = Memory(memory.trained, count + 1)
        # Tasks of the two kinds are counted apart, so that evaluating moves no draw of training.
        name = "task" if order.job.kind == "train" else "evaluation"
        key = self.key.fold("client", self.number, name, count)
        return Task(self.number, count, order.job, order.start, positions, key), after

    def reply(self, task: Task, result: Result) -> Reply:
        """Return what the client sends for *result*; ``num-examples`` is Flower's weight for averages."""
        return Reply(result.params, {"num-examples": len(task.positions), **result.metrics})


def reply_metrics(job: Job, scores: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the metrics in a reply to *job*: what its size is made of, known before any number is.

    *scores* are the names that the objective reports.
    """
    if job.kind == "evaluate":
        return ("num-examples", *scores)
    return ("num-examples", "train_loss", *(["initial_loss"] if job.initial_loss else []))
