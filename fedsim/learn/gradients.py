"""How noisy gradients are at a model that lies there as arrays. Knows no run and no batch size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.core.types import Params
from fedsim.learn.engine.cohort import one_thread
from fedsim.learn.engine.persample import noise
from fedsim.learn.kept import Kept
from fedsim.learn.models import travelling
from fedsim.learn.objectives import Objective

MOST, ROOM = 2048, 200_000_000
"""Examples whose gradients are looked at, at most; and numbers in all their gradients together, before they become fewer."""
FEWEST = 64


def looked_at(model: nn.Module) -> int:
    """Return how many examples are enough for *model*, and quick enough."""
    return int(min(MOST, max(FEWEST, ROOM // max(1, sum(p.numel() for p in model.parameters())))))


def noise_at(model: nn.Module, objective: Objective, params: Params, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return (tr(Sigma), |G|^2) of the examples (x, y) at *params*, by name; see ``engine.persample.noise``."""
    there = travelling(model)
    kept = Kept(model, objective)
    try:
        with one_thread():
            tensors = [torch.from_numpy(params[name].copy()).to(tensor.device, tensor.dtype) for name, tensor in there.items()]
            return noise(model, objective, tensors, x, y)
    finally:
        kept.back()
