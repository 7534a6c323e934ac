"""Terms that divide by a root of squared gradients: RMSprop and Adagrad. Adam's stands beside the others (``terms``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.core.types import IntArray
from fedsim.learn.terms import per_row


@dataclass(frozen=True, slots=True)
class RmsProp:
    """RMSprop's direction (Hinton 2012; *centered*: Graves 2013, arXiv:1308.0850), as ``torch.optim.RMSprop`` computes it."""

    alpha: float = 0.99
    eps: float = 1e-8
    centered: bool = False
    fresh: ClassVar[bool] = True

    @property
    def keeps(self) -> tuple[str, ...]:
        """Return the average of squares, and of gradients where they are taken off."""
        return ("square_avg", "grad_avg") if self.centered else ("square_avg",)

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return g / (sqrt(s) + eps), where s <- alpha s + (1 - alpha) g^2, less the square of the average of g when centered."""
        square = state["square_avg"]
        square.mul_(self.alpha).add_((gradient * gradient).mul_(1 - self.alpha))
        if not self.centered:
            return gradient / square.sqrt().add_(self.eps)
        mean = state["grad_avg"]
        mean.add_((gradient - mean).mul_(1 - self.alpha))
        # Rounding may take a variance of nothing below 0, of which torch makes NaN.
        return gradient / (square - mean * mean).clamp_(min=0.0).sqrt_().add_(self.eps)

    def flops(self, parameters: int) -> float:
        """Return seven operations for each parameter, and six more when centered."""
        return (13.0 if self.centered else 7.0) * parameters


@dataclass(frozen=True, slots=True)
class Adagrad:
    """Adagrad's direction (Duchi et al. 2011, JMLR 12), as ``torch.optim.Adagrad`` computes it, with its rate that falls by *lr_decay*."""

    lr_decay: float = 0.0
    initial: float = 0.0
    eps: float = 1e-10
    keeps: tuple[str, ...] = ("sum",)
    fresh: ClassVar[bool] = True

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return g / (sqrt(initial + sum of g^2) + eps), divided by 1 + lr_decay times the steps before."""
        total = state["sum"].add_(gradient * gradient)
        way = gradient / ((total + self.initial) if self.initial else total).sqrt().add_(self.eps)
        return way.div_(per_row(step, gradient, lambda steps: 1 + (steps - 1) * self.lr_decay)) if self.lr_decay else way

    def flops(self, parameters: int) -> float:
        """Return five operations for each parameter, and one more with a rate that falls, and with a sum that does not begin at 0."""
        return (5.0 + bool(self.lr_decay) + bool(self.initial)) * parameters
