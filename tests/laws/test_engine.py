"""The compiled step against the untouched graph against plain torch.nn and torch.optim, on shipped and odd models."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph

from fedsim.core.keys import Key
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn import batching, models
from fedsim.learn.engine import passes
from fedsim.learn.engine import step as steps
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.objectives import Classification
from fedsim.learn.store import Store
from fedsim.learn.work import Job, Result, Start, Task

SHAPE, OUTPUTS = (1, 8, 8), 5
COUNTS = (23, 4, 10, 31, 1, 12, 12)
"""Examples per client: short last batches, a single example, equal ones side by side."""


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 64), nn.Linear(64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.outer(x + torch.tanh(self.inner(x)))


class Tied(nn.Module):
    """One matrix, used forwards and backwards: its gradient is a sum, no single product."""

    def __init__(self) -> None:
        super().__init__()
        self.fold, self.out = nn.Linear(64, 16, bias=False), nn.Linear(64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fold(x.flatten(1)) @ self.fold.weight))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.out = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x[:, 0]).chunk(3, -1)
        mixed = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
        return self.out(self.norm(mixed + x[:, 0]).flatten(1))


class Recurrent(nn.Module):
    """A recurrent cell by hand, unrolled over the rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(8, 12), nn.Linear(12, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 12, dtype=x.dtype)
        for row in range(8):
            state = self.cell(x[:, 0, row], state)
        return self.out(state)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(7, 6), nn.Linear(6, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table((x.flatten(1).abs() * 3).long().clamp(max=6)).mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "logreg": lambda: models.logreg(SHAPE, OUTPUTS),
    "mlp": lambda: models.mlp(SHAPE, OUTPUTS, hidden=[20, 12]),
    "cnn": lambda: models.cnn(SHAPE, OUTPUTS),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9, bias=False), nn.ReLU(), nn.Linear(9, OUTPUTS)),
    "gelu": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, OUTPUTS)),
    "two relus": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.ReLU(), nn.Linear(16, OUTPUTS)),
    "layer norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, OUTPUTS)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, OUTPUTS)),
    "conv strided": lambda: nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(54, OUTPUTS)),
    "avg pool": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, OUTPUTS)),
    "residual": Residual,
    "tied": Tied,
    "attention": Attention,
    "recurrent": Recurrent,
    "embedding": Embedded,
}  # fmt: skip
JOBS = {
    "plain": Job(epochs=2, batch_size=10, lr=0.1),
    "steps": Job(epochs=0, steps=5, batch_size=8, lr=0.05),
    "full": Job(epochs=2, batch_size=0, lr=0.1),
    "heavy": Job(epochs=1, batch_size=10, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True, proximal_mu=0.3),
}


def federation(dtype: Any = np.float64) -> Federation:
    draw = np.random.default_rng(0)
    n = sum(COUNTS)
    data = Examples(draw.normal(size=(n, *SHAPE)).astype(dtype), draw.integers(0, OUTPUTS, n))
    partition = Partition(draw.permutation(n), np.concatenate([[0], np.cumsum(COUNTS)]))
    return Federation(len(COUNTS), OUTPUTS, SHAPE, data, {}, Key(0), pooled=data, partition=partition)


def net(name: str, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return NETS[name]().to(dtype)


def trained(model: nn.Module, job: Job, dtype: torch.dtype, chunk: int | None, versions: int = 1) -> list[Result]:
    """Return the engine's results for every client, starting from *versions* models in turn."""
    fed = federation()
    engine = CohortEngine(model, Classification(), Store(fed, dtype, torch.device("cpu")), chunk=chunk)
    tickets = [engine.submit(task) for task in tasks(model, job, fed, versions)]
    return engine.collect(tickets)


def tasks(model: nn.Module, job: Job, fed: Federation, versions: int = 1) -> list[Task]:
    first = models.params_of(model)
    starts = [Start({n: a * (1 + 0.1 * v) for n, a in first.items()}) for v in range(versions)]
    return [Task(c, 0, job, starts[c % versions], fed.train(c), Key(5).fold("client", c)) for c in range(fed.count)]


def by_torch(model: nn.Module, task: Task, fed: Federation, dtype: torch.dtype) -> tuple[dict[str, Tensor], float]:
    """Return what torch.nn and torch.optim.SGD make of *task*, and the mean loss."""
    model = models.load_params(model, task.start.params)
    anchor = {n: p.detach().clone() for n, p in model.named_parameters()}
    job, pooled = task.job, fed.pooled
    assert pooled is not None
    optimizer = torch.optim.SGD(
        model.parameters(), lr=job.lr, momentum=job.momentum, weight_decay=job.weight_decay, nesterov=job.nesterov
    )
    order, losses, at = batching.orders(job, [task])[0], [], 0
    for size in batching.sizes(job, len(task.positions)).tolist():
        places = order[at : at + size]
        at += size
        optimizer.zero_grad()
        x, y = torch.tensor(pooled.x[places], dtype=dtype), torch.tensor(pooled.y[places])
        loss = F.cross_entropy(model(x), y)
        distance = sum(((p - anchor[n]) ** 2).sum() for n, p in model.named_parameters())
        (loss + job.proximal_mu / 2 * distance).backward()
        optimizer.step()
        losses.append(loss.item())
    return {n: p.detach().clone() for n, p in model.named_parameters()}, float(np.mean(losses))


def gap(result: Result, other: Any) -> float:
    return max(float(np.abs(result.params[n] - np.asarray(other[n])).max()) for n in result.params)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", NETS)
def test_training_is_what_torch_does(name: str, job: str) -> None:
    """Every client's parameters are torch.optim's to 1e-12 in float64, ragged sizes and two start versions included."""
    dtype, fed = torch.float64, federation()
    model = net(name, dtype)
    asked = tasks(model, JOBS[job], fed, versions=2)
    results = trained(model, JOBS[job], dtype, chunk=None, versions=2)
    for task, result in zip(asked, results, strict=True):
        expected, loss = by_torch(model, task, fed, dtype)

        assert gap(result, expected) < 1e-12, task.label
        assert abs(loss - result.metrics["train_loss"]) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_chunks_give_the_same_bits(name: str) -> None:
    """In float32 a client's bits are the same alone, in threes, and in one cohort, for plain and for heavy jobs."""
    model = net(name, torch.float32)
    for job in ("plain", "heavy"):
        alone, threes, together = (trained(model, JOBS[job], torch.float32, chunk, 2) for chunk in (1, 3, 7))

        assert [r.digest for r in alone] == [r.digest for r in threes] == [r.digest for r in together]


@pytest.mark.parametrize("name", NETS)
def test_passes_move_no_more_than_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled step and the graph as it was traced agree to 1e-12 in float64."""
    model = net(name, torch.float64)
    ours = trained(model, JOBS["plain"], torch.float64, 7)
    compile_step = steps.compile_step
    monkeypatch.setattr(
        "fedsim.learn.engine.cohort.compile_step", lambda *a, **k: compile_step(*a, **{**k, "untouched": True})
    )
    untouched = trained(model, JOBS["plain"], torch.float64, 7)

    assert max(gap(a, b.params) for a, b in zip(ours, untouched, strict=True)) < 1e-12


def test_a_wrong_pass_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that drops every ReLU's gradient mask is told apart: the comparison above can fail."""

    def careless(graph: Graph) -> None:
        for node in list(graph.nodes):
            if node.target is torch.ops.aten.threshold_backward.default:
                node.replace_all_uses_with(node.args[0])

    good = trained(net("mlp", torch.float64), JOBS["plain"], torch.float64, 7)
    clean = passes.clean
    monkeypatch.setattr(passes, "clean", lambda graph, targets, **k: (careless(graph), clean(graph, targets, **k)))
    bad = trained(net("mlp", torch.float64), JOBS["plain"], torch.float64, 7)

    assert max(gap(a, b.params) for a, b in zip(good, bad, strict=True)) > 1e-6


def test_passes_that_claim_to_move_no_bit_move_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fusing, folding constants, merging twins and reusing buffers leave every bit as traced."""
    monkeypatch.setattr(passes, "fuse_bias", lambda graph: None)
    update = passes.update_in_place
    monkeypatch.setattr(passes, "update_in_place", lambda *a, **k: update(*a, **{**k, "fuse": False}))
    model = net("mlp", torch.float32)
    cleaned = trained(model, JOBS["plain"], torch.float32, 7)
    monkeypatch.setattr(passes, "clean", lambda *a, **k: None)
    traced = trained(model, JOBS["plain"], torch.float32, 7)

    assert [r.digest for r in traced] == [r.digest for r in cleaned]


def test_the_fused_step_writes_no_weight_gradient() -> None:
    """For plain SGD on dense layers each weight is updated by the product itself, and no mask is left."""
    x, y = torch.zeros(10, *SHAPE), torch.zeros(10, dtype=torch.int64)
    seen: list[Graph] = []
    update = passes.update_in_place

    def watch(graph: Graph, *args: Any, **kwargs: Any) -> None:
        update(graph, *args, **kwargs)
        seen.append(graph)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "update_in_place", watch)
        steps.compile_step(net("mlp", torch.float32), Classification(), x, y, plain=True, whole_targets=True)
    targets = [node.target for node in seen[0].nodes]

    assert 3 == targets.count(torch.ops.aten.baddbmm_.default)
    assert 2 == targets.count(torch.ops.aten.bmm.default)  # The two gradients that flow back, and no other product.
    assert torch.ops.aten.where.self not in targets


def test_a_target_that_stands_for_none_is_left_out() -> None:
    """With cross-entropy's ignore_index among the targets, masks stay, and training is still torch's."""
    fed = federation()
    assert fed.pooled is not None
    fed.pooled.y[::3] = -100
    model = net("mlp", torch.float64)
    store = Store(fed, torch.float64, torch.device("cpu"))
    engine = CohortEngine(model, Classification(), store)
    asked = tasks(model, JOBS["full"], fed)
    results = engine.collect([engine.submit(task) for task in asked])

    assert not store.whole_targets
    for task, result in zip(asked, results, strict=True):
        if (fed.pooled.y[task.positions] >= 0).any():
            assert gap(result, by_torch(model, task, fed, torch.float64)[0]) < 1e-12
