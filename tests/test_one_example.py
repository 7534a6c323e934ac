"""Batches of one example: trained where torch trains them, refused where it does not, and left out where the reader says so."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fedsim
from conftest import tiny_table
from fedsim.client.kept import Kept
from fedsim.client.offline import Offline
from fedsim.client.program import Order
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.flower import records
from fedsim.learn import batching
from fedsim.learn.job import Job
from fedsim.learn.work import Start, Task
from fedsim.scenario.build import build
from fedsim.scenario.load import load

Go = Callable[..., fedsim.Run]
STREAM = {"arrivals": {"kind": "poisson", "per_s": 0.5}, "items": 12, "trigger": {"kind": "arrival"}}


class Images(nn.Module):
    """Normalises images, of which one has pixels enough."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(1), nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x).flatten(1))


class Rows(nn.Module):
    """Normalises rows, of which it takes two."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(64), nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x.flatten(1)))


class Squeezed(Rows):
    """Loses the batch's dimension where it is 1, a slip as old as numpy."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.squeeze().flatten(1))


def model(kind: type[nn.Module]) -> dict[str, str]:
    return {"kind": f"{__name__}:{kind.__name__}"}


def test_one_image_trains_as_torch_trains_it() -> None:
    """A client with one image trains a BatchNorm2d as torch.optim does, buffers included, to 1e-12 in float64."""
    parts = build(
        load(tiny_table({"model": model(Images), "clients.count": 180, "training.batch_size": "full", "engine.dtype": "float64"}))
    )
    client = Offline(0, parts.federation, parts.key)
    task, _ = client.plan(Order(parts.job, Start(parts.first)), Kept())
    (result,) = parts.engine.run([task])
    pool = parts.federation.pooled
    assert pool is not None and 1 == len(task.positions)
    net = parts.model.train()
    optimizer = torch.optim.SGD(net.parameters(), parts.job.lr)
    parts.objective.loss(net(torch.tensor(pool.x[task.positions]).double()), torch.tensor(pool.y[task.positions])).backward()
    optimizer.step()

    theirs = net.state_dict()
    assert 1e-12 > max(float(np.abs(array - theirs[name].numpy()).max()) for name, array in result.params.items())
    assert not np.array_equal(result.params["norm.running_mean"], parts.first["norm.running_mean"])


@pytest.mark.parametrize("kind", [Rows, Squeezed], ids=lambda kind: kind.__name__)
def test_what_cannot_take_one_example_is_refused(kind: type[nn.Module], go: Go) -> None:
    """30 examples in batches of 29 leave one; the refusal gives torch's reason, and its hint works."""
    uneven = {"model": model(kind), "training.batch_size": 29, "server.rounds": 1}
    with pytest.raises(ScenarioError, match=rf"batch_size = 29.*{kind.__name__} cannot train on one example \(.*drop_last = true"):
        go(uneven)

    if kind is Rows:
        assert len(go({**uneven, "training.drop_last": True}).tasks)


def test_no_hint_that_does_not_help(go: Go) -> None:
    """Where a client holds one example, or a batch is to hold one, leaving out the last does not help, and is not said to."""
    with pytest.raises(ScenarioError, match="more examples for each client") as alone:
        go({"model": model(Rows), "clients.count": 180, "training.drop_last": True})
    with pytest.raises(ScenarioError, match="a larger size") as single:
        go({"model": model(Rows), "training.batch_size": 1})

    assert "drop_last" not in f"{alone.value}{single.value}"


def test_batch_norm_trains_on_streams_with_drop_last(go: Go) -> None:
    """A client then waits for two labelled examples, and no mini-batch holds one; without it the model is refused."""
    streamed: dict[str, Any] = {
        "model": model(Rows), "stream": STREAM, "server.rounds": 3, "training.batch_size": 4,
        "clients.replay": {"kind": "reservoir", "capacity": 9},
    }  # fmt: skip
    with pytest.raises(ScenarioError, match=r"on a \[stream\] a batch may hold one.*drop_last"):
        go(streamed)

    whole = {**streamed, "training.drop_last": True}
    one, four = go({**whole, "engine.chunk": 1}), go({**whole, "engine.chunk": 4})
    assert one.digest == four.digest and 2 <= one.tasks.examples.min()
    for rehearsal in ("union", "der", "ewc"):
        assert 2 <= go({**whole, "training.rehearsal": {"kind": rehearsal}, "server.rounds": 1}).tasks.examples.min()


def test_epochs_read_whole_batches_of_a_new_order() -> None:
    """Batches are as many as torch's DataLoader gives; each epoch leaves others out, and steps go on where an epoch ends."""
    job = Job(epochs=3, batch_size=10, drop_last=True)
    task = Task(0, 0, job, Start({}), np.arange(25), Key(3).fold("task", 0))
    (order,) = batching.orders(job, [task])
    (longer,) = batching.orders(Job(epochs=0, steps=7, batch_size=10, drop_last=True), [task])
    loader = DataLoader(list(range(25)), batch_size=10, drop_last=True)  # pyright: ignore[reportArgumentType]

    assert [len(batch) for batch in loader] * 3 == job.sizes(25).tolist() and 60 == job.seen(25) == len(order)
    epochs = order.reshape(3, 20)
    assert all(20 == len(set(epoch)) for epoch in epochs.tolist()) and 3 == len({frozenset(epoch) for epoch in epochs.tolist()})
    assert order.tolist() == longer[:60].tolist() and 70 == len(longer)


def test_the_order_travels_only_where_it_is_given() -> None:
    """A message asks for ``drop-last`` where the scenario does; all others keep the bytes that they had."""
    assert "drop-last" not in records.job_config(Job())
    assert records.job_config(Job(drop_last=True))["drop-last"] is True
