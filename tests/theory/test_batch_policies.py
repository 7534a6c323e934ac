"""Batch-size policies against what they are for: the norm test's ratio, growth in the place of decay, steps of one length, goodput."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.client.equipped import Equipped
from fedsim.client.kept import Kept
from fedsim.client.offline import Offline
from fedsim.client.program import Order
from fedsim.client.sizing import Sizing
from fedsim.core.keys import Key
from fedsim.core.types import FloatArray, IntArray
from fedsim.cost.compute import ConstantCompute, LognormalCompute
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn import batch_policies, batching
from fedsim.learn.batch_policies import AHEAD, BatchPolicy, Situation, even, goodput, growing, norm_test
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.flops import Flops
from fedsim.learn.job import Job
from fedsim.learn.pace import Pace, When
from fedsim.learn.schedules import step
from fedsim.learn.store import Store
from fedsim.learn.work import NOISE, Result, Start, Task
from tests.theory.test_fedavg import Mean
from tests.theory.test_minibatches import Point, gradients

WIDE = 50
FLOPS = Flops(1.0, 3.0, WIDE)


class Quadratic:
    """w^2 / 2 in each coordinate, each example's gradient w + x with x of mean 0 and variance 1; clients by a policy, from w on."""

    def __init__(self, policy: BatchPolicy | None, job: Job, held: int, wide: int = WIDE, clients: int = 1) -> None:
        x = gradients(held, wide)
        data = Examples(x, np.zeros(held, dtype=np.int64))
        fed = Federation(1, 1, (wide,), data, {}, Key(0), pooled=data, partition=Partition(np.arange(held), np.array([0, held])))
        self.engine = CohortEngine(Point(wide, 1.0).double(), Mean(), Store(fed, torch.float64, torch.device("cpu")), many_sizes=True)
        shared = Partition(np.tile(np.arange(held), clients), np.arange(clients + 1) * held)
        everyone = dataclasses.replace(fed, partition=shared, count=clients)
        sizing = None if policy is None else Sizing(policy, ConstantCompute(1.0, 0.0), 1.0, FLOPS)
        offline = [Offline(client, everyone, Key(3)) for client in range(clients)]
        self.programs: list[Any] = [Equipped(each.number, each, sizing) for each in offline]
        self.job, self.kept, self.round = job, [Kept()] * clients, 1

    def tasks(self, w: FloatArray) -> tuple[list[Task], list[Result]]:
        """Return the next task of each client, and what comes of it. Shapes: (clients, wide)."""
        plans = [
            program.plan(Order(self.job, Start({"w": each}), self.round), kept)
            for program, kept, each in zip(self.programs, self.kept, w, strict=True)
        ]
        results = self.engine.run([task for task, _ in plans])
        found = zip(self.programs, plans, results, strict=True)
        self.kept = [after.having(program.finish(task, result, after).parts) for program, (task, after), result in found]
        self.round += 1
        return [task for task, _ in plans], results


def normed(theta: float, tasks: int = 60) -> FloatArray:
    """Return B, and what it must be for tr(Sigma) / B = theta^2 |G|^2, task by task of one step each. Shapes: -> (tasks, 2)."""
    job = Job(epochs=0, steps=1, batch_size=4, lr=0.06, sampling="replacement")
    world = Quadratic(norm_test(theta=theta, most=4096), job, 4096)
    w, rows = np.full((1, WIDE), 2.0), list[tuple[float, float]]()
    for _ in range(tasks):
        planned, results = world.tasks(w)
        rows.append((planned[0].job.batch_size, WIDE / (theta**2 * (w**2).sum())))
        w = results[0].params["w"][None]
    return np.array(rows)


def holds(rows: FloatArray) -> float:
    """Return the share of tasks whose measured ratio is at most theta^2, once it could have grown there."""
    return float((rows[3:, 0] >= rows[3:, 1]).mean())


def test_the_norm_test_keeps_its_ratio() -> None:
    """On a planted quadratic tr(Sigma) / B is at most theta^2 |G|^2 in 95 % of the tasks, and B grows as 1 / |G|^2."""
    rows = normed(0.5)
    grown = rows[rows[:, 0] > 4]
    slope = np.polyfit(np.log(grown[:, 1]), np.log(grown[:, 0]), 1)[0]

    assert holds(rows) >= 0.95
    assert slope == pytest.approx(1.0, abs=0.15) and rows[-1, 0] > 50 * rows[0, 0]
    assert np.median(grown[:, 0] / grown[:, 1]) < 2 * AHEAD  # Powers of two come on top.


def test_teeth_a_size_that_lags_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that stay, or that half the noise asks for, break the ratio."""
    monkeypatch.setattr(batch_policies, "AHEAD", 0.5)
    assert holds(normed(0.5)) < 0.9


def test_what_is_measured_is_the_noise_of_the_first_batch() -> None:
    """A result carries tr(Sigma) and |G|^2 of the examples that its first step read, at the start, to 1e-9; and they are paid for."""
    world, w = Quadratic(norm_test(), Job(epochs=2, batch_size=16), 64), np.full((1, WIDE), 0.7)
    planned, results = world.tasks(w)
    first = batching.orders(planned[0].job, planned)[0, :16]
    each = w + gradients(64, WIDE)[first]
    trace = each.var(axis=0, ddof=1).sum()

    assert float(results[0].parts[NOISE]["trace"][0]) == pytest.approx(trace, rel=1e-9)
    assert float(results[0].parts[NOISE]["square"][0]) == pytest.approx((each.mean(0) ** 2).sum() - trace / 16, rel=1e-9)
    assert FLOPS.of(planned[0]) - FLOPS.of(dataclasses.replace(planned[0], gauged=0)) == 16 * FLOPS.training
    assert NOISE not in world.kept[0].parts and world.kept[0].parts["batch"]["size"].tolist() == [16.0]
    assert not Quadratic(growing(every=1), Job(batch_size=16), 64).tasks(w)[1][0].parts


EPOCHS, AFTER, BEFORE = 12, 4, 100
"""Epochs; after how many the rate falls, or the batch grows; steps of an epoch until then."""


def curve(job: Job, policy: BatchPolicy | None) -> tuple[FloatArray, list[int]]:
    """Return the mean loss after each epoch, and the steps of each."""
    clients, wide = 64, 256
    world = Quadratic(policy, job, 4 * BEFORE, wide, clients)
    w, losses, steps = np.full((clients, wide), 0.3), list[float](), list[int]()
    for _ in range(EPOCHS):
        planned, results = world.tasks(w)
        w = np.stack([result.params["w"] for result in results])
        losses.append(float((w**2).mean()) / 2)
        steps.append(planned[0].steps)
    return np.array(losses), steps


def test_growing_the_batch_is_decaying_the_rate() -> None:
    """The rate / 5, or the batch times 5: one curve of loss by epoch, within 5 %, and a fifth of the updates (Smith et al. 2018)."""
    job = Job(batch_size=4, lr=0.03, sampling="replacement")
    decayed, many = curve(dataclasses.replace(job, pace=Pace(step(size=AFTER, gamma=0.2), "round")), None)
    grown, few = curve(job, growing(every=AFTER, factor=5.0))
    steady, _ = curve(job, None)

    assert np.abs(grown / decayed - 1).max() < 0.05
    assert few == [BEFORE] * 4 + [BEFORE // 5] * 4 + [BEFORE // 25] * 4 and many == [BEFORE] * EPOCHS
    assert steady[-1] > 2 * decayed[-1]


def test_steps_take_the_same_time() -> None:
    """On devices of all speeds the times of a step differ by no more than rounding a size does; ordered ones by far more."""
    compute, flops, policy = LognormalCompute(5.0, 0.6, 0.0, Key(2)), Flops(2e6, 6e6, 200_000), even()
    clients, job = np.arange(300), Job(batch_size=64)
    sizing = Sizing.of(policy, compute, flops, len(clients), None)
    order, speeds = Order(job, Start({})), compute.gflops(clients) * 1e9
    sizes = np.array([policy.size(64, sizing.situation(client, order, Kept(), 0.0), {}) for client in clients.tolist()])

    def times(sizes: IntArray) -> FloatArray:
        return (flops.training * sizes + flops.update(job)) / speeds

    usual = (flops.training * 64 + flops.update(job)) / (sizing.usual_gflops * 1e9)
    assert np.abs(times(sizes) / usual - 1).max() <= (0.5 * flops.training / speeds / usual).max()
    bound = float(np.sqrt(((0.5 / sizes) ** 2).mean()))
    assert times(sizes).std() / times(sizes).mean() < bound < 0.02
    assert times(np.full(300, 64)).std() / times(np.full(300, 64)).mean() > 20 * bound


def test_what_is_aggregated_has_no_bias() -> None:
    """Clients of unlike sizes of batch, weighed by examples: the mean of their gradients is that of all data. Weighed by batches not."""
    held, sizes, draws = np.array([60, 120, 300]), (4, 9, 31), 800
    x = np.random.default_rng(1).normal(size=(int(held.sum()), 8)) + np.repeat([-1.0, 0.0, 2.0], held)[:, None]
    found: list[FloatArray] = []
    for client, (size, begin) in enumerate(zip(sizes, np.cumsum(held) - held, strict=True)):
        positions, job = np.arange(begin, begin + held[client]), Job(epochs=0, steps=1, batch_size=size)
        tasks = [Task(client, n, job, Start({}), positions, Key(5).fold("client", client, "task", n)) for n in range(draws)]
        found.append(x[batching.orders(job, tasks)].mean(axis=1))
    means, error = np.stack([each.mean(0) for each in found]), np.stack([each.std(0) / np.sqrt(draws) for each in found])
    weights = held / held.sum()

    assert (np.abs(weights @ means - x.mean(0)) < 4.5 * np.sqrt((weights**2) @ error**2)).all()
    assert (np.abs(np.array(sizes) / sum(sizes) @ means - x.mean(0)) > 0.05).all()


@pytest.mark.parametrize(("phi", "fixed", "loads"), [(50.0, 20.0, np.inf), (3000.0, 2.0, np.inf), (5.0, 400.0, np.inf), (900.0, 64.0, 0.3)])
def test_goodput_is_near_the_best(phi: float, fixed: float, loads: float) -> None:
    """The size is within 10 % of the best goodput of all sizes; a device whose steps cost much besides examples takes larger ones."""
    situation = Situation(When(), 1.0, fixed, 1.0, loads)
    sizes = np.arange(1, 4097)
    seconds = np.maximum(sizes + fixed, sizes / loads)
    goodputs = sizes / seconds * (phi + 16) / (phi + sizes)
    for powers in (True, False):
        policy = goodput(most=4096, powers_of_two=powers)
        for before in (1, 64, 4096):  # It comes there from below and from above.
            kept = policy.learned({}, before, {"trace": phi, "square": 1.0, "examples": 64.0})
            for _ in range(12):
                kept = {**kept, "size": np.array([float(policy.size(16, situation, kept))])}
            assert goodputs[int(kept["size"][0]) - 1] > 0.9 * goodputs.max()
