"""Devices of little memory: which batches fit, and what a client makes of a plan whose batches do not. Knows no stream and no clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.client.kept import Kept
from fedsim.client.program import Order, Unable
from fedsim.core.types import FloatArray, IntArray
from fedsim.cost.ram import MIB, Ram
from fedsim.learn.footprint import Footprint
from fedsim.learn.job import FULL, Job
from fedsim.learn.work import Task

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

    def fitted(self, job: Job, size: int, most: int, *, laid_out: bool) -> Job:
        """Return *job*, of which *size* examples pass through the model at once, where *most* are to, at the most.

        An update that was ordered from several passes is made from no fewer: only these become smaller. *laid_out* says that its task
        lays its batches out itself.
        """
        if self.too_large == "accumulate":
            return dataclasses.replace(job, at_once=most)
        if job.batch_size == FULL:
            return dataclasses.replace(job, batch_size=most, accumulate=1)
        if job.at_once:
            passes = -(-job.batch_size // job.at_once)
            return dataclasses.replace(job, batch_size=min(job.batch_size, passes * most), at_once=most)
        if job.cut or not laid_out:
            return dataclasses.replace(job, batch_size=most)
        # On a stream what is replayed comes on top of a batch, so that one that fits is felt for, from above.
        room = max(1, job.batch_size * most // size)
        return dataclasses.replace(job, batch_size=room - (room == job.batch_size))

    def planned(self, client: int, order: Order, plan: Callable[[Order], tuple[Task, Kept]]) -> tuple[Task, Kept]:
        """Return *plan* of *order*, to train, in batches that fit the device of *client*. Raises Unable where none does, or none is to."""
        most = self.most(client, order.job)
        task, after = plan(order)
        size = at_once(task)
        while size > most:
            least = order.job.batch_size == 1 and self.too_large == "smaller_batch" and not order.job.cut
            if not most or least or self.too_large == "cannot_train":
                raise Unable(self._why(client, order.job, 1 if not most else size))
            order = dataclasses.replace(order, job=self.fitted(order.job, size, most, laid_out=task.laid_out))
            task, after = plan(order)
            size = at_once(task)
        return task, after

    def _why(self, client: int, job: Job, size: int) -> str:
        needs, has = self.footprint.bytes(job, size) / MIB, float(self.mib(np.array([client]))[0])
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
