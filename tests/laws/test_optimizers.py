"""Update rules, clipping and objectives in the engine against torch.optim, and what LARS and LAMB promise of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn import batching, models
from fedsim.learn.clipping import Norm, Value
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.optim import Adam, Sgd
from fedsim.learn.optim_adaptive import Adagrad, Lamb, Lars, RmsProp
from fedsim.learn.store import Store
from fedsim.learn.terms_layers import squares
from fedsim.learn.work import Start, Task
from fedsim.scenario.build import build
from fedsim.scenario.load import load

COUNTS = (24, 4, 31, 1, 14, 14)
"""Examples per client: short last batches, a single example, equal ones side by side."""
ROUNDS, OUTPUTS = 3, 5
WEIGHTS = (1.0, 3.0, 0.5, 2.0, 4.0)
Torchs = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class ByLayers(torch.optim.Optimizer):
    """LARS and LAMB as their papers write them, for one client, parameter by parameter."""

    def __init__(self, params: Any, rule: Lars | Lamb) -> None:
        super().__init__(params, {})
        self.rule = rule

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        rule = self.rule
        for w in self.param_groups[0]["params"]:
            state, g, layer = self.state[w], w.grad, w.ndim > 1 or not rule.exempt
            decay = rule.weight_decay if layer else 0.0
            if isinstance(rule, Lars):
                local = rule.trust * w.norm() / (g.norm() + decay * w.norm()) if layer and w.norm() * g.norm() > 0 else 1.0
                state["v"] = rule.momentum * state.get("v", 0.0) + rule.lr * local * (g + decay * w.detach())
                w.data -= state["v"]
                continue
            t = state["t"] = state.get("t", 0) + 1
            state["m"] = rule.beta1 * state.get("m", 0.0) + (1 - rule.beta1) * g
            state["v"] = rule.beta2 * state.get("v", 0.0) + (1 - rule.beta2) * g**2
            way = state["m"] / (1 - rule.beta1**t) / ((state["v"] / (1 - rule.beta2**t)).sqrt() + rule.eps) + decay * w.detach()
            ratio = w.norm() / way.norm() if layer and w.norm() * way.norm() > 0 else 1.0
            w.data -= rule.lr * ratio * way


@dataclass(frozen=True)
class Case:
    """A rule of ours and torch's, what is done to gradients, the objective, and another of torch's that it is not."""

    ours: Any
    torchs: Torchs
    other: Torchs | None = None
    clipping: Any = None
    clip: Callable[[Sequence[Tensor]], Any] = lambda _: None
    objective: Classification = field(default_factory=Classification)
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


LARS, LAMB = Lars(2.0, 0.01, 0.9, 0.1, True, "keep"), Lamb(0.01, 0.9, 0.99, 1e-6, 0.1, True, "keep")
SGD = Sgd(0.1, 0.0, 0.0, False)
CASES = {
    "adamw": Case(
        Adam(0.02, 0.9, 0.99, 1e-8, 0.3, "keep", decoupled=True), lambda p: torch.optim.AdamW(p, 0.02, (0.9, 0.99), weight_decay=0.3),
        lambda p: torch.optim.Adam(p, 0.02, (0.9, 0.99), weight_decay=0.3),
    ),
    "rmsprop": Case(
        RmsProp(0.01, 0.9, 1e-4, 0.0, 0.0, False, "keep"), lambda p: torch.optim.RMSprop(p, 0.01, 0.9, 1e-4),
        lambda p: torch.optim.RMSprop(p, 0.01, 0.99, 1e-4),
    ),
    "rmsprop with all": Case(
        RmsProp(0.01, 0.9, 1e-4, 0.1, 0.8, True, "keep"), lambda p: torch.optim.RMSprop(p, 0.01, 0.9, 1e-4, 0.1, 0.8, centered=True),
        lambda p: torch.optim.RMSprop(p, 0.01, 0.9, 1e-4, 0.1, 0.8),
    ),
    "adagrad": Case(
        Adagrad(0.05, 0.1, 1e-10, 0.1, 0.2, "keep"), lambda p: torch.optim.Adagrad(p, 0.05, 0.1, 0.1, 0.2),
        lambda p: torch.optim.Adagrad(p, 0.05, 0.1, 0.1, 0.0),
    ),
    "lars": Case(LARS, lambda p: ByLayers(p, LARS), lambda p: ByLayers(p, replace(LARS, exempt=False))),
    "lamb": Case(LAMB, lambda p: ByLayers(p, LAMB), lambda p: ByLayers(p, replace(LAMB, exempt=False))),
    "clipped by norm": Case(
        SGD, lambda p: torch.optim.SGD(p, 0.1), clipping=Norm(0.5), clip=lambda p: nn.utils.clip_grad_norm_(p, 0.5),
    ),
    "clipped by value": Case(
        Adam(0.02, 0.9, 0.99, 1e-3, 0.1, "keep"), lambda p: torch.optim.Adam(p, 0.02, (0.9, 0.99), 1e-3, 0.1),
        clipping=Value(0.01), clip=lambda p: nn.utils.clip_grad_value_(p, 0.01),
    ),
    "smoothed": Case(
        SGD, lambda p: torch.optim.SGD(p, 0.1), objective=Classification(0.2),
        loss=lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2),
    ),
    "weighed": Case(
        replace(SGD, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, 0.9), objective=Classification(0.1, WEIGHTS),
        loss=lambda o, y: F.cross_entropy(o, y, weight=torch.tensor(WEIGHTS).double(), label_smoothing=0.1),
    ),
}  # fmt: skip


def federation() -> Federation:
    """Return clients of few drawn examples of 8 numbers."""
    draw, n = np.random.default_rng(0), sum(COUNTS)
    data = Examples(draw.normal(size=(n, 8)) * 3, draw.integers(0, OUTPUTS, n))
    partition = Partition(draw.permutation(n), np.concatenate([[0], np.cumsum(COUNTS)]))
    return Federation(len(COUNTS), OUTPUTS, (8,), data, {}, Key(0), pooled=data, partition=partition)


def net() -> nn.Module:
    """Return a small network in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return models.mlp((8,), OUTPUTS, hidden=[7]).double()


def job_of(case: Case) -> Job:
    """Return the job that orders the rule of *case*."""
    own = case.ours if isinstance(case.ours, Sgd) else SGD
    optimizer = replace(own, state="keep") if isinstance(case.ours, Sgd) else case.ours
    return Job(batch_size=10, lr=case.ours.lr, momentum=own.momentum, optimizer=optimizer, clipping=case.clipping)


def ours(case: Case, chunk: int | None) -> list[list[Any]]:
    """Return the results of each round: all clients from one start, each going on from what it keeps."""
    model, fed, job = net(), federation(), job_of(case)
    engine = CohortEngine(model, case.objective, Store(fed, torch.float64, torch.device("cpu")), chunk=chunk)
    start, parts, found = models.params_of(model), [{} for _ in COUNTS], list[list[Any]]()
    for number in range(ROUNDS):
        tasks = [
            Task(c, number, job, Start(start), fed.train(c), Key(5).fold("client", c, "task", number), parts=parts[c])
            for c in range(fed.count)
        ]
        found.append(engine.run(tasks))
        parts = [dict(result.parts) for result in found[-1]]
        start = {name: np.mean([result.params[name] for result in found[-1]], axis=0) for name in start}
    return found


def theirs(case: Case, make: Torchs, clip: Callable[..., Any], loss: Callable[..., Tensor]) -> list[list[dict[str, Any]]]:
    """Return the same by torch: a network and an optimiser for each client, which stay."""
    fed, job = federation(), job_of(case)
    nets = [net() for _ in COUNTS]
    optimizers = [make(list(each.parameters())) for each in nets]
    start, found, pooled = models.params_of(nets[0]), list[list[dict[str, Any]]](), fed.pooled
    assert pooled is not None
    for number in range(ROUNDS):
        for c, (mine, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            models.load_params(mine, start)
            task = Task(c, number, job, Start(start), fed.train(c), Key(5).fold("client", c, "task", number))
            order, at = batching.orders(job, [task])[0], 0
            for size in task.sizes.tolist():
                places, at = order[at : at + size], at + size
                optimizer.zero_grad()
                loss(mine(torch.tensor(pooled.x[places])), torch.tensor(pooled.y[places])).backward()
                clip(list(mine.parameters()))
                optimizer.step()
        found.append([models.params_of(each) for each in nets])
        start = {name: np.mean([params[name] for params in found[-1]], axis=0) for name in start}
    return found


def gap(found: list[list[Any]], expected: list[list[dict[str, Any]]]) -> float:
    """Return how far parameters lie apart at most, in any round."""
    pairs = [(a, b) for ours_, theirs_ in zip(found, expected, strict=True) for a, b in zip(ours_, theirs_, strict=True)]
    return max(float(np.abs(result.params[name] - array).max()) for result, params in pairs for name, array in params.items())


@pytest.mark.parametrize("name", sorted(CASES))
def test_training_is_what_torch_does(name: str) -> None:
    """Three rounds of ragged clients in one cohort: torch's numbers to 1e-12, and not those without what the case is about."""
    case = CASES[name]
    found = ours(case, None)

    assert gap(found, theirs(case, case.torchs, case.clip, case.loss)) < 1e-12
    assert gap(found, theirs(case, case.other or case.torchs, lambda _: None, F.cross_entropy)) > 1e-4
    assert [r.digest for r in found[-1]] == [r.digest for r in ours(case, 1)[-1]]


# LARS and LAMB.


def moved(optimizer: Any, scale: float = 1.0, zero: bool = False) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (before, gradient, change) of each parameter of three clients in a first step; the first layer's gradient is scaled."""
    from fedsim.learn.engine.rows import Rows

    luck = torch.Generator().manual_seed(2)
    names = ["layer", "bias", "other"]
    starts = [torch.randn((3, *form), generator=luck, dtype=torch.float64) for form in ((4, 6), (4,), (2, 3, 3))]
    gradients = [torch.randn(start.shape, generator=luck, dtype=torch.float64) for start in starts]
    gradients[0] *= scale
    if zero:
        starts[0][1] = 0.0
        gradients[2][2] = 0.0
    rows = Rows(optimizer.terms(Job(lr=optimizer.lr)), names, starts, 3)
    rows.step(slice(0, 3), [each.clone() for each in gradients], 0, optimizer.lr)
    return [(a, g, b - a) for a, g, b in zip(starts, gradients, rows.params, strict=True)]


def lengths(rows: Tensor) -> Tensor:
    """Return the norm of each client's."""
    return rows.flatten(1).norm(dim=1)


PLAIN_LARS, PLAIN_LAMB = Lars(0.5, 0.001, 0.0, 0.0, True, "reset"), Lamb(0.1, 0.9, 0.999, 1e-12, 0.0, True, "reset")


@pytest.mark.parametrize(("optimizer", "share"), [(PLAIN_LARS, 0.5 * 0.001), (PLAIN_LAMB, 0.1)])
def test_a_layers_step_is_a_share_of_its_norm(optimizer: Any, share: float) -> None:
    """Without momentum and decay each layer of each client moves by the same share of its norm, and no bias does, unless none is exempt."""
    layer, bias, other = moved(optimizer)
    for before, _, change in (layer, other):
        assert torch.allclose(lengths(change) / lengths(before), torch.full((3,), share).double(), rtol=1e-12)
    assert (lengths(bias[2]) / lengths(bias[0]) / share - 1).abs().min() > 0.01
    if isinstance(optimizer, Lars):
        assert torch.allclose(bias[2], -optimizer.lr * bias[1], rtol=1e-12)
    before, _, change = moved(replace(optimizer, exempt=False))[1]
    assert torch.allclose(lengths(change) / lengths(before), torch.full((3,), share).double(), rtol=1e-12)


@pytest.mark.parametrize("optimizer", [PLAIN_LARS, PLAIN_LAMB])
def test_the_size_of_a_gradient_does_not_matter(optimizer: Any) -> None:
    """A layer whose gradient is 1000 times as large moves by the same, and others stay as they were; with SGD it does not."""
    for (_, _, one), (_, _, two) in zip(moved(optimizer), moved(optimizer, 1000.0), strict=True):
        assert torch.allclose(one, two, rtol=1e-9)
    assert not torch.allclose(moved(SGD)[0][2], moved(SGD, 1000.0)[0][2])


@pytest.mark.parametrize("optimizer", [PLAIN_LARS, PLAIN_LAMB])
def test_a_layer_of_zeros_takes_the_rate(optimizer: Any) -> None:
    """Where a client's layer or gradient is all zeros the ratio is 1: it can leave 0, nothing is NaN, and no other client sees it."""
    layer, _, other = moved(optimizer, zero=True)
    usual = moved(optimizer)
    way = layer[1][1] if isinstance(optimizer, Lars) else layer[1][1].sign()

    assert torch.allclose(layer[2][1], -optimizer.lr * way, rtol=1e-9)
    assert 0.0 == float(other[2][2].abs().max())
    assert torch.equal(layer[2][[0, 2]], usual[0][2][[0, 2]])
    assert torch.equal(other[2][:2], usual[2][2][:2])


def test_a_sum_of_squares_knows_its_row_alone() -> None:
    """Norms have the same bits for any number of rows, however a gradient lies in memory, in sizes odd and even."""
    luck = torch.Generator().manual_seed(4)
    for dtype in (torch.float32, torch.float64):
        for form in ((1,), (3,), (8,), (61,), (610,), (1023,), (5, 13), (10, 60), (64, 33), (3, 5, 7), (200, 301), ()):
            lying = torch.randn((37, *form), generator=luck, dtype=dtype)
            turned = torch.randn((37, *form[::-1]), generator=luck, dtype=dtype).permute(0, *range(len(form), 0, -1))
            for rows in (lying, turned):
                whole = squares(rows)
                for begin, end in ((0, 1), (36, 37), (0, 2), (3, 6), (1, 9), (4, 20)):
                    assert torch.equal(whole[begin:end], squares(rows[begin:end])), (dtype, form, begin, end)
                    assert torch.equal(whole[begin:end], squares(rows[begin:end].contiguous())), (dtype, form, begin, end)


# In scenarios.

REFUSED = [
    ({"model": {"kind": "tests.laws.test_optimizers:flat"}, "training.optimizer": {"kind": "lars", "lr": 1.0}},
     r"training\.optimizer\.kind = 'lars': .* two or more dimensions, and the model has none \(scale, shift\)\. Set exempt = false"),
    ({"training.clipping": {"kind": "norm", "bound": 0.0}}, r"training\.clipping\.bound = 0\.0: must be > 0"),
    ({"training.clipping": {"kind": "norms"}}, r"training\.clipping\.kind = 'norms': no such clipping\. Did you mean 'norm'"),
    ({"training.objective": {"kind": "classification", "class_weights": [1.0, 2.0]}},
     r"training\.objective\.class_weights = \[1\.0, 2\.0\]: has 2 weights, and Sequential puts out 10 numbers, .* Give 10 weights"),
    ({"training.objective": {"kind": "classification", "class_weights": [1.0] * 9 + [0.0]}},
     r"training\.objective\.class_weights.* = 0\.0: must be > 0"),
    ({"training.objective": {"kind": "classification", "label_smoothing": 1.0}}, r"label_smoothing = 1\.0: must be < 1"),
    ({"training.optimizer": {"kind": "rmsprop", "momentum": 1.0}}, r"training\.optimizer\.momentum = 1\.0: must be < 1"),
    ({"training.objective": {"kind": "classification", "label_smoothing": 0.1}, "stream": {"arrivals": {"kind": "constant", "per_s": 2.0}},
      "clients.replay": {"kind": "reservoir", "capacity": 8}, "training.rehearsal": {"kind": "er_ace"}},
     r"training\.objective\.label_smoothing = 0\.1: .* 'er_ace'"),
    ({"training.clipping": {"kind": "tests.laws.test_optimizers:one_gradient"}},
     r"training\.clipping\.kind = 'tests\.laws\.test_optimizers:one_gradient': its clipped\(\) gives a list, expected a list of 2"),
]  # fmt: skip


class Flat(nn.Module):
    """A model without layers: a scale and a shift for each of the first outputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))
        self.flops_per_example = 2.0 * outputs

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : len(self.scale)] * self.scale + self.shift


def flat(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return it."""
    return Flat(outputs)


class OneGradient(Norm):
    """Hands on the first gradient only."""

    def clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        return gradients[:1]


def one_gradient() -> Any:
    """Return it."""
    return OneGradient(1.0)


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str, tiny: Any) -> None:
    """By its key and value, with what would have worked, before anything runs."""
    with pytest.raises(ScenarioError, match=rf"^[^\n]*{said}[^\n]*$"):
        build(load(tiny(settings)))


def test_no_layer_is_needed_where_none_is_exempt(tiny: Any) -> None:
    """With exempt = false a model without layers trains."""
    table = {"kind": "lars", "lr": 1.0, "exempt": False}
    build(load(tiny({"model": {"kind": "tests.laws.test_optimizers:flat"}, "training.optimizer": table})))


def test_scores_are_plain(go: Callable[..., fedsim.Run]) -> None:
    """A run that trains on smoothed labels and weighed classes reports cross-entropy: at rate 0 nearly that of one that does not."""
    same = {"server.rounds": 1, "training.optimizer": {"kind": "sgd", "lr": 1e-12}}
    plain = go(same)
    other = go({**same, "training.objective": {"kind": "classification", "label_smoothing": 0.3, "class_weights": [9.0] + [1.0] * 9}})

    one, two = (run.series("loss").value.iloc[-1] for run in (plain, other))
    trained, otherwise = (run.series("train_loss", "training").value.iloc[-1] for run in (plain, other))

    assert np.isclose(one, two, rtol=1e-6)
    assert abs(trained - otherwise) > 1e-3


def test_an_update_takes_what_it_costs() -> None:
    """Operations of an update add up: clipping by norm takes three for each parameter, LARS five."""
    from fedsim.learn.optim import flops_of

    one = Job(optimizer=PLAIN_LARS, clipping=Norm(1.0))

    assert 100 * (2 + 5 + 3) == flops_of(one, 100)
    assert 100 * 2 == flops_of(Job(), 100)


def test_replayed_examples_weigh_as_their_classes(go: Callable[..., fedsim.Run]) -> None:
    """With a policy that weighs what it replays, equal class weights cancel in the mean, and others do not."""
    online = {
        "stream": {"arrivals": {"kind": "constant", "per_s": 2.0}, "trigger": {"kind": "count", "examples": 5}}, "training.batch_size": 4,
        "clients.replay": {"kind": "prioritised", "capacity": 8, "beta": 1.0}, "server.rounds": 3, "engine.dtype": "float64",
    }  # fmt: skip
    weights = ([], [2.0] * 10, [9.0, *[1.0] * 9])
    plain, twice, other = (
        go({**online, "training.objective": {"kind": "classification", **({"class_weights": each} if each else {})}}).params()
        for each in weights
    )
    apart = [max(float(np.abs(plain[name] - params[name]).max()) for name in plain) for params in (twice, other)]

    assert apart[0] < 1e-12
    assert apart[1] > 1e-4


def test_accumulated_gradients_weigh_as_their_classes(go: Callable[..., fedsim.Run]) -> None:
    """With weighed classes, LAMB and clipping, two passes of 5 are one of 10: each counts by its mass, and the sum is clipped."""
    around = {
        "training.objective": {"kind": "classification", "label_smoothing": 0.1, "class_weights": [9.0, *[1.0] * 8, 0.1]},
        "training.optimizer": {"kind": "lamb", "lr": 0.05, "state": "keep"}, "training.clipping": {"kind": "norm", "bound": 0.5},
        "engine.dtype": "float64", "server.rounds": 3,
    }  # fmt: skip
    cuts = ({"training.batch_size": 10}, {"training.batch_size": 5, "training.accumulate": 2})
    one, two = (go({**around, **each}).params() for each in cuts)

    assert max(float(np.abs(one[name] - two[name]).max()) for name in one) < 1e-12
