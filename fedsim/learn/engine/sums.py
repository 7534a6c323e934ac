"""Weighted sums over rows of stacks, on the device where these lie, in order: product by product, sum by sum, as ``weighted`` has them.

Nothing is added atomically, and no product is fused with a sum: the bits are those of one by one, wherever torch rounds as IEEE has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

Piece = tuple[Sequence[Tensor], Sequence[int], Sequence[int]]
"""Tensors (rows, ...) of a stack, which places among all its rows have, and which rows of it those are."""
BLOCK_BYTES = 2**28
"""Products that are held at a time."""


def summed(pieces: Sequence[Piece], factors: Sequence[float]) -> list[Tensor]:
    """Return the sum of the rows times their *factors*, by place, one tensor for each of a stack's."""
    whose = {place: (k, row) for k, (_, places, rows) in enumerate(pieces) for place, row in zip(places, rows, strict=True)}
    first = pieces[0][0]
    width = sum(tensor[0].numel() * tensor.element_size() for tensor in first)
    step = max(1, BLOCK_BYTES // max(1, width))
    total: list[Tensor] = []
    for begin in range(0, len(factors), step):
        mine = [whose[place] for place in range(begin, min(begin + step, len(factors)))]
        products = [_products(pieces, i, mine, factors[begin : begin + step]) for i in range(len(first))]
        for at in range(len(mine)):
            each = [product[at] for product in products]
            if total:
                cast(Any, torch)._foreach_add_(total, each)  # As torch.optim does: all tensors in one go.
            else:
                total = [one.clone() for one in each]
    return total


def _products(pieces: Sequence[Piece], i: int, mine: Sequence[tuple[int, int]], factors: Sequence[float]) -> Tensor:
    """Return the rows *mine* of tensor *i*, in their order, times their *factors*."""
    like = pieces[0][0][i]
    gathered = torch.empty(len(mine), *like.shape[1:], dtype=like.dtype, device=like.device)
    for k in sorted({k for k, _ in mine}):
        to = torch.tensor([at for at, (whose, _) in enumerate(mine) if whose == k], device=like.device)
        rows = torch.tensor([row for whose, row in mine if whose == k], device=like.device)
        gathered[to] = pieces[k][0][i].index_select(0, rows)
    scale = torch.tensor(list(factors), dtype=torch.float64, device=like.device).to(like.dtype)
    return gathered.mul_(scale.view(-1, *[1] * (like.ndim - 1)))
