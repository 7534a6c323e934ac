"""A deployed run once more, in simulation, at the moments at which everything happened: then its numbers must be the same, to the bit.

What a client on a stream holds when it acts depends on when that was, and no second deployment acts at the same times.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedsim.core.errors import RunError
from fedsim.core.types import Frame
from fedsim.learn.engine.queue import Queue
from fedsim.real.again import deployed_run
from fedsim.record import journal
from fedsim.record.journal import Journal
from fedsim.scenario.build import Parts
from fedsim.scenario.schema import Scenario
from fedsim.score.run import Run
from fedsim.session import execute
from fedsim.sim.grid import VirtualGrid
from fedsim.sim.ground import Ground
from fedsim.sim.observed import Observed
from fedsim.sim.rows import TaskRow


def observed(run: Run) -> Observed:
    """Return what came of each message of the deployed *run*, and when. Raises RunError where it does not say."""
    columns, rows = journal.read(run.path, "tasks")
    tasks = [TaskRow(**dict(zip(columns, row, strict=True))) for row in rows]
    if silent := sorted({row.client for row in tasks if row.started_s < 0 and row.outcome in ("arrived", "late")}):
        raise RunError(f"{run.path}: client {silent[0]} did not tell when it acted, so that it cannot be retraced.")
    columns, rows = journal.read(run.path, "rounds")
    ends = {(row["round"], row["kind"], row["started_s"]): row["ended_s"] for row in (dict(zip(columns, r, strict=True)) for r in rows)}
    return Observed({int(row.message[1:]): row for row in tasks}, ends)


def retraced(path: str | Path, out: str | Path, seen: Observed | None = None) -> Run:
    """Run the scenario of the deployed run in *path* in simulation, in the folder *out*, at its moments, or as *seen*.

    Raises RunError where the simulation goes another way: by another message, or another task made of one.
    """
    real, loaded = deployed_run(path, "retraced")
    seen = observed(real) if seen is None else seen
    loaded = replace(loaded, scenario=_as_long(loaded.scenario, int(real.final["rounds"])))

    def lay(parts: Parts, queue: Queue, journal: Journal) -> Ground:
        return VirtualGrid(parts.fleet, queue, journal, mods=parts.strategy.mods, writable=parts.strategy.writable, observed=seen)

    run = execute(loaded, out, lay=lay)
    if len(run.tasks) != len(seen.tasks):
        raise RunError(f"{run.path}: sent {len(run.tasks)} messages, and {len(seen.tasks)} were observed.")
    return run


def _as_long(scenario: Scenario, rounds: int) -> Scenario:
    """Return *scenario* for as many *rounds* as a run had that ended by its clock: here that may be a moment behind when it looks."""
    if scenario.stop is None or scenario.stop.virtual_s is None:
        return scenario
    return scenario.model_copy(update={"stop": None, "server": scenario.server.model_copy(update={"rounds": rounds})})


def same_predictions(one: Run, other: Run) -> bool:
    """Return whether clients of both runs predicted the same, of the same examples at the same moments, to the bit."""
    columns = ["client", "round", "version", "item", "time_s", "y", "prediction", "loss"]
    first, second = (_sorted(run.tested[columns]) for run in (one, other))
    return bool(first.equals(second))


def _sorted(tested: Frame) -> Frame:
    return tested.sort_values(["client", "item"], kind="stable").reset_index(drop=True)
