"""``fedsim-digest-1``: what is hashed of a row is frozen, and a column that comes later moves nothing where it is not used."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import RunError
from fedsim.record import digest, journal, manifest
from fedsim.record.journal import Journal, MetricRow
from fedsim.session import verify
from fedsim.sim.rows import PredictionRow, TaskRow

TASK = TaskRow("m1", 3, 2, "train", 4, 3, "arrived", 1.5, 2.25, 2.5, 3.75, 4.125, 40, 4, 1e6, 1000, 90, 1001, 91, 0.1, "ab", "")
TESTED = PredictionRow(
    3, "m1", 4, 3, 2.5, np.array([1, 2]), np.array([0.5, 0.75]), np.array([1.0, np.inf]), np.array([0, 1]), np.array([1, 1]),
    np.array([0.25, 0.1]), np.array([0, 0]), np.array([2]), np.array([0.6]),
)  # fmt: skip
METRIC = MetricRow(4, 4.125, "central", "loss", 0.3, 1090, 1092)
ROWS: dict[str, tuple[Any, Callable[[Any], tuple[Any, ...]]]] = {
    "task": (TASK, digest.task), "tested": (TESTED, digest.tested), "metric": (METRIC, digest.metric),
}  # fmt: skip


def wider(row: Any, default: Any, **more: Any) -> Any:
    """Return *row* as one of a class with a column more, ``link``, whose default is given."""
    kind = make_dataclass("Wider", [("link", type(default), field(default=default))], bases=(type(row),), frozen=True)
    return kind(**{column.name: getattr(row, column.name) for column in dataclasses.fields(row)}, **more)


def test_the_bytes_are_those_of_2026_11_26(tmp_path: Path) -> None:
    """The chains over one row of each kind, and the seal, are what they were when the format was frozen."""
    rows = Journal(tmp_path)
    rows.task(TASK)
    rows.task(dataclasses.replace(TASK, kind="evaluate"))
    rows.tested(TESTED)
    rows.metric(METRIC)
    rows.seal({"w": np.array([1.0, 2.0], dtype=np.float32)})

    assert "cb6e2f03faa282c2b83f991a9854c6f8a180c97738c3d4956503e8c595a2dee9" == rows.digest.value
    assert "d06781764ff506b71677df1933b0de6e33197905024f78e9544cffc63c4f9ff3" == rows.metrics_digest.value
    assert 22 == len(digest.TASK)


def holds(hashed: Callable[[Any], tuple[Any, ...]], row: Any) -> bool:
    """Return whether *hashed* sees a new column of *row* where it is not at its default, and nowhere else."""
    before = repr(hashed(row))
    unused = [wider(row, ""), wider(row, 0), wider(row, 0, link=0), wider(row, None)]
    used = [wider(row, "", link="shared"), wider(row, 0, link=1), wider(row, None, link="shared")]
    return {before} == {repr(hashed(one)) for one in unused} and before not in {repr(hashed(one)) for one in used}


@pytest.mark.parametrize("kind", ROWS)
def test_a_new_column_counts_where_it_is_used(kind: str) -> None:
    """A row with one more column hashes as before while that is at its default, and otherwise not."""
    row, hashed = ROWS[kind]

    assert holds(hashed, row)


@pytest.mark.parametrize("kind", ROWS)
def test_what_hashes_rows_as_they_are_is_seen(kind: str) -> None:
    """Neither a hash of whatever columns a row has today, nor one of the old ones alone, is in order."""
    row, hashed = ROWS[kind]
    fields = [column.name for column in dataclasses.fields(row)]

    assert not holds(lambda one: tuple(getattr(one, column.name) for column in dataclasses.fields(one)), row)
    assert not holds(lambda one: hashed(row) if set(fields) <= {column.name for column in dataclasses.fields(one)} else (), row)


def test_new_columns_are_told_apart() -> None:
    """The same value in two new columns is two digests: a column is hashed by its name."""
    names = ("link", "server")
    kind = make_dataclass("Wider", [(name, int, field(default=0)) for name in names], bases=(TaskRow,), frozen=True)
    values = {column.name: getattr(TASK, column.name) for column in dataclasses.fields(TASK)}

    assert 3 == len({repr(digest.task(kind(**values, **more))) for more in ({}, *({name: 1} for name in names))})


@pytest.mark.parametrize("default", [dataclasses.MISSING, float("nan")])
def test_a_new_column_has_a_default(default: Any) -> None:
    """A column without one, or with one that nothing equals, is a mistake of ours that says so."""
    kind = make_dataclass("Wider", [("link", float, field(default=default, kw_only=True))], bases=(TaskRow,), frozen=True)
    values = {column.name: getattr(TASK, column.name) for column in dataclasses.fields(TASK)}

    with pytest.raises(RunError, match=r"Wider.link is not in fedsim-digest-1 and has no plain default"):
        digest.task(kind(**values, link=1.0))


def test_a_folder_of_before_has_a_new_column_at_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that was written before a column came is read, with that column's default; damage in its rows is still seen."""
    written = Journal(tmp_path)
    written.metric(METRIC)
    written.close()
    kind = type(wider(METRIC, "none"))
    monkeypatch.setattr(journal, "_TABLES", {"metrics": kind})
    columns, rows = journal.read(tmp_path, "metrics")

    assert ([*digest.METRIC, "link"], [(*dataclasses.astuple(METRIC), "none")]) == (columns, rows)

    with closing(sqlite3.connect(tmp_path / journal.FILE)) as file, file:
        file.execute("UPDATE metrics SET round = 'x'")
    with pytest.raises(RunError, match="table metrics is damaged in row 1"):
        journal.read(tmp_path, "metrics")


def test_another_format_is_not_compared(go: Callable[..., fedsim.Run], tmp_path: Path) -> None:
    """The manifest says which format a digest is of, and ``verify`` refuses another by name."""
    run = go()
    assert digest.FORMAT == run.manifest["digest_format"] == "fedsim-digest-1"

    manifest.write(run.path, {**run.manifest, "digest_format": "fedsim-digest-2"})
    with pytest.raises(RunError, match="because its digest is 'fedsim-digest-2', and ours 'fedsim-digest-1'"):
        verify(run.path, tmp_path / "again")
