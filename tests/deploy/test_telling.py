"""What a deployed run tells: rows as they become certain, what nodes watched, and what a reader must know of how they trained."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict
from nodes_here import IDS, NodesHere

import fedsim
from clients.client_app import app as client_app
from clients.server_app import app as server_app
from fedsim.real import roll
from fedsim.real.grid import UNTOLD
from fedsim.record import journal, manifest
from fedsim.report.page import write_report

THREE: dict[str, Any] = {"clients.count": 3, "server.rounds": 3}
KNOWN = [
    "message", "client", "kind", "round", "version", "outcome", "sent_s", "arrived_s", "examples", "down_bytes", "down_framing_bytes",
    "up_bytes", "up_framing_bytes", "loss", "result", "failure",
]  # fmt: skip
"""What a server knows of a task by itself."""

DECIDING = """
from torch import nn

class Deciding(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.one, self.other = nn.Linear(64, outputs), nn.Linear(64, outputs)

    def forward(self, x):
        x = x.flatten(1)
        return self.one(x) if float(x.sum()) > 0 else self.other(x)
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(roll, "SILENT_S", 0.3)
    monkeypatch.setattr(roll, "LATER_S", 0.5)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))


def served(path: Path, out: Path, fault: Any = lambda node, count, message, reply: reply) -> fedsim.Run:
    """Run the scenario on three nodes, called 2, 0, 1."""
    said = {"scenario": str(path), "out": str(out), "wait-s": 1.0}
    nodes = NodesHere(client_app, said, [{"partition-id": each} for each in (2, 0, 1)], fault)
    server_app(nodes, Context(5, 1, {}, RecordDict(), said))
    return fedsim.load(out)


def test_a_killed_server_leaves_its_tasks(scenario_file: Any, tmp_path: Path) -> None:
    """What lies on disk in round 3 has all tasks of rounds 1 and 2, as far as a server knows them; the end tells the rest, once each."""
    out, killed = tmp_path / "real", tmp_path / "killed"

    def fault(node: int, count: int, message: Message, reply: Message) -> Message | None:
        if node == IDS[0] and count == 4 and message.metadata.message_type == "train":  # Begin, and two rounds, lie behind it.
            shutil.copytree(out, killed)  # As it would be if the process were no more.
        return None if node == IDS[1] and count == 3 else reply

    real = served(scenario_file({**THREE, "server.round_timeout_s": 1.0, "evaluate.federated_fraction": 0.0}), out, fault)
    about = manifest.read(killed)
    manifest.write(killed, {**about, "process": {**about["process"], "pid": 2**22 + 1}})
    found = fedsim.load(killed)
    told = real.tasks[real.tasks.message.isin(found.tasks.message)].reset_index(drop=True)

    assert ("killed", 5, {1, 2}) == (found.status, len(found.tasks), set(found.tasks["round"]))
    pd.testing.assert_frame_equal(told[KNOWN], found.tasks[KNOWN], check_dtype=False)
    assert found.tasks[["received_s", "started_s", "computed_s"]].isna().all(axis=None)
    assert {-1} == set(found.tasks.number) and {0} == set(found.tasks.steps)
    assert UNTOLD in found.manifest["notes"] and UNTOLD not in real.manifest["notes"]
    assert write_report(found).is_file()
    assert 2 == len(found.rounds) and (found.rounds.up_bytes > 0).all()

    assert 9 == len(real.tasks) == real.tasks.message.nunique() and real.tasks.started_s.notna().sum()
    assert [] == journal.read(out, "settled")[1]
    with closing(sqlite3.connect(out / journal.FILE)) as file:
        assert 9 == file.execute("SELECT COUNT(*) FROM tasks").fetchone()[0]


def test_a_journal_told_in_part_is_read_once(tmp_path: Path, scenario_file: Any) -> None:
    """Killed while it is told the rest, a journal gives each task once: in full where that was told, as far as it is known elsewhere."""
    run = fedsim.run(scenario_file({**THREE, "server.rounds": 1}), out=tmp_path / "run")
    columns, rows = journal.read(run.path, "tasks")
    known = [journal.TaskRow(**dict(zip(columns, row, strict=True))) for row in rows]
    written = journal.Journal(tmp_path)
    written.settled(known)
    written.task(known[0])
    written.flush()
    halfway = fedsim.record.frames.Frames(tmp_path).tasks
    for row in known[1:]:
        written.task(row)
    written.close()

    assert run.tasks.message.tolist() == halfway.message.tolist() == fedsim.record.frames.Frames(tmp_path).tasks.message.tolist()
    assert [] == journal.read(tmp_path, "settled")[1] and written.wasted_bytes == run.manifest["bytes_wasted"]


@pytest.mark.parametrize("codec", [{}, {"codec": {"up": {"kind": "bfloat16"}, "down": {"kind": "plain"}}}], ids=["plain", "coded"])
def test_nodes_tell_what_was_watched(codec: Any, scenario_file: Any, tmp_path: Path) -> None:
    """With [monitor], steps, single examples' gradients and the noise between clients are those of the simulation."""
    watching = {"every": 2, "tasks": 0.8, "noise": 0.7, "noise_every": 2, "examples": 5}
    path = scenario_file({**THREE, "monitor": watching, "evaluate.federated_fraction": 0.5, **codec})
    run = fedsim.run(path, out=tmp_path / "run")
    real = served(path, tmp_path / "real")
    (between, within), (between_real, within_real) = run.noises, real.noises

    assert len(run.steps) and len(within) and 3 == len(between)
    pd.testing.assert_frame_equal(run.steps, real.steps)
    pd.testing.assert_frame_equal(within, within_real)
    exactly = {"check_exact": True} if not codec else {"rtol": 0.05}  # A server sees updates as they came.
    pd.testing.assert_frame_equal(between.drop(columns="now_s"), between_real.drop(columns="now_s"), **exactly)
    assert run.manifest["model"]["content"] == real.manifest["model"]["content"]
    assert real.manifest["bytes_up"] == run.manifest["bytes_up"] and real.manifest["bytes_down"] == run.manifest["bytes_down"]
    assert not list((tmp_path / "home").rglob("*.watched"))


def test_nodes_say_why_their_steps_are_not_compiled(scenario_file: Any, tmp_path: Path) -> None:
    """A model that no node can compile is noted once, with the clients that said so."""
    path = scenario_file({**THREE, "server.rounds": 2, "model.kind": "models_of_nodes:Deciding"})
    (path.parent / "models_of_nodes.py").write_text(DECIDING, encoding="utf-8")
    said = [note for note in served(path, tmp_path / "real").manifest["notes"] if note.startswith("On ")]

    assert 1 == len(said) and said[0].startswith("On clients 0, 1, 2: model Deciding cannot be traced"), said
