"""How fast this computer takes a training step, and how fast it could multiply: timings, which no run and no clock ever reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.types import FloatArray
from fedsim.learn.engine.cohort import one_thread
from fedsim.learn.kept import Kept
from fedsim.learn.objectives import Objective
from fedsim.learn.seeded import seeded

WARM, TIMED = 3, 20
"""Steps before timing begins, and steps that are timed."""
LEAST = 5
"""Steps that are timed however long one takes."""
BUDGET_S = 2.0
"""Seconds after which no more than LEAST steps are timed."""
SIDES = (512, 1024)
"""Sides of the square matrices whose product stands for the peak; the quicker one counts."""


def step_s(model: nn.Module, objective: Objective, x: Tensor, y: Tensor) -> FloatArray:
    """Return the seconds of some steps of plain SGD on the batch (x, y), by torch's autograd, one thread. Shapes: -> (steps,).

    Process time, so that what else the computer does counts for little; on a GPU the time until it is done. A rate of 0 moves nothing.
    """
    kept, leaves = Kept(model, objective), [param for param in model.parameters() if param.requires_grad]

    def step() -> None:
        loss: Any = objective.loss(model(x), y)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf -= 0.0 * gradient

    try:
        with torch.enable_grad(), seeded(0), one_thread():
            return _timed(step, x.device)
    finally:
        kept.back()


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of the quickest of a few square matrix products, one thread: what stands for the peak."""
    rates: list[float] = []
    with torch.no_grad(), one_thread():
        for side in SIDES:
            a = torch.ones((side, side), dtype=dtype, device=device)
            out = torch.empty_like(a)
            rates.append(2.0 * side**3 / float(_timed(lambda a=a, out=out: torch.mm(a, a, out=out), device).min()))
    return max(rates)


def _timed(work: Callable[[], object], device: torch.device) -> FloatArray:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken: list[float] = []
    for turn in range(WARM + TIMED):
        before = clock()
        work()
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        taken.append(clock() - before)
        if turn + 1 >= WARM + LEAST and sum(taken) > BUDGET_S:
            break
    return np.array(taken[WARM:])
