"""Mini-batches against theory: the variance of their gradients, the noise that SGD is left with, and what an epoch is (METHODS A1, A2)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.core.keys import Key, picks
from fedsim.core.types import FloatArray, IntArray
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn import batching
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import FULL, Job, Sampling
from fedsim.learn.models import params_of
from fedsim.learn.store import Store
from fedsim.learn.work import Start, Task
from tests.theory.test_fedavg import Mean

HELD, WIDE, TASKS = 128, 50, 1500
SIZES = (1, 2, 4, 8, 16, 32, 64)


def gradients(examples: int, wide: int) -> FloatArray:
    """Return a gradient for each example, of mean 0 and each coordinate of variance 1. Shapes: -> (examples, wide)."""
    each = np.random.default_rng(4).normal(size=(examples, wide))
    return (each - each.mean(0)) / each.std(0)


def orders(job: Job, tasks: int = TASKS, held: int = HELD) -> IntArray:
    """Return in which order each of *tasks* reads *held* examples."""
    start, positions = Start({}), np.arange(held)
    return batching.orders(job, [Task(c, 0, job, start, positions, Key(1).fold("client", c)) for c in range(tasks)])


def spread(order: IntArray, size: int) -> float:
    """Return Var[g_B] * B / tr(Sigma) of the batches of *size* that *order* makes."""
    each = gradients(HELD, WIDE)[order.reshape(-1, size)].mean(1)
    return float((each**2).sum(1).mean()) * size / WIDE


def expected(sampling: Sampling, size: int) -> float:
    """Return what that is: 1 with replacement, (N - B) / (N - 1) where an example comes once."""
    return 1.0 if sampling == "replacement" else (HELD - size) / (HELD - 1)


@pytest.mark.parametrize("sampling", ["replacement", "reshuffle"])
def test_the_variance_of_a_batch_falls_with_its_size(sampling: Sampling) -> None:
    """Var[g_B] B is tr(Sigma) within 3 % with replacement, and (N - B) / (N - 1) of that where an epoch is reshuffled."""
    for size in SIZES:
        assert spread(orders(Job(batch_size=size, sampling=sampling)), size) == pytest.approx(expected(sampling, size), rel=0.03), size


def test_a_wrong_sampling_is_noticed() -> None:
    """Reshuffling in the place of replacement, one order for all clients, and batches that repeat an example: each is far off."""
    shuffled = orders(Job(batch_size=64))

    assert spread(shuffled, 64) < 0.6 * expected("replacement", 64)
    assert abs(spread(np.repeat(shuffled[:1], TASKS, axis=0), 64) - expected("reshuffle", 64)) > 0.03
    assert spread(np.repeat(shuffled, 2, axis=1), 2) > 1.9 * expected("replacement", 2)


def even(draws: IntArray, size: int) -> bool:
    """Return whether *draws* from 0 .. size - 1 are equally likely: chi-square, within four standard deviations."""
    counts = np.bincount(draws.ravel(), minlength=size)
    mean = draws.size / size
    return len(counts) == size and abs(((counts - mean) ** 2).sum() / mean - (size - 1)) < 4 * np.sqrt(2 * (size - 1))


def test_every_example_is_drawn_alike() -> None:
    """Draws with replacement are uniform and the next does not go by the last; rounding to the nearest halves the ends, and is noticed."""
    draws = picks([Key(3).fold(i) for i in range(2000)], np.full(2000, 10), 51)
    rounded = np.rint(np.random.default_rng(0).random(draws.shape) * 9).astype(np.int64)

    assert even(draws, 10)
    assert even(draws[:, 1:] * 10 + draws[:, :-1], 100)
    assert not even(rounded, 10)


class Point(nn.Module):
    """A w^2 / 2 + w x in each coordinate: the gradient is a w, and the example's own noise. Shapes: (b, wide) -> (b,)."""

    def __init__(self, wide: int, curvature: float) -> None:
        super().__init__()
        self.w, self.curvature = nn.Parameter(torch.zeros(wide)), curvature

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * self.w * (self.curvature / 2) + x * self.w).sum(1)


def left(job: Job, x: FloatArray, clients: int = 1, curvature: float = 1.0, sources: IntArray | None = None) -> FloatArray:
    """Return where *job* leaves each of *clients* on the examples *x*, by luck of its own. Shapes: (held, wide) -> (clients, wide)."""
    held, wide = x.shape
    data = Examples(x, np.zeros(held, dtype=np.int64))
    federation = Federation(1, 1, (wide,), data, {}, Key(0), pooled=data, partition=Partition(np.arange(held), np.array([0, held])))
    model = Point(wide, curvature).double()
    engine = CohortEngine(model, Mean(), Store(federation, torch.float64, torch.device("cpu")))
    start = Start(params_of(model))
    tasks = [Task(c, 0, job, start, np.arange(held), Key(2).fold("client", c), sources=sources) for c in range(clients)]
    return np.stack([result.params["w"] for result in engine.run(tasks)])


def test_sgd_is_left_with_the_noise_that_theory_says() -> None:
    """On a quadratic w's variance ends at eta s2 / (B a (2 - eta a)), s2 that of examples; reshuffling leaves much less."""
    eta, size, a = 0.1, 4, 1.5
    job = Job(epochs=0, steps=60, batch_size=size, lr=eta, sampling="replacement")
    theory, x = eta / (size * a * (2 - eta * a)), gradients(64, 64)

    assert left(job, x, 128, a).var() == pytest.approx(theory, rel=0.05)
    assert left(replace(job, sampling="reshuffle"), x, 32, a).var() < 0.8 * theory


@pytest.mark.parametrize("job", [Job(), Job(batch_size=64), Job(batch_size=64, sampling="sequential"), Job(batch_size=16, accumulate=4)])
def test_an_epoch_of_one_batch_is_a_step_of_gradient_descent(job: Job) -> None:
    """At B = N it follows the mean over all examples to 1e-12, in whatever order; drawn with replacement it does not."""
    x = gradients(64, 64) + np.random.default_rng(8).normal(size=64)
    descent = -0.1 * x.mean(0)

    assert np.abs(left(job, x) - descent).max() < 1e-12
    assert np.abs(left(Job(batch_size=64, sampling="replacement"), x) - descent).max() > 1e-3


def test_how_many_steps_an_epoch_has() -> None:
    """10,000 examples in batches of 100 are 100 steps, ragged ones one more; a share of an epoch is that share of them, rounded up."""
    jobs: dict[Any, Any] = {
        (1, 100): 100, (1, 99): 102, (1, 10_000): 1, (1, FULL): 1, (3, 3000): 12, (0.5, 100): 50, (0.005, 100): 1, (1e-9, 100): 1,
        (0.07, 100): 7, (2.5, 3000): 10, (0.3, 1000): 3, (1.501, 100): 151,
    }  # fmt: skip

    assert jobs == {(epochs, size): Job(epochs=epochs, batch_size=size).batches(10_000) for epochs, size in jobs}
    assert [101, 100, 26, 25, 1] == [
        Job(batch_size=100).batches(10_001), Job(batch_size=100, drop_last=True).batches(10_001),
        Job(batch_size=100, accumulate=4).batches(10_001), Job(batch_size=100, accumulate=4, drop_last=True).batches(10_001),
        Job(batch_size=100, accumulate=4, drop_last=True).batches(399),
    ]  # fmt: skip
    assert 0.07 * 100 > 7  # Rounded up as it stands it would be a step more.
