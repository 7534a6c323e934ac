"""Controllers: what a server orders otherwise from now on, by how learning goes. Knows no round, no message and no strategy.

State goes in and comes out, and a metric is a number by its name; whoever drives the rounds asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import RunError, ScenarioError, choices
from fedsim.core.registry import Registry
from fedsim.core.state import State
from fedsim.core.types import NonNegative, Range, Share

Changes: TypeAlias = Mapping[str, float]
"""What clients are ordered in the place of what the scenario says: ``lr_factor``, on its learning rate; ``batch_size``, 0 for all
examples; ``epochs``. What is not in it is as the scenario says."""
CHANGES = ("lr_factor", "batch_size", "epochs")


class Controller(Protocol):
    """A server's own hand on what it orders, by what it has been told."""

    @property
    def changes(self) -> tuple[str, ...]:
        """Return what it may ever change; whether tasks take another time follows from that."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the metrics that it goes by, by name: of the central evaluation, or of training."""
        ...

    def first(self) -> State:
        """Return what it keeps before it was ever asked."""
        ...

    def next(self, state: State, version: int, metrics: Mapping[str, float]) -> tuple[State, Changes]:
        """Return what it keeps from now on, and what it wants, *metrics* being the latest.

        *version* is how often the server had aggregated: until it has, there are no metrics of training.
        """
        ...


def _next(given: Any, *_: Any) -> tuple[State, Changes]:
    state, changes = answers.pair(given)
    if not isinstance(changes, Mapping):
        raise ValueError(f"a {type(changes).__name__}, expected changes by name, like {{'lr_factor': 0.5}}")
    for name, value in changes.items():  # pyright: ignore[reportUnknownVariableType]
        if name not in CHANGES:
            raise ValueError(f"a change of {name!r}, expected some of {', '.join(CHANGES)}")
        try:
            _CHECKS[name](value)
        except ValueError as error:
            raise ValueError(f"{name} = {error}") from error
    return answers.state(state), changes  # pyright: ignore[reportUnknownVariableType]


_CHECKS = {"lr_factor": answers.within(gt=0), "batch_size": answers.count(0), "epochs": answers.count(1)}


def _known(given: Any, *_: Any) -> tuple[str, ...]:
    names = answers.names(given)
    if others := [name for name in names if name not in CHANGES]:
        raise ValueError(f"{others[0]!r}, expected some of {', '.join(CHANGES)}")
    return names


controllers: Registry[Callable[..., Controller]] = Registry(
    "controller", key="server.controller",
    gives=answers.Gives(
        "a Controller", ("changes", "metrics", "first", "next"),
        {"changes": _known, "metrics": answers.names, "first": answers.state, "next": _next},
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plateau:
    """Lowers the rate where a metric has not become better for some time. See ``plateau``."""

    metric: str
    rises: bool
    patience: int
    factor: float
    least: float
    floor: float
    changes: tuple[str, ...] = ("lr_factor",)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the one that it goes by."""
        return (self.metric,)

    def first(self) -> State:
        """Return that nothing was good yet."""
        return self._state(-math.inf if self.rises else math.inf, 0.0, 1.0)

    def next(self, state: State, version: int, metrics: Mapping[str, float]) -> tuple[State, Changes]:
        """Return what ``ReduceLROnPlateau.step`` makes of the metric, with threshold_mode 'rel', eps 0 and no cooldown."""
        best, bad, factor = (float(state[name]) for name in ("best", "bad", "factor"))
        if self.metric not in metrics:
            if version:
                raise RunError(
                    f"server.controller.metric = {self.metric!r}: was not told after version {version}. "
                    f"{choices(self.metric, sorted(metrics))}"
                )
            return state, {"lr_factor": factor}
        value = metrics[self.metric]
        better = value > best * (self.least + 1.0) if self.rises else value < best * (1.0 - self.least)
        best, bad = (value, 0.0) if better else (best, bad + 1.0)
        if bad > self.patience:
            factor, bad = max(factor * self.factor, self.floor), 0.0
        return self._state(best, bad, factor), {"lr_factor": factor}

    def _state(self, best: float, bad: float, factor: float) -> State:
        return {name: np.array(value) for name, value in (("best", best), ("bad", bad), ("factor", factor))}


FALLING, RISING = ("loss", "error", "mse", "rmse", "mae"), ("accuracy", "auc", "f1", "r2", "precision", "recall")
"""Last words of metrics of which everybody knows which way is better."""


def rises(metric: str, goal: Literal["min", "max"] | None) -> bool | None:
    """Return whether more of *metric* is better, as *goal* says or everybody knows; None where nobody does.

    >>> rises("accuracy", None), rises("train_loss", None), rises("lift", None), rises("lift", "max")
    (True, False, None, True)
    """
    word = metric.rpartition("_")[2]
    if goal is None and word not in (*FALLING, *RISING):
        return None
    return goal == "max" if goal else word in RISING


@controllers.register("plateau")
def plateau(
    *, metric: str = "loss", goal: Literal["min", "max"] | None = None, patience: Annotated[int, Range(ge=0)] = 10,
    factor: Annotated[float, Range(gt=0, lt=1, why="what is left of the rate")] = 0.1, least: NonNegative = 1e-4, floor: Share = 0.0,
) -> Plateau:  # fmt: skip
    """The learning rate times *factor* where a metric has not become better for more than *patience* scores (``ReduceLROnPlateau``).

    To count as better it must be so by *least* times the best, as with torch's threshold_mode 'rel'. The rate stays above *floor* times
    the scenario's. It is told with each score of the model (``evaluate.every``), that of the start included.
    """
    more = rises(metric, goal)
    if more is None:
        raise ScenarioError(f"server.controller.metric = {metric!r}: say whether less of it is better: goal = 'min', or 'max'.")
    return Plateau(metric, more, patience, factor, least, floor)
