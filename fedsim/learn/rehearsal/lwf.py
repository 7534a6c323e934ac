"""Learning without forgetting: the model that was received teaches. No memory; keeps nothing between tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import IntArray, NonNegative, Positive
from fedsim.learn.rehearsal import Way, rehearsals
from fedsim.learn.rehearsal.lesson import Lesson, Step


@dataclass(frozen=True, slots=True)
class Lwf:
    """The divergence from the received model's outputs, both at *temperature*, times *alpha*. See ``lwf``."""

    alpha: float = 1.0
    temperature: float = 2.0
    way = Way(numeric=True, draws=0)

    def replayed(self, fresh: int, share: float | None) -> int:
        """Return that nothing is replayed."""
        return 0

    def beside(self, new: int, sizes: IntArray, fresh: IntArray) -> tuple[int, int]:
        """Return that each example of a mini-batch passes through its teacher."""
        return int(fresh.sum()), 0

    def begin(self, kept: State, lesson: Lesson) -> None:
        """Work with nothing: the teacher is where the task starts."""

    def gradients(self, step: Step, work: None) -> tuple[Tensor, list[Tensor]]:
        """Return loss and gradients."""
        teacher = step.lesson.evaluated(step.lesson.start, step.x)
        t = self.temperature
        away = F.kl_div((step.outputs / t).log_softmax(-1), (teacher / t).log_softmax(-1), reduction="batchmean", log_target=True)
        loss = step.loss() + self.alpha * t * t * away
        return loss, step.gradients(loss)

    def end(self, lesson: Lesson, work: None) -> State:
        """Keep nothing."""
        return {}


@rehearsals.register("lwf")
def lwf(*, alpha: NonNegative = 1.0, temperature: Positive = 2.0) -> Lwf:
    """Learning without forgetting: stay near the outputs of the model that was received (Li & Hoiem 2016, arXiv:1606.09282)."""
    return Lwf(alpha, temperature)
