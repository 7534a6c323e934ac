"""What can be said of a figure without looking at it: whether its logarithmic axes can be read."""

from __future__ import annotations

from typing import Any


def unread(figure: Any) -> list[str]:
    """Return which logarithmic axes of *figure* have no title, or ticks that plotly would shorten to a digit, or ten of them."""
    layout = figure.to_plotly_json()["layout"]
    axes = {name: axis for name, axis in layout.items() if name.startswith(("xaxis", "yaxis")) and axis.get("type") == "log"}
    plain = {name: axis.get("ticktext") or (axis.get("tickformat") and axis.get("nticks", 10) <= 4) for name, axis in axes.items()}
    return [name for name, axis in axes.items() if not axis.get("title", {}).get("text") or not plain[name]]
