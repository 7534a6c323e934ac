"""Online EWC: parameters that mattered to the client's earlier tasks are held near where they were. No memory.

Kept, for each trained parameter: ``fisher/NAME``, its importance so far, and ``anchor/NAME``, what it was after the last task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import Array, IntArray, NonNegative, Range
from fedsim.learn.rehearsal import Way, rehearsals
from fedsim.learn.rehearsal.lesson import Lesson, Seen, Turn

Held = list[Array]
"""Of each parameter Fisher information and anchor, one after the other; nothing in the first task."""
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
        kinds = ("fisher", "anchor")
        return [kept[f"{kind}/{name}"] for name in lesson.names for kind in kinds] if f"fisher/{lesson.names[0]}" in kept else []

    def recalled(self, turn: Turn, work: Held) -> Held:
        """Return what parameters are held by."""
        return work

    def losses(self, seen: Seen) -> list[Tensor]:
        """Return the loss, with the pull."""
        held = zip(seen.leaves, seen.recalled[::2], seen.recalled[1::2], strict=False)
        pulls = [(fisher * (leaf - anchor) ** 2).sum() for leaf, fisher, anchor in held]
        return [seen.loss() + self.strength / 2 * torch.stack(pulls).sum() if pulls else seen.loss()]

    def followed(self, gradients: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the gradients."""
        return gradients[0]

    def noted(self, turn: Turn, outputs: Array, work: Held) -> None:
        """Take no note."""

    def end(self, lesson: Lesson, work: Held) -> State:
        """Return the Fisher information of this task, added to what is left of that before, and where it was taken."""
        params = lesson.params[: len(lesson.names)]
        total = [torch.zeros_like(param) for param in params]
        for first in range(0, len(lesson.new), AT_ONCE):
            for sums, gradient in zip(total, lesson.of_each(lesson.new[first : first + AT_ONCE]), strict=True):
                sums += (gradient * gradient).sum(0)
        kept: State = {}
        for i, (name, param, sums) in enumerate(zip(lesson.names, params, total, strict=True)):
            fisher = sums / max(1, len(lesson.new))
            kept[f"fisher/{name}"] = (fisher + self.decay * lesson.tensor(work[2 * i]) if work else fisher).cpu().numpy()
            kept[f"anchor/{name}"] = param.cpu().numpy()
        return kept


@rehearsals.register("ewc")
def ewc(*, strength: NonNegative = 100.0, decay: Annotated[float, Range(ge=0, le=1)] = 0.9) -> Ewc:
    """Online EWC: stay near the parameters after the client's last task, most where its Fisher information is large.

    The Fisher information of each task is added to *decay* times that before. Reference: Kirkpatrick et al. 2017,
    arXiv:1612.00796; Schwarz et al. 2018, arXiv:1805.06370.
    """
    return Ewc(strength, decay)
