"""What a simulation foretold of a deployed run, beside what was observed: read from a file in its folder. Compares nothing itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, cast

from fedsim.core.errors import RunError
from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen

FILE = "validation.json"
"""What was found, in the folder of a validation and of the run that was deployed for it."""
STYLE = """<style>
.agreement { margin: 0.3rem 0 0.6rem; } .agreement td { text-align: right; font-variant-numeric: tabular-nums; }
.agreement thead th { text-align: right; } .agreement tbody th { opacity: 1; } .agreement .no { color: #d55e00; font-weight: 600; }
</style>"""
HEAD = ("", "foretold", "observed", "error", "bound", "agrees")


def validated(seen: Seen) -> bool:
    """Return whether what was foretold of the run stands beside it."""
    return (seen.run.path / FILE).is_file()


def foretold(seen: Seen, _: Drawing) -> str:
    """Return what was compared, a row each, and the notes. Raises RunError where the file says something else."""
    file = seen.run.path / FILE
    try:
        found = cast(Mapping[str, Any], json.loads(file.read_text(encoding="utf-8")))
        rows, notes, agrees = cast(Sequence[Mapping[str, Any]], found["rows"]), cast(Sequence[str], found["notes"]), bool(found["agrees"])
        body = "".join(map(_row, rows))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{file}: is no validation that can be read ({type(error).__name__}: {error}).") from None
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    said = "Simulation and deployment agree." if agrees else "Simulation and deployment do not agree."
    return (
        f"{STYLE}<p>{said}</p><div style='overflow-x: auto'><table class=agreement><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>{''.join(f'<p class=note>{escape(note)}</p>' for note in notes)}"
        "<p class=note>Foretold is what simulations say, observed what the real clients of this run did. Numbers of the model agree where"
        " all their bits do; others where the error, foretold over observed, is within its bound.</p>"
    )


def _row(row: Mapping[str, Any]) -> str:
    error, bound, agrees = row["error"], row["bound"], bool(row["agrees"])
    cells = [
        _number(row["foretold"]), _number(row["observed"]),
        "" if error is None else f"{100 * error:+.1f} %", "" if bound is None else f"{100 * bound:.0f} %",
    ]  # fmt: skip
    last = "<td>yes</td>" if agrees else "<td class=no>no</td>"
    return f"<tr><th>{escape(str(row['what']))}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}{last}</tr>"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
