"""Gradients of single examples: what of them is signal, and what is noise. Memory is bounded, whatever the model and their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, vmap  # pyright: ignore[reportUnknownVariableType]

from fedsim.learn.engine.lengths import squared_lengths
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
    return noises(model, objective, params, x, y, [len(x)])[0]


def noises(
    model: nn.Module, objective: Objective, params: Sequence[Tensor], x: Tensor, y: Tensor, sizes: Sequence[int]
) -> list[tuple[float, float]]:
    """Return the same for several sets of examples at the same *params*, one after the other in (x, y), of *sizes*: it calls less."""
    names, count = list(travelling(model)), len(trainable(model))
    rest = dict(zip(names[count:], params[count:], strict=True))
    leaves = [param.detach() for param in params[:count]]

    def loss(some: list[Tensor], one: Tensor, target: Tensor) -> Tensor:
        outputs = called(model, {**dict(zip(names, some, strict=False)), **rest}, one.unsqueeze(0))
        return objective.loss(outputs, target.unsqueeze(0))

    each = max(1, PIECE_BYTES // max(1, sum(leaf.numel() * leaf.element_size() for leaf in leaves)))
    found: list[tuple[float, float]] = []
    total, sums, done, want = 0.0, list[Tensor](), 0, list(sizes)
    with evaluating(model), seeded(0):  # Whatever draws here draws of its own.
        for begin in range(0, len(x), each):
            gradients = of_each(loss, leaves, x[begin : begin + each], y[begin : begin + each])
            lengths, first = squared_lengths(gradients).tolist(), 0
            while first < len(lengths):  # As far as the piece goes, or to the end of a set.
                last = min(len(lengths), first + want[len(found)] - done)
                part = [gradient[first:last].sum(dim=0) for gradient in gradients]
                sums = [a.double() + b for a, b in zip(sums, part, strict=True)] if sums else part
                total, done, first = total + sum(lengths[first:last]), done + last - first, last
                if done == want[len(found)]:
                    mean = float(squared_lengths([(whole / done).unsqueeze(0) for whole in sums])[0])
                    trace = max(0.0, total - done * mean) / (done - 1)
                    found.append((trace, mean - trace / done))
                    total, sums, done = 0.0, [], 0
    return found


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
