"""Gradients of single examples: what of them is signal, and what is noise. Memory is bounded, whatever the model and their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, vmap  # pyright: ignore[reportUnknownVariableType]

from fedsim.learn.engine.norms import squares
from fedsim.learn.engine.scoring import evaluating
from fedsim.learn.models import called, trainable, travelling
from fedsim.learn.objectives import Objective
from fedsim.learn.seeded import seeded

PIECE_BYTES = 32 * 2**20
"""Gradients that lie in memory at once, one example's at least."""


def noise(model: nn.Module, objective: Objective, params: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return (tr(Sigma), |G|^2) of the gradients of single examples at *params*, both estimated without bias from n > 1 examples.

    Sigma is the covariance of one example's gradient, G its mean: the sum of squared distances to the mean / (n - 1), and the squared
    length of the mean less 1 / n of that. The objective's loss of one example is its mean over a batch of one. The *model* is in its
    evaluation mode, so that no Dropout and no other example is in a gradient. *params* are all that travels, in its order.
    Shapes: x (n, ...), y (n, ...).
    """
    names, count = list(travelling(model)), len(trainable(model))
    rest = dict(zip(names[count:], params[count:], strict=True))
    leaves = [param.detach() for param in params[:count]]

    def loss(some: list[Tensor], one: Tensor, target: Tensor) -> Tensor:
        outputs = called(model, {**dict(zip(names, some, strict=False)), **rest}, one.unsqueeze(0))
        return objective.loss(outputs, target.unsqueeze(0))

    total, sums = 0.0, [torch.zeros(leaf.shape, dtype=torch.float64, device=leaf.device) for leaf in leaves]
    each = max(1, PIECE_BYTES // max(1, sum(leaf.numel() * leaf.element_size() for leaf in leaves)))
    with evaluating(model), seeded(0):  # Whatever draws here draws of its own.
        for begin in range(0, len(x), each):
            gradients = of_each(loss, leaves, x[begin : begin + each], y[begin : begin + each])
            total += float(squares(gradients).sum())
            for whole, gradient in zip(sums, gradients, strict=True):
                whole += gradient.sum(dim=0)  # At most a piece's sum is in the gradients' own type.
    n = len(x)
    mean = float(squares([(whole / n).unsqueeze(0) for whole in sums])[0])
    trace = max(0.0, total - n * mean) / (n - 1)
    return trace, mean - trace / n


def of_each(loss: Callable[[list[Tensor], Tensor, Tensor], Tensor], params: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Return the gradient of *loss* for each example by itself. Shapes: (k, ...), (k, ...) -> (k, *parameter) each."""
    try:
        return list(vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(params, x, y))
    except RuntimeError:  # What vmap has no rule for, as a GRU: one after the other, whatever the number of examples.
        each: list[Sequence[Tensor]] = []
        for i in range(len(x)):
            leaves = [param.detach().requires_grad_() for param in params]
            with torch.enable_grad():
                each.append(torch.autograd.grad(loss(leaves, x[i], y[i]), leaves, materialize_grads=True))
        return [torch.stack(gradients) for gradients in zip(*each, strict=True)]
