"""Schedules of the learning rate against torch's own, and what they are for: scaling with the batch, and FedAvg that reaches x*."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as theirs

import fedsim
from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.data.source import Examples, Pool
from fedsim.learn.controllers import plateau
from fedsim.learn.pace import Pace, When
from fedsim.learn.work import Start
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.scenario.making import made
from tests.theory.test_fedavg import CLIENTS, SIZE, curvatures, fixed_point, optimum

LR, LONG = 0.3, 120
Made = Callable[[Any], Any]
PAIRS: dict[str, tuple[dict[str, Any], Made]] = {
    "step": ({"size": 7, "gamma": 0.5}, lambda o: theirs.StepLR(o, 7, 0.5)),
    "multistep": ({"milestones": [3, 10, 11, 80], "gamma": 0.3}, lambda o: theirs.MultiStepLR(o, [3, 10, 11, 80], 0.3)),
    "exponential": ({"rate": 0.97}, lambda o: theirs.ExponentialLR(o, 0.97)),
    "cosine": ({"over": LONG, "floor": 0.1}, lambda o: theirs.CosineAnnealingLR(o, LONG, 0.1 * LR)),
    "cosine_restarts": (
        {"first": 5, "times": 2, "floor": 0.05}, lambda o: theirs.CosineAnnealingWarmRestarts(o, 5, 2, 0.05 * LR),
    ),
    "polynomial": ({"over": 90, "power": 2.5}, lambda o: theirs.PolynomialLR(o, 90, 2.5)),
    "one_cycle": (
        {"over": LONG, "rise": 0.25, "start": 0.1, "end": 1e-3},
        lambda o: theirs.OneCycleLR(o, LR, LONG, pct_start=0.25, div_factor=10, final_div_factor=100, cycle_momentum=False),
    ),
    "constant": ({}, lambda o: theirs.LambdaLR(o, lambda _: 1.0)),
}  # fmt: skip
"""By kind: its settings, and torch's."""


def torchs(make: Made, steps: int = LONG) -> np.ndarray:
    """Return the rates of torch's schedule, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    schedule, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return np.array(rates)


@pytest.mark.parametrize("kind", list(PAIRS))
def test_rates_are_torchs(kind: str) -> None:
    """At each step the rate is that of ``torch.optim.lr_scheduler``, to 1e-12; another kind's is not."""
    settings, make = PAIRS[kind]
    schedule = made("lr_schedule", {"kind": kind, **settings})
    ours = Pace(schedule, "local_step").rates(LR, np.full(LONG, 8), When())

    assert np.abs(ours - torchs(make)).max() < 1e-12
    assert kind == "constant" or np.abs(ours - LR).max() > 0.1


def test_one_cycle_may_be_linear() -> None:
    """So is OneCycleLR with straight lines."""
    schedule = made("lr_schedule", {"kind": "one_cycle", "over": 50, "anneal": "linear"})
    ours = Pace(schedule, "local_step").rates(LR, np.full(50, 8), When())

    assert np.abs(ours - torchs(lambda o: theirs.OneCycleLR(o, LR, 50, anneal_strategy="linear", cycle_momentum=False), 50)).max() < 1e-12


@pytest.mark.parametrize("kind", ["step", "cosine", "polynomial"])
def test_a_warm_up_is_sequential(kind: str) -> None:
    """A warm-up is LinearLR, after which the schedule begins from 0, as in SequentialLR; and what Goyal et al. write down."""
    settings, make = PAIRS[kind]
    pace = Pace(made("lr_schedule", {"kind": kind, **settings}), "local_step", 10.0, 0.2)
    ours = pace.rates(LR, np.full(LONG, 8), When())

    def sequential(o: Any) -> Any:
        return theirs.SequentialLR(o, [theirs.LinearLR(o, 0.2, 1.0, 10), make(o)], [10])

    assert np.abs(ours - torchs(sequential)).max() < 1e-12
    assert np.abs(ours[:11] - [LR * (0.2 + 0.8 * t / 10) for t in range(11)]).max() < 1e-15


def test_the_seeds_example() -> None:
    """0.1 * 0.96^floor(t / 10000), far into training; without stairs it falls in between."""
    times = np.array([0, 9_999, 10_000, 123_456])
    rates = [
        0.1 * made("lr_schedule", {"kind": "exponential", "rate": 0.96, "per": 10_000, "staircase": stairs}).factor(times.astype(float))
        for stairs in (True, False)
    ]

    assert np.abs(rates[0] - [0.1 * 0.96 ** math.floor(t / 10_000) for t in times]).max() < 1e-15
    assert rates[1][1] < rates[0][1]


@pytest.mark.parametrize("goal", ["min", "max"])
def test_a_plateau_is_torchs(goal: str) -> None:
    """Fed the same scores the controller has the rate of ReduceLROnPlateau, to 1e-12, and one of more patience has not."""
    rng = np.random.default_rng(4)
    scores = np.maximum(0.5, 3.0 * 0.9 ** np.arange(80)) + 0.05 * rng.normal(size=80)
    scores = scores if goal == "min" else -scores + 5.0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    torchs = theirs.ReduceLROnPlateau(optimizer, goal, 0.5, 3, 1e-3, "rel", min_lr=0.02 * LR, eps=0)  # type: ignore[arg-type]
    ours = {patience: plateau(metric="loss", goal=goal, patience=patience, factor=0.5, least=1e-3, floor=0.02) for patience in (3, 4)}  # type: ignore[arg-type]
    states, found = {p: each.first() for p, each in ours.items()}, []
    for version, score in enumerate(scores.tolist()):
        torchs.step(score)
        row = [optimizer.param_groups[0]["lr"]]
        for patience, each in ours.items():
            states[patience], changes = each.next(states[patience], version, {"loss": score})
            row.append(LR * changes["lr_factor"])
        found.append(row)
    rates = np.array(found)

    assert rates[-1, 0] == pytest.approx(0.02 * LR) and len(np.unique(rates[:, 0])) > 4
    assert np.abs(rates[:, 1] - rates[:, 0]).max() < 1e-12
    assert np.abs(rates[:, 2] - rates[:, 0]).max() > 1e-3


# What they are for.


def decayed(tmp_path: Any, lr: float, rounds: int, schedule: dict[str, Any] | None) -> np.ndarray:
    """Return where FedAvg with 10 local steps ends on the four quadratics."""
    more = {"training.schedule": schedule} if schedule else {}
    table = {
        "name": "quadratics", "data": {"source": {"kind": "tests.theory.test_fedavg:quadratics"}, "partition": {"kind": "natural"}},
        "clients": {"count": CLIENTS}, "model": {"kind": "tests.theory.test_fedavg:Point"},
        "training": {
            "steps": 10, "batch_size": "full", "optimizer": {"kind": "sgd", "lr": lr},
            "objective": {"kind": "tests.theory.test_fedavg:Mean"},
        },
        "server": {"strategy": {"kind": "FedAvg"}, "rounds": rounds}, "evaluate": {"every": rounds}, "engine": {"dtype": "float64"},
    }  # fmt: skip
    return fedsim.run(table, overrides=more, out=tmp_path / f"{len(list(tmp_path.iterdir()))}").params()["w"]


def descent(rates: np.ndarray) -> np.ndarray:
    """Return where FedAvg with 10 local steps ends on paper, at one of *rates* in each round."""
    a, b = curvatures()
    w = np.zeros(SIZE)
    for rate in rates.tolist():
        powers = [np.linalg.matrix_power(np.eye(SIZE) - rate * each, 10) for each in a]
        w = np.mean([at + power @ (w - at) for at, power in zip(b, powers, strict=True)], axis=0)
    return w


def test_decay_takes_fedavg_to_the_optimum(tmp_path: Any) -> None:
    """FedAvg stalls at its fixed point by the rate it has (METHODS B.0.1); a rate that falls to 0 takes it towards x*, as on paper."""
    best, times = optimum(), np.arange(120)
    bias = np.abs(fixed_point(0.2, 10) - best).max()
    stairs = decayed(tmp_path, 0.2, 60, {"kind": "step", "size": 20, "gamma": 0.5})
    smooth = decayed(tmp_path, 0.2, 120, {"kind": "polynomial", "over": 125, "power": 2})

    assert np.abs(descent(np.full(120, 0.2)) - fixed_point(0.2, 10)).max() < 1e-10 and bias > 0.1
    assert np.abs(stairs - fixed_point(0.05, 10)).max() < 1e-5  # 20 rounds at each rate: it stands where the last one lets it.
    assert np.abs(smooth - descent(0.2 * (1 - times / 125) ** 2)).max() < 1e-12
    assert np.abs(smooth - best).max() < 0.05 * bias
    assert np.abs(smooth - descent(0.2 * (1 - (times + 1) / 125) ** 2)).max() > 1e-6  # A round counted from 1 is told apart.


SAMPLES, PEOPLE = 64, 600


def noisy() -> Pool:
    """Clients of 64 examples, each N(0, 1): gradients of a quadratic with its noise."""
    x = np.random.default_rng(8).normal(size=(PEOPLE * SAMPLES, 1))
    part = Examples(x, np.zeros(len(x), dtype=np.int64))
    return Pool(part, 1, Examples(x[:2], np.zeros(2, dtype=np.int64)), np.repeat(np.arange(PEOPLE), SAMPLES))


class Spot(nn.Module):
    """A number w, from 1; its output for an example x is (w - x)^2 / 2."""

    flops_per_example = 4

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.w - x.reshape(-1)) ** 2


def spread(lr: float, batch: int, rule: str | None = "linear") -> tuple[float, float]:
    """Return the mean and the variance of w over clients that have read their 64 examples once, in batches of *batch*."""
    scaled = {"scale_with_batch": {"rule": rule, "base": 4}} if rule else {}
    table = {
        "name": "noisy", "data": {"source": {"kind": f"{__name__}:noisy"}, "partition": {"kind": "natural"}},
        "clients": {"count": PEOPLE}, "model": {"kind": f"{__name__}:Spot"},
        "training": {
            "epochs": 1, "batch_size": batch, "optimizer": {"kind": "sgd", "lr": lr},
            "objective": {"kind": "tests.theory.test_fedavg:Mean"}, **scaled,
        },
        "server": {"strategy": {"kind": "FedAvg"}, "rounds": 1}, "engine": {"dtype": "float64"},
    }  # fmt: skip
    parts = build(load(table))
    order, start = parts.job, Start(parts.first)
    tasks = [parts.fleet.client(c).plan(Order(order, start), Kept())[0] for c in range(PEOPLE)]
    ends = np.array([float(result.params["w"][0]) for result in parts.engine.run(tasks)])
    return float(ends.mean()), float(ends.var())


def test_the_linear_rule_keeps_mean_and_variance() -> None:
    """(lr, B) and (4 lr, 4 B) are alike at equal samples where lr is small, to 5 %; without the rule, or at a large rate, not (A7)."""
    (mean, variance), (scaled_mean, scaled_variance) = spread(0.01, 4), spread(0.01, 16)

    assert mean == pytest.approx(0.99**16, rel=0.02)
    assert scaled_mean == pytest.approx(mean, rel=0.05) and scaled_variance == pytest.approx(variance, rel=0.05)
    unscaled = spread(0.01, 16, None)
    assert unscaled[0] > 1.1 * mean and unscaled[1] < 0.5 * variance
    assert spread(0.01, 16, "sqrt") == spread(0.02, 16, None)
    large, scaled_large = spread(0.2, 4), spread(0.2, 16)
    assert abs(scaled_large[0] - large[0]) > 0.2 * abs(large[0]) or abs(scaled_large[1] - large[1]) > 0.2 * large[1]
