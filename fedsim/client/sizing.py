"""How a client chooses its batch size: what its policy makes of an order, and of the noise of a task. Knows no stream and no engine."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from fedsim.client.kept import Kept
from fedsim.client.program import Finished, Order
from fedsim.core.types import Seconds
from fedsim.cost.compute import Compute, step_s
from fedsim.cost.loading import Loader
from fedsim.learn.batch_policies import EXAMPLES, BatchPolicy, Situation
from fedsim.learn.flops import Flops
from fedsim.learn.job import Job
from fedsim.learn.work import NOISE, Result, Task

MEDIAN_OF = 100_000
"""Clients of whose devices the median is taken, at most: the first ones."""
_GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Sizing:
    """A *policy*, and what it may be told of devices: their speeds, of which *usual_gflops* is the median, and what a step costs."""

    policy: BatchPolicy
    compute: Compute
    usual_gflops: float
    flops: Flops
    loader: Loader | None = None

    @classmethod
    def of(cls, policy: BatchPolicy, compute: Compute, flops: Flops, clients: int, loader: Loader | None) -> Sizing:
        """Return that of a federation of so many *clients*."""
        speeds = compute.gflops(np.arange(min(clients, MEDIAN_OF)))
        return cls(policy, compute, float(np.median(speeds)), flops, loader)

    def situation(self, client: int, order: Order, kept: Kept, now: Seconds) -> Situation:
        """Return what *client* may go by where it acts on *order* *now*."""
        who = np.array([client])
        gflops, each = float(self.compute.gflops(who)[0]), self.flops.training
        loads_per_s = math.inf if self.loader is None else float(self.loader.examples_per_s(who)[0])
        fixed = self.flops.update(order.job) / each + step_s(self.compute, client) * gflops * _GIGA / each
        return Situation(order.when(kept, now), gflops / self.usual_gflops, fixed, gflops * _GIGA / each, loads_per_s)

    @property
    def listens(self) -> bool:
        """Return whether a policy goes by numbers of the client's task before, and so leaves some of each."""
        return bool(self.policy.needs)

    def sized(self, client: int, order: Order, kept: Kept, now: Seconds) -> Order:
        """Return *order* for the batch size that the policy wants in the place of that which it has."""
        job = order.job
        size = self.policy.size(job.batch_size * job.accumulate, self.situation(client, order, kept, now), kept.parts.get(BATCH, {}))
        return dataclasses.replace(order, job=resized(job, size))

    def gauged(self, task: Task) -> Task:
        """Return *task* with how many gradients the policy is to be told the noise of."""
        return dataclasses.replace(task, gauged=gaugeable(task) if self.listens else 0)

    def learned(self, task: Task, result: Result, kept: Kept, finished: Finished) -> Finished:
        """Return *finished* with what the policy makes of the noise that was measured; as it is where none was."""
        found = result.parts.get(NOISE)
        if found is None:
            return finished
        told = {EXAMPLES: float(task.gauged), **{name: float(found[name][0]) for name in self.policy.needs}}
        learned = self.policy.learned(kept.parts.get(BATCH, {}), task.job.batch_size, told)
        parts = {name: part for name, part in finished.parts.items() if name != NOISE}
        return dataclasses.replace(finished, parts={**parts, BATCH: learned})


BATCH = "batch"
"""The part of what a client keeps that is the policy's."""


def resized(job: Job, size: int) -> Job:
    """Return *job* where each update is made from *size* examples, of which no more pass through the model at once than before."""
    at_once = job.at_once or (job.batch_size if job.accumulate > 1 else 0)
    return dataclasses.replace(job, batch_size=size, accumulate=1, at_once=at_once)


def gaugeable(task: Task) -> int:
    """Return how many new examples the first mini-batch of *task* has; 0 for a single one, of which no noise can be told."""
    size = int(task.batches.fresh[0]) if task.batches else task.job.size(task.trained_on)
    return size if size > 1 else 0
