"""Advice for a scenario or a run: a scenario is run once, watched, and what was seen says what to try next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.live.notebook import followed
from fedsim.record import manifest
from fedsim.scenario.load import load
from fedsim.score.advice import advice
from fedsim.score.run import Run
from fedsim.session import Watch, execute

if TYPE_CHECKING:
    import pandas as pd

WATCHED: Mapping[str, Any] = {"every": 1, "noise": 1.0}
"""What is watched where a scenario says nothing: each step, and single examples in each task."""


def advise(
    scenario: str | Path | Mapping[str, Any] | Run, *, overrides: Mapping[str, Any] | None = None, seed: int | None = None,
    out: str | Path | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return what to try next, a row per setting: setting, now, next, rests, low, high, sure, why; see ``score.advice``.

    *scenario* is a watched run (a Run or its folder), or a scenario as ``fedsim.run`` takes it, which is run, watched, in the folder
    *out* (``runs/NAME-SEED`` otherwise). Raises ScenarioError and RunError as ``run`` does, RunError for a run that was not watched.
    """
    import pandas as pd

    return pd.DataFrame([dataclasses.asdict(hint) for hint in advice(watched(scenario, overrides, seed, out))])


def watched(
    scenario: str | Path | Mapping[str, Any] | Run, overrides: Mapping[str, Any] | None, seed: int | None, out: str | Path | None,
    watch: Watch | None = None, budget_s: float | None = None,
) -> Run:  # fmt: skip
    """Return a run that was watched: the one that is given, or one of the scenario that is, which *watch* follows, within *budget_s*."""
    if isinstance(scenario, Run):
        return scenario
    if isinstance(scenario, str | Path) and is_run(Path(scenario)):
        return Run(Path(scenario))
    loaded = load(scenario, overrides, seed)
    if loaded.scenario.monitor is None:
        loaded = load(scenario, {**(overrides or {}), "monitor": dict(WATCHED)}, seed)
    with followed(loaded.scenario, watch) as heard:
        return execute(loaded, out, heard, budget_s=budget_s)


def is_run(path: Path) -> bool:
    """Return whether *path* is the folder of a run."""
    return path.is_dir() and (path / manifest.FILE).is_file()
