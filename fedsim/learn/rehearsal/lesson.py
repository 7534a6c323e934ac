"""What a numeric method of rehearsal sees of a task while it trains: the lesson, and each step of it. The engine makes both.

A step is a ``Step`` for a method that makes gradients itself. One whose losses are traced, so that clients train together, sees two
halves of it: a ``Turn``, which has one client's numbers and no tensor, and a ``Seen``, which has tensors and no client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedsim.core.types import Array, IntArray
from fedsim.data.replay import Drawn

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.learn.objectives import Objective

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


@dataclass(frozen=True, slots=True)
class Turn:
    """One client's mini-batch, by number: its step in the task, the new *items*, of which the memory takes the first *inserted*, and
    what each draw replays. Shapes: items (fresh,).
    """

    number: int
    items: IntArray
    inserted: int
    drawn: Sequence[Drawn]

    @property
    def replayed(self) -> IntArray:
        """Return the items that are replayed, draw after draw."""
        return np.concatenate([drawn.items for drawn in self.drawn]) if self.drawn else self.items[:0]


@dataclass(frozen=True, slots=True)
class Seen:
    """A mini-batch as the model saw it in one pass: *fresh* new examples, then what each of *draws* replays, as many each.

    *leaves* are the trained parameters, *recalled* what the method brought to this turn. All are tensors that a trace may stand behind:
    no number of theirs can be looked at. Shapes: outputs (size, ...), y (size, ...).
    """

    objective: Objective
    outputs: Tensor
    y: Tensor
    fresh: int
    draws: int
    leaves: Sequence[Tensor]
    recalled: Sequence[Tensor]

    @property
    def replays(self) -> bool:
        """Return whether any example is replayed."""
        return len(self.y) > self.fresh

    @property
    def new(self) -> slice:
        """Return the rows of new examples."""
        return slice(self.fresh)

    @property
    def replayed(self) -> slice:
        """Return the rows of replayed examples."""
        return slice(self.fresh, len(self.y))

    def drawn(self, draw: int) -> slice:
        """Return the rows of what one draw replays."""
        each = (len(self.y) - self.fresh) // max(1, self.draws)
        return slice(self.fresh + draw * each, self.fresh + (draw + 1) * each)

    def loss(self, rows: slice = EVERY) -> Tensor:
        """Return the objective's mean loss over *rows*."""
        return self.objective.loss(self.outputs, self.y) if rows == EVERY else self.objective.loss(self.outputs[rows], self.y[rows])
