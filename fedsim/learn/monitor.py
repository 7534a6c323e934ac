"""Monitoring: which tasks are watched as they train, at which steps, and of which examples gradients are taken one by one.

Knows no engine. Whatever is watched takes no virtual time and moves no number: it is for whoever looks on, and no digest covers it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.learn.work import Task, Watching

_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Monitor:
    """What is watched of a run: each *every*-th local step of a share *tasks* of the training tasks, the first step always.

    Of a share *noise* of these, where they train every *noise_every*-th version of the model, the gradients of *examples* examples, drawn
    anew for each task, are taken one by one at its start. Which tasks these are hangs on their keys alone.
    """

    every: int = 20
    tasks: float = 1.0
    noise: float = 0.1
    noise_every: int = 5
    examples: int = 16

    def watched(self, task: Task, version: int) -> Task:
        """Return *task*, of a *version* of the model, with what is to be watched of it; *task* itself where that is nothing."""
        if task.job.kind != "train":
            return task
        if self.tasks < 1.0 and task.key.fold("monitor").uniform_at(0) >= self.tasks:
            return task
        held = len(task.positions)
        if held < 2 or version % self.noise_every or (key := task.key.fold("monitor")).uniform_at(1) >= self.noise:
            return task.watched(Watching(self.every, _NONE))
        chosen = key.fold("examples").numpy().choice(held, min(held, self.examples), replace=False)
        return task.watched(Watching(self.every, task.positions[chosen]))
