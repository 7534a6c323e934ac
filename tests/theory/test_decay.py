"""Weight decay and the size of a batch: what stays the same when both learning rate and batch grow (METHODS A17)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job
from fedsim.learn.optim import Adam
from fedsim.learn.pace import Pace, Rule, Scaling, When, paced
from fedsim.learn.store import Store
from fedsim.learn.work import Start, Task
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from tests.theory.test_fedavg import Mean
from tests.theory.test_minibatches import Point

HELD, EPOCHS, BASE = 1024, 3, 32
SIZES = (8, 32, 128, 512)


def shrunk(job: Job, rule: Rule | None) -> float:
    """Return minus the logarithm of what weights are of what they were after *job* of a loss that is 0, the rate scaled by *rule*."""
    data = Examples(np.zeros((HELD, 1)), np.zeros(HELD, dtype=np.int64))
    federation = Federation(1, 1, (1,), data, {}, Key(0), pooled=data, partition=Partition(np.arange(HELD), np.array([0, HELD])))
    engine = CohortEngine(Point(1, 0.0).double(), Mean(), Store(federation, torch.float64, torch.device("cpu")))
    pace = None if rule is None else Pace(scaling=Scaling(rule, BASE))
    rates = paced(job.lr, pace, job.sizes(HELD), When())
    task = Task(0, 0, job, Start({"w": np.ones(1)}), np.arange(HELD), Key(2), rates=rates)
    return -float(np.log(engine.run([task])[0].params["w"][0]))


def spread(job: Job, rule: Rule | None) -> float:
    """Return the largest of what decays over batches of 8 to 512 as a share of the smallest."""
    found = [shrunk(replace(job, batch_size=size), rule) for size in SIZES]
    return max(found) / min(found)


SGD = Job(epochs=EPOCHS, lr=0.01, weight_decay=0.01)
ADAMW = Adam(0.01, 0.9, 0.999, 1e-8, 0.1, "reset", decoupled=True)


def test_decay_per_epoch_is_the_same_for_any_batch() -> None:
    """Under SGD and a rate in proportion to the batch weights shrink alike, by N lr wd / base per epoch; scaled else they do not."""
    assert shrunk(replace(SGD, batch_size=8), "linear") == pytest.approx(EPOCHS * HELD / BASE * 0.01 * 0.01, rel=1e-3)
    assert spread(SGD, "linear") < 1.001
    assert spread(SGD, "sqrt") == pytest.approx(8.0, rel=0.01)
    assert spread(SGD, None) == pytest.approx(64.0, rel=0.01)


def test_normalised_decay_is_the_same_over_all_training() -> None:
    """AdamW's normalised decay with the rate scaled by the root does as much in all, for any batch; plain decay eight times less."""
    job = Job(epochs=EPOCHS, lr=0.01, optimizer=replace(ADAMW, normalised_over=HELD * EPOCHS))
    twice = replace(job, epochs=2 * EPOCHS, optimizer=replace(ADAMW, normalised_over=2 * HELD * EPOCHS))

    assert spread(job, "sqrt") < 1.001
    assert spread(replace(job, optimizer=ADAMW), "sqrt") == pytest.approx(8.0, rel=0.01)
    # Twice as long it pulls root 2 times as much, as the paper has it.
    assert shrunk(replace(twice, batch_size=32), "sqrt") / shrunk(replace(job, batch_size=32), "sqrt") == pytest.approx(2**0.5, rel=1e-3)


def test_in_a_scenario(tiny: Any) -> None:
    """The setting comes to the rule, goes by what an update is made from, and is refused where no batch has a size."""
    asked = {"training.optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1, "normalised_over": 1200}}
    job = build(load(tiny({**asked, "training.batch_size": 4, "training.accumulate": 3}))).job

    assert isinstance(job.optimizer, Adam) and job.optimizer.decay(job) == pytest.approx(0.01)
    with pytest.raises(ScenarioError, match=r"^training.optimizer.normalised_over = 1200: goes by the size of a batch"):
        build(load(tiny({**asked, "training.batch_size": "full"})))
    with pytest.raises(ScenarioError, match=r"^training.optimizer.normalised_over = 0: must be >= 1"):
        build(load(tiny({**asked, "training.optimizer.normalised_over": 0})))
