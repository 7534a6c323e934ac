"""What a person sees in a terminal of real clients: what was fitted to them, and whether simulation and deployment agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsim.real.calibration import Calibration
from fedsim.real.validation import Validation
from fedsim.show_rows import rows


def calibration(found: Calibration, file: Path) -> None:
    """Print what was fitted to a deployed run, and where the fleet file is."""
    console = Console(highlight=False)
    rows(f"{found.name}: fitted to {found.tasks} tasks", [
        ("speed of a node", f"{found.gflops:.3g} GFLOP/s"), ("besides, each step", f"{found.step_s:.2g} s of a processor"),
        ("besides, each message", f"{found.overhead_s:.3g} s of a processor"),
        ("on the way", f"{found.latency_s:.3g} s, each way"), ("server, between exchanges", f"{found.server_s:.3g} s"),
        ("cores that all share", "none" if found.cores is None else f"{found.cores:g}"),
        *(
            () if found.crowd is None
            else ((f"{found.crowd.begins} or more at once", f"each {found.crowd.factor:.3g} times its processor seconds"),)
        ),
        *((f"a round of {Path(fit.run).name}", f"{fit.period_s:.3g} s, on this fleet {fit.predicted_s:.3g} s") for fit in found.fits),
        ("fleet file", str(file)),
    ])  # fmt: skip
    for note in found.notes:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def validation(found: Validation) -> None:
    """Print what a simulation foretold, what the deployment did, and whether they agree."""
    console = Console(highlight=False)
    table = Table(title=f"{found.name}: {'agree' if found.agrees else 'do not agree'}", title_justify="left", box=None, padding=(0, 2))
    for heading in ("", "foretold", "observed", "error", ""):
        table.add_column(heading, justify="left" if not heading else "right", overflow="fold")
    for row in found.rows:
        error = "" if row.error is None or row.bound is None else f"{100 * row.error:+.1f} % of {100 * row.bound:.0f} %"
        table.add_row(row.what, _number(row.foretold), _number(row.observed), error, "yes" if row.agrees else "[red]no[/]")
    console.print(table)
    for note in found.notes:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
    console.print(f"[dim]{escape(str(found.folder))}[/]", soft_wrap=True)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def steps(*, silent: bool) -> Callable[[str], None]:
    """Return what to tell what is being done, a line each on standard error; nothing when *silent*."""
    console = Console(stderr=True)
    return (lambda _words: None) if silent else (lambda words: console.print(f"[dim]{escape(words)} ...[/]"))
