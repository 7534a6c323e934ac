"""Devices of little memory: what training takes is counted, no batch exceeds what there is, and what comes of it is what was chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.client.equipped import Equipped
from fedsim.client.fitting import Fitting, TooLarge, at_once
from fedsim.client.kept import Kept
from fedsim.client.offline import Offline
from fedsim.client.program import Order, Unable
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.cost.ram import MIB, ConstantRam
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn import footprint as module
from fedsim.learn import models, optim
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.footprint import Footprint, count
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.work import Batches, Start

Go = Callable[..., fedsim.Run]


def sample(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(size, 28, 28), torch.arange(size) % 10


def images(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(size, 1, 28, 28), torch.arange(size) % 10


def footprint(arithmetic: Arithmetic = PLAIN) -> Footprint:
    """Return that of McMahan's 2NN: 784-200-200-10, 199,210 parameters."""
    return count(models.mlp((28, 28), 10, hidden=[200, 200]), Classification(), sample, arithmetic)


def test_activations_are_what_autograd_saves() -> None:
    """Of the 2NN: features and target, two hidden layers after ReLU, and the log-softmax; beside one set for each state of the rule."""
    found, plain = footprint(), Job(batch_size=10)
    example = 784 * 4 + 8 + 2 * 200 * 4 + 10 * 4
    assert found.example == example
    assert found.bytes(plain, 10) - found.bytes(plain, 7) == 3 * example
    assert found.bytes(plain, 0) == pytest.approx(2 * 4 * 199_210, abs=100)
    adam = Job(batch_size=10, optimizer=optim.adam())
    assert found.bytes(adam, 5) - found.bytes(plain, 5) == 2 * 4 * 199_210
    assert footprint(Arithmetic("bfloat16")).example < example


@pytest.mark.parametrize("size", [1, 64, 200])
def test_a_straight_line_in_the_batch(size: int) -> None:
    """What autograd saves at another size is what the line says."""
    model = models.cnn((1, 28, 28), 10)
    found = count(model, Classification(), images, PLAIN)
    saved = module._activations(model, Classification(), *images(size), PLAIN)
    assert found.fixed + found.example * size == pytest.approx(saved, rel=1e-3)


def planned(too_large: TooLarge, mib: float, job: Job, held: int) -> Any:
    """Return the task of a client that holds so many examples on a device of *mib* MiB."""
    partition = Partition.of(np.zeros(held, np.int64), 1)
    examples = Examples(np.zeros((held, 2), np.float32), np.zeros(held, np.int64))
    fed = Federation(1, 2, (2,), examples, {}, Key(0), pooled=examples, partition=partition)
    fitting = Fitting(ConstantRam(mib), Footprint(40.0, 40.0, 0.0, 1000.0), too_large)
    program = Equipped(0, Offline(0, fed, Key(1)), fitting=fitting)
    return program.plan(Order(job, Start({})), Kept())[0]


ORDERED = [Job(batch_size=16), Job(), Job(batch_size=6, accumulate=4), Job(batch_size=16, drop_last=True), Job(batch_size=24, at_once=6)]


@pytest.mark.parametrize("job", ORDERED)
def test_no_batch_exceeds_the_device(job: Job) -> None:
    """Whatever a device has, a step takes no more; an update from several passes stays the update that was ordered."""
    for kib in (1.2, 2.5, 3.3, 9.0, 40.0, 400.0):
        for held in (1, 5, 16, 37):
            usual = planned("cannot_train", 1e6, job, held)
            for outcome in ("smaller_batch", "accumulate"):
                task = planned(outcome, kib / 1024, job, held)
                assert 80 + 1000 * at_once(task) <= kib * 1024
                if outcome == "accumulate":
                    assert task.sizes.tolist() == usual.sizes.tolist()
                elif at_once(usual) * 1000 + 80 <= kib * 1024:
                    assert task.job == job
    with pytest.raises(Unable, match=r"its device has 0.0 MiB, and a step on 1 example takes 0.0 MiB"):
        planned("smaller_batch", 1e-6, job, 5)
    with pytest.raises(Unable):
        planned("cannot_train", 2.5 / 1024, job, 37)


def test_smaller_batches_have_as_many_passes() -> None:
    """An update that was ordered from several passes is made from as many smaller ones, and shrinks no more than these do."""
    for job in (Job(batch_size=6, accumulate=4), Job(batch_size=24, at_once=6)):
        for most in (5, 2, 1):
            task = planned("smaller_batch", (80 + 1000 * most + 1) / MIB, job, 100)
            assert task.job.micro(int(task.sizes[0])) == [most] * 4
    for job in (Job(batch_size=5, at_once=9), Job(batch_size=5), Job()):
        task = planned("smaller_batch", 2100 / MIB, job, 100)
        assert task.job.micro(int(task.sizes[0])) == [2]


def test_what_is_cut_into_single_examples_fits() -> None:
    """A new example beside a remembered one passes alone where the device holds one, and an update may be made from several passes."""
    ordered, pair = planned("cannot_train", 1e6, Job(batch_size=1), 3), Batches(np.full(3, 2), np.ones(3, np.int64))

    def plan(order: Order) -> Any:
        return dataclasses.replace(ordered, job=order.job, batches=pair), Kept()

    fitting = Fitting(ConstantRam(1100 / MIB), Footprint(40.0, 40.0, 0.0, 1000.0), "smaller_batch")
    for too_large, job in (("accumulate", Job(batch_size=1)), ("smaller_batch", Job(batch_size=1, at_once=2))):
        fitting = dataclasses.replace(fitting, too_large=too_large)
        assert at_once(fitting.planned(0, Order(job, Start({})), plan)[0]) == 1
    with pytest.raises(Unable):
        dataclasses.replace(fitting, too_large="smaller_batch").planned(0, Order(Job(batch_size=1), Start({})), plan)


ROOM: dict[str, Any] = {"clients.ram": {"kind": "lognormal", "mib": 0.0075, "sigma": 0.15}, "engine.dtype": "float32"}
"""Of six devices for a logistic regression of 650 parameters and batches of ten."""


def of(run: fedsim.Run) -> Any:
    return run.tasks[run.tasks["kind"] == "train"]


def test_what_is_too_large_is_answered_as_was_chosen(go: Go) -> None:
    """Who cannot train says why; smaller batches are more steps; several passes are the same update, up to rounding."""
    whole, unable, smaller, several = (
        go({**ROOM, **more})
        for more in (
            {"clients.ram": {"kind": "constant", "mib": 1e3}}, {},
            {"training.too_large": "smaller_batch"}, {"training.too_large": "accumulate"},
        )
    )  # fmt: skip
    failed = of(unable)[of(unable)["outcome"] == "failed"]
    assert 0 < len(failed) < len(of(unable))
    assert failed["failure"].str.contains(r"its device has .* MiB, and a step on 10 examples takes .* MiB").all()
    assert (failed["flops"] == 0).all() and "cannot train" in str(unable.manifest["notes"])
    few = of(smaller)["steps"].to_numpy() > of(whole)["steps"].to_numpy()
    assert few.sum() == len(failed)
    assert (of(several)["steps"].to_numpy() == of(whole)["steps"].to_numpy()).all()
    assert of(several)["loss"].tolist() == pytest.approx(of(whole)["loss"].tolist(), rel=1e-4)
    assert (of(several)["result"].to_numpy() != of(whole)["result"].to_numpy()).sum() >= len(failed) // 2


@pytest.mark.parametrize("outcome", ["smaller_batch", "accumulate"])
def test_one_digest(outcome: str, go: Go) -> None:
    """Clients in batches of their own have one digest, stacked or not, on streams too."""
    stream = {"stream.arrivals": {"kind": "constant", "per_s": 2.0}, "stream.trigger": {"kind": "count", "examples": 20}}
    memory = {**stream, "clients.replay": {"kind": "reservoir", "capacity": 9}}
    for more in ({}, memory):
        settings = {**ROOM, **more, "training.too_large": outcome}
        assert len({go({**settings, "engine.chunk": chunk}).digest for chunk in (1, 6)}) == 1


def test_impossible_wishes_are_refused(go: Go) -> None:
    """What becomes of a batch that is too large, where none is; an update from parts of what is normalised as a whole."""
    with pytest.raises(ScenarioError, match=r"training.too_large = 'accumulate': says what becomes of a batch that a device cannot hold"):
        go({"training.too_large": "accumulate"})
    with pytest.raises(ScenarioError, match=r"clients.ram.mib = -1"):
        go({"clients.ram": {"kind": "constant", "mib": -1.0}})


def Normal(shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
    """Return a model that cannot train on one example."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, outputs))


STREAM: dict[str, Any] = {"stream.arrivals": {"kind": "constant", "per_s": 2.0}, "training.drop_last": True}


@pytest.mark.parametrize("more", [{}, {"training.drop_last": True}, STREAM])
def test_smaller_batches_of_what_needs_two_examples_are_refused(more: dict[str, Any], go: Go) -> None:
    """A batch that is cut to a device may come down to one example, which BatchNorm cannot train on: said at the door, not by a client."""
    normal = {**ROOM, **more, "model": {"kind": "tests.laws.test_fitting:Normal"}}
    said = r"training.too_large = 'smaller_batch': may come to a batch of one example, and Sequential cannot train on one example"
    with pytest.raises(ScenarioError, match=said):
        go({**normal, "training.too_large": "smaller_batch"})
    go({**normal, "training.too_large": "cannot_train", "training.drop_last": True, "server.rounds": 1})


def test_teeth_a_device_that_holds_one_more_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that forgets the gradients lets a batch through that does not fit."""
    most = Footprint.most
    monkeypatch.setattr(Footprint, "most", lambda self, job, room: most(self, job, room + MIB))
    with pytest.raises(AssertionError):
        test_no_batch_exceeds_the_device(Job(batch_size=16))
