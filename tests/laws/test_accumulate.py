"""Gradient accumulation: an update from several micro-batches is that of the large batch, wherever it is computed (METHODS A4)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.keys import Key
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn.engine import updates
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.optim import Adam
from fedsim.learn.stopping import Patience
from fedsim.learn.store import Store
from fedsim.learn.work import Result, Start
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from tests.laws.test_engine import OUTPUTS, SHAPE, net, tasks

LARGE = Job(epochs=2, batch_size=6, lr=0.1)
COUNTS = (12, 8, 5, 2)
"""Examples per client, for micro-batches of three: whole batches, short ones, less than a micro-batch; few sizes, each is compiled."""
KINDS: dict[str, Job] = {
    "plain": LARGE,
    "momentum": replace(LARGE, momentum=0.9, weight_decay=0.01, nesterov=True, proximal_mu=0.3),
    "adam": replace(LARGE, optimizer=Adam(0.01, 0.9, 0.999, 1e-8, 0.01, "reset"), lr=0.01),
    "dropping": replace(LARGE, drop_last=True, sampling="replacement", epochs=1.5),
    "sequential": replace(LARGE, epochs=0, steps=3, sampling="sequential"),
}


class Weighed(Classification):
    """Cross-entropy in which a class counts by its weight, one of them not at all: the mean is divided by weights."""

    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, self.weights.to(outputs))

    def mass(self, targets: Tensor) -> Tensor:
        return self.weights[targets].sum()


def cut(job: Job, size: int) -> Job:
    """Return *job* with the same batches, in micro-batches of *size*."""
    return replace(job, batch_size=size, accumulate=job.batch_size // size)


def federation() -> Federation:
    draw, n = np.random.default_rng(0), sum(COUNTS)
    data = Examples(draw.normal(size=(n, *SHAPE)), draw.integers(0, OUTPUTS, n))
    partition = Partition(draw.permutation(n), np.concatenate([[0], np.cumsum(COUNTS)]))
    return Federation(len(COUNTS), OUTPUTS, SHAPE, data, {}, Key(0), pooled=data, partition=partition)


def network(name: str) -> nn.Module:
    """Return a network of the engine's tests, or one of those here."""
    if name == "group norm":
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.GroupNorm(4, 16), nn.ReLU(), nn.Linear(16, OUTPUTS)).double()
    model = net("mlp" if name == "left to torch" else name, torch.float64)
    if name == "left to torch":
        next(model.parameters()).register_hook(lambda gradient: gradient * 0.5)
    return model


def trained(name: str, job: Job, objective: Any = None, dtype: torch.dtype = torch.float64, chunk: int = 4) -> list[Result]:
    """Return what *job* makes of every client."""
    model, fed = network(name).to(dtype), federation()
    engine = CohortEngine(model, objective or Classification(), Store(fed, dtype, torch.device("cpu")), chunk=chunk)
    return engine.run(tasks(model, job, fed, versions=2))


def gap(left: list[Result], right: list[Result]) -> float:
    """Return how far parameters and losses lie apart at most; infinity where one is no number and the other is."""
    pairs = [(a.params[name], b.params[name]) for a, b in zip(left, right, strict=True) for name in a.params]
    pairs += [(np.array(a.metrics["train_loss"]), np.array(b.metrics["train_loss"])) for a, b in zip(left, right, strict=True)]
    return max(
        float(np.abs(np.nan_to_num(a) - np.nan_to_num(b)).max()) if np.array_equal(np.isnan(a), np.isnan(b)) else np.inf for a, b in pairs
    )


@pytest.mark.parametrize(("name", "kind"), [("mlp", kind) for kind in KINDS] + [("cnn", "momentum"), ("left to torch", "plain")])
def test_several_passes_are_one_large_batch(name: str, kind: str) -> None:
    """Parameters and losses are those of the large batch to 1e-12 in float64, with a ragged last micro-batch, stacked or one by one."""
    assert gap(trained(name, cut(KINDS[kind], 3)), trained(name, KINDS[kind])) < 1e-12


def test_a_mean_by_weights_is_averaged_by_them() -> None:
    """With class weights each pass counts by its own, one of weight 0 not at all; by the number of examples it would be another."""

    class Silent(Weighed):
        mass = None  # pyright: ignore

    large = trained("left to torch", LARGE, Weighed())

    assert gap(trained("left to torch", cut(LARGE, 1), Weighed()), large) < 1e-12
    assert gap(trained("left to torch", cut(LARGE, 3), Weighed()), large) < 1e-12
    assert gap(trained("left to torch", cut(LARGE, 3), Silent()), large) > 1e-3


def test_a_mean_of_means_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short micro-batch that counts as much as a whole one gives another update: the tests above can fail."""
    monkeypatch.setattr(updates.Updates, "_mass", lambda *_: 1.0)

    assert gap(trained("mlp", cut(LARGE, 3)), trained("mlp", LARGE)) > 1e-4


def test_batch_norm_is_another_model_in_micro_batches() -> None:
    """Where examples are scaled by those beside them the gradient differs: why a scenario is refused. GroupNorm does not do so."""
    assert gap(trained("batch norm", cut(LARGE, 3)), trained("batch norm", LARGE)) > 1e-3
    assert gap(trained("group norm", cut(LARGE, 3)), trained("group norm", LARGE)) < 1e-12


@pytest.mark.parametrize(("name", "objective"), [("mlp", None), ("dropout", None), ("mlp", Weighed())])
def test_no_bit_knows_the_chunk(name: str, objective: Any) -> None:
    """Ragged clients get the same bits one at a time, two at a time and all together, in float32."""
    job = cut(KINDS["momentum"], 3)
    digests = [[r.digest for r in trained(name, job, objective, torch.float32, chunk)] for chunk in (1, 2, 4)]

    assert digests[0] == digests[1] == digests[2]


OFFLINE = {"training.batch_size": 4, "training.accumulate": 3, "training.epochs": 1.5, "training.sampling": "replacement"}
STREAM = {
    "stream": {"arrivals": {"kind": "poisson", "per_s": 2.0}, "trigger": {"kind": "count", "examples": 9}}, "server.rounds": 3,
    "clients.replay": {"kind": "reservoir", "capacity": 12}, "training.epochs": 1.5, "training.batch_size": 4, "training.accumulate": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {**OFFLINE, "training.algorithm": {"kind": "scaffold"}}, STREAM,
        {**STREAM, "training.rehearsal": {"kind": "union"}, "training.sampling": "replacement"},
    ],
)  # fmt: skip
def test_one_digest(settings: dict[str, Any], go: Any, hands: None) -> None:
    """A run is the same one client at a time, in cohorts and by two workers."""
    digests = {go({**settings, **how}).digest for how in ({}, {"engine.chunk": 1}, {"engine.workers": 2})}

    assert 1 == len(digests)


@pytest.mark.parametrize("base", [OFFLINE, STREAM])
def test_a_run_is_that_of_large_batches(base: dict[str, Any], go: Any) -> None:
    """Models, steps, operations and times are those of batches so large, remembered examples included; only memory would differ."""
    wide = {**base, "engine.dtype": "float64"}
    several, one = go(wide), go({**wide, "training.batch_size": 4 * wide["training.accumulate"], "training.accumulate": 1})

    assert several.tasks.steps.tolist() == one.tasks.steps.tolist()
    assert several.tasks.flops.tolist() == one.tasks.flops.tolist()
    assert several.tasks.arrived_s.tolist() == one.tasks.arrived_s.tolist()
    ours, theirs = several.params(), one.params()
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) < 1e-10


def test_early_stopping_stops_where_it_would(tiny: Any) -> None:
    """Tasks that may stop early stop after the same epoch, with the same parameters, as with large batches."""
    parts = build(load(tiny({"training.epochs": 12, "training.stopping": {"kind": "patience"}, "engine.dtype": "float64",
                             "training.optimizer": {"kind": "sgd", "lr": 0.5}, "training.batch_size": 8})))  # fmt: skip
    job = replace(parts.job, stopping=Patience(1, 0.0))

    def answers(job: Job) -> list[Result]:
        return parts.engine.run([parts.fleet.client(c).plan(Order(job, Start(parts.first)), Kept())[0] for c in range(6)])

    several, one = answers(cut(job, 4)), answers(job)

    assert [r.metrics["steps"] for r in several] == [r.metrics["steps"] for r in one]
    assert len({r.metrics["steps"] for r in one}) > 1
    assert gap(several, one) < 1e-10


CODE = """
import torch
from torch import nn
from fedsim.learn.objectives import Classification

def normed(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs))

def frozen(shape, outputs):
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Frozen(8).eval(), nn.Dropout(0.3), nn.Linear(8, outputs))

class Own(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.l = nn.Linear(64, outputs)
    def forward(self, x):
        x = self.l(x.flatten(1))
        return x - x.mean(0)

class Root(Classification):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets).sqrt()
"""
COUPLES = "training.accumulate = 3: an update from several passes would not be that of one batch:"
ROOM = {"clients.ram": {"kind": "constant", "mib": 1.0}, "training.too_large": "accumulate"}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "BatchNorm": ({"model": {"kind": "mine:normed"}}, f"{COUPLES} its BatchNorm1d makes of an example something else", "GroupNorm"),
    "a layer of one's own": ({"model": {"kind": "mine:Own"}}, f"{COUPLES} Own makes of an example something else", "another batch_size"),
    "what does not fit": (
        {**ROOM, "training.accumulate": 1, "model": {"kind": "mine:normed"}},
        COUPLES.replace("accumulate = 3", "too_large = 'accumulate'"), "GroupNorm",
    ),
    "standardised": ({"model.standardise": True}, f"{COUPLES} its Standardise makes", "GroupNorm"),
    "an objective": (
        {"training.objective": {"kind": "mine:Root"}}, "training.accumulate = 3: the loss of training.objective", "mass(targets)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_mean_is_refused(case: str, cli: Any, scenario_file: Any, tmp_path: Path) -> None:
    """A model that couples the examples of a pass, or an objective that is no mean, ends with 2 and a line, before anything runs."""
    (tmp_path / "mine.py").write_text(CODE)
    settings, begins, says = REFUSED[case]
    answer = cli("check", scenario_file({"training.accumulate": 3, **settings}))
    line = answer.err.removeprefix("fedsim: ").strip()

    assert (2, 1) == (answer.code, len(line.splitlines())), answer.err
    assert line.startswith(begins), line
    assert says in line, line


def test_what_couples_nothing_is_not_refused(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen statistics and Dropout leave an example to itself."""
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)

    assert 3 == build(load(tiny({"training.accumulate": 3, "model": {"kind": "mine:frozen"}}))).job.accumulate
