"""FedNova: updates are divided by what their local steps amount to before they are averaged (Wang et al. 2020, arXiv:2007.07481)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsim.core.state import State
from fedsim.core.types import FloatArray, Params
from fedsim.learn.algorithms import Ended, Update, algorithms, remark, way
from fedsim.learn.job import Job
from fedsim.learn.terms import Term

NORMALISER = "normaliser"


@dataclass(frozen=True, slots=True)
class FedNova:
    """The client's half: what its steps amount to."""

    down: tuple[str, ...] = ()
    up: tuple[str, ...] = ()
    metrics: tuple[str, ...] = (NORMALISER,)
    keeps: tuple[str, ...] = ()

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return none: local steps are the optimiser's."""
        return ()

    def finish(self, job: Job, start: Params, params: Params, sent: Mapping[str, Params], kept: State, rates: FloatArray) -> Ended:
        """Return |a_i|_1, in units of the job's rate: how many plain gradients the update amounts to, with momentum and FedProx too."""
        return Ended(metrics={NORMALISER: way(job, rates) / job.lr})

    def remark(self, job: Job) -> str:
        """Return what does not go with it."""
        return remark("fednova", job)

    def server(self, clients: int) -> _Server:
        """Return the server's half."""
        return _Server()


@dataclass(frozen=True, slots=True)
class _Server:
    weights: Literal["examples"] = "examples"

    def begin(self, params: Params) -> State:
        """Return nothing."""
        return {}

    def before(self, start: Params, updates: Sequence[Update]) -> list[Params]:
        """Return x + (tau / a_i) (y_i - x), where tau = sum of p_i a_i: the average of these is FedNova's step."""
        whole = sum(update.examples for update in updates)
        tau = sum(update.examples / whole * update.metrics[NORMALISER] for update in updates)
        found: list[Params] = []
        for update in updates:
            went = update.metrics[NORMALISER] or 1.0  # At a rate of 0 nothing moved, and nothing is scaled.
            scale = {name: array.dtype.type(tau / went) for name, array in start.items()}
            found.append({name: start[name] + scale[name] * (update.params[name] - start[name]) for name in start})
        return found

    def after(self, start: Params, average: Params, updates: Sequence[Update], state: State) -> tuple[Params, State]:
        """Return the average."""
        return average, state


@algorithms.register("fednova")
def fednova() -> FedNova:
    """FedNova: clients that take more local steps do not pull harder, but for the first order of it.

    Momentum and FedProx count by what they do to a gradient; of other optimisers (adam, rmsprop, lars, ...) steps are counted alone.
    Reference: Wang et al. 2020, arXiv:2007.07481.
    """
    return FedNova()
