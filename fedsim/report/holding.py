"""The section on data: how many examples clients hold, of which classes, and what one looks like. Reads what a run wrote of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from fedsim.report.drawing import COLOURS, INK, Drawing, ladder
from fedsim.report.figures import Seen
from fedsim.score.run import Run

SHOWN = 40
"""Clients whose labels are drawn."""


def told(run: Run) -> Mapping[str, Any] | None:
    """Return what the folder of *run* says of its data; None where it says nothing."""
    path = run.path / "data.json"
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else None
    except ValueError:
        return None


def holds(seen: Seen) -> bool:
    """Return whether the run wrote down what clients hold."""
    return told(seen.run) is not None


def sizes(about: Mapping[str, Any]) -> Any:
    """Return how many clients hold how many examples."""
    import plotly.graph_objects as go

    edges, counts = about["sizes"]["edges"], about["sizes"]["counts"]
    widths = np.diff(edges)
    drawn = go.Figure()
    drawn.add_bar(
        x=(np.array(edges[:-1]) + (widths - 1) / 2).tolist(), y=counts, width=widths.tolist(), marker={"color": COLOURS[0]}, name="clients",
        hovertemplate="%{y} clients with about %{x:.0f} examples<extra></extra>",
    )  # fmt: skip
    drawn.update_xaxes(title="examples to train on")
    drawn.update_yaxes(title="clients")
    return drawn


def labels(about: Mapping[str, Any]) -> Any:
    """Return what share of each client's examples is of which class."""
    import plotly.graph_objects as go

    rows = np.array(about["labels"][:SHOWN], dtype=np.float64)
    shares = rows / np.maximum(1.0, rows.sum(axis=1, keepdims=True))
    names = about["classes"] or [str(label) for label in range(rows.shape[1])]
    drawn = go.Figure()
    for label, colour in zip(range(rows.shape[1]), ladder(rows.shape[1]), strict=True):
        name = escape(str(names[label]))
        drawn.add_bar(
            x=list(range(len(rows))), y=shares[:, label].tolist(), name=name, marker={"color": colour},
            customdata=rows[:, label].tolist(), hovertemplate=f"client %{{x}}: %{{customdata}} of {name}<extra></extra>",
        )  # fmt: skip
    drawn.update_layout(barmode="stack", bargap=0.15, showlegend=True, legend_traceorder="normal")
    drawn.update_xaxes(title="client")
    drawn.update_yaxes(title="share of its examples", tickformat=".0%", range=[0, 1])
    return drawn


def example(about: Mapping[str, Any]) -> Any | None:
    """Return a picture of one example: an image as such, a sequence or a row of features as a line; None where none was kept."""
    import plotly.graph_objects as go

    if not about.get("example"):
        return None
    shape, values = about["example"]["shape"], np.array(about["example"]["x"], dtype=np.float64)
    drawn = go.Figure()
    if len(shape) == 3 and min(shape[1:]) > 1:
        drawn.add_heatmap(z=values.mean(axis=0), colorscale="Greys", reversescale=True,
                          showscale=False, hovertemplate="%{z:.3g}<extra></extra>")  # fmt: skip
        drawn.update_yaxes(autorange="reversed", scaleanchor="x", showticklabels=False, ticks="", showgrid=False, title="")
        drawn.update_xaxes(showticklabels=False, ticks="", showgrid=False, constrain="domain", title="")
        return drawn
    lines = values.reshape(1, -1) if len(shape) <= 1 else values.reshape(shape[0], -1)
    if len(lines) > lines.shape[1]:  # Channels are fewer than steps.
        lines = lines.T
    for i, line in enumerate(lines[:6]):
        drawn.add_scatter(
            y=line.tolist(), mode="lines+markers" if len(line) <= 60 else "lines", marker={"size": 4}, name=f"channel {i}",
            line={"color": COLOURS[i % len(COLOURS)] if len(lines) > 1 else INK, "width": 1.5},
        )  # fmt: skip
    drawn.update_xaxes(title="feature" if len(shape) <= 1 else "step")
    drawn.update_yaxes(title="value")
    return drawn


def holding(seen: Seen, draw: Drawing) -> str:
    """Return the section."""
    about = told(seen.run)
    assert about is not None
    low, _, _, median, _, _, high = about["sizes"]["quantiles"]
    parts = [f"<figure><h3>How much clients hold</h3>{draw.html(sizes(about), 300)}</figure>"]
    if about["labels"]:
        few = f" of the first {min(SHOWN, len(about['labels']))} clients" if about["clients"] > SHOWN else ""
        parts.append(f"<figure><h3>Which classes{few}</h3>{draw.html(labels(about), 300)}</figure>")
    if (picture := example(about)) is not None:
        names, y = about["classes"], about["example"]["y"]
        target = names[y] if names and isinstance(y, int) and 0 <= y < len(names) else y if isinstance(y, int) else "a sequence"
        shape = " x ".join(map(str, about["example"]["shape"])) or "1"
        parts.append(f"<figure><h3>The first example of client 0: {escape(str(target))} ({shape})</h3>{draw.html(picture, 300)}</figure>")
    over_time = " over time" if "stream" in seen.about["scenario"] else ""
    looked = "" if about["looked_at"] == about["clients"] else f" (of the first {about['looked_at']:,})"
    return (
        f"<p class=note>{about['clients']:,} clients train on {about['train_examples']:,} examples{over_time}{looked}: {low:g} to {high:g}"
        f" each, {median:g} in the median. The server scores on {about['test_examples']:,}.</p><div class=pair>{''.join(parts)}</div>"
    )
