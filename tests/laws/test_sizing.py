"""Clients that choose their batch sizes: one digest however computed, devices have the last word, and what cannot be is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.client.fitting import at_once
from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.client.sizing import resized
from fedsim.core.errors import ScenarioError
from fedsim.learn.batch_policies import Bounds
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job
from fedsim.learn.work import Start
from fedsim.preview import preview
from fedsim.scenario.build import build
from fedsim.scenario.load import load

Go = Callable[..., fedsim.Run]
NORM: dict[str, Any] = {
    "training.batch_policy": {"kind": "norm_test", "theta": 0.5}, "training.batch_size": 4, "data.test_fraction": 0.7,
    "data.partition": {"kind": "dirichlet", "alpha": 1.0}, "server.rounds": 3,
}  # fmt: skip
STREAM: dict[str, Any] = {
    "stream.arrivals": {"kind": "constant", "per_s": 2.0}, "stream.trigger": {"kind": "count", "examples": 20},
    "clients.replay": {"kind": "reservoir", "capacity": 9},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "momentum": {"training.optimizer.momentum": 0.9, "training.scale_with_batch": {"base": 4}},
    "stream": STREAM,
    "live": {**STREAM, "training.rehearsal": {"kind": "der"}},
    "union": {**STREAM, "training.rehearsal": {"kind": "union"}},
    "late": {"server.round_timeout_s": 1.6},
    "accumulate": {"training.accumulate": 2, "training.batch_policy": {"kind": "noise_scale"}},
    "early": {"training.stopping": {"kind": "patience"}, "training.epochs": 4, "training.optimizer.lr": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_digest(case: str, go: Go) -> None:
    """Clients that go by the noise of their last task have one digest, stacked or one by one; and none of those who do not."""
    runs = [go({**NORM, **CASES[case], "engine.chunk": chunk}) for chunk in (1, 6)]
    assert len({run.digest for run in runs}) == len({run.metrics_digest for run in runs}) == 1
    sizes = runs[0].tasks.groupby("round")["batch_size"].max().tolist()
    assert sizes[0] in (4, 8) and sizes[-1] > sizes[0]


def test_workers_know_the_noise_too(go: Go, hands: None) -> None:
    """What is measured in another process moves sizes as here."""
    assert go(NORM).digest == go({**NORM, "engine.workers": 2}).digest


def test_growing_is_on_a_clock(go: Go) -> None:
    """Sizes go by the clock that is named, bounded; the steps of a task are what follows from them."""
    for clock, sizes in (("round", [4, 4, 8, 8, 12]), ("local_step", [4, 12, 12, 12, 12]), ("version", [4, 4, 8, 8, 12])):
        policy = {"kind": "growing", "every": 2, "clock": clock, "most": 12}
        tasks = go({"training.batch_policy": policy, "training.batch_size": 4, "server.rounds": 5}).tasks
        assert sizes == tasks.groupby("round")["batch_size"].first().tolist()
        assert (-(-tasks.examples // tasks.batch_size) == tasks.steps).all()


def test_a_policy_that_changes_nothing_changes_only_what_is_told(go: Go) -> None:
    """Sizes that stay train to the same parameters in the same time; a run without a policy tells no size."""
    plain, kept = go(), go({"training.batch_policy": {"kind": "growing", "every": 1000}})
    assert plain.tasks["batch_size"].isna().all() and kept.tasks["batch_size"].unique().tolist() == [10]
    assert [*plain.tasks.result] == [*kept.tasks.result] and plain.manifest["virtual_s"] == kept.manifest["virtual_s"]


@pytest.mark.parametrize("too_large", ["smaller_batch", "accumulate"])
def test_devices_have_the_last_word(too_large: str, go: Go) -> None:
    """However large a policy wants batches, no pass exceeds what a device holds."""
    settings = {"training.batch_policy": {"kind": "growing", "every": 1, "factor": 4.0}, "training.too_large": too_large}
    ram = {"clients.ram": {"kind": "constant", "mib": 0.0075}}
    parts = build(load(go({**settings, **ram, "server.rounds": 1}).manifest["scenario"]))
    assert parts.fleet.fitting is not None
    most = parts.fleet.fitting.most(0, parts.job)
    for number in (1, 2, 3, 9):
        task, _ = parts.fleet.client(0).plan(Order(parts.job, Start(parts.first), number), Kept())
        assert at_once(task) <= most < 20
        assert too_large == "smaller_batch" or task.job.batch_size == 10 * 4 ** (number - 1)


def test_what_passes_at_once_stays() -> None:
    """With training.accumulate a policy sets what an update is made from, and no more passes at once than was ordered."""
    assert resized(Job(batch_size=4, accumulate=3), 24).micro(24) == [4] * 6
    assert resized(Job(batch_size=4), 24).micro(24) == [24]


def test_powers_of_two_lie_within_bounds() -> None:
    """Whatever is wanted, a size is a power of two from the least to the most."""
    for least, most in ((1, 1), (3, 4), (5, 100), (1, 10**9)):
        bounds = Bounds.of(least, most, powers_of_two=True)
        sizes = {bounds.within(size, up=up) for size in np.geomspace(1e-3, 1e12, 300).tolist() for up in (True, False)}
        assert all(least <= size <= most and size & (size - 1) == 0 for size in sizes)
        assert sizes == set(bounds.all)


def test_a_check_says_what_it_cannot_foretell(tiny: Any) -> None:
    """Sizes that follow from training are foretold at the first; those on a clock are foretold exactly."""
    noisy = preview(load(tiny({**NORM})))
    timed = preview(load(tiny({"training.batch_policy": {"kind": "growing", "every": 1}})))
    assert not noisy.foretold.exact and "at the size that it starts with" in str(noisy.notes)
    assert timed.foretold.exact and not timed.notes


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "full": ({"training.batch_size": "full"}, r"training.batch_policy.kind = 'growing': goes from training.batch_size, and that is 'full'"),
    "empty": ({"training.batch_policy.least": 9, "training.batch_policy.most": 8}, r"batch_policy.most = 8: is less than .*least = 9"),
    "powers": (
        {"training.batch_policy.least": 9, "training.batch_policy.most": 15, "training.batch_policy.powers_of_two": True},
        r"most = 15: no power of two lies from training.batch_policy.least = 9 to it.* most = 16",
    ),
    "clock": ({"training.batch_policy.clock": "hour"}, r"training.batch_policy.clock = 'hour'"),
    "early": (
        {"training.batch_policy.clock": "local_step", "training.stopping": {"kind": "patience"}},
        r"training.batch_policy.clock = 'local_step': with training.stopping nobody knows",
    ),
    "norm": ({"model": {"kind": "tests.laws.test_sizing:Normal"}}, r"training.batch_policy: may come to a batch of one example"),
    "depth": ({"clients.loading": {"kind": "prefetch", "examples_per_s": 5.0, "depth": -1}}, r"clients.loading.depth = -1: must be >= 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_wishes_are_refused(case: str, go: Go) -> None:
    """Each is named by its key, with what would have worked."""
    settings, said = REFUSED[case]
    with pytest.raises(ScenarioError, match=said):
        go({"training.batch_policy": {"kind": "growing", "every": 2}, "data.partition": {"kind": "iid"}, **settings})


def Normal(shape: tuple[int, ...], outputs: int) -> Any:
    """Return a model that cannot train on one example."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, outputs))


def test_teeth_a_policy_that_hears_of_another_batch_is_caught(monkeypatch: pytest.MonkeyPatch, go: Go) -> None:
    """Noise that depends on who trains beside whom gives chunks digests of their own."""
    usual, seen = CohortEngine._result, list[int]()

    def bent(self: CohortEngine, task: Any, *rest: Any) -> Any:
        seen.append(0)
        return usual(self, dataclasses.replace(task, gauged=2 + (task.gauged - 2) * (self.chunk == 1)), *rest)

    monkeypatch.setattr(CohortEngine, "_result", bent)
    with pytest.raises(AssertionError):
        test_one_digest("momentum", go)
    assert seen
