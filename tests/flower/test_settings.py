"""Every setting of every stock strategy does something, or its reader is told that it does not."""

import math
import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.flower import compat, compat_steps
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.strategy import stock
from fedsim.strategy.remarks import floored

HERE = __name__
NODES = 9
BASE: dict[str, dict[str, Any]] = {
    "FedAvgM": {"server_momentum": 0.5}, "MultiKrum": {"num_nodes_to_select": 3}, "QFedAvg": {"client_learning_rate": 0.1, "q": 0.5},
    "FedAdam": {"beta_1": 0.5, "beta_2": 0.5},
}  # fmt: skip
PRIVATE = {"noise_multiplier": 0.1, "num_sampled_clients": 9, "strategy": {"kind": "FedAvg"}}
VALUES: dict[str, tuple[Any, Any]] = {
    "fraction_train": (0.4, 1.0), "min_train_nodes": (2, 5), "min_available_nodes": (2, 9), "num_malicious_nodes": (0, 1),
    "num_nodes_to_select": (2, 5), "weighted_by_key": ("num-examples", "train_loss"), "train_loss_key": ("train_loss", "initial_loss"),
    "beta": (0.15, 0.4), "proximal_mu": (0.1, 1.0), "eta": (0.1, 1.0), "eta_l": (0.1, 50.0), "tau": (1e-3, 1.0), "beta_1": (0.1, 0.9),
    "beta_2": (0.1, 0.9), "q": (0.2, 2.0), "client_learning_rate": (0.1, 1.0), "server_learning_rate": (1.0, 0.5),
    "server_momentum": (0.1, 0.9), "noise_multiplier": (0.1, 0.3), "num_sampled_clients": (4, 9), "clipping_norm": (0.1, 0.2),
    "initial_clipping_norm": (0.1, 0.2), "target_clipped_quantile": (0.2, 0.8), "clip_norm_lr": (0.1, 0.9),
    "clipped_count_stddev": (0.5, 5.0), "strategy": ({"kind": "FedAvg"}, {"kind": "FedAdam"}),
}  # fmt: skip
"""Two values of each setting between which something must change."""


class Few:
    """A grid of nine nodes, four of which are there before anybody waits."""

    def __init__(self) -> None:
        self.there = 4

    def get_node_ids(self) -> Iterable[int]:
        return range(1000, 1000 + self.there)

    def sleep(self, _s: float) -> None:
        self.there = NODES


def outcome(built: stock.Built) -> tuple[bytes, bytes]:
    """Return all that three rounds over planted replies put out: who is asked what and the models; and the metrics."""
    compat.set_identity()
    strategy: Any = compat_steps.name_draws(built.strategy, Key(0))
    draw, grid = np.random.default_rng(0), Few()
    model = ArrayRecord({"w": Array(np.zeros(6))})
    seen: list[Any] = []
    told: list[Any] = []
    with compat.virtual_sleep(grid.sleep), compat.exact_distances(), compat.log_to(None), compat.cheap_collections():
        for number in (1, 2, 3):
            asked = list(strategy.configure_train(number, model, ConfigRecord(), grid))
            seen.append([(m.metadata.dst_node_id, dict(m.content["config"])) for m in asked])
            replies = []
            for i in range(NODES):
                arrays = ArrayRecord({"w": Array(model["w"].numpy() + draw.normal(size=6) * (1 + i))})
                metrics = {"num-examples": 5 + i, "train_loss": 1.0 / (1 + i), "initial_loss": 1.0 + i % 4}
                bit = dict.fromkeys(built.extra_metrics, i % 3 // 2)
                replies.append(Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({**metrics, **bit})}), 5, "train"))
            model, metrics = strategy.aggregate_train(number, replies)
            seen.append(model["w"].numpy().tolist())
            told.append(dict(metrics))
    return pickle.dumps(seen), pickle.dumps(told)


def settings() -> list[tuple[str, str]]:
    """Return every stock strategy with each of its settings."""
    return [(kind, name) for kind in stock.names() for name in stock.arguments(kind)]


def table(kind: str, **more: Any) -> dict[str, Any]:
    """Return a strategy table of *kind* in which every setting matters."""
    takes = stock.arguments(kind) if kind in stock.names() else {}
    given = {**{name: value for name, value in PRIVATE.items() if "strategy" in takes and name in takes}, **BASE.get(kind, {})}
    fixed = {"clipping_norm": 0.2} if "clipping_norm" in takes else {}
    sampling = {"fraction_train": 0.4} if more.keys() & {"min_train_nodes"} else {}
    return {"kind": kind, **fixed, **given, **sampling, **more}


def silent(kind: str, name: str, values: tuple[Any, Any]) -> bool:
    """Return whether setting *name* of *kind* moves neither the model nor what is asked, and no note says so."""
    builds = [stock.build(table(kind, **{name: value}), NODES, 0.0) for value in values]
    (a, _), (b, _) = (outcome(built) for built in builds)
    return a == b and not any(f"server.strategy.{name} = " in note for built in builds for note in built.notes)


@pytest.mark.parametrize(("kind", "name"), settings())
def test_a_setting_does_something_or_is_said_not_to(kind: str, name: str) -> None:
    """Two values of a setting give two outcomes, or a note names the setting that does nothing."""
    assert not silent(kind, name, VALUES[name])


class Idle(FedAvg):
    """A strategy with a setting that does nothing, of which nobody speaks."""

    def __init__(self, eagerness: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.eagerness = eagerness


def test_a_setting_that_does_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law sees a setting that does nothing and of which no note speaks."""
    monkeypatch.setattr(stock, "arguments", lambda _name: {})

    assert silent(f"{HERE}:Idle", "eagerness", (0.1, 50.0))


@pytest.mark.parametrize("kind", ["FedAdam", "FedYogi", "FedAdagrad"])
def test_a_run_says_that_eta_l_does_nothing(kind: str, go: Any) -> None:
    """A run whose strategy has an eta_l says that it has no effect, and where the clients' learning rate is."""
    run = go({"server.strategy": {"kind": kind, "eta_l": 50.0}, "server.rounds": 1})

    assert any("eta_l = 50.0: has no effect" in n and "training.optimizer.lr" in n for n in run.manifest["notes"])


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({"kind": "QFedAvg", "q": 0.0, "client_learning_rate": 0.5}, "client_learning_rate = 0.5: has no effect with q = 0"),
        ({"kind": "FedTrimmedAvg", "beta": 0.1}, "beta = 0.1: cuts nothing off"),
        ({"kind": "MultiKrum", "num_nodes_to_select": 9}, "nobody is left out"),
        ({"kind": "FedAvg", "fraction_train": 0.1}, "asks 2 of 9 clients, because min_train_nodes = 2"),
    ],
)
def test_what_does_nothing_in_company_is_said(strategy: dict[str, Any], said: str) -> None:
    """Settings that others, or the number of clients, make idle are said to be."""
    assert any(said in note for note in stock.build(strategy, NODES, 0.0).notes)


def test_floored_fractions_are_said_once(scenario_file: Any, cli: Any, go: Any) -> None:
    """0.29 of 100 clients asks 28, and check and run say so, once; what comes out whole says nothing."""
    given = {"clients.count": 100, "server.strategy": {"kind": "FedAvg", "fraction_train": 0.29}, "server.rounds": 1}
    answer = cli("check", scenario_file({**given, "evaluate.federated_fraction": 0.57, "evaluate.client_test_fraction": 0.4}))
    said = " ".join(answer.out.split())
    run = go(given)

    assert "server.strategy.fraction_train = 0.29: asks 28 of 100 clients" in said
    assert "evaluate.federated_fraction = 0.57: asks 56 of 100 clients" in said
    assert 1 == sum("asks 28" in note for note in run.manifest["notes"]) and 28 == run.rounds.asked.iloc[0]
    assert [] == floored("k", 0.3, 100, 2) == floored("k", 0.2, 50, 2) == floored("k", 1.0, 7, 2)
    assert () == stock.build({"kind": "FedAvg", "clients_per_round": 29}, 100, 0.0).notes


class Normed(nn.Sequential):
    """A classifier with BatchNorm, whose running mean and variance travel."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.BatchNorm1d(math.prod(shape)), nn.Linear(math.prod(shape), outputs))


@pytest.mark.parametrize("kind", ["Krum", "MultiKrum", "QFedAvg", "FixedClipping", "DifferentialPrivacyClientSideFixedClipping"])
def test_a_norm_over_buffers_is_refused_or_said(tiny: Any, kind: str) -> None:
    """Rules that take norms of all that travels refuse a count of examples among it, and say so of other buffers."""
    private = {"noise_multiplier": 0.0, "clipping_norm": 1.0, "num_sampled_clients": 4, "strategy": {"kind": "FedAvg"}}
    table = {"kind": kind, **BASE.get(kind, {}), **(private if "Clipping" in kind else {})}
    if kind == "FixedClipping":
        table.pop("num_sampled_clients")

    with pytest.raises(ScenarioError, match=rf"model.standardise = true: server.strategy.kind = '{kind}' takes the norm"):
        build(load(tiny({"server.strategy": table, "model.standardise": True})))

    said = build(load(tiny({"server.strategy": table, "model": {"kind": f"{HERE}:Normed"}}))).notes
    assert 1 == sum(f"server.strategy.kind = '{kind}': takes the norm" in note and "1.running_mean" in note for note in said)
    assert not any("takes the norm" in note for note in build(load(tiny({"server.strategy": table}))).notes)
    mean = build(load(tiny({"server.strategy": {"kind": "FedMedian"}, "model.standardise": True})))
    assert not any("takes the norm" in note for note in mean.notes)
