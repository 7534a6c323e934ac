"""A-GEM: a step on new examples that gives up what would raise the loss of remembered ones. Keeps nothing between tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import Array, IntArray
from fedsim.learn.rehearsal import Ratio, Way, rehearsals, share_of
from fedsim.learn.rehearsal.lesson import Lesson, Seen, Turn


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

    def recalled(self, turn: Turn, work: None) -> list[Array]:
        """Return nothing."""
        return []

    def losses(self, seen: Seen) -> list[Tensor]:
        """Return the loss of new examples, and that of replayed ones."""
        return [seen.loss(seen.new), seen.loss(seen.replayed)] if seen.replays else [seen.loss()]

    def followed(self, gradients: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the gradients of new examples, which do not raise the loss of the replayed ones."""
        return projected(*gradients) if len(gradients) > 1 else gradients[0]

    def noted(self, turn: Turn, outputs: Array, work: None) -> None:
        """Take no note."""

    def end(self, lesson: Lesson, work: None) -> State:
        """Keep nothing."""
        return {}


def projected(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
    """Return *gradients* without what would raise the reference loss: g - (g.r / r.r) r where g.r < 0."""
    dot = torch.stack([(g.double() * r.double()).sum() for g, r in zip(gradients, reference, strict=True)]).sum()
    norm = torch.stack([(r.double() ** 2).sum() for r in reference]).sum()
    share = torch.where((dot < 0) & (norm > 0), dot / norm, 0.0)
    return [g - share.to(g.dtype) * r for g, r in zip(gradients, reference, strict=True)]


@rehearsals.register("a_gem")
def a_gem(*, ratio: Ratio = 0.5) -> AGem:
    """A-GEM: the new gradient gives up what would raise the loss of a draw from memory (Chaudhry et al. 2019, arXiv:1812.00420)."""
    return AGem(ratio)
