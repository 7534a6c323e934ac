"""Bytes and seconds as a person reads them: in the terminal, on a page, in a notebook. Knows nothing else."""

from __future__ import annotations

import math

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


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


def joules(value_j: float) -> str:
    """Return joules as a reader would say them.

    >>> joules(0.25), joules(4321.0), joules(7.2e6)
    ('0.25 J', '4.32 kJ', '7.2 MJ')
    """
    for unit, name in ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ")):
        if value_j >= unit:
            return f"{value_j / unit:.3g} {name}"
    return f"{value_j:.3g} J"


def grams(value_g: float) -> str:
    """Return grams as a reader would say them.

    >>> grams(0.0132), grams(2345.0)
    ('0.0132 g', '2.35 kg')
    """
    return f"{value_g / 1e3:.3g} kg" if value_g >= 1e3 else f"{value_g:.3g} g"
