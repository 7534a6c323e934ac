"""A client that chooses its batch size: a program, and around it a policy that goes before it. Knows no stream and no engine."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from fedsim.client.kept import Kept
from fedsim.client.program import Finished, Order, Program
from fedsim.core.types import Seconds
from fedsim.cost.compute import Compute
from fedsim.cost.loading import Loader
from fedsim.learn.batch_policies import EXAMPLES, BatchPolicy, Situation
from fedsim.learn.flops import Flops
from fedsim.learn.job import FULL, Job
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
        fixed = self.flops.update(order.job) / each
        return Situation(order.when(kept, now), gflops / self.usual_gflops, fixed, gflops * _GIGA / each, loads_per_s)


@dataclass(frozen=True, slots=True)
class Sized:
    """Client *number*, whose *program* is given orders of the batch size that its policy wants, and has the last word."""

    number: int
    program: Program
    sizing: Sizing

    @property
    def chained(self) -> bool:
        """Return whether a task needs the numbers of the one before: for the program, or for the policy."""
        return self.program.chained or bool(self.sizing.policy.needs)

    @property
    def leaves(self) -> bool:
        """Return whether a task leaves more than its reply: for the program, or for the policy."""
        return self.program.leaves or bool(self.sizing.policy.needs)

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
        """Return the program's plan for the batch size that the policy wants. An order for full batches is left as it is."""
        job, policy = order.job, self.sizing.policy
        if job.kind != "train" or job.batch_size == FULL:
            return self.program.plan(order, kept, now)
        size = policy.size(job.batch_size * job.accumulate, self.sizing.situation(self.number, order, kept, now), kept.parts.get(BATCH, {}))
        task, after = self.program.plan(dataclasses.replace(order, job=resized(job, size)), kept, now)
        return dataclasses.replace(task, gauged=opening(task) if policy.needs else 0), after

    def finish(self, task: Task, result: Result, kept: Kept) -> Finished:
        """Return the program's, and what the policy makes of the noise that was measured."""
        finished, policy, found = self.program.finish(task, result, kept), self.sizing.policy, result.parts.get(NOISE)
        if found is None:
            return finished
        told = {EXAMPLES: float(task.gauged), **{name: float(found[name][0]) for name in policy.needs}}
        learned = policy.learned(kept.parts.get(BATCH, {}), task.job.batch_size, told)
        parts = {name: part for name, part in finished.parts.items() if name != NOISE}
        return dataclasses.replace(finished, parts={**parts, BATCH: learned})


BATCH = "batch"
"""The part of what a client keeps that is the policy's."""


def resized(job: Job, size: int) -> Job:
    """Return *job* where each update is made from *size* examples, of which no more pass through the model at once than before."""
    at_once = job.at_once or (job.batch_size if job.accumulate > 1 else 0)
    return dataclasses.replace(job, batch_size=size, accumulate=1, at_once=at_once)


def opening(task: Task) -> int:
    """Return how many new examples the first mini-batch of *task* has; 0 for a single one, of which no noise can be told."""
    size = int(task.batches.fresh[0]) if task.batches else task.job.size(task.trained_on)
    return size if size > 1 else 0
