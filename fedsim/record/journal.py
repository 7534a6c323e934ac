"""The journal: every row of a run in SQLite, written as the run goes, readable meanwhile and after a kill."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import weakref
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.errors import RunError, reason
from fedsim.core.types import Array, Params, Seconds
from fedsim.record import digest
from fedsim.sim.rows import (
    DevicesRow,
    EdgeRow,
    EnergyRow,
    ExaminedRow,
    HeardRow,
    NoiseRow,
    PredictionRow,
    RoundRow,
    StepRow,
    TaskRow,
    VersionRow,
    WorkRow,
)

FILE = "journal.sqlite"
BATCH_ROWS = 2000
"""Rows that are written at a time; a commit for each would cost more than the simulation."""
MOST_ROWS = 4 * BATCH_ROWS
"""Rows that wait in memory at most: then who brings one more writes them, however far behind the writer is."""
BATCH_WALL_S = 0.5
"""How stale the file may be for someone who watches it, and how much a kill loses."""
TIDYING_WALL_MS = 200
"""How long the end of a run waits for those who look at its journal, before it leaves the side files beside it."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One score at one moment. *scope*: central (the server's test part), federated (clients' own), training, or
    controller (what the server's asked for after the round).

    The bytes are what all clients together had put on the wire by then, framing included; those of a reply that was on its way at
    that moment are counted once it has arrived, or the run ends.
    """

    round: int
    now_s: Seconds
    scope: str
    name: str
    value: float
    down_bytes: int
    up_bytes: int


_TABLES: dict[str, type] = {
    "tasks": TaskRow, "settled": TaskRow, "rounds": RoundRow, "metrics": MetricRow, "tested": PredictionRow, "versions": VersionRow,
    "steps": StepRow, "examined": ExaminedRow, "noise": NoiseRow, "worked": WorkRow, "heard": HeardRow, "devices": DevicesRow,
    "energy": EnergyRow, "edges": EdgeRow,
}  # fmt: skip
LATER = ("settled", "versions", "steps", "examined", "noise", "worked", "heard", "devices", "energy", "edges")
"""Tables that journals of earlier versions do not have; there, they are empty."""
_SQL = {"int": "INTEGER", "float": "REAL", "Seconds": "REAL", "float | None": "REAL", "IntArray": "BLOB", "FloatArray": "BLOB"}
_STORED = {"INTEGER": "'integer'", "REAL": "'real', 'integer', 'null'", "TEXT": "'text', 'null'", "BLOB": "'blob'"}
"""What SQLite may hold in columns of a type. A NaN is NULL there."""
ARRAYS: dict[str, str] = {
    f.name: "<f8" if f.type == "FloatArray" else "<i8"
    for row in (PredictionRow, VersionRow, StepRow, HeardRow, DevicesRow, EnergyRow, EdgeRow)
    for f in dataclasses.fields(row) if "Array" in str(f.type)
}  # fmt: skip
"""The arrays in rows, by name, and how they are written."""


class Journal:
    """Takes rows, keeps totals and digests, and writes in batches. Also the simulator's observer.

    ``digest`` covers training tasks; ``metrics_digest`` covers evaluation tasks and scores.
    """

    def __init__(self, folder: Path) -> None:
        self._file = sqlite3.connect(folder / FILE, check_same_thread=False)  # Used by one thread at a time: by who has the lock.
        self._file.execute("PRAGMA journal_mode=WAL")  # Readers never wait for the writer, nor it for them.
        self._file.execute("PRAGMA synchronous=NORMAL")
        for table, row in _TABLES.items():
            columns = ", ".join(f'"{f.name}" {_SQL.get(str(f.type), "TEXT")}' for f in dataclasses.fields(row))
            self._file.execute(f"CREATE TABLE {table} ({columns})")
        self._file.execute("CREATE INDEX uncounted ON tasks (kind) WHERE outcome != 'arrived'")  # Few, and looked for among many.
        self._file.commit()
        self._rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in _TABLES}
        self._values = {table: attrgetter(*(f.name for f in dataclasses.fields(row))) for table, row in _TABLES.items()}
        self._lock, self._due, self._over, self._failed = threading.Lock(), threading.Event(), False, False
        self._writer = threading.Thread(target=_write, args=(weakref.ref(self), self._due), name="journal", daemon=True)
        self._writer.start()
        self.digest, self.metrics_digest = digest.Chain(), digest.Chain()
        self.down_bytes = self.up_bytes = self.wasted_bytes = 0
        self._ahead, self._cleared = set[str](), True  # Messages of which the rest is still to be told; whether their table is empty.
        self.signals: list[float] = []
        """The estimates of |G|^2 between clients so far."""

    def task(self, row: TaskRow) -> None:
        """Record a task whose fate is sealed."""
        (self.digest if row.kind == "train" else self.metrics_digest).add(*digest.task(row))
        self._rows["tasks"].append(self._values["tasks"](row))
        self.down_bytes += row.down_bytes + row.down_framing_bytes
        self.up_bytes += row.up_bytes + row.up_framing_bytes
        if row.message in self._ahead:
            self._ahead.remove(row.message)
        elif row.outcome != "arrived":
            self.wasted_bytes += row.wire_bytes
        self._maybe_flush()

    def settled(self, rows: Iterable[TaskRow]) -> None:
        """Record what is known so far of tasks whose fate is sealed, for a reader to whom ``task`` never tells the rest.

        It is in the file at once, and all that waits with it; it goes once all of them are told. No digest covers it.
        """
        for row in rows:
            self._ahead.add(row.message)
            self._rows["settled"].append(self._values["settled"](row))
            if row.outcome != "arrived":
                self.wasted_bytes += row.wire_bytes
        self._cleared = False
        self.flush()

    def round(self, row: RoundRow) -> None:
        """Record that a batch of replies was handed over."""
        self._rows["rounds"].append(self._values["rounds"](row))
        self._maybe_flush()

    def tested(self, row: PredictionRow) -> None:
        """Record what a client predicted before it trained."""
        values = _written(row)
        self.metrics_digest.add(*digest.tested(row))
        self._rows["tested"].append(values)
        self._maybe_flush()

    def version(self, row: VersionRow) -> None:
        """Record a version of the model; no digest covers it."""
        self._rows["versions"].append(_written(row))
        self._maybe_flush()

    def watched(self, row: StepRow) -> None:
        """Record what was watched of training tasks; no digest covers it."""
        self._rows["steps"].append(_written(row))
        self._maybe_flush()

    def examined(self, row: ExaminedRow) -> None:
        """Record signal and noise within a client; no digest covers it."""
        self._rows["examined"].append(self._values["examined"](row))
        self._maybe_flush()

    def noise(self, row: NoiseRow) -> None:
        """Record signal and noise between clients; no digest covers it."""
        self.signals.append(row.signal)
        self._rows["noise"].append(self._values["noise"](row))
        self._maybe_flush()

    def heard(self, row: HeardRow) -> None:
        """Record what clients told of themselves; no digest covers it."""
        self._rows["heard"].append(_written(row))
        self._maybe_flush()

    def devices(self, row: DevicesRow) -> None:
        """Record what clients are; no digest covers it."""
        self._rows["devices"].append(_written(row))
        self._maybe_flush()

    def energy(self, row: EnergyRow) -> None:
        """Record what messages cost the devices of their clients; no digest covers it."""
        self._rows["energy"].append(_written(row))
        self._maybe_flush()

    def edge(self, row: EdgeRow) -> None:
        """Record what passed between the server and an edge; no digest covers it."""
        self._rows["edges"].append(_written(row))
        self._maybe_flush()

    def worked(self, row: WorkRow) -> None:
        """Record what a real node's processor took; no digest covers it."""
        self._rows["worked"].append(self._values["worked"](row))
        self._maybe_flush()

    def metric(self, row: MetricRow) -> None:
        """Record a score."""
        self.metrics_digest.add(*digest.metric(row))
        self._rows["metrics"].append(self._values["metrics"](row))
        self._maybe_flush()

    def seal(self, params: Params, extras: Mapping[str, Array] | None = None) -> None:
        """End the digest with the final parameters, and the *extras* beside them."""
        self.digest.add(*digest.seal(params, extras))

    def flush(self) -> None:
        """Write what waits in memory, all of it or nothing. Raises sqlite3.Error; what could not be written goes on waiting."""
        with self._lock:
            waiting = {table: len(rows) for table, rows in self._rows.items()}  # More may come meanwhile, at their ends.
            try:
                for table, rows in self._rows.items():
                    if waiting[table]:
                        marks = ", ".join("?" * len(rows[0]))
                        self._file.executemany(f"INSERT INTO {table} VALUES ({marks})", rows[: waiting[table]])
                if clear := not (self._cleared or self._ahead):
                    self._file.execute("DELETE FROM settled")
                self._file.commit()
            except sqlite3.Error:
                with suppress(sqlite3.Error):  # Half of it must not stay, to be written again.
                    self._file.rollback()
                raise
            for table, rows in self._rows.items():
                del rows[: waiting[table]]
            self._cleared = self._cleared or clear

    def close(self) -> None:
        """Write what waits, and fold SQLite's side files into the journal, unless somebody is reading it."""
        self._over = True
        self._due.set()
        self._writer.join()
        try:
            self.flush()
            with suppress(sqlite3.Error):  # Leaving WAL wants the file alone; a reader's look must not cost a run.
                self._file.execute(f"PRAGMA busy_timeout = {TIDYING_WALL_MS}")
                self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._file.execute("PRAGMA journal_mode=DELETE")
        finally:
            self._file.close()

    def write_some(self) -> bool:
        """Write what waits, for the thread that does; return whether more may come. What cannot be written its bringer hears of."""
        if any(self._rows.values()):
            try:
                self.flush()
            except sqlite3.Error:
                self._failed = True  # Who brings the next row tries again, and can tell the reader.
        return not self._over

    def _maybe_flush(self) -> None:
        waiting = len(self._rows["tasks"])
        if self._failed or waiting >= MOST_ROWS:
            self.flush()
            self._failed = False
        elif waiting >= BATCH_ROWS:
            self._due.set()


def _write(journal: weakref.ref[Journal], due: threading.Event) -> None:
    """Write what waits in a journal, a batch at a time and at least every so often, as long as there is one."""
    more = True
    while more:
        due.wait(BATCH_WALL_S)
        due.clear()
        mine = journal()
        more = mine is not None and mine.write_some()
        del mine


def _written(row: PredictionRow | VersionRow | StepRow | HeardRow | DevicesRow | EnergyRow | EdgeRow) -> tuple[Any, ...]:
    """Return the values of *row* as the file holds them: arrays as bytes."""
    return tuple(
        np.ascontiguousarray(value, dtype=ARRAYS[name]).tobytes() if isinstance(value, np.ndarray) else value
        for name, value in ((f.name, getattr(row, f.name)) for f in dataclasses.fields(row))
    )


def arrays(row: Mapping[str, Any]) -> dict[str, Array]:
    """Return the arrays in a row of a table, by name. Shapes: as in the rows that have some."""
    return {name: np.frombuffer(row[name], dtype) for name, dtype in ARRAYS.items() if name in row}


def read(folder: Path, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the column names and rows of *table*, in the order of writing; works while a run is writing.

    A column that came after a folder was written is at its default there.
    """
    with reading(folder) as file:
        fields = dataclasses.fields(_TABLES[table])
        if table not in columns_of(file):
            return [f.name for f in fields], []
        cursor = file.execute(f"SELECT * FROM {table} ORDER BY rowid")
        columns, rows = [column[0] for column in cursor.description], cursor.fetchall()
        lacking = {f.name: f.default for f in fields if f.name not in columns}
        if needed := [name for name, default in lacking.items() if default is dataclasses.MISSING]:
            raise RunError(f"{folder / FILE}: table {table} has no {', '.join(needed)}; another version wrote it.")
        check(folder, file, table)
        return [*columns, *lacking], [(*row, *lacking.values()) for row in rows] if lacking else rows


def columns_of(file: sqlite3.Connection) -> dict[str, list[str]]:
    """Return the columns of each table that the journal has. Tables that came later are not in earlier ones."""
    there = {str(name) for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    known = [table for table in _TABLES if table in there or table not in LATER]
    return {table: [str(row[1]) for row in file.execute(f"PRAGMA table_info({table})")] for table in known}


def check(folder: Path, file: sqlite3.Connection, table: str) -> None:
    """Raise RunError where a row of *table* holds what its columns cannot."""
    kinds = {f.name: _SQL.get(str(f.type), "TEXT") for f in dataclasses.fields(_TABLES[table])}
    wrong = " OR ".join(f"typeof(\"{name}\") NOT IN ({_STORED[kinds[name]]})" for name in columns_of(file)[table] if name in kinds)
    if wrong and (bad := file.execute(f"SELECT rowid FROM {table} WHERE {wrong} LIMIT 1").fetchone()) is not None:
        raise RunError(f"{folder / FILE}: table {table} is damaged in row {bad[0]}.")


@contextmanager
def reading(folder: Path) -> Generator[sqlite3.Connection]:
    """Open the journal in *folder* to be read, also while a run is writing. Raises RunError where that cannot be."""
    if not (folder / FILE).is_file():
        raise RunError(f"{folder}: has no rows; there is no {FILE}.")
    try:
        with closing(sqlite3.connect(f"{(folder / FILE).resolve().as_uri()}?mode=ro", uri=True)) as file:
            yield file
    except (sqlite3.Error, MemoryError, OverflowError) as error:
        raise RunError(f"{folder / FILE}: cannot be read ({reason(error)}).") from None
