"""Local optimisers, on parameters stacked over clients: elementwise, in place, one row a client.

What is written here has the arithmetic of ``torch.optim.SGD``; stacking rows changes no bit of any row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.core.types import NonNegative, Positive
from fedsim.learn.work import Job


@dataclass(frozen=True, slots=True)
class Sgd:
    """Settings of mini-batch SGD, as a job carries them."""

    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool


def _sound(made: Sgd, _given: object) -> None:
    if made.nesterov and not made.momentum:
        raise ValueError("its nesterov is true, and wants momentum > 0; 0.9 is usual")


optimizers: Registry[Callable[..., Sgd]] = Registry(
    "optimizer", key="training.optimizer",
    gives=answers.Gives(
        "settings of an optimizer that fedsim has (sgd)", ("lr", "momentum", "weight_decay", "nesterov"),
        fields={"lr": answers.within(gt=0), "momentum": answers.within(ge=0, lt=1), "weight_decay": answers.within(ge=0),
                "nesterov": answers.truth},
        looked=_sound,
    ),
    own="Clients train with SGD and nothing else; adaptive steps are the server's: server.strategy.kind = 'FedAdam', 'FedYogi'"
    " or 'FedAdagrad'. Your own, 'package.module:name', may only choose the settings of sgd.",
)


@optimizers.register("sgd")
def sgd(
    *, lr: Positive, momentum: NonNegative = 0.0, weight_decay: NonNegative = 0.0, nesterov: bool = False
) -> Sgd:
    """Mini-batch SGD with momentum and weight decay (``torch.optim.SGD``); its state starts anew with each task."""
    if momentum >= 1:
        raise ScenarioError(f"training.optimizer.momentum = {momentum}: must be < 1; 0.9 is usual.")
    if nesterov and not momentum:
        raise ScenarioError("training.optimizer.nesterov = true: needs momentum > 0; 0.9 is usual.")
    return Sgd(lr, momentum, weight_decay, nesterov)


def flops_per_step(job: Job, parameters: int) -> float:
    """Return what one update costs beyond the gradient: 2 operations per parameter for each term of the rule."""
    terms = 1 + (job.weight_decay > 0) + (job.momentum > 0) + job.nesterov + 1.5 * (job.proximal_mu > 0)
    return 2.0 * terms * parameters


def is_plain(job: Job) -> bool:
    """Return whether the update of *job* is p <- p - lr g and nothing else."""
    return not (job.momentum or job.weight_decay or job.proximal_mu)


class Rows:
    """Stacked parameters (and buffers) of a chunk of clients, and the optimiser state that goes with them.

    Shapes: every tensor is (rows, ...). All rows follow the same job; *starts* are what they came from, possibly one
    set expanded to all rows; the first *trained* of them are parameters.
    """

    def __init__(self, job: Job, starts: list[Tensor], trained: int) -> None:
        self.job = job
        self.params = [start.clone(memory_format=torch.contiguous_format) for start in starts]
        self._starts = starts
        self._moments = [torch.zeros_like(p) for p in self.params[:trained]] if job.momentum else []

    def step(self, rows: slice | Tensor, gradients: list[Tensor], first: bool) -> None:
        """Update *rows* in place, given their gradients; *first* says that it is the task's first step."""
        job = self.job
        for i, (whole, gradient) in enumerate(zip(self.params, gradients, strict=False)):
            param = whole[rows]  # A slice is a view; an index is a copy, written back below.
            # Products and sums apart, never add(alpha=...): that is fused in vectorised loops and not in scalar ones,
            # and which elements fall into which depends on how many rows there are.
            if job.proximal_mu:
                gradient = gradient + (param - self._starts[i][rows]).mul_(job.proximal_mu)
            if job.weight_decay:
                gradient = gradient + param * job.weight_decay
            if job.momentum:
                moment = self._moments[i][rows]
                moment = moment.copy_(gradient) if first else moment.mul_(job.momentum).add_(gradient)
                if not isinstance(rows, slice):
                    self._moments[i][rows] = moment
                gradient = gradient + moment * job.momentum if job.nesterov else moment
            param.sub_(gradient * job.lr)
            if not isinstance(rows, slice):
                whole[rows] = param
