"""What a strategy hands back: rounds that taught nothing are said, parts leave the rest, lists are numbers, errors are one line."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

import fedsim
from fedsim.core.errors import RunError
from fedsim.scenario.build import build
from fedsim.scenario.load import load

HERE = __name__


class WeightsOnly(FedAvg):
    """Shares some layers only, as FedBN and FedPer do."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, list(replies))
        assert arrays is not None
        return ArrayRecord({k: v for k, v in arrays.items() if "weight" in k}), metrics


class Lists(FedAvg):
    """Tells a list per round, which Flower allows, and something that is no number."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert metrics is not None
        metrics["losses"] = [float(r.content["metrics"]["train_loss"]) for r in replies]  # type: ignore[index]
        metrics["counts"] = [len(replies)] * server_round
        return arrays, {**metrics, "who": "me", "many": [1, "b"]}


class Silent(FedAvg):
    """Keeps the model as it is in every second round."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return (arrays if server_round % 2 else ArrayRecord()), metrics


def notes(run: fedsim.Run) -> str:
    """Return what the manifest notes, as one text."""
    return " ".join(run.manifest["notes"])


def test_a_part_of_the_arrays_leaves_the_rest(go: Any, tiny: Any) -> None:
    """A strategy that hands back the weights alone leaves the bias as it was, and the run says so."""
    run = go({"server.strategy": {"kind": f"{HERE}:WeightsOnly"}, "server.rounds": 3, "model": {"kind": "mlp", "hidden": [4]}})
    first = build(load(tiny({"model": {"kind": "mlp", "hidden": [4]}}))).first
    same = {name for name in first if np.array_equal(first[name], run.params()[name])}

    assert {name for name in first if "bias" in name} == same
    assert "2 of the model's 4 arrays" in notes(run)


def test_lists_of_metrics_are_recorded(go: Any) -> None:
    """A list that a strategy tells is recorded by number; what is no number is left out, and said."""
    run = go({"server.strategy": {"kind": f"{HERE}:Lists"}})
    training = run.metrics[run.metrics.scope == "training"]
    second = training[training["round"] == 2].set_index("name").value

    assert {"train_loss", "counts[0]", "counts[1]", *(f"losses[{i}]" for i in range(6))} == set(second.index)
    assert 6.0 == second["counts[1]"]
    assert np.isclose(second["train_loss"], np.average([second[f"losses[{i}]"] for i in range(6)]), rtol=0.02)
    assert "not recorded: many, who" in notes(run)


def test_a_strategy_that_aggregates_nothing_is_said(go: Any) -> None:
    """Replies that came to nothing are noted with the rounds, and told to who watches, once."""
    heard: list[tuple[str, ...]] = []
    run = go({"server.strategy": {"kind": f"{HERE}:Silent"}, "server.rounds": 4}, watch=lambda where: heard.append(tuple(where.said)))

    assert "nothing was aggregated in 2 rounds, first in round 2: Silent returned no arrays" in notes(run)
    assert 1 == len(heard[-1]) and () == heard[1]


def test_bulyan_says_how_many_replies_it_wanted(go: Any) -> None:
    """When stragglers leave Bulyan too few replies, the run says how many it needs and how many came."""
    table = {"kind": "Bulyan", "num_malicious_nodes": 0}
    slow = go({"server.strategy": table, "server.rounds": 1}).tasks.arrived_s.sort_values().to_numpy()
    run = go({"server.strategy": table, "server.rounds": 2, "server.round_timeout_s": float(slow[1] + slow[2]) / 2})

    assert "Bulyan needs at least 3 replies (4 num_malicious_nodes + 3), and 2 came" in notes(run)


def test_krum_says_when_too_few_came(go: Any) -> None:
    """Krum that is left with fewer than 2 f + 3 replies goes on, as Flower's does, and the run says so."""
    table = {"kind": "Krum", "num_malicious_nodes": 1}
    slow = go({"server.strategy": table, "server.rounds": 1})
    arrived = slow.tasks.arrived_s.sort_values().to_numpy()
    run = go({"server.strategy": table, "server.rounds": 1, "server.round_timeout_s": float(arrived[2] + arrived[3]) / 2})

    assert "In 1 rounds fewer replies came (3 at least) than Krum is defined for" in notes(run)
    assert "fewer replies" not in notes(slow)


def test_a_wrapper_that_gives_a_round_up_says_why(go: Any) -> None:
    """Flower's private wrappers drop a round in which one client answered with an error; the run says which error."""
    private = {
        "kind": "DifferentialPrivacyServerSideFixedClipping",
        "noise_multiplier": 0.0,
        "clipping_norm": 1.0,
        "num_sampled_clients": 6,
    }
    run = go({
        "server.strategy": {**private, "strategy": {"kind": "FedAvg"}}, "server.rounds": 4,
        "data.partition": {"kind": "quantity", "sigma": 1.0},
        "stream": {"arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 10}},
    })  # fmt: skip
    failed = run.rounds[(run.rounds.failed > 0) & (run.rounds.arrived > 0)]

    assert len(failed) > 0
    assert "gives a round up when a single reply is an error" in notes(run) and "stream has ended" in notes(run)


def test_adaptive_clipping_with_nobody_in_time_is_flowers_fault(go: Any) -> None:
    """Flower's adaptive clipping divides by the number of replies: with none of them the error says whose fault it is."""
    private = {"kind": "DifferentialPrivacyServerSideAdaptiveClipping", "noise_multiplier": 0.1, "num_sampled_clients": 6}
    with pytest.raises(RunError, match=r"round 1: .*Flower's own code divides by zero.*not one reply came in time.*round_timeout_s"):
        go({"server.strategy": {**private, "strategy": {"kind": "FedAvg"}}, "server.round_timeout_s": 0.01})


class Raises(FedAvg):
    """Raises what it is told to, where it is told to."""

    def __init__(self, where: str, what: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where, self.what = where, what

    def _maybe(self, where: str) -> None:
        if self.where != where:
            return
        if self.what == "exit":
            raise SystemExit(3)
        if self.what == "odd":
            raise Odd
        raise KeyError("first line\nsecond line")

    def configure_train(self, *args: Any, **kwargs: Any) -> Any:
        yield from super().configure_train(*args, **kwargs)
        self._maybe("configure_train")

    def aggregate_train(self, *args: Any) -> Any:
        self._maybe("aggregate_train")
        return super().aggregate_train(*args)

    def configure_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._maybe("configure_evaluate")
        return super().configure_evaluate(*args, **kwargs)

    def aggregate_evaluate(self, *args: Any) -> Any:
        self._maybe("aggregate_evaluate")
        return super().aggregate_evaluate(*args)

    def summary(self) -> None:
        self._maybe("summary")

    def start(self, *args: Any, **kwargs: Any) -> Any:
        self._maybe("start")
        return super().start(*args, **kwargs)


class Odd(BaseException):
    """An error that cannot be put into words."""

    def __str__(self) -> str:
        raise ValueError("never")


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("configure_train", "odd"), ("aggregate_train", "error"), ("configure_evaluate", "exit"), ("aggregate_evaluate", "odd"),
        ("summary", "exit"), ("start", "error"), ("start", "exit"),
    ],
)  # fmt: skip
def test_what_a_strategy_raises_is_one_line(where: str, what: str, scenario_file: Any, cli: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """Whatever a strategy of the reader's own raises, at any step, is one line that names it and the step; exit code 1."""
    monkeypatch.chdir(tmp_path)
    strategy = {"kind": f"{HERE}:Raises", "where": where, "what": what}
    path = scenario_file({"server.strategy": strategy, "server.rounds": 1, "evaluate.federated_fraction": 1.0})
    answer = cli("run", path, "--out", tmp_path / "out", "--quiet")

    assert 1 == answer.code, answer.err
    assert 1 == len(answer.err.strip().splitlines()), answer.err
    assert f"{HERE}:Raises" in answer.err and f"{where} raised" in answer.err
    assert "failed" == json.loads((tmp_path / "out" / "manifest.json").read_text())["status"]


@pytest.mark.parametrize("where", ["configure_train", "configure_evaluate"])
def test_what_a_strategy_raises_in_a_check_is_one_line(where: str, scenario_file: Any, cli: Any) -> None:
    """What an own strategy raises on the virtual clock alone is one line, too."""
    answer = cli("check", scenario_file({"server.strategy": {"kind": f"{HERE}:Raises", "where": where, "what": "exit"}}))

    assert 1 == answer.code
    assert 1 == len(answer.err.strip().splitlines()), answer.err
    assert f"{where} raised" in answer.err


class Gives(FedAvg):
    """Hands back something odd."""

    def __init__(self, what: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.what = what

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        name = next(iter(arrays))
        return {
            "nothing": None,
            "one": arrays,
            "dict": ({n: a.numpy() for n, a in arrays.items()}, metrics),
            "shape": (ArrayRecord({**arrays, name: Array(np.zeros(1, np.float32))}), metrics),
            "name": (ArrayRecord({**arrays, "other": arrays[name]}), metrics),
            "metrics": (arrays, 3.0),
            "empty": (arrays, MetricRecord({"none": []})),
        }[self.what]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", "gave None"), ("one", "gave a ArrayRecord"), ("dict", "gave a tuple of dict, MetricRecord"),
        ("shape", r"with shape \(1,\); the model has \(10, 64\)"), ("name", "'other', which the model does not have"),
        ("metrics", "gave metrics of type float"),
    ],
)  # fmt: skip
def test_what_a_strategy_must_not_hand_back_is_named(what: str, said: str, go: Any) -> None:
    """What Flower does not take for an aggregate, or the model for its arrays, is one line that says what was given."""
    with pytest.raises(RunError, match=f"aggregate_train gave.*|{said}") as error:
        go({"server.strategy": {"kind": f"{HERE}:Gives", "what": what}})
    error.match(said)


def test_an_empty_list_of_metrics_is_nothing(go: Any) -> None:
    """A list without entries is taken, and records nothing."""
    run = go({"server.strategy": {"kind": f"{HERE}:Gives", "what": "empty"}})

    assert "done" == run.status and not len(run.metrics[run.metrics.scope == "training"])


class Stops(FedAvg):
    """Drives by itself, as Flower does."""

    def start(self, *args: Any, **kwargs: Any) -> Any:
        return super().start(*args, **kwargs)


def test_a_strategy_that_drives_itself_can_be_stopped(go: Any) -> None:
    """[stop] ends a run whose strategy has a start of its own."""
    run = go({"server.strategy": {"kind": f"{HERE}:Stops"}, "server.rounds": 5, "stop": {"metric": "accuracy", "at_least": 0.01}})

    assert "done" == run.status and run.manifest["final"]["rounds"] < 5
