"""The figures of online learning: accuracy along the stream beside its baselines, and what is still known of each task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.types import FloatArray, Frame, IntArray
from fedsim.report.drawing import ALARM, GRID, INK
from fedsim.report.units import clock
from fedsim.score.prequential import WINDOW, curves, windowed

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POINTS = 1000
"""Points that a curve is drawn with at most: no screen shows more, and a browser stays fast."""
DRIFTS = 40
"""Drift times that are drawn at most: with more, the lines hide the curves."""
ALARMS = 400
"""Alarms that are drawn at most, spread evenly."""
SHARES = 200
"""Clients whose weight is drawn at most: those of the largest."""
LINES = (
    ("accuracy", "accuracy", {"color": "#1f8fd0", "width": 2.5}),
    ("no_change", "no change: the last label again", {"color": "#e69f00", "width": 1.5, "dash": "dash"}),
    ("majority", "majority: the commonest label", {"color": INK, "width": 1.5, "dash": "dot"}),
)
"""Column of ``curves``, what the legend says, how it is drawn."""


def fitting(examples: int) -> int:
    """Return a window for a curve over so many examples: a twentieth of them, 50 to 1000.

    >>> fitting(100), fitting(3000), fitting(10**6)
    (50, 150, 1000)
    """
    return min(WINDOW, max(50, examples // 20))


def prequential_figure(
    frame: Frame, drifts_s: Iterable[float] = (), alarms_s: Iterable[float] = (), *, window: int = WINDOW, time: str = "virtual time"
) -> Figure:
    """Return the accuracy over the last *window* tested examples against *time*, as its axis calls it, beside both baselines.

    *frame* is as ``score.prequential`` reads it; *drifts_s* are the true drift times, which become vertical lines, and
    *alarms_s* when a detector signalled, which become marks at the bottom. The stretch before the first full window is
    drawn too: its means are over what there is.
    """
    import plotly.graph_objects as go

    found = curves(frame, windowed(window))
    found = found.drop_duplicates("time_s", keep="last")  # What is tested at one moment has no order in time.
    shown = found.iloc[_spread(len(found))]
    drifts = sorted(set(drifts_s))
    unit, unit_name = clock(float(max([*found.time_s.tail(1), *drifts, 0.0])))
    figure = go.Figure()
    for column, name, line in LINES:
        figure.add_scatter(
            x=(shown.time_s / unit).tolist(), y=shown[column].tolist(), name=name, line={**line, "shape": "hv"},
            mode="lines+markers" if len(shown) <= 60 else "lines", marker={"size": 4},
            hovertemplate="%{y:.4f} at %{x:.6g}",
        )  # fmt: skip
    for drift_s in drifts[:DRIFTS]:
        figure.add_vline(x=drift_s / unit, line={"color": ALARM, "width": 1.5, "dash": "dot"})
    if drifts:
        more = f" (the first {DRIFTS} of {len(drifts):,})" if len(drifts) > DRIFTS else ""
        figure.add_scatter(x=[None], y=[None], name=f"drift{more}", mode="lines", line={"color": ALARM, "width": 1.5, "dash": "dot"})
    if alarms := sorted(alarms_s):
        marks = [alarms[i] / unit for i in _spread(len(alarms), ALARMS)]
        figure.add_scatter(
            x=marks, y=[0.02] * len(marks), name="alarm", mode="markers", hovertemplate="alarm at %{x:.6g}<extra></extra>",
            marker={"symbol": "triangle-up", "size": 8, "color": ALARM},
        )  # fmt: skip
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title=f"{time} ({unit_name})", gridcolor=GRID)
    figure.update_yaxes(title=f"accuracy, last {window:,} examples", range=[0, 1.02], title_standoff=10, gridcolor=GRID)
    return figure


def accuracy_matrix_figure(matrix: FloatArray, tasks: Sequence[str] = (), after: Sequence[str] = ()) -> Figure:
    """Return the accuracy matrix as a map: a row per evaluation, the first on top; a column per task; blank where unknown.

    *tasks* names the columns; without it they are numbered from 1. *after* names the rows; without it they are called
    as the columns, or numbered where they are not as many. Shapes: matrix (times, tasks).
    """
    import plotly.graph_objects as go

    times, count = matrix.shape
    names = list(tasks) or [f"{i + 1}" for i in range(count)]
    rows = list(after) or (names if times == count else [f"{i + 1}" for i in range(times)])
    known = [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
    figure = go.Figure()
    figure.add_heatmap(
        z=known, x=names, y=rows, zmin=0.0, zmax=1.0, colorscale="Viridis", xgap=1, ygap=1,
        texttemplate="%{z:.2f}" if max(times, count) <= 12 else None,
        hovertemplate="after %{y}: %{z:.4f} on %{x}<extra></extra>", colorbar={"title": "accuracy", "thickness": 12},
    )  # fmt: skip
    axis: dict[str, Any] = {"type": "category", "showgrid": False}  # Names that look like numbers stay names.
    figure.update_xaxes(title="accuracy on classes" if after else "accuracy on task", **axis)
    figure.update_yaxes(
        title="after concept" if after else "after task" if times == count else "evaluation",
        autorange="reversed",
        title_standoff=14,
        **axis,
    )
    return figure


def weights_figure(shares: Frame, clients: int | None = None) -> Figure:
    """Return the share of the weight that each client has, largest first. *shares* is as ``score.online.weights`` gives.

    The dotted line is the equal share of *clients*, of those in *shares* where it is None.
    """
    import plotly.graph_objects as go

    largest = shares.sort_values(["share", "client"], ascending=[False, True]).head(SHARES)
    figure = go.Figure()
    figure.add_bar(
        x=list(range(1, len(largest) + 1)), y=largest.share.tolist(), marker={"color": LINES[0][2]["color"], "line": {"width": 0}},
        customdata=largest[["client", "tasks"]].to_numpy().tolist(),
        hovertemplate="client %{customdata[0]}: %{y:.2%}, %{customdata[1]} tasks<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=1 / max(1, len(shares) if clients is None else clients), line={"color": INK, "width": 1.5, "dash": "dot"})
    more = f" (the first {SHARES} of {len(shares):,})" if len(shares) > SHARES else ""
    figure.update_xaxes(title=f"clients, largest first{more}", showgrid=False, rangemode="tozero")
    figure.update_yaxes(title="share of the weight", rangemode="tozero", tickformat=".1%", title_standoff=14, gridcolor=GRID)
    return figure


def _spread(size: int, most: int = POINTS) -> IntArray:
    """Return at most *most* rows of *size*, evenly spread, the last one among them."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(np.int64)) if size else np.empty(0, dtype=np.int64)
