"""Mini-batches: each epoch reads every example once, in an order of its own, whoever else is in the cohort."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from fedsim.core.keys import Key
from fedsim.core.types import IntArray
from fedsim.learn import batching
from fedsim.learn.job import Job, Sampling
from fedsim.learn.work import Start, Task
from fedsim.scenario import judge
from fedsim.scenario.build import build
from fedsim.scenario.load import load

Orders = Callable[[Job, list[Task]], IntArray]


def task(job: Job, examples: int, client: int = 0) -> Task:
    positions = np.arange(100, 100 + examples)
    return Task(client, 0, job, Start({}), positions, Key(3).fold("client", client, "task", 0))


def reshuffles(orders: Orders) -> bool:
    """Return whether three epochs over 25 examples each read all of them, in three different orders."""
    job = Job(epochs=3, batch_size=10)
    epochs = orders(job, [task(job, 25)])[0].reshape(3, 25)
    whole = all(sorted(epoch) == list(range(100, 125)) for epoch in epochs.tolist())
    return whole and len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_every_epoch_reads_everything_in_a_new_order() -> None:
    """Each example comes once an epoch, and no two epochs have one order."""
    assert reshuffles(batching.orders)


def test_one_order_for_all_epochs_is_noticed() -> None:
    """An order that is drawn once and repeated, or drawn with replacement, breaks the law above."""

    def repeated(job: Job, tasks: list[Task]) -> IntArray:
        return np.tile(batching.orders(Job(epochs=1, batch_size=10), tasks), 3)

    def replaced(job: Job, tasks: list[Task]) -> IntArray:
        return np.random.default_rng(0).choice(tasks[0].positions, (1, 75))

    assert not reshuffles(repeated)
    assert not reshuffles(replaced)


def test_steps_go_on_where_an_epoch_ends() -> None:
    """Seven steps of ten over 25 examples read two epochs and a batch, and are a longer run's beginning."""
    few, more = Job(epochs=0, steps=7, batch_size=10), Job(epochs=3, batch_size=10)

    assert [10, 10, 5, 10, 10, 5, 10] == few.sizes(25).tolist()
    assert batching.orders(more, [task(more, 25)])[0][:60].tolist() == batching.orders(few, [task(few, 25)])[0].tolist()


EVERY = pytest.mark.parametrize("sampling", get_args(Sampling))


@EVERY
def test_a_longer_task_only_appends(sampling: Sampling) -> None:
    """Half an epoch, two and a half, and three of them begin alike; another client, task or seed reads something else, but in order."""
    job = Job(epochs=3, batch_size=4, sampling=sampling)
    most = batching.orders(job, [task(job, 25)])[0].tolist()
    for epochs in (0.5, 1, 2.5):
        fewer = replace(job, epochs=epochs)
        assert most[: fewer.seen(25)] == batching.orders(fewer, [task(fewer, 25)])[0].tolist()
    others = [replace(task(job, 25), key=key) for key in (Key(3).fold("client", 0, "task", 1), Key(4).fold("client", 0, "task", 0))]
    for other in (task(job, 25, 1), *others):
        assert (sampling == "sequential") == (most == batching.orders(job, [other])[0].tolist())


def test_what_is_read_in_an_epoch() -> None:
    """In sequence each example comes where it lies; with replacement about a share of 1 - 1/e comes at all, of all alike."""
    lying, drawn = Job(epochs=2, batch_size=10, sampling="sequential"), Job(batch_size=10, sampling="replacement")
    once = batching.orders(drawn, [task(drawn, 1000)])[0]

    assert [*range(100, 125)] * 2 == batching.orders(lying, [task(lying, 25)])[0].tolist()
    assert abs(len(set(once.tolist())) / 1000 - (1 - np.exp(-1))) < 0.04
    assert once.min() >= 100 and once.max() < 1100
    assert not reshuffles(lambda _, tasks: batching.orders(replace(drawn, epochs=3), tasks))
    assert not reshuffles(lambda _, tasks: batching.orders(replace(lying, epochs=3), tasks))


@EVERY
def test_the_cohort_does_not_matter(sampling: Sampling) -> None:
    """A task's order is the same alone and among tasks of other sizes."""
    job = Job(epochs=2, batch_size=4, sampling=sampling)
    tasks = [task(job, size, client) for client, size in enumerate((9, 30, 1, 9))]
    together = batching.orders(job, tasks)

    for row, one in zip(together, tasks, strict=True):
        alone = batching.orders(job, [one])[0]
        assert alone.tolist() == row[: len(alone)].tolist()
    assert (sampling == "sequential") == (together[0][:18].tolist() == together[3][:18].tolist())


def test_a_batch_that_nobody_fills_is_told(tiny: Any) -> None:
    """Where no client fills a batch a check says that drop_last drops nothing, or that accumulating has no effect; else nothing."""

    def told(**settings: Any) -> str:
        return judge.unfilled(Job(**settings), np.array([12, 30, 1]))

    assert "" == told(batch_size=30, drop_last=True) == told(batch_size=31) == told(batch_size=29, accumulate=2) == told(drop_last=True)
    assert told(batch_size=31, drop_last=True).startswith("training.drop_last = true: drops nothing. No client has the 31 examples")
    assert "times accumulate = 2, and the most is 30" in told(batch_size=20, accumulate=2, drop_last=True)
    assert told(batch_size=30, accumulate=2).startswith("training.accumulate = 2: has no effect. No client has more examples")
    assert (told(batch_size=31, drop_last=True),) == build(load(tiny({"training.batch_size": 31, "training.drop_last": True}))).notes
