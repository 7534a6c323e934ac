"""Clipping: what becomes of a client's gradient that is too large, in each step and before all else. Knows no rule and no engine.

Not to be taken for the clipping of whole updates, which strategies do for privacy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor

from fedsim.core import answers
from fedsim.core.registry import Registry
from fedsim.core.types import Range
from fedsim.learn.terms_layers import squares

Bound = Annotated[float, Range(gt=0, why="the largest gradient that stays as it is; 1.0 is usual for a norm")]
EPS = 1e-6
"""What ``torch.nn.utils.clip_grad_norm_`` adds to a norm before it divides by it."""


class Clipping(Protocol):
    """What becomes of gradients before the rule of the update sees them."""

    def clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return what becomes of the *gradients* by all trained parameters, which stay as they are. Shapes: each (rows, *parameter).

        A row is a client, and its bits must not depend on the others.
        """
        ...

    def flops(self, parameters: int) -> float:
        """Return what it costs a step, in floating point operations."""
        ...


@dataclass(frozen=True, slots=True)
class Norm:
    """A gradient whose norm over all parameters together is above *bound* is scaled down to it: ``clip_grad_norm_`` for each client."""

    bound: float

    def clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return the gradients times min(1, bound / (norm + 1e-6)), as torch has it."""
        # Parameter by parameter, each norm anew squared: as torch takes the norm of the norms.
        norms = torch.stack([squares(gradient).sqrt() for gradient in gradients])
        total = norms[0] * norms[0]
        for norm in norms[1:]:
            total = total + norm * norm
        share = (self.bound / (total.sqrt() + EPS)).clamp_(max=1.0)
        return [gradient * share.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]

    def flops(self, parameters: int) -> float:
        """Return three operations for each parameter: a square, a sum, a product."""
        return 3.0 * parameters


@dataclass(frozen=True, slots=True)
class Value:
    """Each number of a gradient is kept within *bound* of 0: ``torch.nn.utils.clip_grad_value_``."""

    bound: float

    def clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return the gradients, between -bound and bound."""
        return [gradient.clamp(-self.bound, self.bound) for gradient in gradients]

    def flops(self, parameters: int) -> float:
        """Return two operations for each parameter: two comparisons."""
        return 2.0 * parameters


clippings: Registry[Callable[..., Clipping]] = Registry(
    "clipping", key="training.clipping", gives=answers.Gives("a Clipping", ("clipped", "flops"))
)


@clippings.register("norm")
def norm(*, bound: Bound = 1.0) -> Norm:
    """A client's gradient is scaled down to a norm, over all its parameters together (``torch.nn.utils.clip_grad_norm_``).

    Reference: Pascanu et al. 2013, arXiv:1211.5063.
    """
    return Norm(bound)


@clippings.register("value")
def value(*, bound: Bound = 1.0) -> Value:
    """Each number of a client's gradient is cut to within a bound (``torch.nn.utils.clip_grad_value_``)."""
    return Value(bound)
