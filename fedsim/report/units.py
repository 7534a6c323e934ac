"""Bytes and virtual seconds as a person reads them, in the terminal and in the report alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_CLOCKS = ((172_800.0, 86_400.0, "days"), (7_200.0, 3_600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def megabytes(size: float) -> str:
    """Return bytes as a person reads them, in powers of ten.

    >>> megabytes(8_392_421), megabytes(12), megabytes(999_700)
    ('8.39 MB', '12 B', '1 MB')
    """
    for unit, name in _UNITS:
        if float(f"{size / unit:.3g}") >= 1:  # As it will read: 999.7 kB rounds to a whole megabyte.
            return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:,.0f} {name}"
    return f"{size:.0f} B"


def duration(seconds: float) -> str:
    """Return virtual seconds as a person reads them.

    >>> duration(12.34), duration(754), duration(200_000), duration(math.inf)
    ('12.3 s', '12 min 34 s', '2 d 7 h 33 min', 'for ever')
    """
    if not math.isfinite(seconds):
        return "for ever" if seconds > 0 else "unknown"
    if 0 < seconds < 0.001:
        return "< 1 ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h {minutes} min"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


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
