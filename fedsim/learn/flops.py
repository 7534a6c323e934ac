"""What training costs in floating-point operations, counted on the real model; the clock is made of this."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedsim.core.errors import ScenarioError
from fedsim.core.types import FloatArray
from fedsim.learn.job import Job
from fedsim.learn.models import trainable
from fedsim.learn.objectives import Objective
from fedsim.learn.operations import COSTS, Watch
from fedsim.learn.optim import flops_of
from fedsim.learn.work import Task

ELEMENTWISE = 4.0
"""Operations charged per element that a layer puts out (bias, activation, their gradients): torch counts none."""


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations per example, forward alone and with the gradient, and the number of trained parameters."""

    forward: float
    training: float
    parameters: int
    note: str = ""
    """What the count leaves out, in one sentence; empty where it leaves nothing out."""
    fixed: float = 0.0
    """Of the operations with the gradient, those that sequences take however long they are."""

    def checkpointed(self) -> Flops:
        """Return what it costs where the backward pass computes the forward pass again: 4 forward passes in the place of 3."""
        return replace(self, training=self.training + self.forward)

    def by_length(self, half: Flops) -> Flops:
        """Return it for sequences that are cut, where those *half* as long cost so much: what is between lies on a straight line."""
        return replace(self, fixed=max(0.0, 2 * half.training - self.training))

    def of(self, task: Task, steps: int | None = None) -> float:
        """Return the operations that *task* takes; where it ended early, after so many *steps*."""
        job, examples = task.job, len(task.positions)
        if job.kind == "evaluate":
            return self.forward * examples
        forward, training = task.beside
        before = self.forward * (task.tested + examples * (job.initial_loss + task.graded) + forward)
        taken, seen = (task.steps, task.seen) if steps is None else (steps, int(task.sizes[:steps].sum()))
        if task.held_back is not None:
            before += self.forward * len(task.held_back) * (taken // (task.steps // int(job.epochs)))
        if task.batches is not None and task.batches.widths is not None:
            return before + float(self.of_steps(task, taken).sum()) + self.training * task.gauged
        return before + self.training * (seen + training + task.gauged) + self.update(job) * taken

    def update(self, job: Job) -> float:
        """Return the operations of one update of the parameters, the gradient being there."""
        return flops_of(job, self.parameters)

    def of_steps(self, task: Task, steps: int) -> FloatArray:
        """Return the operations of each of the first *steps* steps of *task*, and of nothing besides. Shapes: -> (steps,)."""
        sizes, batches = task.sizes[:steps].astype(np.float64), task.batches
        if batches is None or batches.widths is None:
            return sizes * self.training + self.update(task.job)
        shares = batches.widths[:steps] / batches.longest
        return sizes * (self.fixed + (self.training - self.fixed) * shares) + self.update(task.job)


def count(model: nn.Module, objective: Objective, x: Tensor, y: Tensor) -> Flops:
    """Return what *model* costs per example of the batch (x, y), by torch's counter and a charge per element put out.

    What torch's counter leaves out is counted by ``operations.COSTS``; what neither knows is named in the note. A model
    may declare ``flops_per_example`` for the forward pass, of which training takes three times as much.
    Raises ScenarioError when neither says anything: a clock that stands still is worse than none.
    """
    parameters = sum(parameter.numel() for parameter in trainable(model).values())
    declared: Any = getattr(model, "flops_per_example", None)
    if declared is not None:
        return Flops(float(declared), 3.0 * float(declared), parameters)
    elements = 0

    def add(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        nonlocal elements
        # Recurrent layers give what they put out, then their state.
        outputs = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
        elements += outputs.numel() if isinstance(outputs, Tensor) else 0

    idle = (nn.Flatten, nn.Unflatten, nn.Identity)
    leaves = [module for module in model.modules() if not list(module.children()) and not isinstance(module, idle)]
    watch = Watch()
    hooks = [leaf.register_forward_hook(add) for leaf in leaves]
    # Between the layers: what a forward() computes by itself. Layers are charged by what they put out.
    hooks += [leaf.register_forward_pre_hook(lambda *_: setattr(watch, "open", False)) for leaf in leaves if leaf is not model]
    hooks += [leaf.register_forward_hook(lambda *_: setattr(watch, "open", True)) for leaf in leaves if leaf is not model]
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}  # A pass in training mode writes into them.
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=dict(COSTS)) as forward, watch:
            watch.open = not type(model).__module__.startswith("torch.nn")  # Else its own output is the charge.
            model(x)
            watch.open = False
        extra = ELEMENTWISE * (elements + watch.elements)
        with torch.enable_grad(), watch, FlopCounterMode(display=False, custom_mapping=dict(COSTS)) as training:
            objective.loss(model(x), y).backward()
    finally:
        for hook in hooks:
            hook.remove()
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
        model.zero_grad(set_to_none=True)
    if not training.get_total_flops():
        raise ScenarioError(
            f"model.kind: {type(model).__name__} counts zero floating-point operations, so its training would take no"
            f" time. Give it an attribute flops_per_example (forward pass, one example)."
        )
    rows = len(x)
    return Flops(
        (forward.get_total_flops() + extra / 2) / rows, (training.get_total_flops() + watch.outer + extra) / rows, parameters,
        _left_out(model, watch.uncounted),
    )  # fmt: skip


def _left_out(model: nn.Module, names: set[str]) -> str:
    if not names:
        return ""
    return (
        f"The clock does not count what these operations of {type(model).__name__} cost: {', '.join(sorted(names))}. Training"
        f" takes longer than virtual time says; an attribute flops_per_example (forward pass, one example) on the model sets it right."
    )
