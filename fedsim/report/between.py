"""One section: what went between the server and its edges, beside what went on to clients, and how long edges took. Draws nothing."""

from __future__ import annotations

from html import escape

from fedsim.core.types import Frame
from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen
from fedsim.report.units import duration, megabytes

TIMES = ("down_s", "work_s", "up_s", "total_s")
SLOWEST = 10
"""Of how many edges the times are shown."""


def there(seen: Seen) -> bool:
    """Return whether anything went by way of an edge."""
    return "edges" in seen.about["scenario"] and len(seen.run.edges) > 0


def edges(seen: Seen, _: Drawing) -> str:
    """Return bytes by tier, and how long the slowest edges took in the mean."""
    rows = "".join(
        f"<tr><th>{escape(str(row['tier']))}</th><td>{escape(str(row['kind']))}</td><td>{row['messages']:,}</td>"
        + "".join(f"<td>{megabytes(row[name])}</td>" for name in ("down", "up"))
        + f"<td>{megabytes(row['down_framing'] + row['up_framing'])}</td><td>{megabytes(row['total'])}</td>"
        + f"<td>{megabytes(row['wasted'])}</td></tr>"
        for row in seen.run.tiers().to_dict("records")
    )
    rows_of: Frame = seen.run.edges
    trained: Frame = rows_of[rows_of.kind == "train"]
    times: Frame = trained.assign(
        down_s=trained.received_s - trained.sent_s, work_s=trained.answered_s - trained.received_s,
        up_s=trained.arrived_s - trained.answered_s, total_s=trained.arrived_s - trained.sent_s, late=trained.outcome == "late",
    )  # fmt: skip
    means: Frame = times.groupby("edge")[["asked", *TIMES, "late"]].mean()
    means = means.sort_values("total_s", ascending=False)
    paces = "".join(
        f"<tr><th>{int(row['edge'])}</th><td>{row['asked']:.1f}</td>"
        + "".join(f"<td>{duration(row[name]) if row[name] == row[name] else 'never'}</td>" for name in TIMES)
        + f"<td>{100 * row['late']:.0f} %</td></tr>"
        for row in means.head(SLOWEST).reset_index().to_dict("records")
    )
    played = seen.about["scenario"]["edges"]["rounds"]
    many = "a round" if played == 1 else f"{played} rounds"
    return (
        f"<div class=pair><table class=numbers><thead><tr><th>tier</th><th>kind</th><th>messages</th><th>down</th><th>up</th>"
        f"<th>framing</th><th>in all</th><th>wasted</th></tr></thead><tbody>{rows}</tbody></table>"
        f"<table class=numbers><thead><tr><th>edge</th><th>clients</th><th>down</th><th>its rounds</th><th>up</th><th>in all</th>"
        f"<th>late</th></tr></thead><tbody>{paces}</tbody></table></div>"
        f"<p class=note>An edge is sent one copy of the model, plays {many} among its clients, and sends one model up. Times are means over"
        f" the server's rounds, of the {min(SLOWEST, len(means))} slowest of {len(means)} edges that were at work.</p>"
    )
