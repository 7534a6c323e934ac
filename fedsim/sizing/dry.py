"""Dry runs: the rounds of a scenario on the virtual clock, nothing trained, kept in a file. A worker is asked for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.core.machine import ALONE
from fedsim.flower.aggregated import bared
from fedsim.rehearsal import told
from fedsim.scenario.build import build
from fedsim.scenario.load import Loaded
from fedsim.scenario.schema import Scenario
from fedsim.sizing.seen import Noted

WORK = f"{__name__}:work"
"""What a worker is asked for."""


def request(loaded: Loaded, folder: Path, name: str, wall_s: float) -> dict[str, Any]:
    """Return what a worker is to be told, to rehearse *loaded* for at most *wall_s*; the file is named after all that it follows from."""
    said = json.dumps([loaded.scenario.digest, str(loaded.folder.resolve()), wall_s])
    mark = hashlib.sha256(said.encode()).hexdigest()[:12]
    return {
        "scenario": loaded.scenario.plain(), "folder": str(loaded.folder), "wall_s": wall_s, "out": str(folder / f"{name}.{mark}.npz"),
    }  # fmt: skip


def work(asked: Mapping[str, Any]) -> None:
    """Rehearse the scenario that is *asked* for, and write what was seen."""
    loaded = Loaded(Scenario.model_validate(asked["scenario"]), Path(asked["folder"]))
    noted = Noted(loaded.scenario.clients.count)
    with ALONE:
        parts = build(loaded)
        try:
            told(parts, wall_s=asked["wall_s"], also=noted)
        finally:
            bared(parts.strategy.strategy)  # Which would hold all, and wait for the collector.
    noted.seen().write(Path(asked["out"]))
