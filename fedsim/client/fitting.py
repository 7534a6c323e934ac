"""A client on a device of little memory: which batches fit, and what becomes of those that do not. Knows no stream and no clock."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.client.kept import Kept
from fedsim.client.program import Finished, Order, Program, Unable
from fedsim.core.types import FloatArray, IntArray, Seconds
from fedsim.cost.ram import MIB, Ram
from fedsim.learn.footprint import Footprint
from fedsim.learn.job import FULL, Job
from fedsim.learn.work import Result, Task

TooLarge = Literal["smaller_batch", "accumulate", "cannot_train"]
"""What a client does whose device cannot hold a mini-batch: takes smaller ones, makes its updates from several passes, or gives up."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """What devices can hold: their *ram*, what training takes of it, and what clients do where a batch is *too_large*."""

    ram: Ram
    footprint: Footprint
    too_large: TooLarge

    def mib(self, clients: IntArray) -> FloatArray:
        """Return what each client's device has. Shapes: (n,) -> (n,)."""
        return self.ram.mib(clients)

    def most(self, client: int, job: Job) -> int:
        """Return how many examples *client* can train on at once."""
        return self.footprint.most(job, float(self.mib(np.array([client]))[0]) * MIB)

    def fitted(self, job: Job, size: int, most: int) -> Job:
        """Return *job* where batches of *size* are to become passes of *most* at the most."""
        if self.too_large == "accumulate":
            return dataclasses.replace(job, at_once=most)
        return dataclasses.replace(job, batch_size=most, accumulate=1)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Client *number*, whose *program* plans for any device, on the one that it has."""

    number: int
    program: Program
    fitting: Fitting

    @property
    def chained(self) -> bool:
        """Return what the program says."""
        return self.program.chained

    @property
    def leaves(self) -> bool:
        """Return what the program says."""
        return self.program.leaves

    @property
    def tells(self) -> tuple[str, ...]:
        """Return what the program says."""
        return self.program.tells

    def ready_s(self, order: Order, kept: Kept, now: Seconds) -> Seconds:
        """Return what the program says."""
        return self.program.ready_s(order, kept, now)

    def ended(self, kept: Kept, now: Seconds) -> bool:
        """Return what the program says."""
        return self.program.ended(kept, now)

    def held(self, kept: Kept) -> tuple[int, int]:
        """Return what the program says."""
        return self.program.held(kept)

    def plan(self, order: Order, kept: Kept, now: Seconds = 0.0) -> tuple[Task, Kept]:
        """Return the program's plan, in batches that fit. Raises Unable where none does, or none is to."""
        job = order.job
        task, after = self.program.plan(order, kept, now)
        if job.kind != "train":
            return task, after
        most = self.fitting.most(self.number, job)
        size = at_once(task)
        while size > most:
            if not most or self.fitting.too_large == "cannot_train" or job.batch_size == 1:
                raise Unable(self._why(job, 1 if not most else size))
            # On a stream what is replayed comes on top of a batch, so that one that fits is felt for, from above.
            room = most if not task.laid_out or self.fitting.too_large == "accumulate" else max(1, (job.batch_size or size) * most // size)
            if room == job.batch_size and self.fitting.too_large == "smaller_batch":
                room -= 1
            job = self.fitting.fitted(job, size, room)
            task, after = self.program.plan(dataclasses.replace(order, job=job), kept, now)
            size = at_once(task)
        return task, after

    def finish(self, task: Task, result: Result, kept: Kept) -> Finished:
        """Return what the program says."""
        return self.program.finish(task, result, kept)

    def _why(self, job: Job, size: int) -> str:
        needs, has = self.fitting.footprint.bytes(job, size) / MIB, float(self.fitting.mib(np.array([self.number]))[0])
        return f"its device has {has:,.1f} MiB, and a step on {size} example{'s' * (size > 1)} takes {needs:,.1f} MiB"


def at_once(task: Task) -> int:
    """Return how many examples pass through the model at once in *task*, at the most."""
    largest = int(task.sizes.max(initial=0)) if task.laid_out else task.job.size(task.trained_on)
    return max(task.job.micro(largest), default=0)


def fits(fitting: Fitting, job: Job, held: IntArray) -> tuple[IntArray, IntArray]:
    """Return which clients, that hold so many examples, train in batches cut to their devices, and which cannot train.

    Shapes: (n,) -> (cut,), (unable,): numbers of clients.
    """
    clients = np.arange(len(held))
    room = fitting.mib(clients) * MIB
    most = np.array([fitting.footprint.most(job, float(each)) for each in room.tolist()], dtype=np.float64)
    size = held if job.batch_size == FULL else np.minimum(held, job.batch_size)
    small = size > most
    unable = small & ((most < 1) | (fitting.too_large == "cannot_train"))
    return clients[small & ~unable], clients[unable]
