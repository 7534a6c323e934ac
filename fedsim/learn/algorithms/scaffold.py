"""SCAFFOLD: control variates take the drift of local steps back (Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1, option II)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import FloatArray, IntArray, Params
from fedsim.learn.algorithms import Ended, Update, algorithms, remark, way
from fedsim.learn.job import Job
from fedsim.learn.terms import Term


@dataclass(frozen=True, slots=True)
class _Correction:
    """The gradient, less the client's control variate, plus the server's."""

    keeps: tuple[str, ...] = ("control",)

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return g - c_i + c."""
        return gradient - state["control"] + sent["control"]

    def flops(self, parameters: int) -> float:
        """Return two operations for each parameter."""
        return 2.0 * parameters


@dataclass(frozen=True, slots=True)
class Scaffold:
    """The client's half: c_i becomes what its steps came to, and what it changed by is sent."""

    down: tuple[str, ...] = ("control",)
    up: tuple[str, ...] = ("control",)
    metrics: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ("control",)

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return the correction."""
        return (_Correction(),)

    def finish(self, job: Job, start: Params, params: Params, sent: Mapping[str, Params], kept: State, rates: FloatArray) -> Ended:
        """Return c_i+ - c_i, and keep c_i+ = c_i - c + (x - y_i) / (K eta), or by how far steps with momentum go."""
        before = {name: kept.get(f"control/{name}", np.zeros_like(start[name])) for name in params}
        went = way(job, rates)
        if not went:  # At a rate of 0 nothing moved, and nothing was learned of the gradient.
            return Ended({"control": {name: np.zeros_like(start[name]) for name in params}}, {f"control/{n}": a for n, a in before.items()})
        moved = {name: (start[name] - params[name]) / start[name].dtype.type(went) for name in params}
        after = {name: before[name] - sent["control"][name] + moved[name] for name in params}
        changed = {name: after[name] - before[name] for name in params}
        return Ended({"control": changed}, {f"control/{name}": array for name, array in after.items()})

    def remark(self, job: Job) -> str:
        """Return what does not go with it."""
        return remark("scaffold", job)

    def server(self, clients: int) -> _Server:
        """Return the server's half."""
        return _Server(clients)


@dataclass(frozen=True, slots=True)
class _Server:
    clients: int
    weights: Literal["uniform"] = "uniform"

    def begin(self, params: Params) -> State:
        """Return c = 0."""
        return {f"control/{name}": np.zeros_like(array) for name, array in params.items()}

    def before(self, start: Params, updates: Sequence[Update]) -> list[Params]:
        """Return the parameters as they are."""
        return [update.params for update in updates]

    def after(self, start: Params, average: Params, updates: Sequence[Update], state: State) -> tuple[Params, State]:
        """Return the average, and c + |S| / N times the mean change of the clients' variates."""
        controls: State = {}
        for name in start:
            total = sum((update.extra["control"][name] for update in updates), np.zeros_like(start[name]))
            controls[f"control/{name}"] = state[f"control/{name}"] + total / start[name].dtype.type(self.clients)
        return average, controls


@algorithms.register("scaffold")
def scaffold() -> Scaffold:
    """SCAFFOLD, option II: each step is corrected by control variates, which travel beside the parameters both ways.

    Control variates are means of gradients where the optimiser is SGD, and of its directions, per step, with any other.
    Replies weigh the same, whatever their examples. Reference: Karimireddy et al. 2020, arXiv:1910.06378.
    """
    return Scaffold()
