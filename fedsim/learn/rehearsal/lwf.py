"""Learning without forgetting: the model that was received teaches. No memory; keeps nothing between tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import Array, IntArray, NonNegative, Positive
from fedsim.learn.rehearsal import Way, rehearsals
from fedsim.learn.rehearsal.lesson import Lesson, Seen, Turn

Taught = dict[int, Array]
"""What the teacher puts out for each new item."""
AT_ONCE = 256
"""Examples that pass through the teacher together."""


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

    def begin(self, kept: State, lesson: Lesson) -> Taught:
        """Return the outputs of the teacher, which is where the task starts, for all new examples."""
        cuts = [lesson.new[first : first + AT_ONCE] for first in range(0, len(lesson.new), AT_ONCE)]
        outputs = [lesson.evaluated(lesson.start, lesson.examples(some)[0]).cpu().numpy() for some in cuts]
        return dict(zip(lesson.new.tolist(), np.concatenate(outputs), strict=True))

    def recalled(self, turn: Turn, work: Taught) -> list[Array]:
        """Return the teacher's outputs for a mini-batch."""
        return [np.stack([work[item] for item in turn.items.tolist()])]

    def losses(self, seen: Seen) -> list[Tensor]:
        """Return the loss, with the divergence from the teacher."""
        t = self.temperature
        mine, taught = (seen.outputs / t).log_softmax(-1), (seen.recalled[0] / t).log_softmax(-1)
        away = F.kl_div(mine, taught, reduction="batchmean", log_target=True)
        return [seen.loss() + self.alpha * t * t * away]

    def followed(self, gradients: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the gradients."""
        return gradients[0]

    def noted(self, turn: Turn, outputs: Array, work: Taught) -> None:
        """Take no note."""

    def end(self, lesson: Lesson, work: Taught) -> State:
        """Keep nothing."""
        return {}


@rehearsals.register("lwf")
def lwf(*, alpha: NonNegative = 1.0, temperature: Positive = 2.0) -> Lwf:
    """Learning without forgetting: stay near the outputs of the model that was received (Li & Hoiem 2016, arXiv:1606.09282)."""
    return Lwf(alpha, temperature)
