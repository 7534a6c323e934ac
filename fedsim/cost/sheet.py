"""Sheets: columns of numbers in a file, as traces of devices, links and availability come: CSV, or a numpy archive.

Checks every cell that is asked for, and names line and column of what does not fit. Knows no kind.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from csv import Error as CsvError
from csv import reader
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.types import Array, FloatArray, IntArray
from fedsim.data.source import Find, fingerprint, opened
from fedsim.data.table import lines, plain_number, written


@dataclass(frozen=True, slots=True)
class Sheet:
    """The columns of a file that a scenario calls *path*, at the key *at*; *first* is the line of the first row, -1 in an archive."""

    path: str
    at: str
    columns: dict[str, Array]
    first: int
    files: dict[str, str]

    def numbers(self, name: str, *, least: float = -np.inf, above: bool = False, rows: IntArray | None = None) -> FloatArray:
        """Return a column as numbers, *least* at the least or *above* it; of *rows* only, where they are given. Raises ScenarioError."""
        column = self._column(name)
        if column.ndim != 1:
            raise ScenarioError(f"{self.at} = {self.path!r}: {name!r} has shape {column.shape}, expected one dimension.")
        at = np.arange(len(column)) if rows is None else rows
        if column.dtype.kind in "US":
            found = np.array([plain_number(str(cell).strip()) for cell in column[at]], dtype=np.float64)
        elif column.dtype.kind in "iufb":
            found = column[at].astype(np.float64)
        else:
            raise ScenarioError(f"{self.at} = {self.path!r}: {name!r} is of type {column.dtype}, expected numbers.")
        bad = ~np.isfinite(found) | ((found <= least) if above else (found < least))
        if bad.any():
            place = int(np.argmax(bad))
            sign = ">" if above else ">="
            wanted = "a finite number" if least == -np.inf else f"a finite number {sign} {least:g}"
            raise ScenarioError(f"{self._where(int(at[place]))}, {name!r}: {str(column[at[place]])[:60]!r}: must be {wanted}.")
        return found

    def words(self, name: str) -> Array:
        """Return a column as text. Raises ScenarioError where there is none."""
        return self._column(name).astype(str)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def traces(self) -> list[IntArray]:
        """Return the rows of each trace: by 'start' and 'length' in an archive, by the column 'trace', or all of them as one."""
        if "start" in self and "length" in self:
            start, length = (self.numbers(name, least=0).astype(np.int64) for name in ("start", "length"))
            most = max(len(column) for column in self.columns.values() if column.ndim)
            if len(start) != len(length) or (start + length > most).any() or not (length > 0).all():
                raise ScenarioError(f"{self.at} = {self.path!r}: 'start' and 'length' do not fit: rows 0 to {most - 1:,} are there.")
            return [np.arange(begin, begin + count) for begin, count in zip(start.tolist(), length.tolist(), strict=True)]
        if "trace" not in self:
            return [np.arange(len(next(iter(self.columns.values()))))]
        names = self.words("trace")
        return [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]

    def times(self, name: str, rows: IntArray) -> FloatArray:
        """Return the times of the *rows* of one trace, each later than the one before. Raises ScenarioError."""
        found = self.numbers(name, rows=rows)
        back = np.flatnonzero(np.diff(found) <= 0)
        if len(back):
            row = int(back[0]) + 1
            where = self._where(int(rows[row]))
            raise ScenarioError(f"{where}, {name!r}: {found[row]:g} does not come after {found[row - 1]:g}, the time before it. Sort it.")
        return found

    def _column(self, name: str) -> Array:
        if name not in self.columns:
            raise ScenarioError(f"{self.at} = {self.path!r}: has no column {name!r}. {choices(name, list(self.columns))}")
        return self.columns[name]

    def _where(self, row: int) -> str:
        place = f"row {row}" if self.first < 0 else f"line {self.first + row}"
        return f"{self.at} = {self.path!r}: {place}"


def read(path: str, find: Find, at: str) -> Sheet:
    """Return what is in the file called *path*: ``.npz``, or CSV with a header, plain or ``.gz``. Raises ScenarioError."""
    file = find(path)
    if file.is_dir():
        raise ScenarioError(f"{at} = {path!r}: is a folder, expected a file: .npz, or .csv with a header.")
    if file.suffix == ".npz":
        return Sheet(path, at, _archive(path, file, at), -1, {str(file): fingerprint(file)})
    try:
        with opened(file) as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            columns = _table(path, at, text)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, CsvError) as error:
        raise ScenarioError(f"{at} = {path!r}: cannot be read as {written(file)} ({error}).") from None
    return Sheet(path, at, columns, 2, {str(file): fingerprint(file)})


def _archive(path: str, file: Path, at: str) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as found:
            columns: dict[str, Array] = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ScenarioError(f"{at} = {path!r}: cannot be read as a numpy archive ({error}).") from None
    if not columns:
        raise ScenarioError(f"{at} = {path!r}: holds no arrays.")
    return columns


def _table(path: str, at: str, text: TextIOWrapper) -> dict[str, Array]:
    rows = reader(lines(text), skipinitialspace=True, strict=True)
    header = [name.strip() for name in next(rows, [""])]
    if twice := [name for name in header if header.count(name) > 1]:
        raise ScenarioError(f"{at} = {path!r}: has the column {twice[0]!r} twice.")
    cells: list[Sequence[str]] = []
    for row in rows:
        if not row:
            raise ScenarioError(f"{at} = {path!r}: line {rows.line_num} is empty. Leave it out.")
        if len(row) != len(header):
            raise ScenarioError(f"{at} = {path!r}: line {rows.line_num} has {len(row)} cells, expected {len(header)} as in the header.")
        cells.append(row)
    if not cells:
        raise ScenarioError(f"{at} = {path!r}: has no rows below its header.")
    found: dict[str, Any] = {name: np.array(column) for name, column in zip(header, zip(*cells, strict=True), strict=True)}
    return found
