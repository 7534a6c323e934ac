"""A model of which only sizes are known: bytes to send and operations per example. It foretells costs; it learns nothing."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch
from torch import Tensor, nn

from fedsim.core.types import Range
from fedsim.learn.models import models

ITEM_BYTES = 4
FORWARD = 3.0
"""Of the operations of training, forward and backward, a third is the forward pass: what ``flops_per_example`` is."""

Megabytes: TypeAlias = Annotated[float, Range(ge=1e-5, le=100_000, why="of parameters, in float32")]
Gflop: TypeAlias = Annotated[float, Range(gt=0, le=1e6, why="of training on one example, forward and backward")]


class Sized(nn.Module):
    """Parameters that are there to be sent; *only_sized* says that nothing is to be learned."""

    only_sized = True

    def __init__(self, outputs: int, megabytes: float, gflop_per_example: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(max(1, round(megabytes * 1e6 / ITEM_BYTES))))
        self.outputs = outputs
        self.flops_per_example = 1e9 * gflop_per_example / FORWARD

    def forward(self, x: Tensor) -> Tensor:
        """Return the same for every class. Shapes: (n, ...) -> (n, outputs)."""
        return self.weight[:1].expand(len(x), self.outputs)


@models.register("sized")
def sized(outputs: int, *, megabytes: Megabytes, gflop_per_example: Gflop) -> nn.Module:
    """Stand in for a model of which only its size and its cost are known: for ``fedsim check`` and ``fedsim size``.

    *megabytes* are its parameters, in float32; *gflop_per_example* is what training on one example takes, forward and backward pass.
    """
    return Sized(outputs, megabytes, gflop_per_example)
