"""A-GEM: a step on new examples that gives up what would raise the loss of remembered ones. Keeps nothing between tasks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import IntArray
from fedsim.learn.rehearsal import Ratio, Way, rehearsals, share_of
from fedsim.learn.rehearsal.lesson import Lesson, Step


@dataclass(frozen=True, slots=True)
class AGem:
    """The gradient of new examples, projected. See ``a_gem``."""

    ratio: float = 0.5
    way = Way(numeric=True, memory=True)

    def replayed(self, fresh: int, share: float | None) -> int:
        """Return how many examples are drawn beside *fresh* new ones."""
        return share_of(fresh, self.ratio if share is None else share)

    def beside(self, new: int, sizes: IntArray, fresh: IntArray) -> tuple[int, int]:
        """Return that nothing passes besides mini-batches."""
        return 0, 0

    def begin(self, kept: State, lesson: Lesson) -> None:
        """Work with nothing."""

    def gradients(self, step: Step, work: None) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of new examples, and its gradients, which do not raise that of the replayed ones."""
        loss = step.loss(slice(step.fresh))
        if not step.replays:
            return loss, step.gradients(loss)
        return loss, projected(step.gradients(loss, again=True), step.gradients(step.loss(slice(step.fresh, None))))

    def end(self, lesson: Lesson, work: None) -> State:
        """Keep nothing."""
        return {}


def projected(gradients: list[Tensor], reference: list[Tensor]) -> list[Tensor]:
    """Return *gradients* without what would raise the reference loss: g - (g.r / r.r) r where g.r < 0."""
    dot = sum(float((g.double() * r.double()).sum()) for g, r in zip(gradients, reference, strict=True))
    norm = sum(float((r.double() ** 2).sum()) for r in reference)
    if dot >= 0 or norm == 0:
        return gradients
    return [g - (dot / norm) * r for g, r in zip(gradients, reference, strict=True)]


@rehearsals.register("a_gem")
def a_gem(*, ratio: Ratio = 0.5) -> AGem:
    """A-GEM: the new gradient gives up what would raise the loss of a draw from memory (Chaudhry et al. 2019, arXiv:1812.00420)."""
    return AGem(ratio)
