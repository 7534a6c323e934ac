"""The compiled step against plain torch.nn and torch.optim, on shipped and odd models."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.core.keys import Key
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn import batching, models
from fedsim.learn.engine import noise, passes
from fedsim.learn.engine import spread as spreading
from fedsim.learn.engine import step as steps
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job
from fedsim.learn.norms import FrozenNorm, GhostNorm
from fedsim.learn.objectives import Classification
from fedsim.learn.store import Store
from fedsim.learn.work import Result, Start, Task, Watching

SHAPE, OUTPUTS = (1, 8, 8), 5
COUNTS = (24, 4, 10, 31, 1, 14, 14)
"""Examples per client: short last batches, a single example, equal ones side by side; few sizes, since each is compiled."""
COUPLED = (24, 4, 10, 32, 2, 14, 14)
"""The same for BatchNorm, which cannot train on one example."""


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


class LowRank(nn.Module):
    """A matrix that is a product of two parameters: the gradient of each has the other as a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.fold, self.unfold = nn.Linear(64, 4, bias=False), nn.Linear(4, OUTPUTS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ (self.unfold.weight @ self.fold.weight).t()


class Crossed(nn.Module):
    """Two parameters of which each one's gradient is the other, as it was before the step."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.a, self.b = nn.Linear(64, OUTPUTS), nn.Parameter(torch.rand(OUTPUTS)), nn.Parameter(torch.rand(OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1)) + self.a * self.b


class Paired(nn.Module):
    """A layer that vmap has no rule for, and would loop over a million rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(64, 6), nn.Linear(64, 4), nn.Bilinear(6, 4, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x.flatten(1)), self.b(x.flatten(1)))


class Recurrent(nn.Module):
    """A recurrent cell by hand, unrolled over every third row of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(8, 12), nn.Linear(12, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 12, dtype=x.dtype)
        for row in range(0, 8, 3):
            state = self.cell(x[:, 0, row], state)
        return self.out(state)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(7, 6), nn.Linear(6, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table((x.flatten(1).abs() * 3).long().clamp(max=6)).mean(1))


class Deciding(nn.Module):
    """Decides by a tensor's value: cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(64, OUTPUTS), nn.Linear(64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.high(x) if float(x.sum()) > 0 else self.low(x)


class Counting(nn.Module):
    """Changes with every call, by a number that no tensor shows: a trace would freeze it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.out = 0, nn.Linear(64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.out(x.flatten(1)) * (1 + self.calls % 2)


class Skipping(nn.Module):
    """Leaves a layer out at random, by Python's generator: a trace would freeze what it drew once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(64, 64), nn.Linear(64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.out(x + F.relu(self.inner(x)) if not self.training or random.random() < 0.5 else x)


class Noisy(nn.Module):
    """Draws random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.out(x + torch.randn_like(x) if self.training else x)


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
    "low rank": LowRank,
    "crossed": Crossed,
    "bilinear": Paired,
    "attention": Attention,
    "recurrent": Recurrent,
    "embedding": Embedded,
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, OUTPUTS)),
    "conv dropout": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.4), nn.ReLU(), nn.Flatten(), nn.Linear(144, OUTPUTS)),
    "batch norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, OUTPUTS)),
    "conv batch norm": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, OUTPUTS)),
    "ghost batch norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), GhostNorm(16, 4), nn.ReLU(), nn.Linear(16, OUTPUTS)),
    "frozen norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), FrozenNorm(16), nn.ReLU(), nn.Linear(16, OUTPUTS)),
    "deciding": Deciding,
}  # fmt: skip
JOBS = {
    "plain": Job(epochs=2, batch_size=10, lr=0.1),
    "steps": Job(epochs=0, steps=5, batch_size=8, lr=0.05),
    "full": Job(epochs=2, batch_size=0, lr=0.1),
    "heavy": Job(epochs=1, batch_size=10, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True, proximal_mu=0.3),
}


def federation(name: str = "", dtype: Any = np.float64) -> Federation:
    draw = np.random.default_rng(0)
    counts = COUPLED if "batch norm" in name else COUNTS
    n = sum(counts)
    data = Examples(draw.normal(size=(n, *SHAPE)).astype(dtype), draw.integers(0, OUTPUTS, n))
    partition = Partition(draw.permutation(n), np.concatenate([[0], np.cumsum(counts)]))
    return Federation(len(counts), OUTPUTS, SHAPE, data, {}, Key(0), pooled=data, partition=partition)


def net(name: str, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return NETS[name]().to(dtype)


def trained(
    model: nn.Module, job: Job, dtype: torch.dtype, chunk: int | None, versions: int = 1, steps: dict[Any, Any] | None = None,
    spread: dict[Any, Any] | None = None,
) -> list[Result]:  # fmt: skip
    """Return the engine's results for every client, starting from *versions* models in turn.

    Compiled *steps* may be shared: they know nothing of the chunk, and compiling is most of the work. With steps that are *spread*
    clients have learning rates of their own.
    """
    fed = federation("batch norm" if any(word in repr(model) for word in ("BatchNorm", "GhostNorm")) else "")
    engine = CohortEngine(model, Classification(), Store(fed, dtype, torch.device("cpu")), chunk=chunk)
    if steps is not None:
        engine._steps.known = steps  # pyright: ignore[reportPrivateUsage]
    asked = tasks(model, job, fed, versions)
    if spread is not None:
        engine._steps._spread, asked = spread, [replace(task, rates=own_rates(task), watching=WATCHING) for task in asked]
    return engine.run(asked)


WATCHING = Watching(2, np.zeros(0, dtype=np.int64))


def own_rates(task: Task) -> np.ndarray:
    """Return rates that differ by client and step: one falls to 0, two are those of another, and one is ten times the others."""
    falls = np.linspace(1.0, 0.0, task.steps) if task.client == 1 else np.ones(task.steps)
    return task.job.lr * falls * (0.3, 1.1, 0.7, 10.0, 0.7, 0.9, 0.7)[task.client] ** (1 + np.arange(task.steps) % 3)


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
    order, losses, at, luck = batching.orders(job, [task])[0], [], 0, noise.Luck([task])
    for size in task.sizes.tolist():
        places = order[at : at + size]
        at += size
        optimizer.zero_grad()
        x, y = torch.tensor(pooled.x[places], dtype=dtype), torch.tensor(pooled.y[places])
        masks = luck.masks(noise.masks_of(model, x), slice(0, 1)) if "Dropout" in repr(model) else []
        with noise.given(model, [mask[0].to(dtype) for mask in masks]):
            loss = F.cross_entropy(model(x), y)
        distance = sum(((p - anchor[n]) ** 2).sum() for n, p in model.named_parameters())
        (loss + job.proximal_mu / 2 * distance).backward()
        optimizer.step()
        losses.append(loss.item())
    return {n: p.detach().clone() for n, p in models.travelling(model).items()}, float(np.mean(losses))


def gap(result: Result, other: Any) -> float:
    """Return how far parameters lie apart at most: from those beyond one, of which a variance may be many, as a share."""
    theirs = {n: np.asarray(other[n]) for n in result.params}
    return max(float((np.abs(result.params[n] - b) / np.maximum(1.0, np.abs(b))).max()) for n, b in theirs.items())


HEAVY = ("mlp", "cnn", "tied", "low rank", "crossed", "dropout", "batch norm", "deciding")
"""An update rule sees parameters, not layers: these try one with everything in it, each another shape of graph around it."""
EVERY = [
    (name, job)
    for name in NETS
    for job in JOBS
    if job == "plain" or (job == "heavy" and name in HEAVY) or name in ("mlp", "batch norm", "deciding")
]
"""How examples are laid out in batches is no matter of the model: three of these try all jobs, one compiled, one not, one coupled."""


@pytest.mark.parametrize(("name", "job"), EVERY)
def test_training_is_what_torch_does(name: str, job: str) -> None:
    """Every client's parameters are torch.optim's to 1e-12 in float64, ragged sizes and two start versions included."""
    dtype, fed = torch.float64, federation(name)
    model = net(name, dtype)
    asked = tasks(model, JOBS[job], fed, versions=2)
    results = trained(model, JOBS[job], dtype, chunk=None, versions=2)
    for task, result in zip(asked, results, strict=True):
        expected, loss = by_torch(model, task, fed, dtype)

        assert gap(result, expected) < 1e-12, task.label
        assert abs(loss - result.metrics["train_loss"]) < 1e-12


def test_clients_with_different_learning_rates_train_together() -> None:
    """Tasks of one collect may differ in learning rate, batch size and momentum; each still gets torch's numbers and bits."""
    fed, model = federation(), net("mlp", torch.float64)
    jobs = [replace(JOBS["plain"], lr=0.02 * (1 + i), batch_size=(10, 4)[i % 2], momentum=0.5 * (i == 3)) for i in range(fed.count)]
    asked = [replace(task, job=job) for task, job in zip(tasks(model, JOBS["plain"], fed, 2), jobs, strict=True)]
    digests: list[list[str]] = []
    for chunk in (1, 7):
        engine = CohortEngine(model, Classification(), Store(fed, torch.float64, torch.device("cpu")), chunk=chunk)
        results = engine.run(asked)
        digests.append([result.digest for result in results])
        for task, result in zip(asked, results, strict=True):
            assert gap(result, by_torch(model, task, fed, torch.float64)[0]) < 1e-12

    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", NETS)
def test_chunks_give_the_same_bits(name: str) -> None:
    """In float32 a client's bits are the same alone, in threes, and in one cohort, for plain jobs and heavy ones."""
    model, steps = net(name, torch.float32), dict[Any, Any]()
    for job in ("plain", "heavy")[: 1 + (name in HEAVY)]:
        alone, threes, together = (trained(model, JOBS[job], torch.float32, chunk, 2, steps) for chunk in (1, 3, 7))

        assert [r.digest for r in alone] == [r.digest for r in threes] == [r.digest for r in together]


@pytest.mark.parametrize("name", ["logreg", "mlp", "attention", "low rank", "dropout"])
def test_rates_of_their_own_move_no_bit(name: str) -> None:
    """In float32 a client with learning rates of its own has the bits beside others that it has alone, where its rate is one number."""
    model, steps, spread = net(name, torch.float32), dict[Any, Any](), dict[Any, Any]()
    cut = Job(epochs=1, batch_size=5, accumulate=2, lr=0.1)
    for job in (JOBS["plain"], JOBS["heavy"], cut)[: 3 if name == "mlp" else 1]:
        alone, threes, together = (trained(model, job, torch.float32, chunk, 2, steps, spread) for chunk in (1, 3, 7))

        assert [r.digest for r in alone] == [r.digest for r in threes] == [r.digest for r in together]
        for one, other in zip(alone, together, strict=True):
            assert np.allclose(one.watched["steps"], other.watched["steps"], rtol=1e-6, equal_nan=True)
    assert name not in ("logreg", "mlp") or any(step.spread for step in spread.values())


def test_a_product_of_other_bits_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the other factor takes the rate, products go row by row and keep their bits; untried, the law above tells them apart."""

    def other(body: Any, apart: Any) -> Any:
        made = rightly(body, apart)
        for node in [n for n in made.graph.nodes if n.target is torch.ops.aten.baddbmm_.default]:
            (right, across), left = node.args[2].args, node.args[1]
            with made.graph.inserting_before(node):
                node.args = (node.args[0], made.graph.call_function(torch.ops.aten.mul.Tensor, (left, across)), right)
        made.recompile()
        return made

    rightly, model = spreading.spread_body, net("mlp", torch.float32)
    alone = trained(model, JOBS["plain"], torch.float32, 1, 2, spread={})
    monkeypatch.setattr(spreading, "spread_body", other)
    spread = dict[Any, Any]()
    tried = trained(model, JOBS["plain"], torch.float32, 7, 2, spread=spread)
    rows = [n for step in spread.values() if step.spread for n in step.parts[1].graph.nodes if n.target is spreading.by_row]
    monkeypatch.setattr(spreading, "_apart", lambda *a: set())
    untried = trained(model, JOBS["plain"], torch.float32, 7, 2, spread={})

    assert rows
    assert [r.digest for r in alone] == [r.digest for r in tried] != [r.digest for r in untried]


def test_a_wrong_pass_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that drops every ReLU's gradient mask is noticed while compiling; and without that, told apart above."""

    def careless(graph: Graph) -> None:
        for node in list(graph.nodes):
            if node.target is torch.ops.aten.threshold_backward.default:
                node.replace_all_uses_with(node.args[0])

    good = trained(net("mlp", torch.float64), JOBS["plain"], torch.float64, 7)
    clean = passes.clean
    monkeypatch.setattr(passes, "clean", lambda graph, targets, **k: (careless(graph), clean(graph, targets, **k)))
    model = net("mlp", torch.float64)
    step = steps.compile_step(
        model, Classification(), torch.zeros(10, *SHAPE, dtype=torch.float64), torch.zeros(10, dtype=torch.int64),
        plain=True, whole_targets=True,
    )  # fmt: skip
    monkeypatch.setattr(steps, "_agrees", lambda *a: True)
    bad = trained(model, JOBS["plain"], torch.float64, 7)

    assert "gives other numbers than torch itself" in step.note
    assert max(gap(a, b.params) for a, b in zip(good, bad, strict=True)) > 1e-6


def test_passes_that_claim_to_move_no_bit_move_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fusing, folding constants, merging twins and reusing buffers leave every bit as traced."""
    monkeypatch.setattr(passes, "fuse_bias", lambda graph: None)
    monkeypatch.setattr(passes, "fuse_cross_entropy", lambda graph: None)
    update = passes.update_in_place
    monkeypatch.setattr(passes, "update_in_place", lambda *a, **k: update(*a, **{**k, "fuse": False}))
    model = net("mlp", torch.float32)
    cleaned = trained(model, JOBS["plain"], torch.float32, 7)
    monkeypatch.setattr(passes, "clean", lambda *a, **k: None)
    traced = trained(model, JOBS["plain"], torch.float32, 7)

    assert [r.digest for r in traced] == [r.digest for r in cleaned]


def pooled_relu(pass_: Callable[[Graph], None]) -> list[list[Tensor]]:
    """Return pooled ReLU and its gradient, before and after *pass_*, on images full of ties, zeros and negatives."""

    def both(x: Tensor, w: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((F.max_pool2d(F.relu(x), 3, 2, 1) * w).sum(), x))

    x = torch.randint(-2, 3, (2, 3, 9, 9), generator=torch.Generator().manual_seed(0)).float().requires_grad_()
    w = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    graph = make_fx(both)(x, w)
    before = graph(x, w)
    pass_(graph.graph)
    graph.graph.lint()
    graph.recompile()
    return [before, graph(x, w)]


def test_pooling_before_relu_moves_no_bit() -> None:
    """Gradients of ReLU and pooling, overlapping windows and ties included, are the same bits in either order."""
    before, after = pooled_relu(passes.pool_before_relu)

    assert torch.equal(before[0], after[0])


def test_pooling_that_forgets_relu_is_rejected() -> None:
    """Leaving the mask out after pooling gives windows without a positive number a gradient: told apart."""

    def careless(graph: Graph) -> None:
        passes.pool_before_relu(graph)
        for node in [n for n in graph.nodes if n.target is torch.ops.aten.threshold_backward.default]:
            node.replace_all_uses_with(node.args[0])

    before, after = pooled_relu(careless)

    assert not torch.equal(before[0], after[0])


def test_the_fused_loss_stands_large_logits() -> None:
    """Logits of a thousand overflow no exponential: losses and parameters stay finite, and torch's."""
    fed = federation()
    assert fed.pooled is not None
    fed.pooled.x[:] *= 1000.0
    model = net("logreg", torch.float64)
    store = Store(fed, torch.float64, torch.device("cpu"))
    engine = CohortEngine(model, Classification(), store)
    asked = tasks(model, JOBS["plain"], fed)
    for task, result in zip(asked, engine.run(asked), strict=True):
        expected, loss = by_torch(model, task, fed, torch.float64)

        assert gap(result, expected) < 1e-9
        assert abs(loss - result.metrics["train_loss"]) <= 1e-9 * loss


def test_compiled_networks_hold_no_slow_kernel() -> None:
    """Log-softmax is gone from dense networks; in a CNN pooling comes before ReLU, on images with channels innermost."""
    x, y = torch.zeros(10, *SHAPE), torch.zeros(10, dtype=torch.int64)
    seen: list[list[Any]] = []
    split = steps._split  # pyright: ignore[reportPrivateUsage]

    def watch(module: Any, *args: Any) -> Any:
        seen.append([node.target for node in module.graph.nodes])
        return split(module, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_split", watch)
        for name in ("logreg", "cnn"):
            steps.compile_step(net(name, torch.float32), Classification(), x, y, plain=True, whole_targets=True)
    dense, images = seen
    aten = torch.ops.aten

    assert not {aten._log_softmax.default, aten.zeros_like.default} & set(dense)
    assert aten.clone.default in images
    assert images.index(aten.max_pool2d_with_indices.default) < images.index(aten.relu_.default)


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
    results = engine.run(asked)

    assert not store.whole_targets
    for task, result in zip(asked, results, strict=True):
        if (fed.pooled.y[task.positions] >= 0).any():
            assert gap(result, by_torch(model, task, fed, torch.float64)[0]) < 1e-12


@pytest.mark.parametrize("name", ["dropout", "conv dropout", "batch norm", "conv batch norm"])
def test_layers_are_compiled(name: str) -> None:
    """Dropout and BatchNorm are part of the compiled step; a small dense network with either trains in cohorts.

    torch's own BatchNorm over stacked rows is one long run of channels, whose vector loop cuts rows differently as they are more.
    """
    model = net(name, torch.float32)
    x, y = torch.zeros(10, *SHAPE), torch.zeros(10, dtype=torch.int64)
    step = steps.compile_step(model, Classification(), x, y, plain=True, whole_targets=True)

    assert not step.note
    assert not step.random
    assert ("conv" not in name) == (step.rows != "one")  # Whether one row alone gets another kernel is the processor's matter.


@pytest.mark.parametrize(
    ("make", "why"),
    [(Deciding, "cannot be traced"), (Counting, "keeps something between calls"), (Skipping, "draws from Python's")],
)
def test_what_cannot_be_compiled_is_left_to_torch_and_says_so(make: type[nn.Module], why: str) -> None:
    """A forward() that decides by values, or counts its calls, trains by torch.nn; the engine notes it once."""
    model, fed = make(), federation()
    engine = CohortEngine(model, Classification(), Store(fed, torch.float32, torch.device("cpu")))
    engine.run(tasks(model, JOBS["plain"], fed))

    assert 1 == len(engine.notes)
    assert why in engine.notes[0]


def test_dropout_of_a_client_depends_on_its_task_alone() -> None:
    """Another task number draws other masks; the same task draws the same, and leaves torch's generator where it was."""
    for model in (net("dropout", torch.float32), Noisy(), Skipping()):
        before, python, shared = torch.random.get_rng_state(), random.getstate(), dict[Any, Any]()
        once, twice = (trained(model, JOBS["plain"], torch.float32, chunk, steps=shared) for chunk in (7, 1))
        fed = federation()
        engine = CohortEngine(model, Classification(), Store(fed, torch.float32, torch.device("cpu")))
        engine._steps.known = shared  # pyright: ignore[reportPrivateUsage]
        asked = [replace(t, key=Key(5).fold("client", t.client, "again")) for t in tasks(model, JOBS["plain"], fed)]
        first = engine.run(tasks(model, JOBS["plain"], fed))
        other = engine.run(asked)

        assert torch.equal(before, torch.random.get_rng_state())
        assert python == random.getstate()
        assert [r.digest for r in once] == [r.digest for r in twice]
        differs = [a.digest != b.digest for a, b in zip(first, other, strict=True)]
        assert any(differs) if isinstance(model, Skipping) else all(differs)  # A coin may fall the same way twice.


def test_masks_keep_their_share_and_the_mean() -> None:
    """A mask with keep = 0.8 zeroes a fifth of the numbers and scales the rest by 1 / 0.8 (4 standard errors)."""
    luck = noise.Luck([Task(0, 0, Job(), Start({}), np.arange(3), Key(3))])
    mask = luck.masks([noise.Mask((100, 1000), 0.8)], slice(0, 1))[0]

    assert abs(float((mask > 0).double().mean()) - 0.8) < 4 * (0.8 * 0.2 / 1e5) ** 0.5
    assert {0.0, 1.25} == set(mask.unique().tolist())


def test_running_statistics_travel_and_counts_stay() -> None:
    """BatchNorm's running mean and variance are among the parameters sent; its count of batches is not."""
    names = list(models.params_of(net("batch norm", torch.float32)))

    assert ["2.running_mean", "2.running_var"] == [name for name in names if "running" in name]
    assert not [name for name in names if "num_batches" in name]
