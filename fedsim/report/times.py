"""Two sections: how long the parts of a task take, over all of them; and where the bytes went. Of any number of tasks, few marks."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from fedsim.core.types import FloatArray, Frame
from fedsim.report.drawing import ALARM, INK, Drawing
from fedsim.report.figures import DISCARDED_WORDS, Seen
from fedsim.report.figures import PHASES as COLOURED
from fedsim.report.units import clock, duration, megabytes
from fedsim.score import spent
from fedsim.score.outcomes import deadline_of

POINTS = 200
"""Places at which a curve of shares is drawn."""
COLOUR = {name: colour for name, colour, _ in COLOURED} | {"total": INK}
FATES = {
    "counted": "handed to the strategy", "late": "came after the round's deadline", **DISCARDED_WORDS,
    "failed": "an error in the place of a result",
    spent.ENDED: "the client had nothing left to learn from", "cut off": "under way when the run ended",
}  # fmt: skip


def timed(seen: Seen) -> bool:
    """Return whether any reply came."""
    return bool(seen.tasks.arrived_s.notna().any()) and len(seen.rounds) > 0


def figure(tasks: Frame, deadline_s: float) -> Any:
    """Return which share of training messages was through each phase within so long, a line each, and the deadline of a round."""
    import plotly.graph_objects as go

    times = spent.phases(tasks[tasks.kind == "train"])
    longest = float(times.total_s.quantile(0.999)) if len(times) else 1.0
    shown = min(longest * 1.05, max(deadline_s, longest) * 1.05)
    unit, unit_name = clock(shown)
    drawn = go.Figure()
    for name in (*spent.PHASES, "total"):
        values: FloatArray = np.sort(times[f"{name}_s"].dropna().to_numpy(dtype=np.float64))
        if not len(values) or not values[-1] > 0:
            continue
        places = np.unique(np.linspace(0, len(values) - 1, min(POINTS, len(values))).astype(int))
        drawn.add_scatter(
            x=[0.0, *(values[places] / unit).tolist()], y=[0.0, *((places + 1) / len(values)).tolist()], name=name, mode="lines",
            line={"color": COLOUR[name], "width": 2.5 if name == "total" else 1.8, "shape": "hv"},
            hovertemplate=f"{name}: %{{y:.1%}} within %{{x:.4g}} {unit_name}<extra></extra>",
        )  # fmt: skip
    if deadline_s <= shown:
        line = {"dash": "dot", "color": ALARM, "width": 1.5}
        drawn.add_vline(x=deadline_s / unit, line=line, annotation_text="deadline", annotation_position="bottom")
    drawn.update_xaxes(title=f"from a message to its reply ({unit_name})", rangemode="tozero")
    drawn.update_yaxes(title="share of messages", tickformat=".0%", range=[0, 1.02])
    drawn.update_layout(showlegend=True)
    return drawn


def times(seen: Seen, draw: Drawing) -> str:
    """Return how long download, waiting, training and upload take: p50, p90, p99, and the whole distribution."""
    table = spent.spread(seen.tasks)
    deadline_s = deadline_of(seen.about)
    rows = "".join(
        f"<tr><th>{'all of it' if row.phase == 'total' else row.phase}</th>"
        + "".join(f"<td>{duration(float(value))}</td>" for value in (row.p50_s, row.p90_s, row.p99_s, row.mean_s))
        + f"<td>{'' if row.phase == 'total' else f'{100 * row.share:.0f} %'}</td></tr>"
        for row in table.itertuples()
    )
    late = float((spent.fates(seen.tasks[seen.tasks.kind == "train"]) == "late").mean())
    by = f" of {duration(deadline_s)}" if np.isfinite(deadline_s) else ""
    missed = f" {100 * late:.1f} % of them missed the deadline{by}." if late else ""
    drawn, count = draw.html(figure(seen.tasks, deadline_s), 320), int((seen.tasks.kind == "train").sum())
    return (
        f"<div class=pair><table class=numbers><thead><tr><th></th><th>half within</th><th>90 %</th><th>99 %</th><th>mean</th>"
        f"<th>share</th></tr></thead><tbody>{rows}</tbody></table><figure>{drawn}</figure></div>"
        f"<p class=note>Of {count:,} training messages, as far as each came.{escape(missed)} Waiting is for a device that is still at work"
        f" on an earlier message, or for a client's trigger.</p>"
    )


def sent(seen: Seen) -> bool:
    """Return whether any message was sent."""
    return len(seen.tasks) > 0


def bytes_sent(seen: Seen, _: Drawing) -> str:
    """Return where the bytes went, by kind of message and by what became of it."""
    table = spent.ledger(seen.tasks, seen.now_s)
    rows = "".join(
        f"<tr><th>{escape(str(row.kind))}</th><td>{escape(str(row.fate))}</td><td>{row.messages:,}</td><td>{megabytes(row.down)}</td>"
        f"<td>{megabytes(row.up)}</td><td>{megabytes(row.down_framing + row.up_framing)}</td><td>{megabytes(row.total)}</td>"
        f"<td>{100 * row.share:.1f} %</td></tr>"
        for row in table.itertuples()
    )
    fates = [str(fate) for fate in dict.fromkeys(table.fate)]
    words = "; ".join(f"<b>{fate}</b>: {FATES[fate]}" for fate in fates)
    if resent := int(table.resent.sum()):
        words += f". Of the framing {megabytes(resent)} were sent again, lost on the way before"
    return (
        f"<table class=numbers><thead><tr><th>kind</th><th>fate</th><th>messages</th><th>down</th><th>up</th><th>framing</th>"
        f"<th>in all</th><th>share</th></tr></thead><tbody>{rows}</tbody></table><p class=note>{words}.</p>"
    )
