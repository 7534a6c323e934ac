"""Terms: the local update rule as a chain, each of which makes of a gradient what the next one takes. Knows no model and no engine.

A step is ``param <- param - rate * gradient`` with what the last term hands on. Everything is stacked over clients: a term works
elementwise, or for each client and array by itself, so that a row's bits do not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fedsim.core.types import IntArray


class Term(Protocol):
    """One term of an update rule.

    One whose ``fresh`` is true returns memory that it has just made and that nobody else holds, neither its state nor what it was given:
    this may then be written over. Without that it is left as it is.
    """

    @property
    def keeps(self) -> tuple[str, ...]:
        """Return the names of what it keeps for each parameter from step to step, in arrays of the parameter's shape, 0 at first."""
        ...

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return what becomes of *gradient*. Shapes: tensors (rows, *parameter), *step* (rows,).

        *start* is what the task began with, *sent* what the server sent beside the parameters, by name; *step* counts each row's
        steps from 0, earlier tasks included where the state is kept. Only the tensors of *state* may be written to.
        """
        ...

    def flops(self, parameters: int) -> float:
        """Return what it costs a step, in floating point operations."""
        ...


@dataclass(frozen=True, slots=True)
class Proximal:
    """The gradient of mu / 2 times the squared distance to the start: FedProx's (Li et al. 2020, arXiv:1812.06127)."""

    mu: float
    keeps: tuple[str, ...] = ()
    fresh: ClassVar[bool] = True

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return g + mu (w - w_start)."""
        # Products and sums apart, here and below, never add(alpha=...): that is fused in vectorised loops and not in scalar
        # ones, and which elements fall into which depends on how many rows there are.
        return gradient + (param - start).mul_(self.mu)

    def flops(self, parameters: int) -> float:
        """Return three operations for each parameter."""
        return 3.0 * parameters


@dataclass(frozen=True, slots=True)
class WeightDecay:
    """L2 regularisation, as ``torch.optim.SGD`` and ``Adam`` have it: decay * w is added to the gradient."""

    decay: float
    keeps: tuple[str, ...] = ()
    fresh: ClassVar[bool] = True

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return g + decay * w."""
        return gradient + param * self.decay

    def flops(self, parameters: int) -> float:
        """Return two operations for each parameter."""
        return 2.0 * parameters


@dataclass(frozen=True, slots=True)
class Momentum:
    """Heavy-ball or Nesterov momentum, as in ``torch.optim.SGD`` without dampening: the first step's is the gradient itself."""

    momentum: float
    nesterov: bool = False
    keeps: tuple[str, ...] = ("momentum",)

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return m <- momentum * m + g, or with Nesterov g + momentum * m."""
        moment, first = state["momentum"], step == 0
        if not first.all():
            moment.mul_(self.momentum).add_(gradient)
        if first.any():  # 0 * momentum + g would be g, but for the sign of a zero.
            rows = torch.from_numpy(first).to(gradient.device)
            moment[rows] = gradient[rows]
        return gradient + moment * self.momentum if self.nesterov else moment

    def flops(self, parameters: int) -> float:
        """Return two operations for each parameter, and two more with Nesterov."""
        return 2.0 * parameters * (1 + self.nesterov)


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam's direction (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), as ``torch.optim.Adam`` computes it."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    keeps: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    fresh: ClassVar[bool] = True

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return m' / (sqrt(v') + eps), with both averages corrected for their begin at 0."""
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        spare = gradient * (1 - self.beta1)  # Written over twice: memory at hand is quicker than new.
        mean.mul_(self.beta1).add_(spare)
        square.mul_(self.beta2).add_(torch.mul(gradient, gradient, out=spare).mul_(1 - self.beta2))
        first = per_row(step, gradient, lambda steps: 1 - self.beta1**steps)
        second = per_row(step, gradient, lambda steps: math.sqrt(1 - self.beta2**steps))
        return (mean / first).div_(torch.sqrt(square, out=spare).div_(second).add_(self.eps))

    def flops(self, parameters: int) -> float:
        """Return twelve operations for each parameter."""
        return 12.0 * parameters


def per_row(step: IntArray, like: Tensor, number: Callable[[int], float]) -> Tensor:
    """Return the *number* of how many steps each row will have taken, in Python's own float64, so shaped that it multiplies *like*.

    Shapes: (rows,) -> (rows, 1, ...).
    """
    taken = step.tolist()
    numbers = [number(taken[0] + 1)] if len(set(taken)) == 1 else [number(steps + 1) for steps in taken]
    return torch.tensor(numbers, dtype=torch.float64).to(like).view(-1, *[1] * (like.ndim - 1))


def flops_of(terms: Sequence[Term], parameters: int) -> float:
    """Return what one update costs beyond the gradient: the terms, and two operations for each parameter for the step itself."""
    return 2.0 * parameters + sum(term.flops(parameters) for term in terms)
