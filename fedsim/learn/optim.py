"""Local optimisers: what each makes of the settings of a scenario and of a job, as terms of the update rule. Knows no engine.

The arithmetic is that of ``torch.optim``, elementwise and in place; stacking rows changes no bit of any row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.core.types import NonNegative, Positive, Range
from fedsim.learn import terms
from fedsim.learn.job import Job
from fedsim.learn.terms import Term

Beta = Annotated[float, Range(ge=0, lt=1, why="the share of the past in a moving average")]
Momentum = Annotated[float, Range(ge=0, lt=1, why="the share of the last update that goes on; 0.9 is usual")]
Passed = Annotated[int, Range(ge=1, why="the examples of a client times all the epochs that it trains")]
KEEPS = Literal["reset", "keep"]


class Optimizer(Protocol):
    """A local optimiser: a learning rate, and the terms of its rule."""

    @property
    def lr(self) -> float:
        """Return the learning rate, where no message orders another."""
        ...

    @property
    def state(self) -> KEEPS:
        """Return whether what its terms keep starts anew with each task, or stays with the client."""
        ...

    def terms(self, job: Job) -> Sequence[Term]:
        """Return the terms of the rule for *job*, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Sgd:
    """Mini-batch SGD. A job carries these settings, so that a message may order others: the rule goes by the job's."""

    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool
    state: KEEPS = "reset"

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return weight decay and momentum, those that *job* has."""
        decay = (terms.WeightDecay(job.weight_decay),) if job.weight_decay else ()
        return (*decay, terms.Momentum(job.momentum, job.nesterov)) if job.momentum else decay


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam, as ``torch.optim.Adam``; with *decoupled* weight decay AdamW, as ``torch.optim.AdamW``.

    *normalised_over* makes its weight decay a normalised one: times the root of the batch size over so many examples.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    state: KEEPS
    decoupled: bool = False
    normalised_over: int | None = None

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return Adam's direction, and weight decay, where there is any: of the gradient, or decoupled of the direction."""
        decay = (terms.WeightDecay(self.decay(job)),) if self.weight_decay else ()
        # p - lr (d + decay p) is torch's p (1 - lr decay) - lr d, but for rounding.
        adam = terms.Adam(self.beta1, self.beta2, self.eps)
        return (adam, *decay) if self.decoupled else (*decay, adam)

    def decay(self, job: Job) -> float:
        """Return the weight decay of *job*.

        >>> AdamW = Adam(0.001, 0.9, 0.999, 1e-8, 0.5, "reset", True, normalised_over=6400)
        >>> AdamW.decay(Job(batch_size=16)), AdamW.decay(Job(batch_size=32, accumulate=2))
        (0.025, 0.05)
        """
        if self.normalised_over is None:
            return self.weight_decay
        return self.weight_decay * math.sqrt(job.batch_size * job.accumulate / self.normalised_over)


def _sound(made: Optimizer, _given: object) -> None:
    if not isinstance(made, Sgd):
        return
    for name, check in (("momentum", answers.within(ge=0, lt=1)), ("weight_decay", answers.within(ge=0)), ("nesterov", answers.truth)):
        try:
            check(getattr(made, name))
        except ValueError as error:
            raise ValueError(f"its {name} is {error}") from error
    if made.nesterov and not made.momentum:
        raise ValueError("its nesterov is true, and wants momentum > 0; 0.9 is usual")


optimizers: Registry[Callable[..., Optimizer]] = Registry(
    "optimizer", key="training.optimizer",
    gives=answers.Gives(
        "an Optimizer, as that of sgd", ("lr", "state", "terms"), looked=_sound,
        fields={"lr": answers.within(gt=0), "state": answers.among("reset", "keep")},
    ),
)  # fmt: skip


@optimizers.register("sgd")
def sgd(
    *, lr: Positive, momentum: Momentum = 0.0, weight_decay: NonNegative = 0.0, nesterov: bool = False, state: KEEPS = "reset"
) -> Sgd:
    """Mini-batch SGD with momentum and weight decay (``torch.optim.SGD``); its momentum starts anew with each task, or is kept."""
    if nesterov and not momentum:
        raise ScenarioError("training.optimizer.nesterov = true: needs momentum > 0; 0.9 is usual.")
    if state == "keep" and not momentum:
        raise ScenarioError("training.optimizer.state = 'keep': there is nothing to keep without momentum; 0.9 is usual.")
    return Sgd(lr, momentum, weight_decay, nesterov, state)


@optimizers.register("adam")
def adam(
    *, lr: Positive = 0.001, beta1: Beta = 0.9, beta2: Beta = 0.999, eps: Positive = 1e-8, weight_decay: NonNegative = 0.0,
    state: KEEPS = "reset",
) -> Adam:  # fmt: skip
    """Adam (``torch.optim.Adam``); its moving averages start anew with each task, or stay on the client (``keep``).

    Reference: Kingma & Ba 2015, arXiv:1412.6980.
    """
    return Adam(lr, beta1, beta2, eps, weight_decay, state)


@optimizers.register("adamw")
def adamw(
    *, lr: Positive = 0.001, beta1: Beta = 0.9, beta2: Beta = 0.999, eps: Positive = 1e-8, weight_decay: NonNegative = 0.01,
    normalised_over: Passed | None = None, state: KEEPS = "reset",
) -> Adam:  # fmt: skip
    """Adam with weight decay apart from the gradient (``torch.optim.AdamW``): it pulls all parameters alike, by lr times it.

    With *normalised_over* = N T, the N examples of a client times all the epochs T that it trains, the pull is weight_decay times
    the root of B / (N T) for batches of B (section B.1 of the paper; there it is not times lr), so that one setting serves shorter and
    longer training, and with ``scale_with_batch`` by the root any batch size: the pull of all training together stays.
    Reference: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    return Adam(lr, beta1, beta2, eps, weight_decay, state, decoupled=True, normalised_over=normalised_over)


def rule(job: Job) -> tuple[Term, ...]:
    """Return the terms of the update that *job* orders, in order: the algorithm's, FedProx's, then the optimiser's.

    None at all is ``p <- p - lr g``.
    """
    proximal = (terms.Proximal(job.proximal_mu),) if job.proximal_mu else ()
    optimizer = job.optimizer or Sgd(job.lr, job.momentum, job.weight_decay, job.nesterov)
    return (*(job.algorithm.terms(job) if job.algorithm else ()), *proximal, *optimizer.terms(job))


def is_plain(job: Job) -> bool:
    """Return whether the update that *job* orders is p <- p - lr g and nothing else, which goes into the compiled step."""
    return job.clipping is None and not rule(job)


def flops_of(job: Job, parameters: int) -> float:
    """Return what one update of *job* costs beyond the gradient."""
    clipping = job.clipping.flops(parameters) if job.clipping else 0.0
    return clipping + terms.flops_of(rule(job), parameters)
