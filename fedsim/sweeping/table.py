"""What a sweep found as frames, as files, as plain values, and as a table for a terminal of 80 columns. Runs nothing, draws nothing."""

from __future__ import annotations

import json
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from fedsim.core.types import Frame
from fedsim.record.manifest import whole
from fedsim.report.units import duration, megabytes
from fedsim.score.taken import TO_TARGET
from fedsim.sweeping.found import DONE, UNFINISHED, Mean, Sweep, Variant
from fedsim.sweeping.points import short

PAGE, TABLE, RUNS, PARQUET = "sweep.html", "sweep.csv", "runs.csv", "sweep.parquet"
SHOWN, FAULTS = 12, 6
"""Variants, and reasons why others are not among them, that a terminal is shown."""
WIDEST = 34
"""Columns that a variant's name takes."""


def frame(found: Sweep) -> Frame:
    """Return one row per variant; see ``sweeping.sweep`` for the columns."""
    import pandas as pd

    front = {id(each) for each in found.front}
    rows: list[dict[str, Any]] = []
    for each in found.variants:
        row: dict[str, Any] = {
            "number": each.point.number, "variant": each.point.name,
            **{key: _cell(each.point.assignment.get(key)) for key in found.keys}, "status": each.status, "why": each.why,
            "seeds": len(each.taken), "pareto": id(each) in front,
        }  # fmt: skip
        for measure in found.measures:
            mean = each.mean(measure)
            low, high = (math.nan, math.nan) if mean is None or mean.n < 2 else (mean.low, mean.high)
            row |= {measure: math.nan if mean is None else mean.mean, f"{measure} low": low, f"{measure} high": high}
            if measure in TO_TARGET:
                row[f"{measure} reached"] = 0 if mean is None else mean.reached
        rows.append(row)
    made = pd.DataFrame(rows)
    made.attrs["sweep"] = summary(found)
    return made


def runs_frame(found: Sweep) -> Frame:
    """Return one row per run: its variant, seed, folder, how it stands and why, its wall time, and every figure."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for each in found.variants:
        for seed in each.seeds:
            run, (status, why) = each.runs.get(seed), each.broken.get(seed, (each.status if each.why else UNFINISHED, each.why))
            row: dict[str, Any] = {"number": each.point.number, "variant": each.point.name, "seed": seed, "status": status, "why": why}
            if run is not None:
                about = run.manifest
                row |= {"status": DONE, "why": "", "run": run.path.name, "digest": run.digest, "wall_s": about["wall_s"]}
                row |= {name: figure.value for name, figure in each.taken[seed].items()}
                row |= {f"{name} reached": figure.reached for name, figure in each.taken[seed].items() if name in TO_TARGET}
            rows.append(row)
    return pd.DataFrame(rows)


def write_tables(found: Sweep) -> None:
    """Write ``sweep.csv`` and ``runs.csv`` into the sweep's folder; and ``sweep.parquet`` where pyarrow is installed."""
    made = frame(found)
    whole(found.folder / TABLE, made.to_csv(index=False))
    whole(found.folder / RUNS, runs_frame(found).to_csv(index=False))
    try:
        import pyarrow  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError:
        return
    import io

    file = io.BytesIO()
    mixed = {key: made[key].map(_text) for key in found.keys if made[key].map(type).nunique() > 1}  # A column of it has one type.
    plain = made.assign(**mixed)
    plain.attrs = {}
    plain.to_parquet(file, index=False)
    whole(found.folder / PARQUET, file.getvalue())


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _cell(value: Any) -> Any:
    """Return *value* as one cell holds it: tables and lists as JSON."""
    return json.dumps(value) if isinstance(value, Mapping | list) else value


def summary(found: Sweep) -> dict[str, Any]:
    """Return the sweep as one table of plain values: what ``--json`` prints."""
    counts = Counter(each.status for each in found.variants)
    return {
        "sweep": found.name, "folder": str(found.folder), "html": str(found.folder / PAGE), "csv": str(found.folder / TABLE),
        "runs_csv": str(found.folder / RUNS), "seeds": list(found.seeds), "runs": found.total, "done": found.done, "read": found.read,
        "late": found.late, "variants": len(found.variants), "status": dict(counts),
        "measure": [goal.measure for goal in found.goals], "direction": [goal.direction for goal in found.goals],
        "best": _plain(found, found.ranked[0]) if found.ranked else None,
        "pareto": {"measures": list(found.pareto), "front": [_plain(found, each) for each in found.front]} if found.pareto else None,
        "not_done": [{"variant": each.point.name, "status": each.status, "why": each.why} for each in found.variants if each.why],
        "notes": notes(found),
    }  # fmt: skip


def _plain(found: Sweep, each: Variant) -> dict[str, Any]:
    means = {name: each.mean(name) for name in found.measures}
    return {
        "variant": each.point.name, "keys": each.point.assignment,
        **{name: mean.mean for name, mean in means.items() if mean is not None},
    }  # fmt: skip


def notes(found: Sweep) -> list[str]:
    """Return what a reader must know of the numbers."""
    said = list(found.notes)
    counts = Counter(each.status for each in found.variants)
    if found.late:
        left = found.total - found.done
        said.append(f"{found.done:,} of {found.total:,} runs are over, {left:,} are not ({found.late}). The same command goes on.")
    if broken := sum(count for status, count in counts.items() if status not in (DONE, UNFINISHED)):
        said.append(f"{broken:,} variant{'s are' if broken != 1 else ' is'} not ranked: of these not every seed is done (below, and why).")
    if len(found.seeds) > 1:
        said.append(f"Means over {len(found.seeds)} seeds, with Student's intervals of 95 %, each by itself: the best of many looks better"
                    " than it is. fedsim compare decides between two.")  # fmt: skip
    else:
        said.append("One seed: nobody knows how much of a difference is luck. seeds = 5 gives intervals.")
    if twins := sum(each.twin is not None for each in found.variants):
        said.append(f"{twins:,} of the variants are the same scenario as an earlier one, whose runs are theirs.")
    unreached = [each for each in found.variants if any((mean := each.mean(m)) is not None and mean.reached < mean.n for m in TO_TARGET)]
    if unreached:
        said.append(f"{len(unreached):,} variants have runs that never reached {found.target}: what it took them is at least what is said"
                    f" (>=), and they are on no front and have no rank by it.")  # fmt: skip
    return said


def unit(measure: str) -> Callable[[float], str]:
    """Return how figures of *measure* are written."""
    if measure.startswith("virtual_s"):
        return duration
    if measure.startswith("bytes"):
        return megabytes
    return (lambda value: f"{value:.3g}") if measure.startswith("rounds") else (lambda value: f"{value:.4f}")


def written(measure: str, mean: Mean | None) -> str:
    """Return a mean with half its interval, in the measure's unit."""
    if mean is None:
        return "-"
    of = unit(measure)
    at_least = ">= " if mean.reached < mean.n else ""
    return f"{at_least}{of(mean.mean)}" + (f" ± {of(mean.half)}" if mean.half and math.isfinite(mean.half) else "")


def heading(measure: str) -> str:
    """Return what a column of *measure* is called.

    >>> heading("final accuracy"), heading("virtual_s"), heading("bytes_up")
    ('accuracy', 'virtual time', 'bytes up')
    """
    return measure.removeprefix("final ").replace("virtual_s", "virtual time").replace("_", " ")


def show(found: Sweep) -> None:
    """Print the best variants, the front, what broke and what to know; 80 columns are enough."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    wide = max(40, min(console.width, 100))
    columns = [*(goal.measure for goal in found.goals), *(name for name in found.pareto if name not in {g.measure for g in found.goals})]
    if len(columns) == 1:
        columns.append("virtual_s")
    columns = columns[:3]
    front = {id(each) for each in found.front}
    head = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    head.add_column("variant", no_wrap=True, overflow="ellipsis", max_width=max(12, wide - 23 * len(columns) - 4) if columns else WIDEST)
    for name in columns:
        head.add_column(heading(name), justify="right", no_wrap=True)
    if front:
        head.add_column("front", no_wrap=True)
    shown = found.front if front and len(found.goals) > 1 else found.ranked
    for i, each in enumerate(shown[:SHOWN]):
        cells = [escape(each.point.name), *(written(name, each.mean(name)) for name in columns)]
        cells += ["yes" if id(each) in front else ""] if front else []
        head.add_row(*([f"[bold]{cell}[/]" for cell in cells] if i == 0 else cells))
    if shown:
        console.print(head)
    if len(shown) > SHOWN:
        console.print(f"[dim]... and {len(shown) - SHOWN:,} more: {TABLE} has all.[/]")
    if front:
        many = len(front)
        console.print(f"Pareto front by {', '.join(map(heading, found.pareto))}: {many:,} variant{'s' * (many != 1)}.", soft_wrap=True)
    console.print()
    for line in notes(found):
        for part in textwrap.wrap(line, wide):
            console.print(f"[dim]{escape(part)}[/]", soft_wrap=True)
    faults = [each for each in found.variants if each.why]
    for each in faults[:FAULTS]:
        mark = "yellow" if each.pruned else "red"
        status = "" if each.why.startswith(each.status) else f"{each.status}: "
        console.print(f"[{mark}]{escape(each.point.name)}[/]: {status}{escape(each.why)}", soft_wrap=True)
    if len(faults) > FAULTS:
        console.print(f"[dim]... and {len(faults) - FAULTS:,} more: {TABLE} says why.[/]")
    console.print(escape(str(found.folder / PAGE)), soft_wrap=True)


def labels(found: Sweep) -> dict[str, str]:
    """Return the varied keys by their last words."""
    return short(list(found.keys))
