"""Online EWC: parameters that mattered to the client's earlier tasks are held near where they were. No memory.

Kept, for each trained parameter: ``fisher/NAME``, its importance so far, and ``anchor/NAME``, what it was after the last task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import IntArray, NonNegative, Range
from fedsim.learn.rehearsal import Way, rehearsals
from fedsim.learn.rehearsal.lesson import Lesson, Step

Held = dict[str, tuple[Tensor, Tensor]]
"""By parameter: (Fisher information, anchor)."""
AT_ONCE = 64
"""Examples whose gradients are taken together."""


@dataclass(frozen=True, slots=True)
class Ewc:
    """A pull of *strength* to the anchor; the Fisher information before counts *decay* times. See ``ewc``."""

    strength: float = 100.0
    decay: float = 0.9
    way = Way(numeric=True, draws=0)

    def replayed(self, fresh: int, share: float | None) -> int:
        """Return that nothing is replayed."""
        return 0

    def beside(self, new: int, sizes: IntArray, fresh: IntArray) -> tuple[int, int]:
        """Return that each new example has its gradient taken once more, for the Fisher information."""
        return 0, new

    def begin(self, kept: State, lesson: Lesson) -> Held:
        """Return what parameters are held by: nothing in the first task."""
        names = [name.removeprefix("fisher/") for name in kept if name.startswith("fisher/")]
        return {name: (lesson.tensor(kept[f"fisher/{name}"]), lesson.tensor(kept[f"anchor/{name}"])) for name in names}

    def gradients(self, step: Step, work: Held) -> tuple[Tensor, list[Tensor]]:
        """Return loss and gradients."""
        pulls = [
            (work[name][0] * (leaf - work[name][1]) ** 2).sum()
            for name, leaf in zip(step.lesson.names, step.leaves, strict=True) if name in work
        ]  # fmt: skip
        loss = step.loss() + self.strength / 2 * (torch.stack(pulls).sum() if pulls else step.leaves[0].sum() * 0)
        return loss, step.gradients(loss)

    def end(self, lesson: Lesson, work: Held) -> State:
        """Return the Fisher information of this task, added to what is left of that before, and where it was taken."""
        params = lesson.params[: len(lesson.names)]
        total = [torch.zeros_like(param) for param in params]
        for first in range(0, len(lesson.new), AT_ONCE):
            for sums, gradient in zip(total, lesson.of_each(lesson.new[first : first + AT_ONCE]), strict=True):
                sums += (gradient * gradient).sum(0)
        kept: State = {}
        for name, param, sums in zip(lesson.names, params, total, strict=True):
            before = work[name][0] if name in work else torch.zeros_like(param)
            kept[f"fisher/{name}"] = (sums / max(1, len(lesson.new)) + self.decay * before).cpu().numpy()
            kept[f"anchor/{name}"] = param.cpu().numpy()
        return kept


@rehearsals.register("ewc")
def ewc(*, strength: NonNegative = 100.0, decay: Annotated[float, Range(ge=0, le=1)] = 0.9) -> Ewc:
    """Online EWC: stay near the parameters after the client's last task, most where its Fisher information is large.

    The Fisher information of each task is added to *decay* times that before. Reference: Kirkpatrick et al. 2017,
    arXiv:1612.00796; Schwarz et al. 2018, arXiv:1805.06370.
    """
    return Ewc(strength, decay)
