"""Lengths of stacked tensors, a number for each row, whose bits do not depend on how many rows there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.learn.signal import BLOCK


def squared_lengths(tensors: Sequence[Tensor]) -> Tensor:
    """Return the squared length of each row over all *tensors*, in float64. Shapes: (rows, ...) each -> (rows,).

    Squares are added up in the tensors' own type within blocks, and blocks in float64: three times as quick as widening each number
    on a CPU, and right to some 1e-7 in float32.
    """
    total = torch.zeros(len(tensors[0]), dtype=torch.float64, device=tensors[0].device)
    for tensor in tensors:
        flat = tensor.reshape(len(tensor), -1)
        width = flat.shape[1] // BLOCK * BLOCK
        if width:
            blocks = flat[:, :width].unflatten(1, (-1, BLOCK))
            total += torch.linalg.vector_norm(blocks, dim=2).double().square().sum(dim=1)
        if width < flat.shape[1]:
            total += torch.linalg.vector_norm(flat[:, width:], dim=1, dtype=torch.float64).square()
    return total
