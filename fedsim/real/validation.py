"""Does the simulator foretell a deployment? One scenario simulated and deployed, beside each other: numbers, bytes, time."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.types import Seconds
from fedsim.real.asked import Asked, check, words_of
from fedsim.real.calibration import ROUNDS, Calibration, calibrated, period_s, predicted, work_s
from fedsim.real.local import deployed
from fedsim.real.retracing import retraced, same_predictions
from fedsim.record.manifest import whole
from fedsim.report.foretold import FILE
from fedsim.report.page import toml, write_report
from fedsim.scenario.load import load
from fedsim.scenario.stop import BOUNDS
from fedsim.score.run import Run
from fedsim.session import execute

BYTES, TIME = 0.02, 0.10
"""How far what is foretold may be from what a deployment does."""
SHOWS_S, MOST_TIMES, WIDER = 1.0, 50, 4
"""Processor seconds from which on a task's work shows beside its process; how many times the local work is done at most to come to
them, and how many times larger batches are, in what is fitted to.
"""
SAME = "these bits"
"""What is said of numbers of which all agree."""
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was compared: what was *foretold*, what was *observed*, by how much they differ, and whether that is close enough."""

    what: str
    foretold: float | str
    observed: float | str
    error: float | None
    bound: float | None

    @property
    def agrees(self) -> bool:
        """Return whether they agree, as far as is asked."""
        if self.error is None or self.bound is None:
            return self.foretold == self.observed
        return abs(self.error) <= self.bound


@dataclass(frozen=True, slots=True)
class Validation:
    """What came of it: the *rows*, the runs' folders, and the *notes*."""

    name: str
    folder: Path
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Return whether all agree."""
        return all(row.agrees for row in self.rows)

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        rows = [{**dataclasses.asdict(row), "agrees": row.agrees} for row in self.rows]
        return {"name": self.name, "folder": str(self.folder), "agrees": self.agrees, "rows": rows, "notes": list(self.notes)}


def smaller(asked: Asked) -> dict[str, Any]:
    """Return what makes the deployment that is fitted to first another than the one that is foretold: fewer rounds, half the local work."""
    training, rounds = asked.loaded.scenario.training, asked.loaded.scenario.server.rounds
    work: dict[str, Any] = {"training.epochs": (training.epochs or 1) / 2} if training.steps is None else {
        "training.steps": max(1, training.steps // 2)
    }
    return {"server.rounds": max(ROUNDS + 1, rounds // 2), **work}


def larger(asked: Asked, work_s: Seconds) -> list[dict[str, Any]]:
    """Return what makes the further deployments that are fitted to: more local work, and that in larger batches.

    Tasks of the first took *work_s* processor seconds, so that those of the second show: what grows with work is told from what does
    not, and what grows with steps from what grows with operations. All of a client's examples at once are no batch to be larger.
    """
    training = asked.loaded.scenario.training
    times = min(MOST_TIMES, max(2, math.ceil(SHOWS_S / max(work_s, 1e-3))))
    work: dict[str, Any] = {"training.epochs": (training.epochs or 1) * times} if training.steps is None else {
        "training.steps": training.steps * times
    }
    more = {"server.rounds": ROUNDS + 1, **work}
    size = training.batch_size
    return [more] if size == "full" else [more, {**more, "training.batch_size": size * WIDER}]


def validated(asked: Asked, folder: Path, told: Told = lambda _words: None) -> Validation:
    """Return how *asked*, simulated and deployed, agrees with itself; all runs stand in *folder*, new or empty.

    Other, shorter deployments are fitted to, and the one that was asked for is foretold by what was found there. Raises ScenarioError
    before anything is started, RunError where a run breaks.
    """
    scenario = asked.loaded.scenario
    if scenario.server.rounds < ROUNDS:
        raise ScenarioError(f"server.rounds = {scenario.server.rounds}: what a round takes can be told from {ROUNDS} on.")
    if scenario.stop is not None and scenario.stop.bounds:
        raise ScenarioError(
            f"[stop]: {' and '.join(scenario.stop.bounds)} may be another number of rounds simulated and deployed. Leave"
            f" {' and '.join(name for name in BOUNDS if getattr(scenario.stop, name) is not None)} out to validate."
        )
    check(asked)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ScenarioError(f"{folder}: is there already and not empty. Name another folder (--out, or in Python out=).")
    told("simulating")
    simulated = execute(asked.loaded, folder / "simulated")
    told("deploying one with half the local work, to fit to")
    small = deployed(_changed(asked, smaller(asked), folder / "fitted-to" / "less-work"))
    places, notes = [small.path], list[str]()
    for changes, name in zip(larger(asked, work_s(small)), ("more-work", "larger-batches"), strict=False):
        told(f"deploying one with {name.replace('-', ' ')}, to fit to")
        try:
            places.append(deployed(_changed(asked, changes, folder / "fitted-to" / name)).path)
        except RunError as error:  # So much local work may end without numbers; that says nothing of the scenario.
            notes.append(f"The deployment with {name.replace('-', ' ')} broke and is not fitted to: {error}")
    told("fitting")
    fitted = calibrated(*places)
    (folder / "fleet.toml").write_text(toml(fitted.plain()) + "\n", encoding="utf-8")
    told("deploying it")
    real = deployed(replace(asked, out=folder / "deployed"))
    told("foretelling it")
    foretold = predicted(asked.loaded, fitted.plain(), folder / "foretold")
    numbers = _numbers(simulated, real) if scenario.stream is None else _retraced(real, folder / "retraced", told)
    found = Validation(scenario.name, folder, (*numbers, *_rows(simulated, real, foretold)), (_fit(fitted), *fitted.notes, *notes))
    for place in (folder, real.path):
        whole(place / FILE, json.dumps(found.plain(), indent=2) + "\n")
    write_report(real)  # Now that there is something foretold of it.
    return found


def _changed(asked: Asked, changes: dict[str, Any], out: Path) -> Asked:
    return replace(
        asked, loaded=replace(load(asked.loaded.scenario.plain(), changes), folder=asked.loaded.folder),
        settings=[*asked.settings, *words_of(changes)] if asked.source is not None else asked.settings, out=out,
    )  # fmt: skip


def _fit(fitted: Calibration) -> str:
    fits = ", ".join(f"{Path(fit.run).name} {fit.period_s:.3g} s ({fit.predicted_s:.3g} on the fleet)" for fit in fitted.fits)
    return (
        f"Fitted to {fitted.tasks} tasks of {len(fitted.fits)} other deployments; their rounds took: {fits}. The fleet:"
        f" {fitted.gflops:.3g} GFLOP/s, {fitted.step_s:.2g} s besides for each step and {fitted.overhead_s:.3g} processor seconds for"
        f" each message, {fitted.latency_s:.3g} s on the way, each way."
    )


def _retraced(real: Run, folder: Path, told: Told) -> list[Row]:
    """Return whether the numbers of *real*, a run on streams, are those of a simulation in which clients act when its did."""
    told("retracing it")
    where = ", at the observed moments"
    try:
        again = retraced(real.path, folder)
    except RunError as error:
        return [Row(f"final parameters{where}", SAME, f"none: {error}", None, None)]
    predicted = SAME if same_predictions(again, real) else "others"
    return [*_numbers(again, real, where), Row(f"predictions{where}", SAME, predicted, None, None)]


def _numbers(simulated: Run, real: Run, where: str = "") -> list[Row]:
    ours, theirs = simulated.params(), real.params()
    apart = max((float(np.abs(ours[name].astype(np.float64) - theirs[name]).max(initial=0.0)) for name in ours), default=0.0)
    same = all(np.array_equal(array, theirs[name]) for name, array in ours.items())
    scores = sorted(set(simulated.final) & set(real.final) - {"rounds", "scored_round"})
    return [
        Row(f"final parameters{where}", SAME, SAME if same else f"up to {apart:.2g} apart", None, None),
        *(Row(f"final {name}{where}", float(simulated.final[name]), float(real.final[name]), None, None) for name in scores),
    ]


def _rows(simulated: Run, real: Run, foretold: Run) -> list[Row]:
    rows: list[Row] = []
    counted, asked = real.manifest.get("deployment", {}), real.manifest.get("query_bytes", {"down": 0, "up": 0})
    about = simulated.manifest
    for what, ours_bytes, extra, theirs_name in (
        ("bytes down", about["bytes_down"], asked["down"], "superlink_bytes_out"),
        ("bytes up", about["bytes_up"], asked["up"], "superlink_bytes_in"),
    ):
        if theirs_name not in counted:
            raise RunError(f"{real.path}: the SuperLink did not tell what it counted, so that bytes cannot be compared.")
        seen = counted[theirs_name] - extra
        rows.append(Row(f"{what} (SuperLink's count)", ours_bytes, seen, ours_bytes / seen - 1, BYTES))
    seen_s, told_s = period_s(real), period_s(foretold)
    return [*rows, Row("seconds a round, foretold", told_s, seen_s, told_s / seen_s - 1, TIME)]
