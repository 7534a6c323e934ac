"""One section: whom rounds waited for, and what that client was at. Draws nothing."""

from __future__ import annotations

from html import escape

from fedsim.core.types import Frame
from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen
from fedsim.report.units import duration
from fedsim.score.stragglers import DEADLINE, stragglers

SLOWEST = 10
"""Of how many clients it is told how often rounds waited for them."""
WORDS = {
    "download": "the client's way down", "waiting": "its device, at work on an earlier message, or its trigger", "training": "its device",
    "upload": "its way up", DEADLINE: "the deadline: somebody had not answered", "": "a reply of which no phases are known",
}  # fmt: skip


def there(seen: Seen) -> bool:
    """Return whether any round waited for a client of its own: not behind edges, which have a section of theirs."""
    return len(seen.rounds) > 0 and len(seen.tasks) > 0 and "edges" not in seen.about["scenario"]


def waited(seen: Seen, _: Drawing) -> str:
    """Return what rounds waited for, and for whom most often."""
    table = stragglers(seen.tasks, seen.rounds)
    if not len(table):
        return "<p class=note>No round was over.</p>"
    whole = float(table.round_s.sum()) or 1.0
    grouped = table.groupby("waited_for").agg(rounds=("round", "size"), took=("round_s", "sum"), spared=("spared_s", "median"))
    rows = "".join(
        f"<tr><th>{escape(WORDS[str(row['waited_for'])])}</th><td>{row['rounds']:,}</td><td>{100 * row['took'] / whole:.0f} %</td>"
        f"<td>{duration(row['spared']) if row['spared'] == row['spared'] and row['waited_for'] != DEADLINE else ''}</td></tr>"
        for row in grouped.sort_values("took", ascending=False).reset_index().to_dict("records")
    )
    by_client: Frame = table[(table.waited_for != DEADLINE) & table.client.notna()].groupby("client").agg(
        rounds=("round", "size"), download=("download_s", "mean"), waiting=("waiting_s", "mean"), training=("training_s", "mean"),
        upload=("upload_s", "mean"),
    )  # fmt: skip
    by_client = by_client.sort_values("rounds", ascending=False, kind="stable")
    clients = "".join(
        f"<tr><th>{int(row['client'])}</th><td>{row['rounds']:,}</td>"
        + "".join(f"<td>{duration(row[name])}</td>" for name in ("download", "waiting", "training", "upload")) + "</tr>"
        for row in by_client.head(SLOWEST).reset_index().to_dict("records")
    )
    many = f" The {SLOWEST} that were waited for most often, of {len(by_client):,}." if len(by_client) > SLOWEST else ""
    beside = (
        f"<table class=numbers><thead><tr><th>client</th><th>rounds</th><th>down</th><th>waiting</th><th>device</th><th>up</th></tr>"
        f"</thead><tbody>{clients}</tbody></table>"
    ) if clients else ""  # fmt: skip
    return (
        f"<div class=pair><table class=numbers><thead><tr><th>rounds waited for</th><th>rounds</th><th>of their time</th>"
        f"<th>the last took longer by</th></tr></thead><tbody>{rows}</tbody></table>{beside}</div>"
        f"<p class=note>Of the client that answered last, by what took it longest; by how much longer than the one before it, half of the"
        f" times.{many}</p>"
    )
