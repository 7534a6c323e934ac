"""Loaders against theory: the throughput of a line of two, exact for fixed times, and that of queueing theory for exponential ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simpy

import fedsim
from fedsim.core.types import FloatArray
from fedsim.cost import loading
from fedsim.cost.loading import makespan
from fedsim.scenario.build import build
from fedsim.scenario.load import load

Go = Callable[..., fedsim.Run]
STEPS = 400_000


def exponential(rate: float, seed: int, steps: int = STEPS) -> FloatArray:
    return np.random.default_rng(seed).exponential(1 / rate, steps)


def throughput(depth: int, load: float = 1.0, step: float = 1.0) -> float:
    return STEPS / makespan(exponential(load, 1), exponential(step, 2), depth)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_exponential_times(depth: int) -> None:
    """At equal rates it is mu (q + 2) / (q + 3), with q = depth - 1 places between: 1/2, 2/3, 3/4, 4/5, within 1 %."""
    assert throughput(depth) == pytest.approx((depth + 1) / (depth + 2), rel=0.01)


def test_unequal_rates() -> None:
    """In turns it is 1 / (1 / l + 1 / c); far ahead it is the smaller of the two."""
    assert throughput(0, 2.0, 0.5) == pytest.approx(1 / (1 / 2.0 + 1 / 0.5), rel=0.01)
    assert throughput(1000, 2.0, 0.5) == pytest.approx(0.5, rel=0.01)
    assert throughput(1000, 0.5, 2.0) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(("load", "step"), [(1.0, 3.0), (3.0, 1.0), (2.0, 2.0)])
def test_fixed_times(load: float, step: float) -> None:
    """With fixed times all but the first are at the slower one's rate, one ahead or more; in turns they add up."""
    loads, steps = np.full(50, load), np.full(50, step)
    assert makespan(loads, steps, 0) == 50 * (load + step)
    for depth in (1, 2, 7, 100):
        assert makespan(loads, steps, depth) == 49 * max(load, step) + load + step


def in_simpy(loads: FloatArray, steps: FloatArray, places: int) -> float:
    """Return how long SimPy takes for the line, with a store of so many *places* between."""
    env = simpy.Environment()
    store = simpy.Store(env, capacity=places)

    def loader() -> Any:
        for each in loads.tolist():
            yield env.timeout(each)
            yield store.put(None)

    def trainer() -> Any:
        for step in steps.tolist():
            yield store.get()
            yield env.timeout(step)

    env.process(loader())
    env.run(env.process(trainer()))
    return env.now


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_simpys_store(depth: int) -> None:
    """It is a SimPy store with depth - 1 places, to the last bits; with a place more it is not."""
    loads, steps = exponential(1.0, 3, 300), exponential(1.1, 4, 300)
    assert makespan(loads, steps, depth) == pytest.approx(in_simpy(loads, steps, depth - 1), rel=1e-12)
    assert makespan(loads, steps, depth) > in_simpy(loads, steps, depth) * (1 + 1e-6)


def test_tasks_take_so_long(go: Go) -> None:
    """A task takes its overhead, and the line's time: known beforehand, and what was trained stays as it is."""
    settings = {"clients.compute": {"kind": "constant", "gflops": 1e-3, "overhead_s": 2.0}, "training.epochs": 2}
    plain = go(settings)
    for depth, per_s in ((0, 100.0), (2, 100.0), (2, 1e4)):
        run = go({**settings, "clients.loading": {"kind": "prefetch", "examples_per_s": per_s, "depth": depth}})
        tasks, parts = run.tasks, build(load(run.manifest["scenario"]))
        sizes = np.array([10, 10, 10] * 2)[: tasks.steps[0]]
        steps_s = (parts.fleet.flops.training * sizes + parts.fleet.flops.update(parts.job)) / 1e6
        took = (tasks.computed_s - tasks.started_s).tolist()
        assert took == pytest.approx([2.0 + makespan(sizes / per_s, steps_s, depth)] * len(tasks), rel=1e-9)
        assert tasks.waited_s.tolist() == pytest.approx([took[0] - 2.0 - steps_s.sum()] * len(tasks), rel=1e-6)
        assert run.digest != plain.digest and [*tasks.result] == [*plain.tasks.result]
        turns, bound = depth == 0, per_s < 10 / steps_s[0]
        assert ("take turns" if turns else f"{6 if bound else 0} of the 6 clients are loading bound") in str(run.manifest["notes"])


def test_teeth_one_place_more_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that lets one batch more lie ready has another throughput."""
    monkeypatch.setitem(globals(), "makespan", lambda loads, steps, depth: loading.makespan(loads, steps, depth + 1))
    for test in (test_exponential_times, test_simpys_store):
        with pytest.raises(AssertionError):
            test(2)
