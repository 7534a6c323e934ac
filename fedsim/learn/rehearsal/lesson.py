"""What a numeric method of rehearsal sees of a task while it trains: the lesson, and each step of it. The engine makes both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedsim.core.types import Array, IntArray
from fedsim.data.replay import Drawn

if TYPE_CHECKING:
    from torch import Tensor

EVERY = slice(None)


class Lesson(Protocol):
    """One task of one client at work. *Items* are numbers in the client's stream."""

    @property
    def new(self) -> IntArray:
        """Return the items that the task trains on for the first time, in order."""
        ...

    @property
    def held(self) -> IntArray:
        """Return the items remembered, as they are when the task ends."""
        ...

    @property
    def names(self) -> list[str]:
        """Return the names of the parameters that are trained."""
        ...

    @property
    def start(self) -> list[Tensor]:
        """Return the parameters and buffers that the client received."""
        ...

    @property
    def params(self) -> list[Tensor]:
        """Return the parameters and buffers as they are now, without gradients."""
        ...

    def examples(self, items: IntArray) -> tuple[Tensor, Tensor]:
        """Return the examples *items* and their targets. Shapes: (k,) -> (k, ...), (k, ...)."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the objective's mean loss."""
        ...

    def evaluated(self, params: list[Tensor], x: Tensor) -> Tensor:
        """Return the outputs for *x* of the model with *params*, evaluating and without gradient."""
        ...

    def gradients(self, loss: Tensor, leaves: list[Tensor], *, again: bool = False) -> list[Tensor]:
        """Return the gradients of *loss*; *again* if its graph is needed once more. Raises RunError for a loss that is not finite."""
        ...

    def of_each(self, items: IntArray) -> list[Tensor]:
        """Return the gradient of each example's loss by each trained parameter, at ``params``. Shapes: (k,) -> (k, *parameter) each."""
        ...

    def tensor(self, array: Array) -> Tensor:
        """Return *array* in the type of the parameters, where they are."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One mini-batch: new examples first, then what each draw replays, all through the model in one pass.

    *items* are the new ones, of which the memory takes the first *inserted* once the step is done; *x* are these examples,
    *outputs* and *y* those of all. *leaves* are the trained parameters. Shapes: (fresh,), (fresh, ...), (size, ...), (size, ...).
    """

    lesson: Lesson
    items: IntArray
    inserted: int
    drawn: Sequence[Drawn]
    x: Tensor
    outputs: Tensor
    y: Tensor
    leaves: list[Tensor]

    @property
    def fresh(self) -> int:
        """Return how many examples are new."""
        return len(self.items)

    @property
    def replays(self) -> bool:
        """Return whether any example is replayed."""
        return len(self.y) > self.fresh

    def loss(self, rows: slice = EVERY) -> Tensor:
        """Return the objective's mean loss over *rows*."""
        return self.lesson.loss(self.outputs[rows], self.y[rows])

    def gradients(self, loss: Tensor, *, again: bool = False) -> list[Tensor]:
        """Return the gradients of *loss* by the trained parameters; *again* if its graph is needed once more."""
        return self.lesson.gradients(loss, self.leaves, again=again)
