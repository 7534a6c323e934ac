"""One section: which joules clients' devices drew, at what and for what fate, and every number that this rests on. Draws nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen
from fedsim.report.units import grams, joules
from fedsim.score import spent

WORDS = {"compute_j": "at work", "down_j": "receiving", "up_j": "sending", "idle_j": "waiting"}


def counted(seen: Seen) -> bool:
    """Return whether any joule was counted."""
    return "energy" in seen.about and len(seen.run.charged) > 0


def energy(seen: Seen, _: Drawing) -> str:
    """Return joules by kind of message, fate and what drew them, and the constants."""
    table, about = spent.energy(seen.tasks, seen.run.charged), seen.about["energy"]
    carbon = bool(table.grams.notna().any())
    head = "".join(f"<th>{word}</th>" for word in (*WORDS.values(), "in all", "share", *(["CO2"] if carbon else [])))
    rows = "".join(
        f"<tr><th>{escape(str(row['kind']))}</th><td>{escape(str(row['fate']))}</td><td>{row['messages']:,}</td>"
        + "".join(f"<td>{joules(float(row[name]))}</td>" for name in (*WORDS, "total_j"))
        + f"<td>{100 * float(row['share']):.1f} %</td>"
        + (f"<td>{grams(float(row['grams']))}</td>" if carbon else "")
        + "</tr>"
        for row in table.to_dict("records")
    )
    return (
        f"<table class=numbers><thead><tr><th>kind</th><th>fate</th><th>messages</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p class=note>{escape(rests_on(about))}. Only what a task makes a device draw: who is not asked draws nothing here, and nor does"
        f" the network between. Read ratios, not absolute figures.</p>"
    )


def rests_on(about: Mapping[str, Any]) -> str:
    """Return the model and every constant, in a line.

    >>> rests_on({"kind": "constant", "constants": {"compute_w": 3.0, "g_per_kwh": 475.0}})
    "By clients.energy.kind = 'constant': compute_w = 3, g_per_kwh = 475"
    """
    constants = ", ".join(f"{name} = {value:g}" for name, value in about["constants"].items())
    return f"By clients.energy.kind = {about['kind']!r}: {constants}"
