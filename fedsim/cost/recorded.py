"""Devices, links and availability that were recorded: each client has one of the traces in a file, drawn or in turn.

Pure functions of (key, client, now). Every file is checked at the door.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Literal

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.keys import Key
from fedsim.core.types import Array, BoolArray, FloatArray, IntArray, NonNegative, Positive, Range, Seconds
from fedsim.cost.availability import availabilities
from fedsim.cost.compute import SteadyCompute, computes
from fedsim.cost.network import MBIT_PER_BYTE, networks
from fedsim.cost.pieces import Pieces
from fedsim.cost.sheet import Sheet, read
from fedsim.data.source import Find

Assign = Literal["drawn", "in_turn"]
Begins = Literal["first", "zero"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which of *count* traces a client has, and where in it it is at 0 s: a share of its length."""

    count: int
    assign: Assign
    shifted: bool
    key: Key

    def of(self, clients: IntArray) -> IntArray:
        """Return the number of each client's trace. Shapes: (n,) -> (n,)."""
        if self.assign == "in_turn":
            return clients % self.count
        return np.minimum((self.key.fold("trace").uniform(clients) * self.count).astype(np.int64), self.count - 1)

    def shift(self, client: int) -> float:
        """Return by which share of its trace's length *client* is ahead of it."""
        return float(self.key.fold("shift").uniform_at(client)) if self.shifted else 0.0


@lru_cache(maxsize=1 << 14)  # A transfer asks for piece after piece.
def _one(chosen: Chosen, client: int) -> tuple[int, float]:
    """Return the number of the trace of *client*, and its shift."""
    return int(chosen.of(np.array([client]))[0]), chosen.shift(client)


@dataclass(frozen=True, slots=True)
class TraceNetwork:
    """Links whose rates go as they were recorded, piece by piece. See ``trace``."""

    down: Sequence[Pieces]
    up: Sequence[Pieces]
    latency_s: Seconds
    chosen: Chosen
    files: dict[str, str]

    def down_mbps(self, clients: IntArray) -> FloatArray:
        """Return the mean over time of each client's rate down, in Mbit/s. Shapes: (n,) -> (n,)."""
        return np.array([self.down[i].mean for i in self.chosen.of(clients).tolist()], dtype=np.float64)

    def up_mbps(self, clients: IntArray) -> FloatArray:
        """Return the mean over time of each client's rate up, in Mbit/s. Shapes: (n,) -> (n,)."""
        return np.array([self.up[i].mean for i in self.chosen.of(clients).tolist()], dtype=np.float64)

    def down_s(self, client: int, size_bytes: int) -> Seconds:
        """Return the latency and the time at this client's mean rate down."""
        return self.latency_s + size_bytes * MBIT_PER_BYTE / float(self.down_mbps(np.array([client]))[0])

    def up_s(self, client: int, size_bytes: int) -> Seconds:
        """Return the latency and the time at this client's mean rate up."""
        return self.latency_s + size_bytes * MBIT_PER_BYTE / float(self.up_mbps(np.array([client]))[0])

    def down_piece(self, client: int, now: Seconds) -> tuple[float, Seconds]:
        """Return the rate down at *now*, in Mbit/s, and until when it is that."""
        return self._piece(self.down, client, now)

    def up_piece(self, client: int, now: Seconds) -> tuple[float, Seconds]:
        """Return the rate up at *now*, in Mbit/s, and until when it is that."""
        return self._piece(self.up, client, now)

    def _piece(self, way: Sequence[Pieces], client: int, now: Seconds) -> tuple[float, Seconds]:
        number, shift = _one(self.chosen, client)
        return way[number].at(now, shift * way[number].length_s)


@networks.register("trace")
def trace(
    key: Key,
    find: Find,
    *,
    path: str,
    only: str | None = None,
    up_share: Annotated[float | None, Range(gt=0, le=1000, why="of the rate down")] = None,
    latency_s: NonNegative = 0.0,
    speed: Positive = 1.0,
    assign: Assign = "drawn",
    shifted: bool = True,
    begins: Begins = "first",
) -> TraceNetwork:
    """Return links whose rates were recorded: in each of the file's traces, from ``time_s`` on ``down_mbps`` down and ``up_mbps`` up.

    CSV (a column ``trace`` tells several apart), or a numpy archive (arrays of these names; ``start`` and ``length`` say which rows are
    a trace's). A rate is that of its row until the next row's time, the last one's as long as the one before; then the trace begins
    anew. *only* takes those traces whose ``kind`` it is. Where a file has no ``up_mbps``, *up_share* of the rate down is the rate up.
    All rates are multiplied by *speed*. A client has a trace of its own draw, or they are dealt out *in_turn*; and, if *shifted*, is at
    a moment of it at 0 s that is its own draw, so that two clients of one trace do not slow down together. A run begins at the *first*
    time of each trace, whatever it is; or at *zero* of the file's clock, as with seconds since midnight: before its first time a trace is
    then as at its end, a turn earlier. That goes with ``shifted = false``.
    Raises ScenarioError for times that run backwards, for NaN, for rates below 0 and for a trace that is never above it.
    """
    at = "clients.network.path"
    if begins == "zero" and shifted:
        raise ScenarioError("clients.network.begins = 'zero': clients keep the file's clock; give shifted = false, or take 'first'.")
    sheet = read(path, find, at)
    traces = _only(sheet, sheet.traces(), only, "clients.network.only")
    down = [_rates(sheet, rows, "down_mbps", speed, begins) for rows in traces]
    if "up_mbps" in sheet and up_share is None:
        up = [_rates(sheet, rows, "up_mbps", speed, begins) for rows in traces]
    elif up_share is None:
        raise ScenarioError(f"{at} = {path!r}: has no column 'up_mbps'. Give clients.network.up_share, the rate up over that down.")
    else:
        up = [Pieces(each.starts, each.values * up_share, each.length_s) for each in down]
    return TraceNetwork(down, up, latency_s, Chosen(len(traces), assign, shifted, key), sheet.files)


def _only(sheet: Sheet, traces: list[IntArray], only: str | None, at: str) -> list[IntArray]:
    """Return those of *traces* whose kind is *only*; all where it is None."""
    if only is None:
        return traces
    kinds: Array = sheet.words("kind")
    if len(kinds) != len(traces) and any((kinds[rows] != kinds[rows[0]]).any() for rows in traces):
        raise ScenarioError(f"{at} = {only!r}: one trace in {sheet.path!r} is of several kinds. A column 'trace' tells traces apart.")
    of = kinds if len(kinds) == len(traces) else np.array([kinds[rows[0]] for rows in traces])
    found = [rows for rows, kind in zip(traces, of.tolist(), strict=True) if kind == only]
    if not found:
        raise ScenarioError(f"{at} = {only!r}: no trace of {sheet.path!r} is of that kind. {choices(only, sorted({*of.tolist()}))}")
    return found


def _rates(sheet: Sheet, rows: IntArray, name: str, speed: float, begins: Begins) -> Pieces:
    rates = sheet.numbers(name, least=0.0, rows=rows) * speed
    if not rates.any():
        raise ScenarioError(f"{sheet.at} = {sheet.path!r}: a trace has {name} = 0 at all times: nothing would ever arrive. Leave it out.")
    return _begun(sheet.times("time_s", rows), rates, begins)


def _begun(times: FloatArray, values: FloatArray, begins: Begins) -> Pieces:
    """Return what was recorded at *times*, from the first of them on, or from 0 s of their clock."""
    found = Pieces.of(times, values)
    return found.later(float(times[0])) if begins == "zero" else found


@computes.register("trace")
def devices(
    key: Key, find: Find, *, path: str, speed: Positive = 1.0, overhead_s: NonNegative = 0.0, step_s: NonNegative = 0.0,
    assign: Assign = "drawn",
) -> SteadyCompute:  # fmt: skip
    """Return devices whose speeds are the column ``gflops`` of a file, CSV or a numpy archive, times *speed*: a row a device.

    A client has a device of its own draw, or they are dealt out *in_turn*. Raises ScenarioError for a speed that is not above 0.
    """
    sheet = read(path, find, "clients.compute.path")
    speeds = sheet.numbers("gflops", least=0.0, above=True) * speed
    chosen = Chosen(len(speeds), assign, False, key)
    return SteadyCompute(partial(_dealt, speeds, chosen), overhead_s, step_s, sheet.files)


def _dealt(speeds: FloatArray, chosen: Chosen, clients: IntArray) -> FloatArray:
    return speeds[chosen.of(clients)]


@dataclass(frozen=True, slots=True)
class TraceAvailability:
    """Clients that come and go as it was recorded. See ``recorded``."""

    turns: Sequence[Pieces]
    spread_s: Seconds
    chosen: Chosen
    files: dict[str, str]

    def available(self, clients: IntArray, now: Seconds) -> BoolArray:
        """Return which of *clients* are there at *now*. Shapes: (n,) -> (n,)."""
        there = np.zeros(len(clients), dtype=np.bool_)
        for turns, rows, ahead_s in self._each(clients):
            there[rows] = turns.values[turns.latest(ahead_s, now) % len(turns.values)] > 0
        return there

    def next_change(self, clients: IntArray, now: Seconds) -> Seconds:
        """Return when the first of *clients* comes or goes; infinity where none ever does."""
        first = math.inf
        for turns, _, ahead_s in self._each(clients):
            if len(turns.starts) > 1:
                first = min(first, float(turns.moment(turns.latest(ahead_s, now) + 1, ahead_s).min()))
        return first

    def _each(self, clients: IntArray) -> Iterator[tuple[Pieces, IntArray, FloatArray]]:
        """Yield each trace that one of *clients* has, their places, and by how much they are ahead: once for all where that is nothing."""
        of = self.chosen.of(clients)
        order = np.argsort(of, kind="stable")
        edges = np.flatnonzero(np.diff(of[order])) + 1
        for rows in np.split(order, edges) if len(order) else ():
            if not self.spread_s:
                yield self.turns[int(of[rows[0]])], rows, np.zeros(1)
                continue
            ahead_s = self.spread_s * self.chosen.key.fold("zone").uniform(clients[rows])
            yield self.turns[int(of[rows[0]])], rows, ahead_s


_UNKNOWN = -1


@availabilities.register("trace")
def recorded(
    key: Key, find: Find, *, path: str, slot_s: Positive | None = None, unknown: Literal["last", "off", "on"] = "last",
    phase_spread_s: NonNegative = 0.0, assign: Assign = "drawn", begins: Begins = "first",
) -> TraceAvailability:  # fmt: skip
    """Return clients that come and go as it was recorded: ``available`` is 1 (there), 0 (not), or -1 (nobody knows).

    A numpy archive holds (n, slots) of them, of *slot_s* seconds each (1800 unless given); or, as CSV does, in rows of ``time_s``, each
    until the next, ``trace`` telling several apart. At its end a trace begins anew. What is *unknown* is as it was known last (or,
    before that, first), or off, or on; who is never known is off. Each client is up to *phase_spread_s* ahead of the clock, evenly
    drawn: time zones. A run begins at the *first* time of each trace; or at *zero* of the file's clock, as with seconds since midnight:
    before its first time a trace is then as at its end, a turn earlier. Slots begin at 0 s in any case.
    Raises ScenarioError for other values, for times that run backwards, and where nobody is ever there.
    Reference: Yang et al. 2021, arXiv:2006.06983 (FLASH), whose phones may train while idle, charging and on Wi-Fi.
    """
    at = "clients.availability.path"
    sheet = read(path, find, at)
    cells = sheet.columns.get("available", np.zeros(0))
    if cells.ndim == 2:
        grid = Sheet(path, at, {"available": cells.ravel()}, -1, {}).numbers("available").reshape(cells.shape)
        starts = np.arange(cells.shape[1]) * float(slot_s or 1800.0)
        found = [(starts, row, len(row) * float(slot_s or 1800.0)) for row in grid]
    else:
        if slot_s is not None:
            raise ScenarioError(f"clients.availability.slot_s = {slot_s:g}: the file has times of its own, in 'time_s'. Leave it out.")
        found = []
        for rows in sheet.traces():
            pieces = _begun(sheet.times("time_s", rows), sheet.numbers("available", rows=rows), begins)
            found.append((pieces.starts, pieces.values, pieces.length_s))
    turns = [Pieces(starts, _known(sheet, values, unknown), length_s).merged for starts, values, length_s in found]
    if not any(each.values.any() for each in turns):
        raise ScenarioError(f"{at} = {path!r}: nobody is ever there: no 'available' is 1.")
    return TraceAvailability(turns, phase_spread_s, Chosen(len(turns), assign, False, key), sheet.files)


def _known(sheet: Sheet, values: FloatArray, unknown: str) -> FloatArray:
    """Return 1 where a client is there, and 0 where it is not, of a trace's *values*."""
    other = ~np.isin(values, (0.0, 1.0, _UNKNOWN))
    if other.any():
        raise ScenarioError(f"{sheet.at} = {sheet.path!r}: 'available' is {values[other][0]:g}; it is 1 (there), 0 (not) or -1 (unknown).")
    seen = values != _UNKNOWN
    if unknown != "last" or not seen.any():
        return np.where(seen, values, float(unknown == "on" and bool(seen.any())))
    last = np.maximum.accumulate(np.where(seen, np.arange(len(values)), -1))
    last[last < 0] = int(np.argmax(seen))
    return values[last]
