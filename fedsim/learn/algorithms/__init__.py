"""Algorithms: what a federated method adds to local training and to averaging, both halves in one file. Knows no strategy and no engine.

The client's half is terms of the update rule and a finish; the server's, where there is one, works on what Flower's strategy averages.
Both are pure functions of arrays. Extra arrays travel in the same record as the parameters, as ``EXTRA/PARAMETER``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.registry import Registry
from fedsim.core.state import State
from fedsim.core.types import FloatArray, Params
from fedsim.learn.job import Job
from fedsim.learn.optim import Sgd
from fedsim.learn.terms import Term


@dataclass(frozen=True, slots=True)
class Ended:
    """What a client's half makes of a task that has been trained.

    *extra* is sent beside the parameters, one array of each parameter's shape for every name in ``up``; *kept* stays with the client;
    *metrics* are sent with the others, those named in ``metrics``.
    """

    extra: Mapping[str, Params] = field(default_factory=dict[str, Params])
    kept: State = field(default_factory=dict[str, np.ndarray])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Update:
    """What a server's half is told of one reply: *params* and *extra* as sent, by parameter; *examples*, its weight in averages."""

    params: Params
    extra: Mapping[str, Params]
    examples: float
    metrics: Mapping[str, float]


class Server(Protocol):
    """The server's half: what stands around the strategy's ``aggregate_train``. Its state is named arrays, ``NAME/PARAMETER``."""

    @property
    def weights(self) -> Literal["examples", "uniform"]:
        """Return by what the strategy is to weigh the replies."""
        ...

    def begin(self, params: Params) -> State:
        """Return its state before the first round; what is named in the algorithm's ``down`` travels from there."""
        ...

    def before(self, start: Params, updates: Sequence[Update]) -> list[Params]:
        """Return the parameters of each of *updates* as the strategy is to see them."""
        ...

    def after(self, start: Params, average: Params, updates: Sequence[Update], state: State) -> tuple[Params, State]:
        """Return the next model and the next state, from the strategy's *average* of what ``before`` returned."""
        ...


class Algorithm(Protocol):
    """A federated method, by its two halves."""

    @property
    def down(self) -> tuple[str, ...]:
        """Return the names of extra arrays that the server sends, one of each parameter's shape."""
        ...

    @property
    def up(self) -> tuple[str, ...]:
        """Return the names of extra arrays that a client sends back."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the names of the metrics that ``finish`` adds to a reply."""
        ...

    @property
    def keeps(self) -> tuple[str, ...]:
        """Return the names of what a client keeps from task to task, for each parameter; terms find it in their state."""
        ...

    def terms(self, job: Job) -> Sequence[Term]:
        """Return the terms that stand before the optimiser's. Their steps are counted from the task's first."""
        ...

    def finish(self, job: Job, start: Params, params: Params, sent: Mapping[str, Params], kept: State, rates: FloatArray) -> Ended:
        """Return what follows from a trained task. *rates* are the learning rates of its steps. Shapes: (steps,)."""
        ...

    def server(self, clients: int) -> Server | None:
        """Return the server's half for a federation of *clients*; None where the strategy does all."""
        ...


@dataclass(frozen=True, slots=True)
class FedAvg:
    """No algorithm besides the strategy's: what a client trained is what it sends."""

    down: tuple[str, ...] = ()
    up: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return none."""
        return ()

    def finish(self, job: Job, start: Params, params: Params, sent: Mapping[str, Params], kept: State, rates: FloatArray) -> Ended:
        """Return nothing."""
        return Ended()

    def server(self, clients: int) -> None:
        """Return that there is none."""


algorithms: Registry[Callable[..., Algorithm]] = Registry(
    "algorithm", key="training.algorithm",
    gives=answers.Gives("an Algorithm", ("down", "up", "metrics", "keeps", "terms", "finish", "server"), fields={}),
)  # fmt: skip


@algorithms.register("fedavg")
def fedavg() -> FedAvg:
    """What the strategy says and nothing else: FedAvg with the strategy of that name (McMahan et al. 2017, arXiv:1602.05629)."""
    return FedAvg()


def way(job: Job, rates: FloatArray) -> float:
    """Return how far a gradient of 1 at each step takes a parameter: the sum of *rates*, more with momentum, less with FedProx.

    It is so for SGD, whose momentum starts anew, of clipped gradients too: what is summed is what was clipped. Of any other optimiser it
    takes the steps for plain ones (``remark`` says so).

    >>> [round(way(Job(lr=0.1, momentum=m), np.full(3, 0.1)), 12) for m in (0.0, 0.5)]
    [0.3, 0.425]
    """
    if not job.momentum and not job.proximal_mu:
        return float(rates.sum())
    total, carried = 0.0, 0.0
    for rate in rates.tolist():
        gradient = 1.0 - job.proximal_mu * total
        carried = job.momentum * carried + gradient
        total += rate * (gradient + job.momentum * carried if job.nesterov else carried)
    return total


def remark(name: str, job: Job) -> str:
    """Return what a reader must know of an algorithm that takes an update for a sum of gradients, as ``way`` does; empty where it is."""
    if job.optimizer is None:
        return ""
    summing = isinstance(job.optimizer, Sgd)  # All others divide gradients, or scale them, by what they come to.
    what = "keeps its momentum from task to task" if summing and job.optimizer.state == "keep" else "does not sum gradients"
    return (
        f"training.algorithm.kind = {name!r}: takes a client's update for the sum of its gradients, and training.optimizer {what}. It may"
        f" learn worse than without; it is made for SGD, state = 'reset'."
    )
