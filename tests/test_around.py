"""What goes on around a run (a reader, a full disk, an editor's mark) does not cost the run."""

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from conftest import tiny_table
from fedsim.record import journal
from fedsim.record.journal import Journal, MetricRow
from fedsim.report.page import write_report
from fedsim.scenario.load import load


def test_an_open_look_does_not_end_a_run(tmp_path: Path) -> None:
    """A connection that has read once and stays open does not keep the journal from closing with all its rows."""
    written = Journal(tmp_path)
    written.metric(MetricRow(1, 2.0, "central", "accuracy", 0.5, 3, 4))
    written.flush()
    look = sqlite3.connect(f"{(tmp_path / journal.FILE).as_uri()}?mode=ro", uri=True)
    assert 1 == len(look.execute("SELECT * FROM metrics").fetchall())
    look.execute("BEGIN").execute("SELECT * FROM metrics").fetchone()
    written.metric(MetricRow(2, 3.0, "central", "accuracy", 0.6, 5, 6))

    written.close()

    look.close()
    assert 2 == len(journal.read(tmp_path, "metrics")[1])


def test_rows_are_in_the_file_soon_though_no_other_comes(tmp_path: Path) -> None:
    """A kill in the middle of a long computation loses no row of before: what waits is written beside it, in time and in order."""
    written, until = Journal(tmp_path), time.monotonic() + 20.0
    for number in range(3):
        written.metric(MetricRow(number, 2.0, "central", "accuracy", 0.5, 3, 4))
    found: list[Any] = []
    while len(found) < 3 and time.monotonic() < until:
        time.sleep(0.05)
        found = journal.read(tmp_path, "metrics")[1]

    assert [0, 1, 2] == [row[0] for row in found]
    written.close()
    assert 3 == len(journal.read(tmp_path, "metrics")[1]) and not any(each.name == "journal" for each in threading.enumerate())


def test_what_could_not_be_written_is_told_to_who_brings_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the writer beside fails, the next row's bringer hears of it, and no row is lost or there twice once the disk has room."""
    monkeypatch.setattr(journal, "BATCH_WALL_S", 3600.0)
    written, full = Journal(tmp_path), sqlite3.connect(tmp_path / journal.FILE, timeout=0)
    full.execute("BEGIN IMMEDIATE")  # Somebody else writes, for longer than anyone waits.
    written.metric(MetricRow(1, 2.0, "central", "accuracy", 0.5, 3, 4))
    written._file.execute("PRAGMA busy_timeout = 0")  # pyright: ignore[reportPrivateUsage]
    assert written.write_some()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        written.metric(MetricRow(2, 2.0, "central", "accuracy", 0.5, 3, 4))
    full.rollback()
    full.close()
    written.metric(MetricRow(3, 2.0, "central", "accuracy", 0.5, 3, 4))
    written.close()

    assert [1, 2, 3] == [row[0] for row in journal.read(tmp_path, "metrics")[1]]


def test_a_model_that_does_not_fit_costs_the_model_only(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full for the model, the run is done, its digest stands, and a note names the file."""
    import safetensors.numpy

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    whole = go({"server.rounds": 2})
    monkeypatch.setattr(safetensors.numpy, "save", full)
    run = go({"server.rounds": 2})

    assert ("done", whole.digest) == (run.status, run.digest)
    assert any("model.safetensors" in note and "No space left" in note for note in run.manifest["notes"])


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """A scenario that an editor saved with a byte order mark is read."""
    import tomli_w

    marked = tmp_path / "marked.toml"
    marked.write_bytes(b"\xef\xbb\xbf" + tomli_w.dumps(tiny_table()).encode())

    assert load(marked).scenario.name == tiny_table()["name"]


@pytest.mark.parametrize("groups", [[[0, 1], [1, 0]], [[0, 0]]])
def test_a_group_of_classes_is_named_once(go: Any, groups: list[list[int]]) -> None:
    """A group named twice is refused before the run, not at its end."""
    with pytest.raises(fedsim.ScenarioError, match="by_classes.*twice"):
        go({"evaluate.by_classes": groups})


def test_what_never_happened_has_no_time(go: Any) -> None:
    """Durations of tasks that were cut short are NaN and never negative; the rows themselves keep -1.0."""
    run = go({"server.round_timeout_s": 1.0, "server.rounds": 2})
    tasks, (columns, rows) = run.tasks, journal.read(run.path, "tasks")
    stored = [row[columns.index("arrived_s")] for row in rows]

    assert -1.0 in stored
    assert [value == -1.0 for value in stored] == tasks.arrived_s.isna().tolist()
    assert (tasks.arrived_s - tasks.computed_s).min() >= 0


@pytest.mark.parametrize("own_test", [True, False])
def test_hindsight_is_only_where_it_is(tmp_path: Path, own_test: bool) -> None:
    """With test_fraction = 0 the scores are in hindsight only where the source brings no test part of its own."""
    draw = np.random.default_rng(0)
    train = {"x": draw.normal(size=(40, 3)).astype("float32"), "y": np.arange(40) % 2}
    test = {"x_test": draw.normal(size=(8, 3)).astype("float32"), "y_test": np.arange(8) % 2}
    np.savez(tmp_path / "a.npz", **train, **(test if own_test else {}))
    source = {"kind": "npz", "path": str(tmp_path / "a.npz")}
    data = {"source": source, "partition": {"kind": "iid"}, "test_fraction": 0.0}
    table = {**tiny_table(), "data": data, "stream": {}, "model": {"kind": "logreg"}}
    run = fedsim.run(table, overrides={"server.rounds": 1, "clients.count": 2}, out=tmp_path / "run")

    assert run.hindsight is not own_test
    assert ("in hindsight" in write_report(run).read_text()) is not own_test
