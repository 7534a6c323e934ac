"""``fedsim.run``: a scenario, wherever it comes from, run to its end; in a notebook a line follows it there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim import apart
from fedsim.core.progress import Watch
from fedsim.live.notebook import followed
from fedsim.scenario.load import Loaded, load
from fedsim.scenario.schema import Scenario
from fedsim.score.run import Run


def run(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    *,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    watch: Watch | None = None,
    budget_s: float | None = None,
) -> Run:
    """Run *scenario* (a file, a table, or a Scenario) and return the run, read from its folder.

    *overrides* sets keys by dotted name (``{"server.rounds": 3}``; a table given for a table replaces it whole); *out* is the run's
    folder (new or empty; ``runs/NAME-SEED`` otherwise). *watch* hears where the run is, after each round. In a notebook, where none is
    given, a line below the cell says so until the run has ended; ``watch=lambda where: None`` is silence.
    After *budget_s* of wall time it ends at the end of a round, as after Ctrl-C: the folder is complete and readable, its status
    ``interrupted``, and leaving raises KeyboardInterrupt.
    Threads of one process run one after the other. Raises ScenarioError before anything is computed, RunError when the run
    breaks; its folder then says how far it came, as it does after Ctrl-C.

    >>> import fedsim
    >>> run = fedsim.run("scenarios/quickstart.toml", overrides={"server.rounds": 2}, out=tmp / "run")
    >>> len(run.tasks), run.status
    (20, 'done')
    """
    loaded = load(scenario, overrides, seed)
    with followed(loaded.scenario, watch) as heard:
        return execute(loaded, out, heard, budget_s=budget_s)


def execute(loaded: Loaded, out: str | Path | None = None, watch: Watch | None = None, budget_s: float | None = None) -> Run:
    """Run a loaded scenario where it is to run: here, or in another process, and then what computes is not even imported here."""
    if apart.needed(loaded.scenario):
        return apart.execute(loaded, out, watch, budget_s)
    from fedsim.session import execute

    return execute(loaded, out, watch, budget_s=budget_s)
