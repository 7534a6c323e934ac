"""Early stopping: when a client has trained enough, by its own loss on examples that it keeps back. Knows no engine.

How long such a task takes depends on its own numbers, so that it is computed when it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedsim.core import answers
from fedsim.core.registry import Registry
from fedsim.core.types import Count, NonNegative


class Stopping(Protocol):
    """When a task ends before its epochs do."""

    @property
    def restores(self) -> bool:
        """Return whether the parameters of the epoch with the lowest loss are sent, and not the last."""
        ...

    def stops(self, losses: Sequence[float]) -> bool:
        """Return whether to stop after the epochs that came to *losses*, in order; infinite where a loss was no number."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """Stops once *epochs* in a row have not come *least* below the lowest loss before.

    >>> [Patience(2, 0.0).stops(losses) for losses in ([1.0], [1.0, 1.1], [1.0, 1.1, 1.2], [1.0, 1.1, 0.9])]
    [False, False, True, False]
    """

    epochs: int
    least: float
    restores: bool = True

    def stops(self, losses: Sequence[float]) -> bool:
        """Return whether that is so."""
        lowest, since = math.inf, 0
        for loss in losses:
            better = loss < lowest - self.least
            lowest, since = (loss, 0) if better else (lowest, since + 1)
        return since >= self.epochs


def _truth(given: Any, *_: Any) -> bool:
    return answers.truth(given)


stoppings: Registry[Callable[..., Stopping]] = Registry(
    "stopping", key="training.stopping",
    gives=answers.Gives("a Stopping", ("restores", "stops"), {"restores": answers.truth, "stops": _truth}),
)  # fmt: skip


@stoppings.register("patience")
def patience(*, epochs: Count = 1, least: NonNegative = 0.0, restores: bool = True) -> Patience:
    """Stop when the loss on what the client keeps back has not fallen for so many epochs (Prechelt 1998)."""
    return Patience(epochs, least, restores)
