"""Terms that go by norms of layers: LARS and LAMB. A layer is one parameter of one client; no norm is taken over clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.types import IntArray


@dataclass(frozen=True, slots=True)
class Lars:
    """LARS's local rate (You et al. 2017, arXiv:1708.03888, equation 6), before momentum.

    With *exempt*, parameters of at most one dimension (biases, normalisation) are left as they are: no local rate, no decay.
    """

    trust: float = 0.001
    decay: float = 0.0
    exempt: bool = True
    keeps: tuple[str, ...] = ()

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return trust |w| / (|g| + decay |w|) (g + decay w); the ratio is 1 where w or g is all zeros, as where training begins at 0."""
        if self.exempt and is_exempt(gradient):
            return gradient
        weight, pull = norms(param), norms(gradient)
        ratio = weight * self.trust / (pull + weight * self.decay)
        whole = gradient + param * self.decay if self.decay else gradient
        return whole * torch.where((weight > 0) & (pull > 0), ratio, torch.ones_like(ratio))

    def flops(self, parameters: int) -> float:
        """Return five operations for each parameter, two norms and a product, and two more with weight decay."""
        return (7.0 if self.decay else 5.0) * parameters


@dataclass(frozen=True, slots=True)
class Lamb:
    """LAMB's trust ratio (You et al. 2020, arXiv:1904.00962, algorithm 2), behind Adam's direction; norms are taken as they are.

    With *exempt*, parameters of at most one dimension (biases, normalisation) follow Adam alone: no ratio, no decay.
    """

    decay: float = 0.0
    exempt: bool = True
    keeps: tuple[str, ...] = ()

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return |w| / |u| u, where u = d + decay w and d is the direction; the ratio is 1 where w or u is all zeros."""
        if self.exempt and is_exempt(gradient):
            return gradient
        whole = gradient + param * self.decay if self.decay else gradient
        weight, pull = norms(param), norms(whole)
        return whole * torch.where((weight > 0) & (pull > 0), weight / pull, torch.ones_like(weight))

    def flops(self, parameters: int) -> float:
        """Return five operations for each parameter, two norms and a product, and two more with weight decay."""
        return (7.0 if self.decay else 5.0) * parameters


def is_exempt(rows: Tensor) -> bool:
    """Return whether a parameter, of which *rows* has one for each client, has at most one dimension."""
    return rows.ndim <= 2


def squares(rows: Tensor) -> Tensor:
    """Return the sum of squares of each row, the same bits whatever the other rows. Shapes: (rows, ...) -> (rows,)."""
    # Made one dimension first, in the order of a row's numbers: over a row that lies side by side torch adds up in one order, however
    # many rows there are (tests/laws/test_optimizers.py), and how a gradient lies in memory is its kernel's matter.
    return (rows * rows).reshape(len(rows), -1).sum(1)


def norms(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of each row, so shaped that it multiplies *rows*. Shapes: (rows, ...) -> (rows, 1, ...)."""
    return squares(rows).sqrt().view(-1, *[1] * (rows.ndim - 1))
