"""What a comparison found as a frame, as plain values, and as a table for a terminal of 80 columns. Runs nothing, draws nothing."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable
from typing import Any

from fedsim.comparing.found import NOISE_KNOWN, Against, Comparison, Row
from fedsim.core.types import Frame
from fedsim.report.units import duration, megabytes
from fedsim.score.resampled import FEW, RESAMPLES
from fedsim.score.spending import OPEN
from fedsim.score.taken import TO_TARGET

PAGE = "compare.html"
NAMES = {
    "virtual_s": "virtual time", "bytes": "bytes, both ways", "rounds_to_target": "rounds", "virtual_s_to_target": "virtual time",
    "bytes_to_target": "bytes",
}  # fmt: skip
COLUMNS = (
    "variant", "against", "measure", "mean", "against_mean", "difference", "low", "high", "boot_low", "boot_high", "n", "against_n",
    "reached", "against_reached", "verdict",
)  # fmt: skip


def frame(found: Comparison) -> Frame:
    """Return one row per variant and measure; see ``comparing.compare`` for the columns."""
    import pandas as pd

    rows = [
        (
            each.side.name, each.base.name, row.measure, row.ours, row.theirs, row.interval.mean, row.interval.low, row.interval.high,
            *row.boot, *row.n, *(row.reached or (None, None)), each.verdict if row.measure == each.by else "",
        )
        for each in found.against for row in each.rows
    ]  # fmt: skip
    made = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"reached": "Int64", "against_reached": "Int64"})
    made.attrs["compare"] = summary(found)
    return made


def summary(found: Comparison) -> dict[str, Any]:
    """Return the comparison as one table of plain values: what ``--json`` prints."""
    plan = found.plan
    return {
        "compare": [side.name for side in found.sides], "paired": plan.pairs,
        "folder": None if found.folder is None else str(found.folder),
        "html": None if found.folder is None else str(found.folder / PAGE),
        "target": None if plan.target is None else str(plan.target), "matters": plan.matters, "rule": rule(found),
        "looks": list(found.rule.looks), "levels": list(found.rule.levels),
        "verdicts": [
            {
                "variant": each.side.name, "against": each.base.name, "by": each.by, "verdict": each.verdict, "why": each.why,
                "same": each.same, "seeds": list(each.seeds), "pairs": len(each.seeds) if plan.pairs else None,
                "unpaired_runs": each.unpaired or None,
                "finds_with_80_percent": each.finds, "says": sentence(each, found),
                "measures": {
                    row.measure: {
                        "mean": row.ours, "against": row.theirs, "difference": row.interval.mean,
                        "t": [row.interval.low, row.interval.high], "level": row.interval.level, "bootstrap": list(row.boot),
                        "n": list(row.n),
                        "reached": None if row.reached is None else list(row.reached),
                    }
                    for row in each.rows
                },
            }
            for each in found.against
        ],
        "runs": [
            {
                "variant": name, "seed": seed, "run": str(run.path), "digest": run.digest,
                **{measure: figure.value if figure.reached else None for measure, figure in found.taken[name][seed].items()},
            }
            for name, runs in found.runs.items() for seed, run in runs.items()
        ],
        "faults": list(found.faults), "notes": notes(found),
    }  # fmt: skip


def rule(found: Comparison) -> str:
    """Return by what rule there is a verdict, in words."""
    plan, many = found.plan, len(found.against)
    test = "Student's t of the differences of pairs" if plan.pairs else "Welch's t, unpaired"
    line = f"beyond {plan.matters:g} on one side of 0" if plan.matters else "on one side of 0"
    within = f"; alike where all of it lies within {plan.matters:g}" if plan.matters else ""
    share = f", shared by {many} variants" if many > 1 else ""
    said = f"better or worse where the whole interval ({test}) lies {line}{within}; else not decided."
    if plan.sequential:
        spent = ", ".join(f"{100 * level:.2g}" for level in found.rule.levels)
        looks = ", ".join(map(str, found.rule.looks))
        return (
            f"{said} Looks at {looks} pairs only, at levels of {spent} % (5 % in all{share}; Lan-DeMets spending of Pocock's type)."
            f" Equals get a verdict in about 5 of 100 comparisons: 4.2 where measures are normal, 6.2 where they have a skewness of 1."
        )
    level = f"{100 * found.rule.levels[0]:.2g} %"
    return f"{said} One look, at a level of {level}{share}. Adding seeds until it decides is wrong oftener; --until-decided allows for it."


def sentence(each: Against, found: Comparison) -> str:
    """Return the verdict on one variant, with what it rests on."""
    row, ours, base = each.row, each.side.name, each.base.name
    name = measure_name(each.by)
    if each.same:
        return f"{ours} is {base}: every run has the same digest as its pair, so that nothing that was varied has any effect."
    if row is None or each.says == OPEN:
        said = f"Not decided whether {ours} is better than {base}{f' by {name}' if name else ''}: {each.why}."
        n, looks = len(each.seeds), found.rule.looks[-1]
        if math.isfinite(each.finds):
            said += f" With the noise of these {n} pairs {looks} find {_amount(each.by, each.finds)} with a power of 80 %."
        elif found.plan.pairs and 1 < n < NOISE_KNOWN:
            said += f" How noisy it is {n} pairs do not tell well enough to say what more would find; {NOISE_KNOWN} do."
        offered = found.plan.pairs and row is not None and 1 < n and not found.plan.sequential
        return f"{said} --until-decided goes up to 40." if offered else said
    size = f"{_signed(each.by, row.interval.mean)} ({_range(each.by, row.interval.low, row.interval.high)})"
    after = f"{len(each.seeds)} pairs ({2 * len(each.seeds)} runs)" if found.plan.pairs else f"{row.n[0]} and {row.n[1]} unpaired runs"
    word = f"{each.verdict} than" if each.verdict != "alike" else f"alike (within {found.plan.matters:g}) to"
    said = f"{ours} is {word} {base} by {name}: {size}, after {after}."
    if each.unpaired:
        said += f" Unpaired, an interval as narrow would take about {each.unpaired:,} runs of each."
    return said


def notes(found: Comparison) -> list[str]:
    """Return what a reader must know besides."""
    said = list(found.notes)
    for name, why in found.unlike.items():
        if why:
            said.append(f"Unpaired, since {found.sides[0].name} and {name} are not on the same luck: {'; '.join(why)}.")
    if not found.plan.pairs and not any(found.unlike.values()):
        said.append("Unpaired, as asked, though these could be compared pair by pair, which tells more.")
    rows = [row for each in found.against for row in each.rows]
    if any(row.cut for row in rows):
        what = "the end of the pair's run that did not" if found.plan.pairs else "the earliest end of a run that did not"
        said.append(
            f"Not every run reached {found.plan.target} (counts in the table). Up to the target, runs count until {what}: no run is left"
            f" out, a difference is at least what is said, and two that did not reach it differ by 0."
        )
    if len(rows) > len(found.against):
        said.append("One measure decides, so that one question is asked; the intervals of the others are of 95 % each, and no verdicts.")
    return said


def show(found: Comparison) -> None:
    """Print the table and what follows from it; 80 columns are enough."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    wide = max(40, min(console.width, 100))
    for each in found.against:
        n = len(each.seeds)
        how = f"{n} pair{'s' * (n != 1)} by seed" if found.plan.pairs else "UNPAIRED"
        console.print(f"[bold]{escape(each.side.name)}[/] against {escape(each.base.name)}, {how}", soft_wrap=True)
        short = heads(each.side.name, each.base.name)
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for name, side in (("", "left"), (short[1], "right"), (short[0], "right"), ("difference", "right"), ("95 % interval", "left")):
            table.add_column(escape(name), justify=side, no_wrap=True)  # pyright: ignore[reportArgumentType]
        for row in each.rows:
            if row.measure == TO_TARGET[0]:
                counts = [f"{got} of {n}" for got, n in zip(row.reached or (), row.n, strict=False)]
                table.add_row(f"reached {found.plan.target}", counts[1], counts[0], "", "")
            shown = [escape(re.sub(r" \([\d.]+ %\)$", " *", cell)) for cell in cells(row, each)[:-1]]
            table.add_row(*([f"[bold]{cell}[/]" for cell in shown] if row.measure == each.by else shown))
        if each.rows:
            console.print(table)
        level = 100.0 * (1.0 - each.row.interval.level) if each.row is not None else 95.0
        if abs(level - 95.0) > 0.05:
            console.print(f"[dim]*: of {level:.3g} %, the verdict's level[/]")
        mark = {"better": "green", "worse": "red", "alike": "cyan"}.get(each.verdict, "yellow")
        for line in textwrap.wrap(sentence(each, found), wide):
            console.print(f"[bold {mark}]{escape(line)}[/]", soft_wrap=True)
        console.print()
    for line in [f"Rule: {rule(found)}", *notes(found)]:
        for part in textwrap.wrap(line, wide):
            console.print(f"[dim]{escape(part)}[/]", soft_wrap=True)
    for fault in found.faults:
        console.print(f"[red]{escape(fault)}[/]", soft_wrap=True)
    if found.folder is not None:
        console.print(escape(str(found.folder / PAGE)), soft_wrap=True)


def cells(row: Row, each: Against) -> tuple[str, ...]:
    """Return a row of the table in words: measure, the first side's mean, the other's, the difference, its intervals by t and bootstrap."""
    name = _inside(row.measure)
    if row.reached == (0, 0):
        return name, "not reached", "not reached", "", "", ""
    by_t = _range(row.measure, row.interval.low, row.interval.high)
    level = 100.0 * (1.0 - row.interval.level)
    by_t += f" ({level:.3g} %)" if row.measure == each.by and abs(level - 95.0) > 0.05 and by_t != "unknown" else ""
    difference = _signed(row.measure, row.interval.mean)
    return name, _mean(row, 1), _mean(row, 0), difference, by_t, _range(row.measure, *row.boot)


def resampling(found: Comparison) -> str:
    """Return what the bootstrap's intervals are, and when not to lean on them."""
    few = any(min(row.n) < FEW for each in found.against for row in each.rows)
    how = "pairs" if found.plan.pairs else "runs of either side"
    said = f"Bootstrap: percentile intervals of 95 %, {RESAMPLES:,} resamples of {how}, always the same draws."
    return f"{said} Of fewer than {FEW} they are too narrow (of five: 84 % in the place of 95 %); verdicts go by t." if few else said


def heads(ours: str, theirs: str) -> tuple[str, str]:
    """Return the two names, short enough for a column: without what both have, where anything is left.

    >>> heads("lr=0.3, FedProx", "lr=0.3, FedAvg"), heads("a", "b"), heads("prox mu=0.25", "prox mu=0.5, wide")
    (('FedProx', 'FedAvg'), ('a', 'b'), ('prox mu=0.25', 'prox mu=0.5…'))
    """
    words = [name.split(", ") for name in (ours, theirs)]
    apart = [[word for word in mine if word not in other] or mine for mine, other in (words, words[::-1])]
    first, second = (name if len(name) <= 12 else f"{name[:11]}…" for name in map(", ".join, apart))
    return first, second


def measure_name(measure: str) -> str:
    """Return *measure* as a sentence calls it."""
    name = NAMES.get(measure, measure)
    return f"{name} to the target" if measure in TO_TARGET else name


def _inside(measure: str) -> str:
    return f"  {NAMES[measure]} to it" if measure in TO_TARGET else NAMES.get(measure, measure)


def unit(measure: str) -> Callable[[float], str]:
    """Return how figures of *measure* are written."""
    if measure.startswith("virtual_s"):
        return lambda value: f"{value:.2g} s" if 0 < value < 0.1 else duration(value)
    if measure.startswith("bytes"):
        return megabytes
    return (lambda value: f"{value:.3g}") if measure.startswith("rounds") else (lambda value: f"{value:.4f}")


def _mean(row: Row, side: int) -> str:
    value = (row.ours, row.theirs)[side]
    all_reached = row.reached is None or row.reached[side] == row.n[side]
    return f"{'' if all_reached else '>= '}{unit(row.measure)(value)}"


def _amount(measure: str, value: float) -> str:
    return f"{value:.2g}" if unit(measure)(1.0) == "1.0000" else unit(measure)(value)


def _signed(measure: str, value: float) -> str:
    if not math.isfinite(value):
        return "-"
    shown = unit(measure)(abs(value))
    return shown if value == 0 else f"{'+' if value > 0 else '-'}{shown}"


def _range(measure: str, low: float, high: float) -> str:
    return f"{_signed(measure, low)} to {_signed(measure, high)}" if math.isfinite(low) and math.isfinite(high) else "unknown"
