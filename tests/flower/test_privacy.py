"""The noise of private strategies is what they say: for those who came, never for more; where it is not, the run says so."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

from fedsim.core.errors import RunError, ScenarioError
from fedsim.flower import compat
from fedsim.strategy import stock
from fedsim.strategy.clipping import FixedClipping
from fedsim.strategy.privacy import Privacy, privacy_of

HERE = __name__
SIZE = 40_000
FLOWERS = ("DifferentialPrivacyServerSideFixedClipping", "DifferentialPrivacyClientSideFixedClipping")


class Nobody:
    """A grid on which nobody is asked anything."""

    def get_node_ids(self) -> list[int]:
        return []


def account(kind: str, clients: int, **settings: Any) -> Privacy:
    """Return the account of a wrapper of *kind* around FedAvg with noise .3 and norm 2."""
    inner = {"kind": "FedAvg", "fraction_train": 1.0}
    table = {"kind": kind, "noise_multiplier": 0.3, "clipping_norm": 2.0, "strategy": inner, **settings}
    found = privacy_of(stock.build(table, clients, 0.0).strategy, 0.3)
    assert found is not None
    return found


def std(strategy: Strategy, weights: list[int], failed: int = 0) -> float:
    """Return the deviation of the noise over updates of (almost) nothing, from one client per weight."""
    compat.set_identity()
    tiny = np.full(SIZE, 1e-9)
    if hasattr(strategy, "current_arrays") or isinstance(strategy, FixedClipping):
        with compat.log_to(None):
            inner: Any = strategy.strategy  # type: ignore[attr-defined]
            inner.fraction_train = 0.0
            strategy.configure_train(1, ArrayRecord({"w": Array(np.zeros(SIZE))}), ConfigRecord(), Nobody())  # type: ignore[arg-type]
    replies = [
        Message(RecordDict({"arrays": ArrayRecord({"w": Array(tiny)}), "metrics": MetricRecord({"num-examples": n})}), 5, "train")
        for n in weights
    ]  # fmt: skip
    np.random.seed(0)
    with compat.log_to(None):
        arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return float(arrays["w"].numpy().std())


@pytest.mark.parametrize("kind", FLOWERS)
def test_more_clients_than_are_asked_are_refused(kind: str) -> None:
    """A wrapper that counts on 1000 clients where a round asks 10 would add a hundredth of the noise: it is refused."""
    table = {
        "kind": kind,
        "noise_multiplier": 0.65,
        "clipping_norm": 1.0,
        "num_sampled_clients": 1000,
        "strategy": {"kind": "FedAvg", "clients_per_round": 10},
    }
    with pytest.raises(
        ScenarioError, match=r"server.strategy.num_sampled_clients = 1000: a round asks 10 clients.*100 times too small. Set it to 10"
    ):
        stock.build(table, 2000, 0.0)
    assert stock.build({**table, "num_sampled_clients": 10}, 2000, 0.0)
    assert any("times the noise" in note for note in stock.build({**table, "num_sampled_clients": 5}, 2000, 0.0).notes)


@pytest.mark.parametrize("kind", FLOWERS)
def test_the_noise_is_for_those_who_came(kind: str) -> None:
    """Where four of ten answered in time the measured noise is z C / 4; Flower's alone is z C / 10."""
    mine = account(kind, 10, num_sampled_clients=10)
    bare = getattr(flower, kind)(FedAvg(fraction_train=0.0, fraction_evaluate=0.0), 0.3, 2.0, 10)

    assert abs(std(mine.around(), [7] * 4) / (0.3 * 2.0 / 4) - 1) < 0.02
    assert abs(std(bare, [7] * 4) / (0.3 * 2.0 / 10) - 1) < 0.02
    assert abs(std(mine.strategy, [7] * 10) / (0.3 * 2.0 / 10) - 1) < 0.02
    assert 10 == mine.strategy.num_sampled_clients
    assert mine.section()["holds"] and 1 == mine.section()["fewer_than_counted_on"]
    assert any("In 1 rounds fewer clients than num_sampled_clients = 10 answered (4 at least)" in note for note in mine.notes)


@pytest.mark.parametrize("kind", FLOWERS)
def test_weights_that_break_the_noise_are_said(kind: str) -> None:
    """With one of four clients weighing .58 the noise is that of 3/7 of the multiplier, and the account says so."""
    mine = account(kind, 4, num_sampled_clients=4)
    noise = std(mine.around(), [7, 2, 2, 1])
    section = mine.section()

    assert abs(noise / section["noise_std"][0] - 1) < 0.02
    assert not section["holds"] and np.isclose(7 / 12, section["largest_weight"])
    assert np.isclose(0.3 * 0.25 / (7 / 12), section["smallest_noise_multiplier_of_updates"])
    assert any("smaller multiplier" in note and "FixedClipping" in note for note in mine.notes)


@pytest.mark.parametrize("weights", [[7, 2, 2, 1], [1, 1, 1, 900, 1]])
def test_ours_weighs_clients_alike(weights: list[int]) -> None:
    """FixedClipping's measured noise is z C / m for the m that came, whatever they weigh, and the account says that it holds."""
    mine = account("FixedClipping", 10)

    assert abs(std(mine.around(), weights) / (0.3 * 2.0 / len(weights)) - 1) < 0.02
    assert mine.section()["holds"] and [] == mine.section()["why_not"] == mine.notes
    assert np.isclose(0.3, mine.section()["smallest_noise_multiplier_of_updates"])


def test_a_client_moves_the_mean_by_no_more_than_the_noise_assumes() -> None:
    """With FixedClipping one client more or less moves the sum by at most C; with FedAvg's weights that does not hold."""
    compat.set_identity()
    draw = np.random.default_rng(0)
    updates, weights = draw.normal(size=(4, 8)) * 9, [1, 1, 1, 900]

    def moved(make: Any) -> float:
        found = []
        for last in (np.zeros(8) + 1e-12, updates[3]):
            strategy = make(FedAvg(fraction_train=0.0, fraction_evaluate=0.0))
            strategy.configure_train(1, ArrayRecord({"w": Array(np.zeros(8))}), ConfigRecord(), Nobody())
            rows = [*updates[:3], last]
            replies = [
                Message(RecordDict({"arrays": ArrayRecord({"w": Array(row)}), "metrics": MetricRecord({"num-examples": n})}), 5, "train")
                for row, n in zip(rows, weights, strict=True)
            ]  # fmt: skip
            found.append(strategy.aggregate_train(1, replies)[0]["w"].numpy())
        return float(np.linalg.norm(found[1] - found[0]))

    with compat.log_to(None):
        assert moved(lambda inner: FixedClipping(inner, 0.0, 2.0)) <= 2.0 / 4 * (1 + 1e-9)
        assert moved(lambda inner: flower.DifferentialPrivacyServerSideFixedClipping(inner, 0.0, 2.0, 4)) > 3 * 2.0 / 4


@pytest.mark.parametrize("inner", ["FedAdam", "FedMedian", "Krum"])
def test_noise_on_what_is_no_mean_is_said(inner: str) -> None:
    """Where the wrapped strategy hands back no mean, the account says that the noise is not its noise."""
    mine = account(FLOWERS[0], 6, num_sampled_clients=6, strategy={"kind": inner})

    assert not mine.section()["holds"]
    assert any(f"and {inner} hands back something else" in reason for reason in mine.reasons())


def test_a_run_says_what_holds(go: Any) -> None:
    """The manifest has a section on privacy: with unequal clients Flower's wrapper does not hold and ours does; none without a wrapper."""
    skewed = {"data.partition": {"kind": "quantity", "sigma": 1.0}, "server.rounds": 2}
    inner = {"strategy": {"kind": "FedAvg"}, "noise_multiplier": 0.1, "clipping_norm": 1.0}
    theirs = go({**skewed, "server.strategy": {"kind": FLOWERS[0], "num_sampled_clients": 6, **inner}}).manifest
    mine = go({**skewed, "server.strategy": {"kind": "FixedClipping", **inner}}).manifest

    assert not theirs["privacy"]["holds"] and theirs["privacy"]["largest_weight"] > 0.2
    assert any("Privacy is weaker" in note for note in theirs["notes"])
    assert mine["privacy"]["holds"] and 2 == mine["privacy"]["releases"] and [] == mine["notes"]
    assert np.isclose(1 / 6, mine["privacy"]["largest_weight"]) and np.allclose(0.1 / 6, mine["privacy"]["noise_std"])
    assert "privacy" not in go({"server.rounds": 1}).manifest


def test_a_deadline_that_drops_replies_makes_the_noise_larger(go: Any) -> None:
    """A run in which a deadline leaves three of six replies takes its noise for three."""
    private = {"kind": FLOWERS[0], "num_sampled_clients": 6, "noise_multiplier": 0.1, "clipping_norm": 1.0, "strategy": {"kind": "FedAvg"}}
    all_ = go({"server.strategy": private, "server.rounds": 1})
    arrived = np.sort(all_.tasks.arrived_s.to_numpy())
    run = go({"server.strategy": private, "server.rounds": 1, "server.round_timeout_s": float(arrived[2] + arrived[3]) / 2})

    assert [3, 3] == run.manifest["privacy"]["replies"]
    assert np.allclose(0.1 / 3, run.manifest["privacy"]["noise_std"])
    assert any("the noise was taken for those who did" in note for note in run.manifest["notes"])


def broken(_message: Message, _context: Any, _next: Any) -> Message:
    raise KeyError("a client mod\nof two lines")


def test_what_a_client_mod_raises_is_one_line(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client mod that raises ends the run in one line that names it and the client."""
    monkeypatch.setattr(stock, "fixedclipping_mod", broken)
    private = {"kind": FLOWERS[1], "num_sampled_clients": 6, "noise_multiplier": 0.1, "clipping_norm": 1.0, "strategy": {"kind": "FedAvg"}}
    with pytest.raises(RunError, match=r"client 0 in round 1: a client mod \(broken\) raised KeyError: 'a client mod") as error:
        go({"server.strategy": private})
    assert "\n" not in str(error.value)
