"""The one client program: what a client does with one message, in the simulator and on a real Flower node alike.

``plan`` decides (which examples, in which order, with what luck), ``reply`` answers. Both are pure; the arithmetic
between them is the engine's, the time around them the simulator's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.client.stream import Learned, News, Online, OnStream
from fedsim.core.keys import Key
from fedsim.core.types import Params, Seconds
from fedsim.data.federation import Federation
from fedsim.learn.work import Job, Result, Start, Task


@dataclass(frozen=True, slots=True)
class Order:
    """What a message asks of a client: a job, and the parameters to start from."""

    job: Job
    start: Start


@dataclass(frozen=True, slots=True)
class Memory:
    """What a client carries from one message to the next: how many training tasks it has begun, and evaluations.

    On a stream also what it has *learned*; *before* is when the task before its last one began.
    """

    trained: int = 0
    evaluated: int = 0
    learned: Learned | None = None
    before: Seconds = -math.inf


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client sends back. *params* is empty for an evaluation."""

    params: Params
    metrics: Mapping[str, float | int]


@dataclass(frozen=True, slots=True)
class Client:
    """Client *number* of a federation. *key* is the root key; all of a client's luck hangs below its own name.

    *online* is there where examples stream in.
    """

    number: int
    federation: Federation
    key: Key
    online: Online | None = None

    def ready_s(self, order: Order, memory: Memory, now: Seconds) -> Seconds:
        """Return when the client acts on *order*, which is there *now*: a trigger may hold it; infinity for never."""
        if order.job.kind != "train" or self.online is None:
            return now
        program = self._on_stream(self.online)
        return program.ready_s(memory.learned or program.begin(), now)

    def ended(self, memory: Memory, now: Seconds) -> bool:
        """Return whether nothing is left to train on, now or ever: its stream has ended."""
        if self.online is None:
            return False
        program = self._on_stream(self.online)
        return math.isinf(program.ready_s(memory.learned or program.begin(), now))

    def plan(self, order: Order, memory: Memory, now: Seconds = 0.0) -> tuple[Task, Memory]:
        """Return the task that *order* makes here *now*, and the memory after it has begun."""
        # Tasks of the two kinds are counted apart, so that evaluating moves no draw of training.
        name, count = ("task", memory.trained) if order.job.kind == "train" else ("evaluation", memory.evaluated)
        key = self.key.fold("client", self.number, name, count)
        if order.job.kind != "train":
            task = Task(self.number, count, order.job, order.start, self.federation.validation(self.number), key)
            return task, Memory(memory.trained, count + 1, memory.learned, memory.before)
        if self.online is None:
            task = Task(self.number, count, order.job, order.start, self.federation.train(self.number), key)
            return task, Memory(count + 1, memory.evaluated)
        program = self._on_stream(self.online)
        learned = memory.learned or program.begin()
        task, after = program.plan(order.job, order.start, learned, count, key, now)
        return task, Memory(count + 1, memory.evaluated, after, learned.until_s)

    def absorb(self, task: Task, result: Result, memory: Memory) -> tuple[Memory, News | None]:
        """Return the memory once the numbers of the client's last task are known, and what there is to tell of them."""
        if self.online is None or memory.learned is None or task.job.kind != "train":
            return memory, None
        now = memory.learned.until_s
        learned, news = self._on_stream(self.online).absorb(task, result, memory.before, now, memory.learned)
        return dataclasses.replace(memory, learned=learned), news

    def reply(self, task: Task, result: Result, news: News | None = None) -> Reply:
        """Return what the client sends for *result*; ``num-examples`` is Flower's weight for averages."""
        metrics = {"num-examples": task.examples, **result.metrics}
        if tells(self.online) and task.job.kind == "train":
            metrics["drift"] = 0 if news is None else len(news.alarms)
        return Reply(result.params, metrics)

    def _on_stream(self, online: Online) -> OnStream:
        assert self.federation.streams is not None
        number = self.number
        return OnStream(
            number, online, self.federation.streams.of(number), lambda places: self.federation.targets(number, places), self.key
        )


def tells(online: Online | None) -> bool:
    """Return whether clients tell the server how often their detectors signalled drift."""
    return online is not None and online.watching and (online.reaction is None or online.reaction.tell)


def reply_metrics(job: Job, scores: tuple[str, ...], online: Online | None = None) -> tuple[str, ...]:
    """Return the names of the metrics in a reply to *job*: what its size is made of, known before any number is.

    *scores* are the names that the objective reports.
    """
    if job.kind == "evaluate":
        return ("num-examples", *scores)
    drift = ["drift"] if tells(online) else []
    return ("num-examples", "train_loss", *(["initial_loss"] if job.initial_loss else []), *drift)
