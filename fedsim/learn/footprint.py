"""What memory a training step takes on a device: parameters and what goes with each, and the activations of a batch, counted.

Counted on the real model: what autograd saves for the backward pass. Knows no device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.learn.arithmetic import Arithmetic
from fedsim.learn.engine.noise import masks_of
from fedsim.learn.engine.recompute import recompute
from fedsim.learn.engine.trace import trace
from fedsim.learn.job import Job
from fedsim.learn.kept import Kept
from fedsim.learn.models import trainable, travelling
from fedsim.learn.objectives import Objective
from fedsim.learn.optim import rule
from fedsim.learn.seeded import seeded

SIZES = (8, 24)
"""The batch sizes at which activations are counted: they are a straight line in the size."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes: of one set of trained *parameters*, of all that *travels*, and of activations, *fixed* and for each *example* at once."""

    parameters: float
    travels: float
    fixed: float
    example: float

    def bytes(self, job: Job, size: int) -> float:
        """Return what a step of *job* on *size* examples at once takes.

        What travels; a gradient for each parameter; what the update rule keeps for each, and what an algorithm was sent; activations.
        """
        return self._beside(job) + self.example * size

    def most(self, job: Job, room: float) -> int:
        """Return how many examples at once leave a step of *job* within *room* bytes; 0 where not even one does."""
        rest = room - self._beside(job)
        return max(0, int(rest // self.example)) if self.example else (1 << 62) * (rest >= 0)

    def _beside(self, job: Job) -> float:
        algorithm = job.algorithm
        sets = 1 + sum(len(term.keeps) for term in rule(job)) + (len({*algorithm.down, *algorithm.keeps}) if algorithm else 0)
        return self.travels + self.parameters * sets + self.fixed


def count(model: nn.Module, objective: Objective, sample: Callable[[int], tuple[Tensor, Tensor]], arithmetic: Arithmetic) -> Footprint:
    """Return the footprint of *model*, trained as *arithmetic* says; ``sample(n)`` gives n examples, features and targets."""
    few, many = (_activations(model, objective, *sample(size), arithmetic) for size in SIZES)
    example = max(0.0, (many - few) / (SIZES[1] - SIZES[0]))
    each = [sum(t.numel() * t.element_size() for t in tensors(model).values()) for tensors in (trainable, travelling)]
    return Footprint(each[0], each[1], max(0.0, few - example * SIZES[0]), example)


def _activations(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, arithmetic: Arithmetic) -> int:
    """Return how many bytes a batch leaves for the backward pass."""
    if arithmetic.checkpointing:
        with suppress(Exception):  # What cannot be traced keeps all.
            given = sum(t.numel() * t.element_size() for t in (x, y))
            return given + recompute(trace(model, objective, x, y, masks_of(model, x), None, arithmetic).graph)
    kept, own = Kept(model, objective), {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            found[place] = tensor  # Held, so that no other comes to lie there.
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    try:
        with torch.enable_grad(), seeded(0), torch.autograd.graph.saved_tensors_hooks(pack, unpack), arithmetic.training(x.device.type):
            objective.loss(model(x), y)
    finally:
        kept.back()
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())
