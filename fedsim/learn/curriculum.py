"""Curricula: which of a client's examples a task trains on, by how hard they are for the model that came. Knows no engine.

How many there are follows from a clock, so that time is decided before numbers; which ones, from their losses.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.core.types import FloatArray
from fedsim.learn.job import ROUNDING
from fedsim.learn.pace import Clock, When
from fedsim.learn.work import Task

FEWEST = 2
"""Examples that a task has at the least, where its client does: some layers cannot train on one."""


@dataclass(frozen=True, slots=True)
class Curriculum:
    """From the share *begin* of a client's examples to all of them, in a straight line *over* so long on *clock*.

    *first* says which come first: the easiest ("easy"; Bengio et al. 2009), or the hardest ("hard", an anti-curriculum).
    """

    begin: float
    over: float
    clock: Clock = "round"
    first: Literal["easy", "hard"] = "easy"

    def examples(self, held: int, when: When) -> int:
        """Return how many of *held* examples a task trains on that begins *when*.

        >>> [Curriculum(0.3, 10).examples(100, When(round=r)) for r in (1, 6, 11, 99)]
        [30, 65, 100, 100]
        """
        share = self.begin + (1.0 - self.begin) * min(1.0, when.shows(self.clock) / self.over)
        return min(held, max(FEWEST, math.ceil(share * held * (1 - ROUNDING))))


def composed(task: Task, losses: FloatArray) -> Task:
    """Return *task* as it is read once the loss of each of its examples is known: those that it trains on, at their levels.

    Equal losses go by position. Its weight stays that of all its examples. Shapes: losses (positions,).
    """
    curriculum, mixing, count = task.job.curriculum, task.job.mixing, task.trained_on
    hard = curriculum is not None and curriculum.first == "hard"
    chosen = np.sort(np.argsort(-losses if hard else losses, kind="stable")[:count])
    sources = None if task.sources is None else task.sources[chosen]
    if mixing is not None and mixing.by == "difficulty":
        sources = np.argsort(np.argsort(losses[chosen], kind="stable"), kind="stable") * mixing.levels // count
    return dataclasses.replace(task, positions=task.positions[chosen], sources=sources, easiest=None, weight=task.examples)
