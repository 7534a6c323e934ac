"""What a person sees in a terminal of many runs: a line each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsim.record.listed import Listed
from fedsim.report.units import duration, megabytes

WIDEST = 1000
"""Columns that a line takes at most."""
BROKEN = 5
"""Of how many runs that broke a list says why."""


def runs(found: Sequence[Listed], folder: Path) -> None:
    """Print a line for each of the runs that were *found* in *folder*."""
    console = Console(highlight=False)
    if not found:
        console.print(f"{folder}: holds no runs. fedsim run SCENARIO makes one.", soft_wrap=True, markup=False)
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("run", no_wrap=True)
    for heading in ("rounds", "score", "time", "sent", "began"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        mark = "" if each.status == "done" else f" [yellow]{each.status}[/]"
        if each.status == "unreadable":
            table.add_row(f"{escape(each.folder)}{mark}")
            continue
        rounds = f"{each.round}" if each.round == each.rounds else f"{each.round} of {each.rounds}"
        began = each.started[5:16].replace("T", " ")
        time = duration(each.virtual_s) if each.ground == "virtual" else f"{duration(each.virtual_s)} real"
        table.add_row(f"{escape(each.folder)}{mark}", rounds, _score(each), time, megabytes(each.sent_bytes), began)
    needs = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console.width = max(console.width, needs)  # A folder is to be copied: its name is never broken.
    console.print(table)
    broken = [each for each in found if each.error]
    for each in broken[:BROKEN]:
        console.print(f"[dim]{escape(each.folder)}: {escape(each.error)}[/]", soft_wrap=True)
    if len(broken) > BROKEN:
        console.print(f"[dim]... and {len(broken) - BROKEN} more that broke; --json has all.[/]")


def _score(run: Listed) -> str:
    """Return the score of *run* that says most: its accuracy, or else the first, by name."""
    name = next((name for name in ("accuracy", *sorted(run.scores)) if name in run.scores), "")
    return "" if not name else f"{run.scores[name]:.4f}" if name == "accuracy" else f"{escape(name)} {run.scores[name]:.4g}"
