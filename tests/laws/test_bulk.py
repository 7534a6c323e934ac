"""What is worked out for a whole push at once is what processes come to, one by one: same rows, same order, same digests."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import RunError
from fedsim.core.keys import Key
from fedsim.cost import compute, network
from fedsim.sim import bulk
from fedsim.sim.mail import Delivery

Go = Callable[..., fedsim.Run]
MANY = {"clients.count": 24, "server.rounds": 4, "data.test_fraction": 0.5, "data.partition": {"kind": "quantity", "sigma": 1.0}}
FAR = {"kind": "lognormal", "down_mbps": 0.05, "up_mbps": 0.02}
SLOW = {"kind": "lognormal", "gflops": 0.001, "overhead_s": 1.0}
WORLDS: dict[str, dict[str, Any]] = {
    "waits for all": {"clients.network": FAR, "clients.compute": SLOW},
    "a deadline that some miss": {"clients.network": FAR, "clients.compute": SLOW, "server.round_timeout_s": 2.6},
    "a deadline that nobody meets": {"clients.network": FAR, "clients.compute": SLOW, "server.round_timeout_s": 0.5},
    "all at one instant": {"clients.network": {"kind": "ideal"}, "clients.compute": {"kind": "constant", "gflops": 5.0, "overhead_s": 1.0}},
    "late ones come as a round ends": {
        "clients.network": {"kind": "ideal"}, "clients.compute": {"kind": "constant", "gflops": 5.0, "step_s": 1.0},
        "server.round_timeout_s": 3.0, "training": {"epochs": 1, "batch_size": 8, "optimizer": {"kind": "sgd", "lr": 0.1}},
    },
    "draws of tasks": {"clients.compute": {"kind": "exponential", "gflops": 0.001}, "server.strategy": {
        "kind": "FedAvg", "fraction_train": 0.5}, "evaluate.federated_fraction": 0.5},
    "people come and go": {"clients.availability": {"kind": "onoff", "mean_on_s": 30.0, "mean_off_s": 5.0}, "clients.compute": SLOW,
        "clients.network": FAR, "server.round_timeout_s": 3.0, "server.strategy": {
            "kind": "FedAvg", "fraction_train": 0.9, "min_train_nodes": 2, "min_available_nodes": 2}},
    "tasks that fail": {"clients.network": FAR, "clients.compute": SLOW, "server.round_timeout_s": 90.0,
        "clients.failures": {"kind": "dropout", "probability": 0.3, "away_s": 30.0}, "evaluate.federated_fraction": 0.5},
    "tasks that crash, and their clients keep something": {"clients.network": FAR, "clients.compute": SLOW, "server.round_timeout_s": 90.0,
        "clients.failures": {"kind": "hazard", "per_s": 0.3, "what": "app"}, "training.algorithm": {"kind": "scaffold"}},
    "the first of many": {"clients.network": FAR, "clients.compute": SLOW, "server.pacing": {"kind": "over_selection", "take": 15}},
    "the first of one instant": {"clients.network": {"kind": "ideal"}, "server.pacing": {"kind": "over_selection", "take": 0.5},
        "clients.compute": {"kind": "constant", "gflops": 5.0, "overhead_s": 1.0}},
    "the first of some that fail": {"clients.network": FAR, "clients.compute": SLOW, "server.round_timeout_s": 90.0,
        "clients.failures": {"kind": "dropout", "probability": 0.3, "away_s": 30.0}, "server.pacing": {
            "kind": "over_selection", "take": 17}},
    "a minimum by a deadline": {"clients.network": FAR, "clients.compute": SLOW,
        "server.pacing": {"kind": "minimum_fraction", "fraction": 0.7, "seconds": 2.6}},
    "a deadline that follows": {"clients.network": FAR, "clients.compute": SLOW, "server.pacing": {"kind": "adaptive", "first_s": 2.6}},
    "clients that keep something": {"training.algorithm": {"kind": "scaffold"}, "clients.network": FAR, "clients.compute": SLOW,
        "server.round_timeout_s": 5.0},
}  # fmt: skip


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "LEAST", 10**9)


def rows(run: fedsim.Run) -> list[Any]:
    """Return all that there is to know of when what happened, in the order in which it became certain."""
    return [run.digest, run.metrics_digest, run.tasks.drop(columns="result").to_csv(), run.rounds.to_csv(), run.versions.to_csv()]


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_a_push_at_once_is_the_push_of_one_by_one(world: dict[str, Any], go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting, deadlines, ties, draws, absence, state: the rows and the digests are those of a process per message."""
    went, seen = bulk.went, list[int]()

    def counted(*given: Any) -> Any:
        gone = went(*given)
        seen.append(len(gone))
        return gone

    monkeypatch.setattr(bulk, "went", counted)
    monkeypatch.setattr(bulk, "LEAST", 2)
    at_once = rows(go({**MANY, **world}))
    assert sum(seen) or world["server.round_timeout_s"] == 0.5
    one_by_one(monkeypatch)

    assert at_once == rows(go({**MANY, **world}))


@pytest.mark.parametrize("fault", ["late ones too", "the last one too", "moments of others"])
def test_a_wrong_foresight_is_rejected(fault: str, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law has teeth: letting arrive what is late, or last, or at another's moment gives other rows, or breaks an invariant."""
    world = {**MANY, **WORLDS["a deadline that some miss"]}
    monkeypatch.setattr(bulk, "LEAST", 2)
    went = bulk.went

    def wrong(free: Sequence[Delivery], links: Any, foresight: Any, now: float, until_s: float) -> Any:
        if fault == "late ones too":
            return went(free, links, foresight, now, np.inf)
        gone = went(free, links, foresight, now, until_s)
        if fault == "the last one too" and gone:
            last = max(gone, key=lambda delivery: delivery.arrived_s)
            last.arrived_s += 1.0
        elif gone:
            for delivery, moment in zip(gone, sorted(d.arrived_s for d in gone), strict=True):
                delivery.arrived_s = max(moment, delivery.computed_s)
        return gone

    one_by_one(monkeypatch)
    right = rows(go(world))
    monkeypatch.setattr(bulk, "LEAST", 2)
    monkeypatch.setattr(bulk, "went", wrong)
    try:
        assert right != rows(go(world))
    except RunError as error:
        assert "defect of fedsim" in str(error)


def test_seconds_of_many_are_those_of_each_to_the_last_bit() -> None:
    """What networks and devices say of many clients at once is what they say of each, for those that are registered and for others."""
    clients, draw = np.arange(0, 5000, 7), np.random.default_rng(0)
    sizes, flops, steps = (draw.integers(1, 10**7, len(clients)) for _ in range(3))

    class Own:
        def down_s(self, client: int, size_bytes: int) -> float:
            return client / 3 + size_bytes * 1e-7

        up_s = down_s

    class Farther(network.LognormalNetwork):
        def down_s(self, client: int, size_bytes: int) -> float:
            return 60.0 + size_bytes * 1e-6

    far = network.lognormal(Key(1), down_mbps=3.0, up_mbps=0.7)
    links = [network.constant(down_mbps=3.0, up_mbps=0.7, latency_s=0.1), network.lognormal(Key(1), down_mbps=3.0, up_mbps=0.7),
             network.ideal(), Own(), Farther(*(getattr(far, each.name) for each in fields(far)))]  # fmt: skip
    for link in links:
        for many, one in ((network.downs_s, link.down_s), (network.ups_s, link.up_s)):
            assert many(link, clients, sizes).tolist() == [one(c, s) for c, s in zip(clients.tolist(), sizes.tolist(), strict=True)]  # pyright: ignore
    given = {"gflops": 3.3, "overhead_s": 0.1, "step_s": 0.01}
    devices = [compute.constant(**given), compute.lognormal(Key(2), **given), compute.exponential(Key(2), **given)]
    each = list(zip(clients.tolist(), sizes.tolist(), flops.astype(float).tolist(), steps.tolist(), strict=True))
    for device in devices:
        many = compute.many_s(device, clients, sizes, flops.astype(np.float64), steps)
        assert many.tolist() == [device.seconds(*one) for one in each]
