"""A run as a card of HTML: what a notebook shows of it. Reads the manifest alone; brings no style sheet and no script.

Its colours are the page's own, so that it reads on light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedsim.core.units import duration, megabytes

REPORT = "report.html"
COUNTS = ("rounds", "scored_round")
"""What stands among a run's final figures and is no score."""
DIGITS = 16
"""Of a digest so many are shown."""
HEAD = "text-align:left;font-weight:normal;opacity:0.7;padding:0 1em 0 0"
CELL = "text-align:left;padding:0"


def card(about: Mapping[str, Any], status: str, path: Path) -> str:
    """Return the run in the folder *path*, whose manifest is *about* and which stands as *status*, as a table of HTML."""
    rows = "".join(
        f'<tr><th scope="row" style="{HEAD}">{escape(name)}</th><td style="{CELL}">{value}</td></tr>'
        for name, value in _rows(about, path).items()
    )
    title = f"<strong>{escape(str(about['scenario']['name']))}</strong>: {escape(status)}"
    return f'<div>{title}<table style="margin:0.2em 0;border-collapse:collapse">{rows}</table></div>'


def unread(path: Path, why: Exception) -> str:
    """Return a folder that no run can be read from, and *why*."""
    return f"<div><strong>{escape(str(path))}</strong>: no run to be read. {escape(str(why))}</div>"


def _rows(about: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return what is told, by its name, as HTML."""
    final, server = about["final"], about["scenario"]["server"]
    due = f" of {server['rounds']:,}" if "rounds" in server and "app" not in about else ""
    when = f" (of round {final['scored_round']:,})" if "scored_round" in final else ""
    found = {str(name): escape(f"{_number(value)}{when}") for name, value in final.items() if name not in COUNTS}
    found["rounds"] = escape(f"{final.get('rounds', 0):,}{due}")
    found["time, real clients" if about.get("ground") else "virtual time"] = escape(duration(about["virtual_s"]))
    found["sent down, up"] = escape(f"{megabytes(about['bytes_down'])}, {megabytes(about['bytes_up'])}")
    if about["bytes_wasted"]:
        found["of it wasted"] = escape(megabytes(about["bytes_wasted"]))
    if about["digest"]:
        found["digest"] = f"<code>{escape(about['digest'][:DIGITS])}</code>..."
    if "error" in about:
        found["ended by"] = escape(str(about["error"]))
    found["run folder"] = f"<code>{escape(str(path))}</code>"
    report = path / REPORT
    if report.is_file():
        found["report"] = f'<a href="{escape(_address(report))}" target="_blank" rel="noopener">{escape(REPORT)}</a>'
    return found


def _address(file: Path) -> str:
    """Return the address of *file*: as seen from the notebook, where it is named so, else as a file."""
    return file.as_uri() if file.is_absolute() else quote(file.as_posix())


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else str(value)
