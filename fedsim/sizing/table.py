"""What a sizing found as a frame, as plain values, as a file, and for a terminal of 80 columns. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsim.core.types import Frame
from fedsim.record.manifest import whole
from fedsim.report.units import duration, megabytes
from fedsim.show_rows import rows
from fedsim.sizing import Sizing
from fedsim.sizing.course import SPARED, Row, meets, spares

FILE, PAGE = "size.csv", "size.html"
HEADINGS = ("clients", "wait", "late", "a round", "p95", "rounds", "in all", "a client", "unheard")
SPARED_FIRST = "p95"
"""The column that goes where a terminal is too narrow for all: page and file have it."""
WIDEST = 1000
"""Columns that a line takes at most."""


def frame(found: Sizing) -> Frame:
    """Return one row per setting; see ``sizing.size`` for the columns."""
    import pandas as pd

    made = pd.DataFrame([_plain(found, row) for row in found.rows])
    made.attrs["size"] = {name: value for name, value in summary(found).items() if name != "settings"}
    return made


def write_csv(found: Sizing) -> None:
    """Write the frame into the sizing's folder."""
    whole(found.folder / FILE, frame(found).to_csv(index=False))


def summary(found: Sizing) -> dict[str, Any]:
    """Return the sizing as one table of plain values: what ``--json`` prints."""
    plan = found.plan
    return {
        "size": found.name, "folder": str(found.folder), "csv": str(found.folder / FILE),
        "html": str(found.folder / PAGE),
        "target": None if plan.target is None else str(plan.target), "deadline_s": plan.deadline_s, "least": plan.least,
        "seeds": list(plan.seeds), "best": None if found.best is None else _plain(found, found.best), "says": sentence(found),
        "dry_runs": found.dry_runs, "runs": [str(each.run.path) for row in found.rows for each in row.learned],
        "settings": [_plain(found, row) for row in found.rows], "notes": [*found.notes, *notes(found)],
    }  # fmt: skip


def _plain(found: Sizing, row: Row) -> dict[str, Any]:
    each = row.each

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else math.nan

    rounds_s = np.concatenate([one.round_s for one in each]) if each else np.array([math.nan])
    return {
        "clients": row.setting.clients, "timeout_s": row.setting.timeout_s, "rounds": row.rounds, "measured": bool(row.learned),
        "runs": len(row.learned), "missed": row.missed,
        "whole_s": mean(list(row.whole_s)), "whole_low_s": min(row.whole_s, default=math.nan),
        "whole_high_s": max(row.whole_s, default=math.nan),
        "round_p50_s": float(np.quantile(rounds_s, 0.5)), "round_p95_s": float(np.quantile(rounds_s, 0.95)),
        "late": mean([one.late for one in each]), "failed": mean([one.failed for one in each]), "heard": mean([one.heard for one in each]),
        "unheard": mean([one.unheard for one in each]), "client_bytes": row.moved,
        "client_p95_bytes": mean([float(np.quantile(one.client_bytes, 0.95)) for one in each]),
        "client_max_bytes": mean([float(one.client_bytes.max()) for one in each]),
        "server_down_bytes": mean([one.server_down for one in each]), "server_up_bytes": mean([one.server_up for one in each]),
        "meets": meets(found.plan, row), "best": row is found.best,
    }  # fmt: skip


def notes(found: Sizing) -> list[str]:
    """Return what a reader must know of these figures."""
    plan, told = found.plan, list[str]()
    short = [row for row in found.rows if row.rehearsed and row.each and not row.learned and row.rehearsed < row.rounds]
    if short:
        fewest = min(row.rehearsed for row in short)
        told.append(
            f"There was wall time for {fewest:,} rounds of a dry run and more; what goes beyond is as these were (--wall-s gives more)."
        )
    if plan.target is not None and any(not row.learned and math.isfinite(row.rounds) for row in found.rows):
        told.append(
            "≈: rounds are estimated from how many replies a round takes in, by settings that learned. That late clients may hold other"
            " data than the rest shows in those only."
        )
    return told


def sentence(found: Sizing) -> str:
    """Return what to deploy, in one sentence, or why nothing that was looked at will do."""
    plan, row = found.plan, found.best
    goal = f"{plan.rounds:,} rounds" if plan.target is None else str(plan.target)
    by = "" if plan.deadline_s is None else f" within {duration(plan.deadline_s)}"
    if row is not None:
        asked = "" if row.setting.clients is None else f"Ask {row.setting.clients:,} of {found.count:,} clients a round, and "
        wait = f"{'wait' if asked else 'Wait'} {duration(row.setting.timeout_s)} for them"
        few = "" if plan.target else f" with at most {100 * SPARED:g} % of replies late"
        others = sum(meets(plan, each) for each in found.rows)
        of = f"with the least {plan.least} of the {others} settings" if others > 1 else "the one setting"
        return f"{asked}{wait}: {goal}{by}, {of} looked at{few}."
    learned = [each for each in found.rows if each.learned]
    if plan.target is not None and learned and all(each.missed == len(each.learned) for each in learned):
        bests = [one.best for each in learned for one in each.learned if math.isfinite(one.best)]
        far = f"; the best came to {max(bests) if plan.target.upwards else min(bests):.4g}" if bests else ""
        change = "lower" if plan.target.upwards else "raise"
        return f"No run reached {goal} in {plan.rounds:,} rounds{far}. Raise server.rounds, or {change} the target."
    there = [each for each in found.rows if each.each and not each.missed and math.isfinite(each.rounds)]
    if plan.target is None and there and not any(spares(each) for each in there):
        least = min(there, key=lambda each: _plain(found, each)["late"])
        return (
            f"With every setting that was looked at more than {100 * SPARED:g} % of replies are late; the fewest, with a wait of"
            f" {duration(least.setting.timeout_s)}, {100 * _plain(found, least)['late']:.2g} %. Wait longer (--timeouts)."
        )
    if not there:
        return f"No setting that was looked at reached {goal} with each seed."
    fastest = min(there, key=lambda each: max(each.whole_s))
    asked = "" if fastest.setting.clients is None else f"{fastest.setting.clients:,} clients a round and "
    return (
        f"No setting that was looked at reaches {goal}{by} with each seed. The fastest, {asked}a wait of"
        f" {duration(fastest.setting.timeout_s)}, takes up to {duration(max(fastest.whole_s))}."
    )


def show(found: Sizing) -> None:
    """Print what to deploy, and what every setting comes to."""
    console = Console(highlight=False)
    console.print(f"[bold]{escape(found.name)}[/]: {escape(sentence(found))}")
    if found.best is not None:
        rows("", facts(found, found.best))
    table = _settings(found, HEADINGS)
    if (needs := _columns(console, table)) > console.width:
        table = _settings(found, [heading for heading in HEADINGS if heading != SPARED_FIRST])
        console.width = max(console.width, min(needs, _columns(console, table)))  # Cells are never cut.
    console.print(table)
    said = [*notes(found), *found.notes]
    if any(0 < row.missed < len(row.learned) for row in found.rows):
        said.insert(0, "*: not with every seed.")
    for note in said:
        console.print(f"[dim]{escape(note)}[/]")
    console.print(f"[dim]{escape(str(found.folder / PAGE))}[/]", soft_wrap=True)


def _settings(found: Sizing, headings: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        cells, style = row_cells(found, row)
        table.add_row(*(cell for name, cell in zip(HEADINGS, cells, strict=True) if name in headings), style=style)
    return table


def _columns(console: Console, table: Table) -> int:
    return console.measure(table, options=console.options.update(max_width=WIDEST)).maximum


def row_cells(found: Sizing, row: Row) -> tuple[list[str], str]:
    """Return *row* in words, as HEADINGS has them, and its style: that of the best, of what misses the deadline, or none."""
    values, plan = _plain(found, row), found.plan
    style = "bold green" if values["best"] else "" if values["meets"] else "dim"
    asked = "all" if row.setting.clients is None else f"{row.setting.clients:,}"
    if not row.each:
        return [asked, duration(row.setting.timeout_s), *["-"] * 7], "dim"
    reached = "never" if row.learned and row.missed == len(row.learned) else f"{row.rounds:.3g}" + ("*" if row.missed else "")
    return [
        asked, duration(row.setting.timeout_s), percent(values["late"]), _known(values["round_p50_s"]), _known(values["round_p95_s"]),
        f"{'' if row.learned or plan.target is None else '≈'}{reached}", _known(values["whole_s"]), megabytes(values["client_bytes"]),
        percent(values["unheard"]),
    ], style  # fmt: skip


def facts(found: Sizing, row: Row) -> list[tuple[str, str]]:
    """Return what *row* comes to, name by name, each with the least and the most over seeds."""
    each = row.each

    def told(words: Callable[[float], str], values: Iterable[float]) -> str:
        """Return the mean of *values*, one of each seed, and the least and the most."""
        known = list(values)
        low, high = words(min(known)), words(max(known))
        return words(float(np.mean(known))) + (f" ({low} to {high})" if low != high else "")

    reached = [one.rounds for one in row.learned if one.rounds is not None]
    goal = ("rounds to the target", told(lambda value: f"{value:.3g}", reached)) if reached else ("rounds", f"{row.rounds:,.4g}")
    runs, here = sum(len(one.learned) for one in found.rows), len(row.learned)
    learned = f" and {runs} that learned" + (f", {here} of them with this setting" if here else "") if runs else ""
    seeds = f"; in brackets the least and the most of {len(each)} seeds" if len(each) > 1 else ""
    return [
        goal,
        ("virtual time", told(duration, row.whole_s)),
        ("a round takes", told(duration, [float(np.quantile(one.round_s, 0.5)) for one in each])),
        ("  p95", told(duration, [float(np.quantile(one.round_s, 0.95)) for one in each])),
        ("replies that count", f"{told(lambda value: f'{value:.3g}', [one.heard for one in each])} a round"),
        ("late, failed", f"{told(percent, [one.late for one in each])}, {told(percent, [one.failed for one in each])}"),
        ("a client moves", told(megabytes, [float(one.client_bytes.mean()) for one in each])),
        ("  p95", told(megabytes, [float(np.quantile(one.client_bytes, 0.95)) for one in each])),
        ("  most", told(megabytes, [float(one.client_bytes.max()) for one in each])),
        ("the server sends", told(megabytes, [one.server_down for one in each])),
        ("  receives", told(megabytes, [one.server_up for one in each])),
        ("never heard", f"{told(percent, [one.unheard for one in each])} of {found.count:,} clients"),
        ("rests on", f"{found.dry_runs:,} dry runs{learned}{seeds}"),
    ]


def percent(share: float) -> str:
    """Return a share as a person reads it.

    >>> percent(0.0342), percent(1.0), percent(0.0)
    ('3.4 %', '100 %', '0 %')
    """
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _known(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else "-"
