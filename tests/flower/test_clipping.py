"""Adaptive clipping follows the quantile that it is given, and draws its noise with the norm that cut the updates."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from fedsim.core.errors import ScenarioError
from fedsim.flower import compat
from fedsim.strategy import stock
from fedsim.strategy.clipping import AdaptiveClipping, FixedClipping

ROUNDS, CLIENTS = 120, 40
Vector = np.ndarray[Any, np.dtype[np.float64]]


class Nobody:
    """A grid on which nobody is asked anything."""

    def get_node_ids(self) -> list[int]:
        return []


def quiet() -> FedAvg:
    """Return a FedAvg that asks nobody."""
    with compat.log_to(None):
        return FedAvg(fraction_train=0.0, fraction_evaluate=0.0)


def aggregate(strategy: Any, start: Vector, updates: list[Vector], examples: list[int] | None = None) -> tuple[Vector, dict[str, Any]]:
    """Return what *strategy* makes of *updates* to the model *start*, and the metrics it tells."""
    compat.set_identity()
    strategy.configure_train(1, ArrayRecord({"w": Array(start)}), ConfigRecord(), Nobody())
    counts = examples or [1] * len(updates)
    replies = [
        Message(
            RecordDict({"arrays": ArrayRecord({"w": Array(start + u)}), "metrics": MetricRecord({"num-examples": n, "loss": 1.0 * i})}),
            5, "train",
        )
        for i, (u, n) in enumerate(zip(updates, counts, strict=True))
    ]  # fmt: skip
    arrays, metrics = strategy.aggregate_train(1, replies)
    return arrays["w"].numpy(), dict(metrics)


def planted(draw: np.random.Generator, clients: int, size: int = 3) -> list[Vector]:
    """Return updates in all directions whose norms lie evenly over a log-normal about 1.2."""
    directions = draw.normal(size=(clients, size))
    norms = 1.2 * np.exp(0.5 * np.array([[NormalDist().inv_cdf((i + 0.5) / clients)] for i in range(clients)]))
    return list(norms * directions / np.linalg.norm(directions, axis=1, keepdims=True))


def settled(make: Callable[[float, float], Any], quantile: float, first: float) -> float:
    """Return the clipping norm, as a share of the planted quantile of norms, in the mean of the last of many rounds."""
    draw = np.random.default_rng(0)
    np.random.seed(0)
    strategy, seen = make(quantile, first), list[float]()
    with compat.log_to(None):
        for _ in range(ROUNDS):
            aggregate(strategy, np.zeros(3), planted(draw, CLIENTS))
            seen.append(strategy.clipping_norm)
    return float(np.mean(seen[ROUNDS // 2 :]) / (1.2 * math.exp(0.5 * NormalDist().inv_cdf(quantile))))


def ours(quantile: float, first: float) -> Any:
    return AdaptiveClipping(quiet(), 0.0, CLIENTS, initial_clipping_norm=first, target_clipped_quantile=quantile)


def flowers(quantile: float, first: float) -> Any:
    return flower.DifferentialPrivacyServerSideAdaptiveClipping(
        quiet(), 0.0, CLIENTS, initial_clipping_norm=first, target_clipped_quantile=quantile
    )


@pytest.mark.parametrize(("quantile", "first"), [(0.2, 4.0), (0.5, 0.3), (0.8, 0.3)])
def test_the_norm_follows_the_quantile(quantile: float, first: float) -> None:
    """The norm settles within 5 % of the planted quantile of norms, wherever it starts."""
    assert abs(settled(ours, quantile, first) - 1) < 0.05


def test_the_norm_follows_it_under_noise() -> None:
    """Noise on the updates, and on the count, leaves the norm within 5 % of the quantile."""
    assert abs(settled(lambda q, c: AdaptiveClipping(quiet(), 0.5, CLIENTS, c, q), 0.5, 0.3) - 1) < 0.05


@pytest.mark.parametrize("first", [0.3, 4.0])
def test_flowers_norm_runs_away(first: float) -> None:
    """The same law rejects Flower's: its norm goes to 0, or to infinity."""
    share = settled(flowers, 0.5, first)

    assert share < 0.01 if first < 1 else share > 100


def test_the_noise_is_that_of_the_norm_that_cut() -> None:
    """Noise has the deviation z C / m with the C of the round, before it moves; Flower's is drawn with the moved one."""
    size, clients = 40_000, 5
    updates = [np.full(size, 1e-9)] * clients
    moved = math.exp(-1.0 * (1 - 0.5))
    want = 0.3 * 2.0 / clients
    np.random.seed(1)
    right = AdaptiveClipping(quiet(), 0.3, clients, 2.0, 0.5, 1.0, clipped_count_stddev=1e6)  # So large that z is left whole.
    right.clipped_count_stddev = 0.0
    found, _ = aggregate(right, np.zeros(size), updates)

    assert abs(found.std() / want - 1) < 0.02
    assert abs(right.clipping_norm / (2.0 * moved) - 1) < 1e-9
    with compat.log_to(None):
        wrong = flower.DifferentialPrivacyServerSideAdaptiveClipping(quiet(), 0.3, clients, 2.0, 0.5, 1.0, clipped_count_stddev=1e6)
        wrong.clipped_count_stddev = 0.0
        noise, _ = aggregate(wrong, np.zeros(size), updates)
    assert abs(noise.std() / want - 1) > 0.3


def test_the_count_takes_its_part_of_the_noise() -> None:
    """With noise z and count noise s the updates get (z^-2 - (2 s)^-2)^-1/2, and a z that the count uses up is refused."""
    strategy = AdaptiveClipping(quiet(), 1.0, 100, 0.1)

    assert math.isclose((1.0**-2 - 10.0**-2) ** -0.5, strategy.noise_multiplier)
    with pytest.raises(
        ScenarioError, match=r"server.strategy.kind = 'AdaptiveClipping': refuses.*noise_multiplier = 2 must be below.* = 1"
    ):
        stock.build(
            {"kind": "AdaptiveClipping", "noise_multiplier": 2.0, "num_sampled_clients": 10, "strategy": {"kind": "FedAvg"}}, 10, 0.0
        )


def test_updates_are_cut_and_weighed_alike() -> None:
    """The mean is that of updates cut to the norm, whatever examples clients say they have; metrics are plain means."""
    draw = np.random.default_rng(3)
    start, updates = draw.normal(size=6), planted(draw, 7, 6)
    found, metrics = aggregate(FixedClipping(quiet(), 0.0, 1.1), start, updates, examples=[1, 100, 1, 1, 5000, 1, 1])
    cut = [u * min(1.0, 1.1 / np.linalg.norm(u)) for u in updates]

    assert np.allclose(start + np.mean(cut, axis=0), found, rtol=1e-12)
    assert {"loss": 3.0, "clipping_norm": 1.1} == metrics


def test_an_update_of_nothing_is_below_every_norm() -> None:
    """Updates that are exactly 0 are counted as below the norm, and divide nothing by zero."""
    strategy = AdaptiveClipping(quiet(), 0.0, 4, 1.0)
    found, _ = aggregate(strategy, np.ones(3), [np.zeros(3)] * 4)

    assert (found == 1.0).all() and strategy.clipping_norm < 1.0


def test_what_is_wrapped_sees_the_private_mean_only() -> None:
    """Adam at the server takes its step from the noised mean: the same as handing it that mean."""
    draw = np.random.default_rng(5)
    start, updates = draw.normal(size=4), planted(draw, 5, 4)

    def adam() -> Any:
        with compat.log_to(None):
            return flower.FedAdam(fraction_train=0.0, fraction_evaluate=0.0, eta=0.1)

    np.random.seed(7)
    mean, _ = aggregate(FixedClipping(quiet(), 0.5, 1.0), start, updates)
    np.random.seed(7)
    found, _ = aggregate(FixedClipping(adam(), 0.5, 1.0), start, updates)
    wanted, _ = aggregate(adam(), start, [mean - start])

    assert np.allclose(wanted, found, rtol=1e-12) and not np.allclose(mean, found)


@pytest.mark.parametrize("kind", ["Krum", "FedMedian", "QFedAvg"])
def test_a_rule_over_single_replies_cannot_be_wrapped(kind: str) -> None:
    """What chooses among replies is refused inside AdaptiveClipping, which hands it one."""
    inner = {"kind": kind, **({"client_learning_rate": 0.1} if kind == "QFedAvg" else {})}
    with pytest.raises(ScenarioError, match=rf"server.strategy.strategy.kind = '{kind}': AdaptiveClipping hands it one reply"):
        stock.build({"kind": "AdaptiveClipping", "noise_multiplier": 0.0, "num_sampled_clients": 6, "strategy": inner}, 6, 0.0)


def test_a_run_tells_its_norms_and_survives_rounds_without_replies(go: Any) -> None:
    """A run with AdaptiveClipping records the norm of each round; a round to which nobody comes leaves it as it is."""
    table = {
        "kind": "AdaptiveClipping",
        "noise_multiplier": 0.0,
        "num_sampled_clients": 6,
        "initial_clipping_norm": 0.05,
        "strategy": {"kind": "FedAvg"},
    }
    run = go({"server.strategy": table, "server.rounds": 3})
    norms = run.metrics[run.metrics.name == "clipping_norm"].value.to_numpy()

    assert 3 == len(norms) and 0.05 == norms[0] and (np.diff(norms) > 0).all()  # Updates of digits are longer: the norm grows.
    assert "done" == go({"server.strategy": table, "server.round_timeout_s": 0.01}).status


def test_flowers_adaptive_clipping_is_marked_as_what_it_is() -> None:
    """Wherever Flower's two adaptive wrappers are named, AdaptiveClipping is named beside them."""
    from fedsim.scenario.words import about

    for kind in ("DifferentialPrivacyServerSideAdaptiveClipping", "DifferentialPrivacyClientSideAdaptiveClipping"):
        table = {"kind": kind, "noise_multiplier": 0.0, "num_sampled_clients": 6, "strategy": {"kind": "FedAvg"}}

        assert "AdaptiveClipping" in about(stock.class_of(kind), kind)
        assert any(
            "runs to 0 or to infinity" in note and "AdaptiveClipping takes the same" in note for note in stock.build(table, 6, 0.0).notes
        )
