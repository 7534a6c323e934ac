"""The step of a model that cannot be traced: torch.nn and autograd, one client at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedsim.core.errors import ScenarioError
from fedsim.learn.models import called, trainable, travelling
from fedsim.learn.objectives import Objective

Run = Callable[[list[Tensor], Tensor, Tensor, Sequence[Tensor], float], tuple[Tensor, list[Tensor]]]


def eager_run(model: nn.Module, objective: Objective, plain: bool) -> Run:
    """Return the ``run`` of a Step for exactly one row. Dropout draws from torch's generator here: seed it."""
    names, count = list(travelling(model)), len(trainable(model))

    def run(views: list[Tensor], x: Tensor, y: Tensor, masks: Sequence[Tensor], rate: float) -> tuple[Tensor, list[Tensor]]:
        leaves = [view[0].detach().requires_grad_() for view in views[:count]]
        carried = [*leaves, *(view[0] for view in views[count:])]  # Buffers change in place.
        with torch.enable_grad():
            loss = objective.loss(called(model, dict(zip(names, carried, strict=True)), x[0]), y[0])
            if loss.dim():
                raise ScenarioError(
                    f"training.objective: the loss has shape {tuple(loss.shape)}; it must be one number, the batch's mean."
                )
            gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        if not plain:
            return loss.detach().unsqueeze(0), [gradient.unsqueeze(0) for gradient in gradients]
        for view, gradient in zip(views, gradients, strict=False):
            view[0].add_(gradient * rate)
        return loss.detach().unsqueeze(0), []

    return run
