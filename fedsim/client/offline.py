"""A client whose examples are all there: it trains on what it holds, and is scored on what it keeps back. Knows no stream."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.client.kept import Kept
from fedsim.client.program import Finished, Order, next_task, reply_to
from fedsim.core.keys import Key
from fedsim.core.types import Seconds
from fedsim.data.federation import Federation
from fedsim.learn.bucketing import bucketed
from fedsim.learn.pace import paced
from fedsim.learn.work import Result, Task


@dataclass(frozen=True, slots=True)
class Offline:
    """Client *number* of a federation. *root* is the root key; all of a client's luck hangs below its own name.

    *keeps* are the parts that its training reads of the task before: an optimiser's, an algorithm's, statistics of its own.
    """

    number: int
    federation: Federation
    root: Key
    keeps: tuple[str, ...] = ()

    @property
    def chained(self) -> bool:
        """Return whether a training task needs the numbers of the one before."""
        return bool(self.keeps)

    @property
    def leaves(self) -> bool:
        """Return whether a training task leaves more than its reply."""
        return bool(self.keeps)

    @property
    def tells(self) -> tuple[str, ...]:
        """Return that a reply has the metrics of its result."""
        return ()

    def ready_s(self, order: Order, kept: Kept, now: Seconds) -> Seconds:
        """Return *now*: the client acts at once."""
        return now

    def ended(self, kept: Kept, now: Seconds) -> bool:
        """Return that there is always something to train on."""
        return False

    def plan(self, order: Order, kept: Kept, now: Seconds = 0.0) -> tuple[Task, Kept]:
        """Return the task that *order* makes, and what the client keeps once it has begun."""
        training = order.job.kind == "train"
        job = order.job
        positions = self.federation.train(self.number) if training else self.federation.validation(self.number)
        easiest = job.curriculum.examples(len(positions), order.when(kept, now)) if training and job.curriculum else None
        read = len(positions) if easiest is None else easiest
        count, key, after = next_task(self.number, self.root, kept, training, job.batches(read) if training else 0)
        parts = kept.few(*self.keeps) if training else kept.few("statistics") if job.own_statistics else {}
        held_back = self.federation.validation(self.number) if training and job.stopping else None
        rates = paced(job.lr, job.pace, job.sizes(read), order.when(kept, now)) if training and job.pace else None
        sources = self.federation.sources(self.number, positions, job.mixing.by) if training and job.mixing else None
        task = Task(  # By place: names take twice as long, and there is one for each message of a run.
            self.number, count, job, order.start, positions, key, None, None, None, parts, None, rates, held_back, 0, None, sources, easiest
        )
        if training and job.bucketing:
            task = bucketed(task, job.bucketing, self.federation.features(self.number, positions))
        return task, after

    def finish(self, task: Task, result: Result, kept: Kept) -> Finished:
        """Return the reply, and what the client keeps."""
        return Finished(reply_to(task, result), result.parts)

    def held(self, kept: Kept) -> tuple[int, int]:
        """Return that nothing is remembered."""
        return 0, 0


