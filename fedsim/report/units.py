"""What the axes of figures are called and counted in. Bytes and seconds in words are ``core.units``, and named here too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsim.core.units import duration, grams, joules, megabytes

__all__ = ["axis_of", "clock", "duration", "grams", "joules", "megabytes"]

_CLOCKS = ((172_800.0, 86_400.0, "days"), (7_200.0, 3_600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def clock(span_s: float) -> tuple[float, str]:
    """Return the unit in which an axis of *span_s* virtual seconds reads best: its seconds, and its name.

    >>> clock(44.0), clock(90_000.0)
    ((1.0, 'seconds'), (3600.0, 'hours'))
    """
    return next((unit, name) for from_s, unit, name in _CLOCKS if span_s >= from_s)


def axis_of(about: Mapping[str, Any]) -> str:
    """Return what the time of a run is called on an axis, by its manifest *about*: that of real clients is not virtual.

    >>> axis_of({}), axis_of({"ground": "flower", "time_scale": 1.0})
    ('virtual time', 'time since the run began')
    >>> axis_of({"ground": "flower", "time_scale": 20.0})
    'time since the run began, 20 times as fast'
    """
    if not about.get("ground"):
        return "virtual time"
    scale = float(about.get("time_scale", 1.0))
    return "time since the run began" if scale == 1.0 else f"time since the run began, {scale:g} times as fast"
