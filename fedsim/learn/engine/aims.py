"""Aims: what a step that rehearses goes by, in the place of an objective: losses that know what was remembered, traced like any other.

A method of rehearsal says its losses as functions of tensors (``Stacked``). An ``Aim`` is such a method for mini-batches of one kind, so
many examples of which so many are new, and so it is compiled, probed and kept as every step is: with a few inputs more (what was recalled)
and a few results more (outputs, and the loss of each example where the policy is told losses). Between steps each client's memory is its
own, in numpy (``pupil``); ``together`` brings the two together. Knows no task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import Array, IntArray
from fedsim.learn.objectives import Mixed, Objective
from fedsim.learn.rehearsal import Rehearsal, Stacked, Way
from fedsim.learn.rehearsal.lesson import Lesson, Seen, Turn

Form = tuple[int, ...]
"""The shape of an array."""


@dataclass(frozen=True)
class Mixes:
    """A method that says only how examples mix, as one that says its losses; each replayed example is weighed as its policy says."""

    rehearsal: Rehearsal

    @property
    def way(self) -> Way:
        """Return how it trains."""
        return self.rehearsal.way

    def replayed(self, fresh: int, share: float | None) -> int:
        """Return how many examples one draw replays beside *fresh* new ones."""
        return self.rehearsal.replayed(fresh, share)

    def beside(self, new: int, sizes: IntArray, fresh: IntArray) -> tuple[int, int]:
        """Return how many examples pass besides mini-batches."""
        return self.rehearsal.beside(new, sizes, fresh)

    def begin(self, kept: State, lesson: Lesson) -> None:
        """Work with nothing."""

    def recalled(self, turn: Turn, work: None) -> list[Array]:
        """Return the weights of what is replayed, unless all are 1."""
        weights = np.concatenate([drawn.weights for drawn in turn.drawn]) if turn.drawn else np.ones(0)
        return [] if (weights == 1).all() else [weights]

    def losses(self, seen: Seen) -> list[Tensor]:
        """Return the loss of new and replayed examples, mixed."""
        objective, mix = seen.objective, self.way.mix
        if not seen.recalled:
            return [seen.loss() if mix == "concat" else Mixed(objective, seen.fresh, mix).loss(seen.outputs, seen.y)]
        each: Tensor = getattr(objective, "parts", objective.each)(seen.outputs, seen.y)
        replayed = (each[seen.replayed] * seen.recalled[0]).sum()
        if mix == "concat":
            return [(each[seen.new].sum() + replayed) / _mass(objective, seen.y, each)]
        new = Mixed(objective, seen.fresh, mix).loss(seen.outputs[seen.new], seen.y[seen.new])
        return [new + replayed / _mass(objective, seen.y[seen.replayed], each)]

    def followed(self, gradients: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the gradients."""
        return gradients[0]

    def noted(self, turn: Turn, outputs: Array, work: None) -> None:
        """Take no note."""

    def end(self, lesson: Lesson, work: None) -> State:
        """Keep nothing."""
        return {}


def _mass(objective: Objective, targets: Tensor, like: Tensor) -> Tensor | int:
    """Return what the mean loss over *targets* is divided by."""
    mass = getattr(objective, "mass", None)
    return len(targets) if mass is None else mass(targets).to(like.dtype)


class Aim:
    """What a mini-batch of *fresh* new examples and those of the method's draws is trained on.

    *forms* are the shapes of what the method recalls; *told* says that the loss of each example is wanted.
    """

    def __init__(self, objective: Objective, method: Stacked | Mixes, fresh: int, forms: tuple[Form, ...], *, told: bool) -> None:
        self._objective, self.method, self.forms = objective, method, forms
        self._fresh, self._told = fresh, told
        self.loss, self.each, self.sums, self.scores = objective.loss, objective.each, objective.sums, objective.scores

    @property
    def shown(self) -> int:
        """Return how many results a step gives besides gradients and loss."""
        return 1 + self._told

    def of(self, outputs: Tensor, y: Tensor, leaves: Sequence[Tensor], recalled: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the losses of a mini-batch, and what is shown of it: outputs, and the loss of each example."""
        seen = Seen(self._objective, outputs, y, self._fresh, self.method.way.draws, leaves, recalled)
        losses = list(self.method.losses(seen))
        each = [self._objective.each(outputs, y)] if self._told else []
        return losses, [shown.detach().to(leaves[0].dtype) for shown in (outputs, *each)]


def aimed(
    objective: Objective | Aim, outputs: Any, y: Tensor, leaves: Sequence[Tensor], recalled: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the losses by which *outputs* are trained on, and what a step shows besides."""
    if isinstance(objective, Aim):
        return objective.of(cast(Tensor, outputs), y, leaves, recalled)
    return [objective.loss(outputs, y)], []


def forms_of(objective: Objective | Aim) -> tuple[Form, ...]:
    """Return the shapes of what a step is given besides examples and masks."""
    return objective.forms if isinstance(objective, Aim) else ()
