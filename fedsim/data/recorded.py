"""Sources that were recorded over time: tables whose rows come in order, and windows over sensor signals.

Keeps the order of the file. Knows no virtual time: time stamps are handed on as they stand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.types import Array, Count, FloatArray, IntArray, Positive
from fedsim.data.files import load_archive
from fedsim.data.source import Examples, Find, Pool, fingerprint, sources, wrong
from fedsim.data.table import EXACT, Form, Missing, Table, read_table


@sources.register("csv_stream")
def csv_stream(
    path: str,
    label: str,
    find: Find,
    time: str | None = None,
    client: str | None = None,
    ignore: Sequence[str] = (),
    time_unit_s: Positive = 1.0,
    categories: Sequence[str] = (),
    missing: Missing = "refuse",
    separator: str | None = None,
    decimal: Literal[".", ","] = ".",
    thousands: Literal["", ",", ".", " ", "'"] = "",
) -> Pool:
    """Return the rows of a table in their order, as a stream that was recorded: Elec2 and its like. Plain or ``.gz``.

    As 'csv', and: *time* names a column of time stamps, numbers of *time_unit_s* seconds or ISO 8601 dates, which go
    up from row to row (with *client*, within each client). A missing feature's mean is over the whole file. Features are
    taken as they are: scaling by the whole file would let a model see the future.
    Shapes: x (n, columns) float32; y (n,). Raises ScenarioError naming line and column of what does not fit.
    Reference: Harries 1999, 'SPLICE-2 comparative evaluation: electricity pricing' (Elec2).
    """
    form = Form(ignore, categories, missing, separator, decimal, thousands)
    table = read_table(path, find(path), {"label": label, "client": client, "time": time}, form)
    classes, y = table.classes(label)
    groups = table.groups()
    times_s = None if time is None else _times(path, time, table, groups, time_unit_s, form)
    return Pool(Examples(table.x, y), len(classes), None, groups, table.files, times_s, tuple(classes), table.clients())


_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,30}\s*")


def _times(path: str, column: str, table: Table, groups: IntArray | None, unit_s: float, form: Form) -> FloatArray:
    """Return the seconds from the earliest time stamp, checked to go up within each group. Dates know their unit."""
    times = np.empty(len(table.lines))
    plain = [form.plain(word) for word in table.words["time"]]
    dated = [math.isnan(value) for value in plain]
    if all(map(_is_day, table.words["time"])):
        raise wrong(
            path,
            f"line {table.lines[0]}, column {column!r}: {table.words['time'][0]!r} reads as a date, not as a number of seconds."
            f" Write dates in ISO 8601 with dashes, such as 2024-01-31",
        )
    words = table.words["time"]
    if all(map(_WHOLE.fullmatch, words)) and max(map(abs, exact := [int(word) for word in words])) >= EXACT:
        plain = [float(value - exact[0]) for value in exact]  # Nanoseconds, say: floats hold their differences only.
    if any(dated) and not all(dated):
        row = dated.index(not dated[0])
        raise wrong(
            path,
            f"line {table.lines[row]}, column {column!r}: {table.words['time'][row]!r} follows {table.words['time'][0]!r}, expected"
            f" numbers alone or dates alone",
        )
    for row, word in enumerate(table.words["time"]):
        times[row] = _time(word) if dated[row] else plain[row] * unit_s
        if not dated[row] and not math.isfinite(times[row]):
            raise ScenarioError(f"data.source.time_unit_s = {unit_s:g}: line {table.lines[row]} of {path!r} would come at {times[row]} s.")
        if not math.isfinite(times[row]):
            raise wrong(path, f"line {table.lines[row]}, column {column!r}: {word!r} is no number and no ISO 8601 date")
    owner = np.zeros(len(times), dtype=np.int64) if groups is None else groups
    order = np.argsort(owner, kind="stable")
    back = np.flatnonzero((np.diff(times[order]) < 0.0) & (np.diff(owner[order]) == 0)) + 1
    if len(back):
        row = int(order[back].min())
        whose = "" if groups is None else " of its client"
        raise wrong(path, f"line {table.lines[row]}: {table.words['time'][row]!r} is earlier than the row{whose} before it")
    return times - times.min()


def _is_day(word: str) -> bool:
    """Return whether *word* is a date written as one number: 20240131, without the day or with hours, minutes, seconds.

    >>> [_is_day(word) for word in ("20240131", "+2024013112.0", "202401", "20241331", "1700000000")]
    [True, True, True, False, False]
    """
    digits = re.sub(r"^[+]|[.]0*$", "", word)
    try:
        day = datetime.strptime(f"{digits[:8]}01"[:8], "%Y%m%d")
    except ValueError:
        return False
    return len(digits) in (6, 8, 10, 12, 14) and digits.isdecimal() and 1900 <= day.year < 2100


def _time(word: str) -> float:
    """Return the seconds of an ISO 8601 date since 1970; NaN where it is none."""
    try:
        moment = datetime.fromisoformat(word)
    except ValueError:
        return math.nan
    # A date without a zone is taken as UTC, never as the zone of the machine that runs this.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@sources.register("windows")
def windows(
    path: str,
    find: Find,
    label: str = "activity",
    client: str | None = "subject",
    window: Count = 128,
    step: Count = 64,
    keep: list[int] | None = None,
) -> Pool:
    """Return windows over labelled segments of a signal in a numpy archive: activity sensors, one client per subject.

    The archive holds ``signal`` (n, channels), ``start`` and ``length`` of each segment, and arrays of whole numbers
    per segment called *label* and *client*; ``scale`` (channels,), where there, multiplies the signal. A window of
    *window* samples begins every *step* samples within a segment; a shorter segment gives none. *keep* lists the labels
    to keep; classes are numbered in their sorted order. Windows stay in the order of the file.
    Shapes: x (n, channels, window) float32; y (n,). Raises ScenarioError on what does not fit.
    Reference: Reyes-Ortiz et al. 2016, 'Transition-aware human activity recognition using smartphones'.
    """
    file = find(path)
    arrays = load_archive(path, file)
    for name in ("signal", "start", "length"):
        if name not in arrays:
            raise wrong(path, f"has no array {name!r}. {choices(name, arrays)[:-1]}")
    for setting, name in (("label", label), ("client", client)):
        if name is not None and name not in arrays:
            raise ScenarioError(f"data.source.{setting} = {name!r}: no such array in {path!r}. {choices(name, arrays)}")
    signal, segments = arrays["signal"], len(arrays["start"])
    if signal.ndim != 2 or signal.dtype.kind not in "biuf":
        raise wrong(path, f"signal is {signal.dtype} of shape {signal.shape}, expected numbers of shape (n, channels)")
    for name in ("start", "length", label, *([] if client is None else [client])):
        if arrays[name].shape != (segments,) or arrays[name].dtype.kind not in "biu":
            raise wrong(path, f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}, expected {segments} whole numbers")
    start, length = arrays["start"].astype(np.int64), arrays["length"].astype(np.int64)
    if segments and (start.min() < 0 or length.min() < 0 or (start + length).max() > len(signal)):
        bad = int(np.flatnonzero((start < 0) | (length < 0) | (start + length > len(signal)))[0])
        raise wrong(path, f"segment {bad} (start {start[bad]}, length {length[bad]}) reaches out of a signal of {len(signal)}")
    labels = arrays[label].astype(np.int64)
    fitting = np.where(length >= window, (length - window) // step + 1, 0)
    if keep is not None:
        for value in keep:
            if value not in labels:
                raise ScenarioError(f"data.source.keep = {keep}: {path!r} has no label {value}. It has: {_listed(labels)}.")
        fitting[~np.isin(labels, keep)] = 0
    if not fitting.any():
        longest = int(length.max(initial=0))
        raise ScenarioError(f"data.source.window = {window}: no segment is that long. At most {longest} works.")
    segment = np.repeat(np.arange(segments), fitting)
    nth = np.arange(len(segment)) - np.repeat(np.cumsum(fitting) - fitting, fitting)
    scale = _scale(path, arrays, signal.shape[1])
    x = np.empty((len(segment), signal.shape[1], window), dtype=np.float32)
    for row, begin in enumerate((start[segment] + nth * step).tolist()):
        x[row] = (signal[begin : begin + window] * scale).T
    if not np.isfinite(x).all():
        raise wrong(path, "signal holds values that are no finite float32")
    classes, y = np.unique(labels[segment], return_inverse=True)
    groups, names = None, ()
    if client is not None:
        found, groups = np.unique(arrays[client][segment], return_inverse=True)
        groups, names = groups.astype(np.int64), tuple(map(str, found.tolist()))
    words = tuple(map(str, classes.tolist()))
    return Pool(Examples(x, y.astype(np.int64)), len(classes), None, groups, {str(file): fingerprint(file)}, classes=words, clients=names)


def _scale(path: str, arrays: dict[str, Array], channels: int) -> FloatArray:
    scale = arrays.get("scale", np.ones(channels))
    if scale.shape != (channels,) or scale.dtype.kind not in "iuf":
        raise wrong(path, f"scale is {scale.dtype} of shape {scale.shape}, expected {channels} numbers, one per channel")
    return scale.astype(np.float64)


def _listed(labels: IntArray) -> str:
    return ", ".join(map(str, np.unique(labels).tolist()))
