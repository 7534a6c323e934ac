"""Running statistics at the server: beside the steps of a strategy, with their clients, or measured anew; never negative."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

import fedsim
from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.errors import ScenarioError
from fedsim.core.types import Params
from fedsim.flower import compat, records
from fedsim.learn.calibration import Calibration
from fedsim.learn.models import mlp, params_of
from fedsim.learn.work import Start
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load
from fedsim.strategy import stock
from fedsim.strategy.statistics import Statistics, beside

Go = Callable[..., fedsim.Run]
NORM = {"model": {"kind": "mlp", "hidden": [16], "norm": "batch"}}
VARIANCE, MEAN = "2.running_var", "2.running_mean"
STEPS: dict[str, dict[str, Any]] = {
    "FedAvgM": {"server_momentum": 0.9}, "FedAdam": {"eta": 3.0}, "FedYogi": {"eta": 3.0}, "FedAdagrad": {"eta": 3.0},
}  # fmt: skip
"""Strategies that step, so far that a variance among the parameters would not stay positive."""
FIXED, ADAPTIVE = {"noise_multiplier": 9.0, "clipping_norm": 0.5}, {"noise_multiplier": 0.5, "num_sampled_clients": 7}
OTHERS: dict[str, dict[str, Any]] = {
    "QFedAvg": {"client_learning_rate": 0.1, "q": 2.0}, "FedProx": {"proximal_mu": 0.1}, "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2}, "Bulyan": {"num_malicious_nodes": 0},
    "BulyanIterated": {"num_malicious_nodes": 0}, "FixedClipping": FIXED, "AdaptiveClipping": ADAPTIVE,
    **{f"DifferentialPrivacy{side}SideFixedClipping": {**FIXED, "num_sampled_clients": 7} for side in ("Server", "Client")},
    **{f"DifferentialPrivacy{side}SideAdaptiveClipping": ADAPTIVE for side in ("Server", "Client")},
}  # fmt: skip


class Nodes:
    """A grid of seven."""

    def get_node_ids(self) -> list[int]:
        return list(range(1000, 1007))


def least(kind: str, around: Callable[[Any, Params], Any], inner: str = "FedAvg") -> tuple[float, Params]:
    """Return the least entry of a variance that shrinks from round to round in all replies, and the last model, by *kind*."""
    wrapped = {"strategy": {"kind": inner, **STEPS.get(inner, {})}} if kind in (*stock.PRIVATE, *stock.OUR_PRIVATE) else {}
    strategy = stock.build({"kind": kind, **STEPS.get(kind, {}), **OTHERS.get(kind, {}), **wrapped}, 7, 0.0).strategy
    model = {"w": np.ones(3, np.float32), MEAN: np.zeros(4, np.float32), VARIANCE: np.ones(4, np.float32)}
    around(strategy, model)
    compat.set_identity()
    np.random.seed(0)
    found, state = [1.0], ArrayRecord({name: Array(array) for name, array in model.items()})
    for number in range(1, 6):
        list(strategy.configure_train(number, state, ConfigRecord({"server-round": number}), Nodes()))  # type: ignore[arg-type]
        now = records.params_of(state)
        replies: list[Message] = []
        for i in range(7):
            sent = {"w": now["w"] - 0.1, MEAN: now[MEAN] + i, VARIANCE: np.abs(now[VARIANCE]) * np.float32(0.3 + 0.01 * i)}
            metrics = {"num-examples": 10 + i, "train_loss": 0.5, "initial_loss": 0.5, compat.NORM_BIT: 1}
            arrays = ArrayRecord({name: Array(array.astype(np.float32)) for name, array in sent.items()})
            replies.append(Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), 5, "train"))
        made, _ = strategy.aggregate_train(number, replies)
        if made is not None:
            state = ArrayRecord({name: Array(array.numpy().astype(np.float32)) for name, array in made.items()})
            found.append(float(state[VARIANCE].numpy().min()))
    assert list(state) == list(model)
    return min(found), records.params_of(state)


def ours(strategy: Any, model: Params) -> Any:
    return Statistics("any", model).around(beside(strategy, [MEAN, VARIANCE]))


@pytest.mark.parametrize("inner", ["FedAvg", "FedAdam"])
def test_no_strategy_makes_a_variance_negative(inner: str) -> None:
    """Whatever the strategy, and whatever it wraps, a variance that clients see shrink stays one."""
    with compat.log_to(None), compat.cheap_collections():
        wrapping = (*stock.PRIVATE, *stock.OUR_PRIVATE)
        ends = {kind: least(kind, ours, inner)[0] for kind in (stock.names() if inner == "FedAvg" else wrapping)}

    assert {} == {kind: end for kind, end in ends.items() if end < 0}


def test_strategies_alone_do_make_them_negative() -> None:
    """Teeth: with nothing around them those that step, and those that add noise, carry a variance below zero."""
    with compat.log_to(None), compat.cheap_collections():
        alone = {kind for kind in (*STEPS, "FixedClipping", "FedMedian", "QFedAvg") if least(kind, lambda strategy, _: strategy)[0] < 0}

    assert {*STEPS, "FixedClipping"} == alone


@pytest.mark.parametrize("kind", STEPS)
def test_buffers_go_beside_steps_as_fedavg_has_them(kind: str) -> None:
    """What a stepping strategy makes of parameters is what it makes without buffers, and these are FedAvg's means, to the bit."""

    def bare(strategy: Any, model: Params) -> Any:
        for name in (MEAN, VARIANCE):
            model.pop(name)

    with compat.log_to(None), compat.cheap_collections():
        _, stepped = least(kind, ours)
        _, mean = least("FedAvg", lambda strategy, _: strategy)

    assert all(np.array_equal(stepped[name], mean[name]) for name in (MEAN, VARIANCE))
    assert not np.allclose(stepped["w"], mean["w"])


@pytest.mark.parametrize("kind", ["FedAvgM", "FedAdam"])
@pytest.mark.parametrize("more", [{}, {"training.algorithm": {"kind": "scaffold"}}], ids=["", "scaffold"])
def test_a_run_with_steps_ends(kind: str, more: dict[str, Any], go: Go) -> None:
    """FedAdam and FedAvgM with momentum run over BatchNorm's model, an algorithm around them or not, and its variances are ones."""
    run = go({**NORM, "server.strategy": {"kind": kind, **STEPS[kind]}, "server.rounds": 4, **more})

    assert "done" == run.status
    assert (run.params()[VARIANCE] > 0).all()
    assert not any("negative" in note for note in run.manifest["notes"])


def test_noise_below_zero_is_noted(go: Go) -> None:
    """Noise that a private strategy puts on a variance is part of what it releases; what came out negative stays, and a note says so."""
    noisy = {"kind": "FixedClipping", "noise_multiplier": 20.0, "clipping_norm": 1.0, "strategy": {"kind": "FedAvg"}}
    run = go({**NORM, "server.strategy": noisy})

    assert (run.params()[VARIANCE] >= 0).all()
    assert any("made" in note and f"of {VARIANCE} negative" in note for note in run.manifest["notes"])


# Statistics that stay.


SCALES = '''
import numpy as np
from fedsim.data.source import Examples, Pool

def scales():
    """Two classes, told by the first feature; what the second client has is a hundred times larger."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    groups = np.repeat([0, 1], 200)
    return Pool(Examples(x * np.where(groups, 100, 1)[:, None].astype(np.float32), y), 2, groups=groups)
'''


@pytest.fixture
def scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return two clients whose features differ by a factor of a hundred."""
    (tmp_path / "scales_of_tests.py").write_text(SCALES)
    monkeypatch.syspath_prepend(tmp_path)
    return {
        "data.source": {"kind": "scales_of_tests:scales"}, "data.partition": {"kind": "natural"}, "clients.count": 2,
        "data.test_fraction": 0.2, "training.epochs": 8, "training.batch_size": 20, "evaluate.federated_fraction": 1.0,
        "server.rounds": 4, **NORM,
    }  # fmt: skip


def kept(parts: Parts) -> list[tuple[Kept, Params]]:
    """Return what each of two clients keeps after a task, and what it sends."""
    found: list[tuple[Kept, Params]] = []
    for client in range(2):
        program = parts.fleet.client(client)
        task, after = program.plan(Order(parts.job, Start(parts.first)), Kept())
        finished = program.finish(task, parts.engine.run([task])[0], after)
        found.append((after.having(finished.parts), dict(finished.reply.params)))
    return found


def test_clients_keep_their_own_statistics(scales: dict[str, Any], tiny: Any) -> None:
    """Two clients of different scales keep a variance each, 10,000 times apart; neither it nor a count travels."""
    local, whole = (build(load(tiny({**scales, "server.statistics": how}))) for how in ("keep_local", "aggregate"))
    (one, sent), (two, _) = kept(local)
    variances = [each.parts["statistics"][VARIANCE] for each in (one, two)]

    assert {MEAN, VARIANCE} == set(one.parts["statistics"]) == set(whole.first) - set(local.first)
    assert set(sent) == set(local.first)
    assert not any("num_batches" in name for name in (*whole.first, *one.parts["statistics"]))
    assert 3000 < np.median(variances[1] / variances[0]) < 30000
    assert np.array_equal(variances[0], kept(whole)[0][1][VARIANCE])  # The first task is that of a client that sends them.


def test_clients_are_scored_with_their_own_statistics(scales: dict[str, Any], go: Go) -> None:
    """A client is scored by its own scale: right where a mean of both is not; fewer bytes travel, and a note says what the server lacks."""
    runs = {how: go({**scales, "server.statistics": how}) for how in ("aggregate", "keep_local")}
    ends = {how: run.series("accuracy", "federated").value.iloc[-1] for how, run in runs.items()}
    bytes_ = {how: run.tasks.query("kind == 'train'")[["down_bytes", "up_bytes"]].sum().sum() for how, run in runs.items()}

    assert ends["keep_local"] > max(0.95, ends["aggregate"] + 0.1), ends
    assert bytes_["keep_local"] < bytes_["aggregate"]
    assert any("keep_local" in note and "say little" in note for note in runs["keep_local"].manifest["notes"])
    assert {"done"} == {run.status for run in runs.values()}


@pytest.mark.parametrize(
    "more",
    [
        {
            "evaluate.federated_fraction": 1.0, "training.algorithm": {"kind": "scaffold"},
            "training.optimizer": {"kind": "adam", "lr": 0.01, "state": "keep"},
        },
        {
            "stream": {"arrivals": {"kind": "poisson", "per_s": 1.0}}, "model": {"kind": "logreg", "standardise": True},
            "stream.predict": "local",
        },
        {"server.round_timeout_s": 2.0, "evaluate.federated_fraction": 1.0, "server.rounds": 4},
    ],
    ids=["algorithm and optimiser", "stream", "late"],
)  # fmt: skip
def test_one_digest_of_own_statistics(more: dict[str, Any], go: Go, hands: None) -> None:
    """One at a time, in cohorts and by two workers, evaluations included, a run has one digest, and its model can be loaded."""
    table = {**NORM, "server.statistics": "keep_local", **more}
    runs = [go({**table, "engine.chunk": chunk, "engine.workers": workers}) for chunk, workers in ((1, 1), (6, 2))]

    assert 1 == len({(run.digest, run.metrics_digest) for run in runs})
    assert not any("running" in name for name in runs[0].params())
    assert runs[0].model() is not None


# Statistics that are measured.


@pytest.mark.parametrize("norm", [{"norm": "batch"}, {"norm": "ghost", "ghost_size": 4}, {"norm": "frozen"}])
def test_measured_statistics_are_those_of_the_examples(norm: dict[str, Any]) -> None:
    """Mean and variance become what comes to each layer, those before it normalising by the examples too; nothing else changes."""
    torch.manual_seed(0)
    model, x = mlp((4,), 3, hidden=[8, 8], dropout=0.5, **norm).double(), torch.randn(50, 4, dtype=torch.float64)
    before = params_of(model)
    found = Calibration(model, x).measured(before)
    once = model[1](x)
    hidden = torch.relu((once - once.mean(0)) / (once.var(0, unbiased=False) + 1e-5).sqrt())
    twice = model[5](hidden)

    for place, seen in (("2", once), ("6", twice)):
        assert np.allclose(found[f"{place}.running_mean"], seen.mean(0).detach().numpy(), rtol=0, atol=1e-12)
        assert np.allclose(found[f"{place}.running_var"], seen.var(0).detach().numpy(), rtol=0, atol=1e-12)
    assert all(np.array_equal(found[name], array) for name, array in before.items() if "running" not in name)
    assert all(np.array_equal(params_of(model)[name], array) for name, array in before.items())
    assert model.training and not any(getattr(layer, "measuring", False) for layer in model)


def test_the_server_measures_on_examples_of_its_own(tiny: Any, go: Go) -> None:
    """What the server measures on is in no client's part, and the test part stays what it was; the run repeats in any chunk."""
    table = {**NORM, "server.statistics": "recalibrate", "server.calibration_examples": 30}
    with_, without = build(load(tiny(table))), build(load(tiny(NORM)))
    runs = [go({**table, "engine.chunk": chunk}) for chunk in (1, 6)]
    assert with_.calibration is not None
    count = sum(int(n) for n in with_.federation.sizes(np.arange(6)))
    last = runs[0].params()

    assert count + 30 == sum(int(n) for n in without.federation.sizes(np.arange(6)))
    assert torch.equal(with_.test[0], without.test[0])
    assert runs[0].digest == runs[1].digest
    assert all(np.array_equal(with_.calibration.measured(last)[name], last[name]) for name in (MEAN, VARIANCE))


def test_frozen_statistics_are_the_servers(go: Go) -> None:
    """A frozen norm whose statistics the server measures learns better than one that has those it was built with."""
    table = {**NORM, "model.norm": "frozen", "training.epochs": 3}
    plain, measured = go(table), go({**table, "server.statistics": "recalibrate", "server.calibration_examples": 20})

    assert (plain.params()[VARIANCE] == 1).all()
    assert measured.manifest["final"]["accuracy"] > plain.manifest["final"]["accuracy"] + 0.1


def test_a_server_may_measure_for_its_own_score_only(go: Go) -> None:
    """Where clients keep theirs, statistics that the server measures go into its scores and its saved model, and never travel."""
    run = go({**NORM, "server.statistics": "keep_local", "server.calibration_examples": 20})
    bare = go({**NORM, "server.statistics": "keep_local"})

    assert VARIANCE in run.params() and VARIANCE not in bare.params()
    assert run.tasks.down_bytes.iloc[0] == bare.tasks.down_bytes.iloc[0]
    assert not any("say little" in note for note in run.manifest["notes"])
    assert torch.equal(run.model().state_dict()[VARIANCE], torch.tensor(run.params()[VARIANCE]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"server.statistics": "keep_local"}, "server.statistics = 'keep_local': model.kind = 'logreg' has no running statistics."),
        ({**NORM, "server.statistics": "recalibrate"}, "server.calibration_examples: missing."),
        ({**NORM, "server.calibration_examples": 20}, "server.calibration_examples = 20: server.statistics = 'aggregate' measures"),
        (
            {**NORM, "server.statistics": "recalibrate", "server.calibration_examples": 2000},
            "server.calibration_examples = 2000: leaves the clients nothing",
        ),
        (
            {"model": {"kind": "logreg", "standardise": True}, "server.statistics": "recalibrate", "server.calibration_examples": 20},
            "server.calibration_examples = 20: model.kind = 'logreg' has no layer",
        ),
        (
            {**NORM, "server.statistics": "recalibrate", "server.calibration_examples": 20, "stream": {}},
            "server.calibration_examples = 20: on a [stream]",
        ),
        (
            {
                **NORM, "data": {"source": {"kind": "leaf_synthetic"}}, "training.drop_last": True, "server.statistics": "recalibrate",
                "server.calibration_examples": 20,
            },
            "server.calibration_examples = 20: data.source.kind = 'leaf_synthetic' makes",
        ),
        ({**NORM, "server.statistics": "average"}, "server.statistics = 'average'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(settings: dict[str, Any], said: str, tiny: Any) -> None:
    """Statistics that there are none of, or nothing to measure on, are refused by their key before the run."""
    with pytest.raises(ScenarioError) as refused:
        build(load(tiny(settings)))

    assert str(refused.value).startswith(said), str(refused.value)
