"""Logarithmic axes that read as plain numbers: plotly's own ticks shorten 0.05 and 50 alike to "5". Knows axes, and no run."""

from __future__ import annotations

from typing import Any, Literal

TICKS = {"nticks": 3, "tickformat": ",~r"}
"""About three ticks, as 1, 2 and 5 of a decade have room where 9, 8 and 7 lie upon each other; plain numbers."""


def logarithmic(figure: Any, axis: Literal["x", "y"], title: str, **more: Any) -> None:
    """Make *axis* of *figure* a logarithm, whose *title* says of what, with the unit; *more* is as plotly's axes take it."""
    _update(figure, axis)(type="log", title=title, **more)
    readable(figure)


def readable(figure: Any) -> None:
    """Give each logarithmic axis of *figure* that has no ticks of its own plain values, which stay plain when a reader zooms."""
    for axis in ("x", "y"):
        _update(figure, axis)(TICKS, selector=lambda each: each.type == "log" and each.tickvals is None)


def _update(figure: Any, axis: str) -> Any:
    return figure.update_xaxes if axis == "x" else figure.update_yaxes
