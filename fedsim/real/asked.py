"""What is asked of a deployment, and whether that can be done here. Starts nothing, and imports little."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import ScenarioError
from fedsim.real import commands
from fedsim.real.deployment import check_port
from fedsim.record.place import check_place
from fedsim.scenario.between import refuse_real
from fedsim.scenario.everywhere import REAL, refuse
from fedsim.scenario.load import Loaded, plain

MOST = 16
"""The most SuperNodes on one machine: each message to one is a process that imports torch."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be deployed: a scenario with *clients.count* nodes, and how.

    *source* is the file that it was read from, with *settings*, the KEY=VALUE words of what is set in it, and *seed*; None where it
    came as a table.
    """

    loaded: Loaded
    source: Path | None = None
    settings: Sequence[str] = ()
    seed: int | None = None
    out: str | Path | None = None
    port: int | None = None
    tls: bool = False
    time_scale: float = 1.0

    @property
    def nodes(self) -> int:
        """Return how many SuperNodes that wants."""
        return self.loaded.scenario.clients.count

    def words(self) -> dict[str, str | float]:
        """Return the run's configuration beyond the scenario and the folder: what is set, the seed, how many nodes, how fast."""
        return {**self._set(self.settings), "nodes": self.nodes, "time-scale": self.time_scale}

    def words_elsewhere(self) -> dict[str, str | float]:
        """Return the same for an app that was made of the scenario's file: what it sets itself, data it has, goes on being set."""
        from fedsim.real.folder import data_paths

        out = {} if self.out is None else {"out": str(self.out)}
        set_too = [f"{key}={json.dumps(path)}" for key, path in data_paths(self.loaded)]
        return {**self.words(), **out, **self._set([*set_too, *self.settings])}

    def _set(self, settings: Sequence[str]) -> dict[str, str | float]:
        """Return the words for *settings* and the seed, where the scenario came from a file; a table has them in it already."""
        if self.source is None:
            return {}
        return {"set": json.dumps(list(settings)) if settings else "", "seed": -1 if self.seed is None else self.seed}


def check(asked: Asked) -> None:
    """Refuse what cannot be deployed here, before anything is started. Raises ScenarioError."""
    refuse(asked.loaded.scenario, REAL)
    refuse_real(asked.loaded.scenario)
    if asked.nodes > MOST:
        raise ScenarioError(
            f"clients.count = {asked.nodes}: are too many SuperNodes for one machine, where each message starts a process that imports"
            f" torch; {MOST} is the most. --nodes N takes fewer, and --print shows what to start on machines of their own."
        )
    check_scale(asked.time_scale)
    if asked.port is not None:
        check_port(asked.port)
    check_place(asked.loaded.scenario.name, asked.loaded.scenario.seed, asked.out)
    commands.check_flower()


def words_of(overrides: Mapping[str, Any]) -> list[str]:
    """Return *overrides* as the KEY=VALUE words that amount to them.

    >>> words_of({"server.rounds": 3, "training.optimizer": {"kind": "sgd", "lr": 0.1}})
    ['server.rounds=3', 'training.optimizer={ kind = "sgd", lr = 0.1 }']
    """
    from fedsim.report.page import toml

    return [f"{key}={toml({'': {key: plain(value, key)}}).partition(' = ')[2]}" for key, value in overrides.items()]


def check_scale(time_scale: float) -> None:
    """Refuse a time scale by which no stream runs. Raises ScenarioError."""
    if not (math.isfinite(time_scale) and time_scale > 0):
        raise ScenarioError(f"--time-scale {time_scale:g}: must be more than 0: seconds of the stream in a second of the clock.")
