"""Dark experience replay: remembered examples keep the outputs that the model had for them.

Kept: ``logits/items`` (m,), the items remembered, ascending, and ``logits/values`` (m, ...), the outputs of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import Array, IntArray, NonNegative
from fedsim.learn.rehearsal import Ratio, Way, rehearsals, share_of
from fedsim.learn.rehearsal.lesson import Lesson, Seen, Turn

Outputs = dict[int, Array]
"""What the model put out for each item, when it was trained on for the first time."""


@dataclass(frozen=True, slots=True)
class Der:
    """The squared distance to old outputs, times *alpha*; with *beta* the loss of a second draw, times that. See ``der``."""

    alpha: float = 0.3
    beta: float | None = None
    ratio: float = 0.5

    @property
    def way(self) -> Way:
        """Return that it compares with what was remembered; a second term takes a draw of its own."""
        return Way(numeric=True, draws=1 if self.beta is None else 2, memory=True)

    def replayed(self, fresh: int, share: float | None) -> int:
        """Return how many examples one draw replays beside *fresh* new ones."""
        return share_of(fresh, self.ratio if share is None else share)

    def beside(self, new: int, sizes: IntArray, fresh: IntArray) -> tuple[int, int]:
        """Return that nothing passes besides mini-batches: outputs are kept, not computed again."""
        return 0, 0

    def begin(self, kept: State, lesson: Lesson) -> Outputs:
        """Return the outputs of what was remembered."""
        return dict(zip(kept.get("logits/items", np.zeros(0)).tolist(), kept.get("logits/values", ()), strict=True))

    def recalled(self, turn: Turn, work: Outputs) -> list[Array]:
        """Return the old outputs of what the first draw replays."""
        return [np.stack([work[item] for item in turn.drawn[0].items.tolist()])] if len(turn.replayed) else []

    def losses(self, seen: Seen) -> list[Tensor]:
        """Return the loss of new examples, with the distance to the old outputs of replayed ones, and the loss of a second draw."""
        loss = seen.loss(seen.new)
        for old in seen.recalled:
            loss = loss + self.alpha * F.mse_loss(seen.outputs[seen.drawn(0)], old)
            if self.beta is not None:
                loss = loss + self.beta * seen.loss(seen.drawn(1))
        return [loss]

    def followed(self, gradients: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the gradients."""
        return gradients[0]

    def noted(self, turn: Turn, outputs: Array, work: Outputs) -> None:
        """Keep the outputs of examples that enter the memory."""
        work.update(zip(turn.items[: turn.inserted].tolist(), outputs, strict=False))

    def end(self, lesson: Lesson, work: Outputs) -> State:
        """Return the outputs of what is remembered now."""
        items = np.sort(lesson.held)
        missing = np.array([item for item in items.tolist() if item not in work], dtype=np.int64)
        if len(missing):  # Remembered without a step of their own, where steps are fewer than an epoch's.
            outputs = lesson.evaluated(lesson.params, lesson.examples(missing)[0])
            work.update(zip(missing.tolist(), outputs.cpu().numpy(), strict=True))
        values = [work[item] for item in items.tolist()]
        return {"logits/items": items, "logits/values": np.stack(values) if values else np.zeros((0, 1), np.float32)}


@rehearsals.register("der")
def der(*, alpha: NonNegative = 0.3, ratio: Ratio = 0.5) -> Der:
    """Dark experience replay: remembered examples keep the outputs that the model had for them.

    The squared distance to those, a mean over the outputs, times *alpha*, is added to the loss (the paper's code does so too).
    Reference: Buzzega et al. 2020, arXiv:2004.07211.
    """
    return Der(alpha, ratio=ratio)


@rehearsals.register("der++")
def der_plus_plus(*, alpha: NonNegative = 0.2, beta: NonNegative = 0.5, ratio: Ratio = 0.5) -> Der:
    """DER, plus *beta* times the cross-entropy of a second, independent draw (Buzzega et al. 2020)."""
    return Der(alpha, beta, ratio)
