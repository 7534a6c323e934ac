"""One kind under laws: made as a scenario makes it, and put into a small scenario where a law is of runs. Knows no law."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fedsim.core.types import FloatArray, IntArray
from fedsim.data.source import finder
from fedsim.scenario.build import Parts, build
from fedsim.scenario.kinds import slots
from fedsim.scenario.load import load
from fedsim.scenario.making import made
from fedsim.session import execute

SMALL: dict[str, Any] = {
    "name": "laws", "seed": 7, "model": {"kind": "logreg"},
    "data": {"source": {"kind": "digits"}, "partition": {"kind": "dirichlet", "alpha": 0.5}, "test_fraction": 0.9},
    "clients": {
        "count": 5, "compute": {"kind": "lognormal", "gflops": 5.0}, "network": {"kind": "lognormal", "down_mbps": 6.0, "up_mbps": 2.0},
    },
    "training": {"epochs": 2, "batch_size": 7, "optimizer": {"kind": "sgd", "lr": 0.1}},
    "server": {"strategy": {"kind": "FedAvg"}, "rounds": 3},
}  # fmt: skip
"""The scenario into which a kind is put."""
STREAM: dict[str, Any] = {
    "stream": {"arrivals": {"kind": "constant", "per_s": 2.0}, "trigger": {"kind": "count", "examples": 5}}, "training.batch_size": 4,
    "training.epochs": 1,
}  # fmt: skip
MEMORY = {"clients.replay": {"kind": "reservoir", "capacity": 8}}
ALARMS = {"clients.detector": {"kind": "page_hinkley", "min_instances": 2, "threshold": 0.2, "only_worse": False}}
AROUND: dict[str, dict[str, Any]] = {
    "stopping": {"training.epochs": 8, "training.optimizer": {"kind": "sgd", "lr": 0.5, "momentum": 0.5}},
    "replay": STREAM, "detector": STREAM, "rehearsal": {**STREAM, **MEMORY}, "reaction": {**STREAM, **MEMORY, **ALARMS},
}  # fmt: skip
"""What else that scenario needs, by noun."""
COSTS = ("compute", "network", "availability")


def _as_many(clients: IntArray) -> FloatArray:
    """Return made-up normal scores of how much each client holds: even numbers more than the median, odd ones less."""
    return np.where(clients % 2 == 0, 0.5, -0.5)


def filled(noun: str) -> dict[str, Any]:
    """Return what a scenario in this folder would fill in for kinds of *noun* that is the same for all laws."""
    return {"find": finder(Path.cwd(), f"{slots()[noun].key}.path"), "volumes": _as_many} if noun in COSTS else {}


@dataclass(frozen=True)
class Kind:
    """A kind by its name and settings; calling it makes one, *given* what the simulator fills in. Its scenario has *around* set."""

    noun: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    around: Mapping[str, Any] = field(default_factory=dict[str, Any])
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __call__(self, **given: Any) -> Any:
        """Return one, made anew as a scenario would."""
        return made(self.noun, self.table, **{**filled(self.noun), **given, **self.given})

    @property
    def table(self) -> dict[str, Any]:
        """Return the table that names it."""
        return {"kind": self.name, **self.settings}

    @property
    def asks(self) -> frozenset[str]:
        """Return what of what the simulator fills in it asks for."""
        registry = slots()[self.noun].registry
        return registry.given & set(inspect.signature(registry.get(self.name, at=registry.key)).parameters)

    def parts(self) -> Parts:
        """Return the parts of its scenario."""
        return build(load(SMALL, self._overrides()))

    def digest(self, **more: Any) -> str:
        """Return the digest of a run of its scenario, with the keys ``engine.NAME`` set to *more*."""
        engine = {f"engine.{name}": value for name, value in more.items()}
        with TemporaryDirectory(prefix="fedsim-laws-") as folder:
            return execute(load(SMALL, {**self._overrides(), **engine}), f"{folder}/run").digest

    def _overrides(self) -> dict[str, Any]:
        around = {**AROUND.get(self.noun, {}), **self.around}
        key = slots()[self.noun].key
        whole, _, last = key.rpartition(".")
        if isinstance(around.get(whole), Mapping):  # A table that is set as a whole: what belongs into it goes in there.
            return {**around, whole: {**around[whole], last: self.table}}
        return {**around, key: self.table}
