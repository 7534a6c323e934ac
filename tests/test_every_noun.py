"""A stranger's implementation of every noun that a scenario can name is used: as ours where it does as ours does, and not otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.scenario.kinds import slots

OWN = """
from dataclasses import replace
from fedsim.data.partition import Partition
from fedsim.learn.objectives import Classification
from fedsim.scenario.kinds import slots
from torch import nn

class Handed:
    "What another gives, handed on: no class of ours."
    def __init__(self, inner):
        self.inner = inner
    def __getattr__(self, name):
        return getattr(vars(self)["inner"], name)

class Halved(Handed):
    def loss(self, outputs, targets):
        return 0.5 * self.inner.loss(outputs, targets)

class Hasty(Handed):
    def run(self, tasks):
        return self.inner.run([replace(task, job=replace(task.job, lr=2 * task.job.lr)) for task in tasks])

def handed(noun, kind, settings, given):
    registry = slots()[noun].registry
    made = {"halved": "classification", "hasty": "local"}.get(kind, kind)
    inner = registry.call(registry.get(made, at=noun), settings or {}, **given)
    if isinstance(inner, nn.Module | Partition):  # Parameters go by their names; a partition is a value.
        return inner
    return {"halved": Halved, "hasty": Hasty}.get(kind, Handed)(inner)
"""
ONE = """
def {noun}({given}of, settings=None):
    return handed("{noun}", of, settings, dict({same}))
"""
STREAM = {"stream.arrivals": {"kind": "constant", "per_s": 2.0}, "stream.trigger": {"kind": "count", "examples": 6}}
SWAP = {"kind": "swap_labels", "pairs": [[0, 1]]}
DRIFT = {**STREAM, "stream.drift": {"change": SWAP, "schedule": {"kind": "abrupt", "at_s": [3.0]}}}
MEMORY = {**STREAM, "clients.replay": {"kind": "reservoir", "capacity": 9}}
ALARMS = {"kind": "page_hinkley", "min_instances": 2, "threshold": 0.2, "only_worse": False}
ADAPT = {"kind": "adapt", "buffer": "shrink", "lr_factor": 2.0}
SOME = {"server.strategy": {"kind": "FedAvg", "clients_per_round": 2, "min_available_nodes": 4}}
EPOCHS = {"training.epochs": 8, "training.optimizer.lr": 0.9}
RATES = {"server.rounds": 4}
Table = dict[str, Any]
CASES: dict[str, tuple[Table, Table, Table]] = {
    "source": ({"data": {"test_fraction": 0.3}}, {"kind": "sea", "examples_per_client": 20}, {"variant": 3}),
    "partition": ({}, {"kind": "dirichlet", "alpha": 0.3}, {"alpha": 3.0}),
    "compute": ({}, {"kind": "constant", "gflops": 5.0}, {"gflops": 4.0}),
    "network": ({}, {"kind": "constant", "up_mbps": 5.0, "down_mbps": 5.0}, {"up_mbps": 4.0}),
    "availability": (SOME, {"kind": "onoff", "mean_on_s": 5.0, "mean_off_s": 5.0}, {"mean_on_s": 50.0}),
    "ram": ({"training.too_large": "smaller_batch"}, {"kind": "constant", "mib": 0.0065}, {"mib": 0.007}),
    "energy": ({}, {"kind": "constant", "compute_w": 3.0, "up_w": 1.0}, {"compute_w": 4.0}),
    "model": ({}, {"kind": "logreg"}, {"zeros": True}),
    "objective": ({}, {"kind": "classification"}, {"kind": "halved"}),
    "optimizer": ({}, {"kind": "adam", "lr": 0.01}, {"lr": 0.02}),
    "clipping": ({}, {"kind": "norm", "bound": 0.1}, {"bound": 0.2}),
    "algorithm": ({}, {"kind": "scaffold"}, {"kind": "feddyn"}),
    "stopping": (EPOCHS, {"kind": "patience"}, {"epochs": 7}),
    "codec": ({}, {"kind": "bfloat16"}, {"kind": "plain"}),
    "lr_schedule": ({}, {"kind": "step", "size": 1}, {"gamma": 0.7}),
    "controller": (RATES, {"kind": "plateau", "patience": 0, "least": 0.9}, {"factor": 0.3}),
    "batch_policy": ({}, {"kind": "norm_test"}, {"theta": 9.0}),
    "loader": ({}, {"kind": "prefetch", "examples_per_s": 100.0}, {"depth": 0}),
    "failure": (
        {"server.round_timeout_s": 100.0}, {"kind": "dropout", "probability": 0.4}, {"probability": 0.6},
    ),
    "pacing": (
        {**SOME, "clients.compute": {"kind": "exponential", "gflops": 0.001}}, {"kind": "over_selection", "take": 1}, {"take": 2},
    ),
    "executor": ({}, {"kind": "local"}, {"kind": "hasty"}),
    "arrivals": (STREAM, {"kind": "constant", "per_s": 1.0}, {"per_s": 1.5}),
    "order": (STREAM, {"kind": "shuffled"}, {"kind": "as_is"}),
    "labels": (STREAM, {"kind": "constant", "delay_s": 1.0}, {"delay_s": 2.0}),
    "trigger": (STREAM, {"kind": "count", "examples": 3}, {"examples": 4}),
    "change": (DRIFT, SWAP, {"pairs": [[2, 3], [4, 5], [6, 7]]}),
    "schedule": (DRIFT, {"kind": "abrupt", "at_s": [5.0]}, {"at_s": [1.0]}),
    "onset": (DRIFT, {"kind": "synchronous"}, {"kind": "subset", "fraction": 0.0001}),
    "replay": (STREAM, {"kind": "prioritised", "capacity": 9}, {"capacity": 4}),
    "rehearsal": (MEMORY, {"kind": "der"}, {"alpha": 3.0}),
    "detector": ({**MEMORY, "clients.reaction": ADAPT}, ALARMS, {"threshold": 1e9}),
    "reaction": ({**MEMORY, "clients.detector": ALARMS}, ADAPT, {"lr_factor": 3.0}),
}  # fmt: skip
"""By noun: what it needs around it, a kind of ours, and how another one differs from that."""


@pytest.fixture
def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go: Any) -> Callable[[str, Table, bool], str]:
    """Return a function of (noun, table, whether a stranger's) that runs a scenario beside OWN and returns its digest."""
    text = OWN
    for slot in slots().values():
        names = sorted(slot.registry.given)
        given, same = "".join(f"{name}, " for name in names), ", ".join(f"{name}={name}" for name in names)
        text += ONE.format(noun=slot.noun, given=given, same=same)
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)

    def digest(noun: str, table: Table, strangers: bool) -> str:
        kind, settings = table["kind"], {name: value for name, value in table.items() if name != "kind"}
        if strangers:
            table = {"kind": f"mine:{noun}", "of": kind} | ({"settings": settings} if settings else {})
        key, around = slots()[noun].key, CASES[noun][0]
        if noun == "source":
            return go({"data": {**around["data"], "source": table}}).digest
        run = go({"server.rounds": 3, **around, key: table})
        return run.digest + str(run.manifest.get("energy", {}).get("joules", ""))  # Joules are in no digest.

    return digest


def test_every_noun_has_a_stranger() -> None:
    """No noun that a scenario can name goes untried here."""
    assert set(slots()) == set(CASES)


def is_used(noun: str, used: Callable[[str, Table, bool], str]) -> bool:
    """Return whether a stranger's that hands on ours has the digest of ours, and one that gives something else another."""
    _, ours, otherwise = CASES[noun]
    other = otherwise if "kind" in otherwise else {**ours, **otherwise}
    return used(noun, ours, False) == used(noun, ours, True) != used(noun, other, True)


@pytest.mark.parametrize("noun", sorted(CASES))
def test_a_strangers_is_used(noun: str, used: Callable[[str, Table, bool], str]) -> None:
    """What a stranger's does is what is done."""
    assert is_used(noun, used)


def test_one_that_is_not_used_is_seen(used: Callable[[str, Table, bool], str]) -> None:
    """Where ours works in the place of a stranger's rehearsal, whatever that gives, the law says so."""
    assert not is_used("rehearsal", lambda noun, table, strangers: used(noun, CASES[noun][1], False))
