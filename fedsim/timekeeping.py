"""The engine of a rehearsal: takes tasks, counts what they come to, and computes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fedsim.client.fitting import at_once
from fedsim.learn.job import Job
from fedsim.learn.work import Result, Task


@dataclass(slots=True)
class Work:
    """What training tasks come to, counted task by task: *fewest* to *most* local steps, *smallest* to *largest* batches.

    A client's batch is what one update is made from, a last short one apart; *at_once* is the most examples that pass through the model
    together. *tasks*, *steps* and *examples* are sums, an example counted each time that it passes.
    """

    tasks: int = 0
    steps: int = 0
    examples: int = 0
    fewest: int = sys.maxsize
    most: int = 0
    smallest: int = sys.maxsize
    largest: int = 0
    at_once: int = 0
    clients: set[int] = field(default_factory=set[int])
    """Whose they are."""
    _known: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]], compare=False, repr=False)
    _job: Job | None = field(default=None, compare=False, repr=False)  # Whose tasks' steps and examples are known, by how many they read.

    def add(self, task: Task) -> None:
        """Count *task*."""
        self.clients.add(task.client)
        steps, examples = self._comes_to(task)
        self.tasks, self.steps, self.examples = self.tasks + 1, self.steps + steps, self.examples + examples

    def _comes_to(self, task: Task) -> tuple[int, int]:
        """Return the steps of *task* and how many examples they see; one like it, which another is, has been looked at."""
        if task.job is not self._job:  # Another round's may still be the same.
            self._known, self._job = self._known if task.job == self._job else {}, task.job
        if task.by_count and (found := self._known.get(len(task.positions))):
            return found
        steps, size = task.steps, int(task.sizes.max(initial=0)) if task.laid_out else task.job.size(task.trained_on)
        self.fewest, self.most = min(self.fewest, steps), max(self.most, steps)
        self.smallest, self.largest = min(self.smallest, size), max(self.largest, size)
        self.at_once = max(self.at_once, at_once(task))
        if task.by_count:
            self._known[len(task.positions)] = steps, task.seen
        return steps, task.seen


class Timekeeper:
    """An engine that takes tasks and never computes them; *work* is what those to train came to."""

    def __init__(self) -> None:
        self.work = Work()

    def submit(self, task: Task) -> int:
        """Take a task."""
        if task.job.kind == "train":
            self.work.add(task)
        return task.number

    def collect(self, tickets: Sequence[int], others: Iterable[int] = ()) -> list[Result]:
        """Refuse: nothing is computed in a rehearsal."""
        raise AssertionError("a rehearsal computes nothing")

    def peek(self, ticket: int) -> None:
        """Return nothing: a rehearsal knows no numbers."""

    def diagnose(self, task: Task) -> str:
        """Return that there is nothing to tell."""
        return ""

    def discard(self, ticket: int) -> None:
        """Forget a task."""
