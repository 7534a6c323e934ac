"""A study's table: as a frame, as CSV, as lines of a terminal, as the one line for scripts; and the sentences that follow from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fedsim.core.types import Frame
from fedsim.record.manifest import whole
from fedsim.report.units import duration, megabytes
from fedsim.studies.found import Line, Study
from fedsim.studies.measures import Estimate

CSV, PAGE = "study.csv", "study.html"
TIE = 0.01
"""Virtual times to the target that differ by no more than this share of the least are no difference."""
MARKS = {"agrees": "+", "disagrees": "-", "undecided": "?", "no claim": " "}
"""How a verdict is marked where there is little room."""
SHORT = 10
"""Letters that a score's name may have in a column's head."""


def frame(study: Study) -> Frame:
    """Return one row per batch size: every figure, half its 95 % interval in ``*_ci``, every grade and verdict."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for line in study.lines:
        row: dict[str, Any] = {
            "batch": line.row.label, "size": line.row.size, "lr_own": line.rates["own"], "lr_epochs": line.rates["epochs"],
            "lr_steps": line.rates["steps"], "lr_target": line.rates["target"], "metric": study.metric, "target": str(study.target),
            "reached": line.arrived["tuned"], "reached_own": line.arrived["own"],
        }  # fmt: skip
        for name, estimate in line.figures.items():
            row[name], row[f"{name}_ci"] = estimate.mean, estimate.half
        for name, cell in line.cells.items():
            word = name.replace(", equal ", "_").replace(" ", "_")
            row[f"{word}_grade"], row[f"{word}_textbook"], row[f"{word}_verdict"] = cell.grade, cell.textbook, cell.verdict
        rows.append(row)
    found = pd.DataFrame(rows)
    found.attrs["study"] = summary(study)
    return found


def write_csv(study: Study) -> Path:
    """Write the frame as CSV into the study's folder, and return its path."""
    path = study.folder / CSV
    whole(path, frame(study).to_csv(index=False))
    return path


def summary(study: Study) -> dict[str, Any]:
    """Return the study as one table of plain values: what ``--json`` prints."""
    verdicts = counted(study)
    return {
        "study": "batch-size", "scenario": study.plan.scenario.name, "folder": str(study.folder), "csv": str(study.folder / CSV),
        "html": str(study.folder / PAGE), "target": str(study.target), "metric": study.metric, "seeds": list(study.plan.seeds),
        "runs": study.runs, "read": study.read,
        "fit": None if study.fit is None else {
            "steps_min": study.fit.steps, "examples_min": study.fit.examples, "critical_batch": study.fit.critical,
            "relative_error": study.fit.error,
        },
        "verdicts": {name: len(cells) for name, cells in verdicts.items()}, "says": sentences(study), "notes": notes(study),
        "foot": footnotes(study),
        "rows": [
            {
                "batch": line.row.label, "lr": dict(line.rates), "reached": dict(line.arrived),
                **{name: [estimate.mean, estimate.half] for name, estimate in line.figures.items()},
                "cells": {name: [c.grade, c.textbook, c.verdict] for name, c in line.cells.items()},
            }
            for line in study.lines
        ],
    }  # fmt: skip


def counted(study: Study) -> dict[str, list[str]]:
    """Return by verdict the cells that have it, like "generalisation, equal steps at 1024"."""
    found: dict[str, list[str]] = {name: [] for name in ("agrees", "disagrees", "undecided")}
    for line in study.lines:
        for name, cell in line.cells.items():
            if cell.verdict in found:
                found[cell.verdict].append(f"{name} at {line.row.label}")
    return found


def notes(study: Study) -> list[str]:
    """Return what a reader must know besides."""
    said = [*study.notes, *(note for line in study.lines for note in line.notes)]
    if study.plan.epochs != study.plan.scenario.training.epochs:
        said.append(f"The scenario counts steps; equal epochs are {study.plan.epochs:g} a task.")
    return list(dict.fromkeys(said))


def footnotes(study: Study) -> list[str]:
    """Return what a reader must know of how the figures of every study come about."""
    seeds = study.plan.seeds
    chosen = f"Rates are chosen by the scores of seed {seeds[0]}, which count in its figures too: these are a little too good"
    return [
        f"{chosen}, and intervals over all {len(seeds)} seeds a little too narrow." if len(seeds) > 1 else f"{chosen}.",
        "On the virtual clock a step costs its operations alone, since clients.compute has no cost per step: that small batches use a real"
        " device badly is not in these times.",
    ]


def sentences(study: Study) -> list[str]:
    """Return what follows from the table, a sentence or two at a time."""
    return [_verdicts(study), _quickest(study), *_critical(study)]


def _verdicts(study: Study) -> str:
    found = counted(study)
    agree, against, open_ = (len(found[name]) for name in ("agrees", "disagrees", "undecided"))
    columns: dict[str, list[str]] = {}
    for line in study.lines:
        for name, cell in line.cells.items():
            if cell.verdict == "disagrees":
                columns.setdefault(name, []).append(line.row.label)
    where = "; ".join(f"{name} at {', '.join(labels)}" for name, labels in columns.items())
    return (
        f"Of {agree + against + open_} cells of the textbook's table {agree} agree, {against} disagree and {open_} cannot be decided."
        + (f" Disagreeing: {where}." if where else "")
    )


def _quickest(study: Study) -> str:
    arrived = [line for line in study.lines if math.isfinite(line.figures["virtual_s_to_target"].mean)]
    if not arrived:
        most = study.plan.longest
        return f"No batch size reached {study.target} with every seed within {most:,} round{'s' * (most > 1)}."
    best = min(arrived, key=lambda line: line.figures["virtual_s_to_target"].mean)
    took = best.figures
    missing = [line.row.label for line in study.lines if line not in arrived]
    slowest = (1 + TIE) * took["virtual_s_to_target"].mean
    ties = [line for line in arrived if line.figures["virtual_s_to_target"].mean <= slowest and line.row.batch != best.row.batch]
    said = (
        f"Quickest to {study.target}: {_batch(best)} at rate {best.rates['target']:g}, in {duration(took['virtual_s_to_target'].mean)} of"
        f" virtual time, {took['rounds_to_target'].mean:.3g} rounds and {megabytes(took['bytes_to_target'].mean)}."
    )
    said += f" Within {100 * TIE:.0f} % of that, a tie: {', '.join(_batch(line) for line in ties)}." if ties else ""
    return f"{said} Not reached with every seed: {', '.join(missing)}." if missing else said


def _batch(line: Line) -> str:
    return "full batches" if line.row.whole else "the policy" if line.row.dynamic else f"batches of {line.row.label}"


def _critical(study: Study) -> list[str]:
    if study.fit is None:
        return []
    sizes = [line.taken for line in study.lines if not line.row.dynamic and math.isfinite(line.taken)]
    critical, poor = study.fit.critical, " (a rough fit)" if study.fit.error > 0.25 else ""
    if critical >= max(sizes):
        return [f"Up to batches of {max(sizes):.3g} steps to the target fall as 1/B: the critical batch size lies beyond{poor}."]
    if critical <= min(sizes):
        return [f"From batches of {min(sizes):.3g} on larger ones save no steps: the critical batch size lies below{poor}."]
    return [
        f"Critical batch size about {critical:.2g}: well below it twice the batch takes half the steps to the target, well above it as"
        f" many{poor}."
    ]


def figure(estimate: Estimate, form: str = ".3g", scale: float = 1.0) -> str:
    """Return an estimate with half its interval, as short as its digits allow.

    >>> figure(Estimate(0.91234, 0.0042, 3), ".3f"), figure(Estimate(float("nan"))), figure(Estimate(float("inf")))
    ('0.912 ± 0.004', '-', 'no noise')
    """
    if math.isnan(estimate.mean):
        return "-"
    if math.isinf(estimate.mean):
        return "no noise"
    said = format(estimate.mean * scale, form)
    return said if math.isnan(estimate.half) or estimate.half == 0 else f"{said} ± {format(estimate.half * scale, _rough(form))}"


def _rough(form: str) -> str:
    return ".2g" if form == ".3g" else form


def show(study: Study) -> None:
    """Print the table and what follows from it; 80 columns are enough."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, plan = Console(soft_wrap=False), study.plan
    table = Table(
        title=f"{plan.scenario.name}: batch sizes, {len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)}", title_justify="left", box=None,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    score = escape(study.metric if len(study.metric) <= SHORT else "score")
    for name, side in (("batch", "left"), ("rate", "left"), ("memory", "right"), ("samples/s", "right"), ("of peak", "right"),
                       ("SNR", "right"), (f"{score},\nequal\nepochs", "right"), (f"{score},\nequal\nsteps", "right"),
                       ("time to\ntarget", "right")):  # fmt: skip
        table.add_column(name, justify=side, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for line in study.lines:
        table.add_row(*(escape(word) for word in _words(line, study)))
    console.print(table)
    console.print(
        f"[dim]{score[:1].upper()}{score[1:]}: of test examples{'' if score == study.metric else f', {escape(study.metric)}'}. Time:"
        f" virtual, to {escape(str(study.target))}. SNR: signal to noise at 10 % of training."
        " + the textbook agrees, - it does not, ? cannot be decided.[/]"
    )
    for note in footnotes(study):
        console.print(f"[dim]{escape(note)}[/]", highlight=False)
    for sentence in sentences(study):
        console.print(escape(sentence), highlight=False)
    for note in notes(study):
        console.print(f"[dim]{escape(note)}[/]", highlight=False)
    for path in (CSV, PAGE):
        console.print(escape(str(study.folder / path)), highlight=False, soft_wrap=True)


def _words(line: Line, study: Study) -> list[str]:
    have, cells = line.figures, line.cells

    def mark(name: str) -> str:
        return f" {MARKS[cells[name].verdict]}" if name in cells else "  "

    def plain(name: str, form: str, after: str = "", scale: float = 1.0) -> str:
        value = have[name].mean if name in have else math.nan
        return "-" if math.isnan(value) else "inf" if math.isinf(value) else f"{value * scale:{form}}{after}"

    took = have["virtual_s_to_target"].mean
    return [
        line.row.label, f"{line.rates['epochs']:g}", plain("memory_ratio", ".3g", "x") + mark("memory"),
        _short(have["samples_per_s"].mean if "samples_per_s" in have else math.nan) + mark("speed"),
        plain("utilisation", ".0f", "%", 100.0) + mark("utilisation"), plain("snr_10", ".2g") + mark("stability"),
        plain("score_epochs", ".4f") + mark("generalisation, equal epochs"),
        plain("score_steps", ".4f") + mark("generalisation, equal steps"),
        (f"{duration(took)}" if math.isfinite(took) else f"no ({line.arrived['tuned']})") + mark("time to target").rstrip(),
    ]  # fmt: skip


def _short(rate: float) -> str:
    """Return a rate in few letters.

    >>> _short(123.4), _short(45_600.0), _short(2.5e6)
    ('123', '45.6k', '2.5M')
    """
    if math.isnan(rate):
        return "-"
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if rate >= unit:
            return f"{rate / unit:.3g}{name}"
    return f"{rate:.3g}"
