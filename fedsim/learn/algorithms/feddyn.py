"""FedDyn: a dynamic regulariser lets the clients' optima agree with the server's (Acar et al. 2021, arXiv:2111.04263)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from fedsim.core.state import State
from fedsim.core.types import FloatArray, IntArray, Params, Positive
from fedsim.learn.algorithms import Ended, Update, algorithms
from fedsim.learn.job import Job
from fedsim.learn.terms import Proximal, Term


@dataclass(frozen=True, slots=True)
class _Tilt:
    """The gradient, less what the client's last tasks left."""

    keeps: tuple[str, ...] = ("tilt",)

    def apply(
        self, gradient: Tensor, param: Tensor, start: Tensor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], step: IntArray
    ) -> Tensor:
        """Return g - h_i."""
        return gradient - state["tilt"]

    def flops(self, parameters: int) -> float:
        """Return one operation for each parameter."""
        return 1.0 * parameters


@dataclass(frozen=True, slots=True)
class FedDyn:
    """The client's half: local training is of f_i(y) - <h_i, y> + alpha / 2 |y - x|^2."""

    alpha: float
    down: tuple[str, ...] = ()
    up: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ("tilt",)

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return the tilt and the proximal term."""
        return (_Tilt(), Proximal(self.alpha))

    def finish(self, job: Job, start: Params, params: Params, sent: Mapping[str, Params], kept: State, rates: FloatArray) -> Ended:
        """Keep h_i - alpha (y_i - x): the gradient at y_i, were it the optimum."""
        after: State = {}
        for name, array in params.items():
            moved = array.dtype.type(self.alpha) * (array - start[name])
            after[f"tilt/{name}"] = kept.get(f"tilt/{name}", np.zeros_like(array)) - moved
        return Ended(kept=after)

    def server(self, clients: int) -> _Server:
        """Return the server's half."""
        return _Server(self.alpha, clients)


@dataclass(frozen=True, slots=True)
class _Server:
    alpha: float
    clients: int
    weights: Literal["uniform"] = "uniform"

    def begin(self, params: Params) -> State:
        """Return h = 0."""
        return {f"tilt/{name}": np.zeros_like(array) for name, array in params.items()}

    def before(self, start: Params, updates: Sequence[Update]) -> list[Params]:
        """Return the parameters as they are."""
        return [update.params for update in updates]

    def after(self, start: Params, average: Params, updates: Sequence[Update], state: State) -> tuple[Params, State]:
        """Return the average less h / alpha, where h <- h - alpha / N times the sum of y_i - x."""
        model, tilts = dict(average), State()
        for name in start:
            kind = start[name].dtype.type
            total = sum((update.params[name] - start[name] for update in updates), np.zeros_like(start[name]))
            tilts[f"tilt/{name}"] = state[f"tilt/{name}"] - kind(self.alpha / self.clients) * total
            model[name] = average[name] - tilts[f"tilt/{name}"] / kind(self.alpha)
        return model, tilts


@algorithms.register("feddyn")
def feddyn(*, alpha: Positive = 0.01) -> FedDyn:
    """FedDyn: each client's objective is tilted by what it was at its last optimum, and the server's model by the mean of these.

    Replies weigh the same, whatever their examples. Reference: Acar et al. 2021, arXiv:2111.04263.
    """
    return FedDyn(alpha)
