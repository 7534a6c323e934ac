"""The step of a model that cannot be traced: torch.nn and autograd, one client at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedsim.core.errors import ScenarioError
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.engine.aims import Aim, aimed
from fedsim.learn.kept import Kept, worn
from fedsim.learn.models import hooked, hooks, trainable, travelling
from fedsim.learn.objectives import Objective
from fedsim.learn.seeded import seeded

Run = Callable[[list[Tensor], Tensor, Tensor, Sequence[Tensor], float | Tensor], tuple[Tensor, list[Tensor]]]


def eager_run(model: nn.Module, objective: Objective, plain: bool, arithmetic: Arithmetic = PLAIN) -> Run:
    """Return the ``run`` of a Step for exactly one row. Dropout draws from torch's generator here: seed it."""
    names, count, own = list(travelling(model)), len(trainable(model)), hooks(model)

    def run(views: list[Tensor], x: Tensor, y: Tensor, masks: Sequence[Tensor], rate: float | Tensor) -> tuple[Tensor, list[Tensor]]:
        leaves = [view[0].detach().requires_grad_() for view in views[:count]]
        carried = [*leaves, *(view[0] for view in views[count:])]  # Buffers change in place.
        tensors = dict(zip(names, carried, strict=True))
        with torch.enable_grad(), worn(model, tensors), arithmetic.training(x.device.type):
            losses, shown = aimed(objective, model(x[0]), y[0], leaves, [mask[0] for mask in masks])  # Dropout draws its own.
            loss = losses[0]
            if loss.dim():
                raise ScenarioError(
                    f"training.objective: the loss has shape {tuple(loss.shape)}; it must be one number, the batch's mean."
                )
            each = [
                hooked(own, torch.autograd.grad(one, leaves, retain_graph=one is not losses[-1], materialize_grads=True)) for one in losses
            ]
            gradients = [each.detach() for each in objective.method.followed(each)] if isinstance(objective, Aim) else each[0]
        for view, name in zip(views[count:], names[count:], strict=True):
            if tensors[name].data_ptr() != view.data_ptr():  # Assigned anew, not written into.
                view[0].copy_(tensors[name].detach())
        rest = [each.unsqueeze(0) for each in shown]
        if not plain:
            return loss.detach().unsqueeze(0), [*(gradient.unsqueeze(0) for gradient in gradients), *rest]
        for view, gradient in zip(views, gradients, strict=False):
            view[0].add_(gradient * rate)
        return loss.detach().unsqueeze(0), rest

    return run


SAME = 64
"""How many roundings apart two calls may lie that should give the same."""


def remembers(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, kept: Kept) -> bool:
    """Return whether *model*, or its objective, gives something else when it is called again: what it keeps between calls matters.

    Parameters, the buffers that travel, the batch and the seed are the same. Raises ScenarioError where it does so though all that
    lies in it is as it was: no seed makes such a run come out twice.
    """
    run = eager_run(model, objective, plain=False)

    def once() -> list[Tensor]:
        carried = [tensor.detach().clone().unsqueeze(0) for tensor in travelling(model).values()]
        with seeded(0):
            loss, gradients = run(carried, x.unsqueeze(0), y.unsqueeze(0), (), 0.0)
        return [loss, *gradients, *carried[len(gradients) :]]

    try:
        kept.back()
        first, second = once(), once()
        kept.back()
        again = once()
    except ScenarioError:
        raise
    except Exception:  # Whoever compiles it says so, in better words.
        return False
    finally:
        kept.back()
    if not _alike(first, again):
        raise ScenarioError(
            f"model.kind: {type(model).__name__} gives other numbers when it is built and called alike, so that no run of it comes out"
            f" twice. Draw from the global generators of torch, numpy or Python, which are seeded for each client, and keep what it"
            f" remembers in its attributes or buffers."
        )
    return not _alike(first, second)


def _alike(left: list[Tensor], right: list[Tensor]) -> bool:
    for a, b in zip(left, right, strict=True):
        a, b = a.nan_to_num(), b.nan_to_num()
        apart = SAME * torch.finfo(a.dtype).eps if a.device.type == "cpu" else 1e-3  # A GPU adds in another order each time.
        if a.numel() and float((a - b).abs().max()) > apart * float(a.abs().max()):
            return False
    return True
