"""Arrivals that a file lists: a table of times, for all clients or for each its own.

Checks every line at the door. Knows no items and no process.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Mapping
from csv import Error as CsvError
from csv import reader
from dataclasses import dataclass
from io import TextIOWrapper

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.machine import memory
from fedsim.core.types import FloatArray, Positive
from fedsim.data.source import Find, fingerprint, opened
from fedsim.data.stream.arrivals import arrivals
from fedsim.data.table import lines, plain_number, written

AT = "stream.arrivals.path"
CLIENT = 256  # Bytes that a client takes beside its times.


@dataclass(frozen=True, slots=True)
class Listed:
    """Items at listed times. See ``trace``. *common* are the times of every client where the file names none.

    *files* maps the file to its SHA-256.
    """

    by_client: Mapping[int, FloatArray]
    common: FloatArray | None
    files: dict[str, str]

    def times(self, client: int, count: int) -> FloatArray:
        """Return the first *count* times listed for *client*, fewer where the file has fewer."""
        own = self.by_client.get(client, np.empty(0)) if self.common is None else self.common
        return own[:count]


@arrivals.register("trace")
def trace(path: str, find: Find, *, speed: Positive = 1.0) -> Listed:
    """Return the times in a table, plain or ``.gz``: columns ``time_s`` and, where clients differ, ``client``.

    Times are virtual seconds, ascending for each client, divided by *speed*. Without the column ``client`` every
    client has the same times. A client that the file does not name never gets an item.
    Raises ScenarioError naming line and column of what does not fit.
    """
    file = find(path)
    try:
        with opened(file) as raw:
            with TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
                found = _read(path, text)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, CsvError) as error:
        raise ScenarioError(f"{AT} = {path!r}: cannot be read as {written(file)} ({error}).") from None
    times = {client: np.array(listed) / speed for client, listed in found.items()}
    return Listed(times, times.get(-1), {str(file): fingerprint(file)})


def _read(path: str, text: TextIOWrapper) -> dict[int, array[float]]:
    """Return the times of each client, or of client -1 where the table has no such column."""
    rows = reader(lines(text), skipinitialspace=True, strict=True)
    header = [name.strip() for name in next(rows, [""])]
    if "time_s" not in header:
        raise ScenarioError(f"{AT} = {path!r}: has no column 'time_s'; cells are parted by commas. {choices('time_s', header)}")
    if twice := [name for name in ("time_s", "client") if header.count(name) > 1]:
        raise ScenarioError(f"{AT} = {path!r}: has the column {twice[0]!r} twice.")
    time, client = header.index("time_s"), header.index("client") if "client" in header else None
    found: dict[int, array[float]] = {}
    most = memory() / 3  # As they are read, and as they are handed out.
    for row, cells in enumerate(rows):
        if not cells:  # A blank line.
            continue
        where = f"{AT} = {path!r}: line {rows.line_num}"
        if len(cells) != len(header):
            raise ScenarioError(f"{where} has {len(cells)} cells, expected {len(header)} as in the header.")
        listed = found.setdefault(-1 if client is None else _client(where, cells[client]), array("d"))
        at_s = _time(where, cells[time])
        if listed and at_s < listed[-1]:
            whose = "" if client is None else f" of client {cells[client].strip()}"
            raise ScenarioError(f"{where}: {at_s:g} is earlier than the time{whose} before it, {listed[-1]:g}. Sort it.")
        listed.append(at_s)
        if 8 * row + CLIENT * len(found) > most:
            raise ScenarioError(f"{where}: more times than fit in this machine's memory.")
    if not found:
        raise ScenarioError(f"{AT} = {path!r}: has no rows below its header.")
    return found


def _time(where: str, cell: str) -> float:
    at_s = plain_number(cell.strip())
    if not 0.0 <= at_s < math.inf:
        raise ScenarioError(f"{where}, column 'time_s': {cell[:60]!r}: must be a number of seconds >= 0.")
    return at_s


def _client(where: str, cell: str) -> int:
    word = cell.strip()
    if not (word.isascii() and word.isdigit() and len(word) < 19):
        raise ScenarioError(f"{where}, column 'client': {cell[:60]!r}: must be a client's number, from 0.")
    return int(word)
