"""WallGrid: the nodes of a SuperLink as clients, whatever their ids, their order, their faults and their clocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from nodes_here import IDS, NodesHere

import fedsim
from clients.client_app import app as client_app
from clients.server_app import app as server_app
from fedsim.flower import records
from fedsim.real import diary, roll
from fedsim.real.clock import RunClock
from fedsim.real.fates import Post
from fedsim.real.grid import Terms, WallGrid

THREE: dict[str, Any] = {"clients.count": 3, "server.rounds": 3}
Fault = Callable[[int, int, Message, Message], Message | None]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(roll, "SILENT_S", 0.3)
    monkeypatch.setattr(roll, "LATER_S", 0.5)
    monkeypatch.setattr(roll, "LOOK_S", 0.0)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))


def served(path: Path, out: Path, ids: list[Any], fault: Fault = lambda n, c, m, r: r, grid: Any = None, **words: Any) -> fedsim.Run:
    """Run the scenario on nodes that say *ids*, with a *fault*."""
    said = {"scenario": str(path), "out": str(out), "wait-s": 1.0, **words}
    nodes = NodesHere(client_app, said, [{"partition-id": each} for each in ids], fault) if grid is None else grid(said)
    server_app(nodes, Context(5, 1, {}, RecordDict(), said))
    return fedsim.load(out)


def sampled(real: fedsim.Run) -> list[list[int]]:
    return [sorted(group.client) for _, group in real.tasks[real.tasks.kind == "train"].groupby("round")]


def test_the_same_clients_are_sampled(scenario_file: Any, tmp_path: Path) -> None:
    """Random node ids, told in any order, sample the clients that the simulation samples, and give its parameters."""
    path = scenario_file({"server.strategy": {"kind": "FedAvg", "fraction_train": 0.4}, "server.rounds": 4})
    run = fedsim.run(path, out=tmp_path / "run")
    real = served(path, tmp_path / "real", [5, 2, 0, 1, 4, 3])

    assert sampled(run) == sampled(real) and len({*map(tuple, sampled(run))}) > 1
    assert run.manifest["model"]["content"] == real.manifest["model"]["content"]
    assert run.versions.merged.map(len).tolist() == real.versions.merged.map(len).tolist()


@pytest.mark.parametrize(("ids", "said"), [
    ([0, 1, 1], "both say partition-id = 1"),
    ([0, 1, 7], "partition-id = 7: the run has 3 clients; partition ids are 0 to 2."),
    ([0, 1], "after 1 s 2 of 3 nodes were there; missing: partition-id 2. Start a SuperNode for each, or say nodes = 2"),
    ([0, 1, 2, 2], "both say partition-id = 2"),
    ([], "after 1 s 0 of 3 nodes were there; missing: partition-id 0, 1, 2."),
])  # fmt: skip
def test_who_is_missing_double_or_strange_is_named(ids: list[int], said: str, scenario_file: Any, tmp_path: Path) -> None:
    """Before a client trains, the server says which partition id is not there, there twice, or out of range; the folder says so too."""
    with pytest.raises(fedsim.RunError) as caught:
        served(scenario_file(THREE), tmp_path / "real", ids)

    about = fedsim.load(tmp_path / "real").manifest
    assert said in str(caught.value) and said in about["error"] and ("failed", "flower") == (about["status"], about["ground"])
    assert not len(fedsim.load(tmp_path / "real").tasks)


def test_a_dead_node_on_the_list_is_not_waited_for(scenario_file: Any, tmp_path: Path) -> None:
    """A SuperLink lists those that went for a while: once each client has a node, the silent ones are left alone."""

    def dead(node: int, count: int, message: Message, reply: Message) -> Message | None:
        return None if node == IDS[3] else reply

    assert "done" == served(scenario_file(THREE), tmp_path / "real", [0, 1, 2, 2], dead).status


@pytest.mark.parametrize("how", ["silent", "error", "gone"])
def test_a_node_that_dies_costs_its_reply(how: str, scenario_file: Any, tmp_path: Path) -> None:
    """A node that goes while the run goes on costs its own results, the strategy decides about the rest, and the folder says so."""
    grids: list[NodesHere] = []

    def fault(node: int, count: int, message: Message, reply: Message) -> Message | None:
        if node != IDS[1] or count < 3:  # Its second training message, and all after.
            return reply
        if how == "gone" and node in grids[0].contexts:
            grids[0].leave(node)
        return None if how == "silent" else Message(Error(5, "Node Unavailable"), reply_to=message)

    def grid(said: Any) -> NodesHere:
        grids.append(NodesHere(client_app, said, [{"partition-id": each} for each in (2, 0, 1)], fault))
        return grids[0]

    real = served(scenario_file({**THREE, "server.round_timeout_s": 1.5}), tmp_path / "real", [], grid=grid)
    mine = real.tasks[real.tasks.client == 0].sort_values("round")

    outcomes = {"silent": ["arrived", "in flight", "in flight"], "error": ["arrived", "failed", "failed"], "gone": ["arrived", "failed"]}
    assert "done" == real.status and outcomes[how] == mine.outcome.tolist()
    assert ["arrived"] * 6 == real.tasks[real.tasks.client != 0].outcome.tolist()
    assert any("client 0 did not tell" in note for note in real.manifest["notes"])
    assert mine.started_s.isna().all() and real.tasks[real.tasks.client != 0].started_s.notna().all()


def test_a_late_reply_is_waste(scenario_file: Any, tmp_path: Path) -> None:
    """What comes after the deadline is recorded as late with its bytes, and is in no version."""
    held: list[Message] = []
    grids: list[NodesHere] = []

    def fault(node: int, count: int, message: Message, reply: Message) -> Message | None:
        if node == IDS[0] and count == 2:
            held.append(reply)
            return None
        if held and node == IDS[1] and count == 3:
            grids[0].deliver(held.pop())
        return reply

    def grid(said: Any) -> NodesHere:
        grids.append(NodesHere(client_app, said, [{"partition-id": each} for each in (2, 0, 1)], fault))
        return grids[0]

    real = served(scenario_file({**THREE, "server.round_timeout_s": 1.0}), tmp_path / "real", [], grid=grid)
    late = real.tasks[real.tasks.outcome == "late"]

    assert [(2, 1)] == list(zip(late.client, late["round"], strict=True)) and (late.up_bytes > 0).all()
    assert late.message.map(lambda m: int(m[1:])).iloc[0] not in {n for merged in real.versions.merged for n in merged}
    both = ["down_bytes", "down_framing_bytes", "up_bytes", "up_framing_bytes"]
    assert real.manifest["bytes_wasted"] == int(late[both].to_numpy().sum())


def test_a_strange_reply_is_said_by_name(scenario_file: Any, tmp_path: Path) -> None:
    """A client whose reply has other arrays, or arrays of another shape, is said as in a simulation: what, and of which."""
    for made, said in (
        (lambda arrays: ArrayRecord({"other": Array(np.zeros(3, np.float32))}), "1.bias"),
        (lambda arrays: ArrayRecord({n: Array(np.zeros((2, 2), np.float32)) for n in arrays}), "shape"),
    ):

        def fault(node: int, count: int, message: Message, reply: Message, made: Any = made) -> Message:
            if message.metadata.message_type == "train" and node == IDS[2]:
                reply.content["arrays"] = made(reply.content["arrays"])
            return reply

        with pytest.raises(fedsim.RunError) as caught:
            served(scenario_file(THREE), tmp_path / said, [0, 1, 2], fault)
        assert said in str(caught.value) and "failed" == fedsim.load(tmp_path / said).status, str(caught.value)


def test_no_number_stops_the_run(scenario_file: Any, tmp_path: Path) -> None:
    """A loss that is no number names client and round, as in a simulation; what came beside it has a row, too."""

    def fault(node: int, count: int, message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train" and node == IDS[1]:
            reply.content["metrics"] = MetricRecord({"num-examples": 3, "train_loss": float("nan")})
        return reply

    with pytest.raises(fedsim.RunError, match="round 1: train_loss of client 1 became nan"):
        served(scenario_file(THREE), tmp_path / "real", [0, 1, 2], fault)

    tasks = fedsim.load(tmp_path / "real").tasks
    assert ["arrived", "failed", "in flight"] == tasks.sort_values("client").outcome.tolist()


@pytest.mark.parametrize(("jump", "said"), [(-3000.0, "jumped"), (3000.0, "jumped")])
def test_a_clock_that_jumps(jump: float, said: str, scenario_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Durations come from clocks that never jump; what a clock says that did is held between what the server saw, and noted."""
    import time

    from fedsim.real import client

    off = [0.0]
    fake = {**{name: getattr(time, name) for name in ("monotonic", "sleep", "process_time")}, "time": lambda: time.time() + off[0]}
    monkeypatch.setattr(client, "time", SimpleNamespace(**fake))

    def fault(node: int, count: int, message: Message, reply: Message) -> Message:
        off[0] = jump if len(seen) > 5 else 0.0
        seen.append(node)
        return reply

    seen: list[int] = []
    real = served(scenario_file(THREE), tmp_path / "real", [0, 1, 2], fault)
    times = real.tasks[["sent_s", "received_s", "started_s", "computed_s", "arrived_s"]]

    assert (times.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None) and times.notna().all(axis=None)
    assert any(f"The clock of client 0 {said}" in note for note in real.manifest["notes"])
    assert real.tasks.computed_s.max() < 60


def test_a_clock_that_is_wrong_all_along(scenario_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node an hour ahead is noted; its stream and its times run by the server's clock."""
    import time

    from fedsim.real import client

    fake = {**{name: getattr(time, name) for name in ("monotonic", "sleep", "process_time")}, "time": lambda: time.time() + 3600.0}
    monkeypatch.setattr(client, "time", SimpleNamespace(**fake))
    stream = {"arrivals": {"kind": "constant", "per_s": 1e3}, "trigger": {"kind": "count", "examples": 5}}
    real = served(scenario_file({**THREE, "stream": stream, "server.rounds": 1}), tmp_path / "real", [0, 1, 2])

    assert 3 == sum(" s ahead of the server's" in note for note in real.manifest["notes"])
    assert real.tasks.started_s.max() < 60


def test_a_node_that_comes_back_goes_on(scenario_file: Any, tmp_path: Path) -> None:
    """A node that is started again, with a state-dir and nothing else, takes up what its client kept; without it, it begins anew."""
    path = scenario_file({**THREE, "server.rounds": 4, "training.algorithm": {"kind": "scaffold"}})
    run = fedsim.run(path, out=tmp_path / "run")
    numbers: dict[bool, list[int]] = {}
    for named in (True, False):
        grids: list[NodesHere] = []

        def config(each: int, named: bool = named) -> dict[str, Any]:
            return {"partition-id": each, **({"state-dir": str(tmp_path / f"s{each}")} if named else {})}

        def fault(node: int, count: int, message: Message, reply: Message, grids: Any = grids, config: Any = config) -> Message:
            if node == IDS[1] and count == 3:  # Begin, round 1, round 2.
                grids[0].leave(node)
                grids[0].join(12345, config(0))
            return reply

        def grid(said: Any, grids: Any = grids, config: Any = config, fault: Any = fault) -> NodesHere:
            grids.append(NodesHere(client_app, said, [config(each) for each in (2, 0, 1)], fault))
            return grids[0]

        real = served(path, tmp_path / f"real-{named}", [], grid=grid)
        assert any("client 0 came back as another node" in note for note in real.manifest["notes"])
        assert named == (real.manifest["model"]["content"] == run.manifest["model"]["content"])
        numbers[named] = real.tasks[real.tasks.client == 0].sort_values("round")["number"].tolist()

    assert {True: [-1, -1, 2, 3], False: [-1, -1, 0, 1]} == numbers


class Rows:
    """Hears rows."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self.rounds: list[Any] = []

    def task(self, row: Any) -> None:
        self.tasks.append(row)

    def round(self, row: Any) -> None:
        self.rounds.append(row)

    def version(self, row: Any) -> None: ...

    def heard(self, row: Any) -> None: ...

    def worked(self, row: Any) -> None: ...

    def settled(self, rows: Any) -> None: ...


def test_push_and_pull(scenario_file: Any) -> None:
    """A server with a loop of its own pushes and pulls: replies go by the ids it was given, and come from clients, not nodes."""
    path = scenario_file(THREE)
    words = {"scenario": str(path)}
    nodes, rows = NodesHere(client_app, words, [{"partition-id": c} for c in (2, 0, 1)]), Rows()
    from fedsim.scenario.build import build
    from fedsim.scenario.load import load

    loaded = load(path)
    parts = build(loaded)
    grid = WallGrid(nodes, Terms(3, loaded.scenario.digest, 1.0), rows, RunClock(), Post())  # type: ignore[arg-type]
    ids = list(grid.open().get_node_ids())
    from fedsim.flower import compat

    content = RecordDict({"arrays": compat.array_record(parts.first), "config": records.job_config(parts.job)})
    pushed = list(grid.push_messages([Message(content, node, "train") for node in (*ids, 5000)]))
    replies = list(grid.pull_messages(pushed[:2])) + grid.pull(pushed, 5.0)

    assert [1000, 1001, 1002] == ids and [5000] == grid.strangers
    assert [1000, 1001, 1002, 5000] == sorted(r.metadata.src_node_id for r in replies)
    assert {*pushed[:3]} <= {r.metadata.reply_to_message_id for r in replies}
    assert [] == list(grid.pull_messages(pushed)) and [] == grid.pull(pushed)
    grid.finish()
    assert ["arrived"] * 3 + ["failed"] == sorted(row.outcome for row in rows.tasks)


def test_a_foreign_query_is_refused(scenario_file: Any) -> None:
    """A query that is not our server's is an error reply that says what is answered; so is a message that no client can read."""
    context = Context(5, 9, {"partition-id": 0}, RecordDict(), {"scenario": str(scenario_file(THREE))})
    for kind, record, said in (
        ("query", ConfigRecord({"ask": "weather"}), "asks 'weather'; our client answers"),
        ("train", ConfigRecord({}), "without parameters"),
    ):
        reply = client_app(Message(RecordDict({diary.RECORD: record}), 9, kind), context)
        assert reply.has_error() and said in (reply.error.reason or "")


def test_a_server_of_another_scenario_is_refused(scenario_file: Any, tmp_path: Path) -> None:
    """Server and nodes must hold the same scenario: a node that does not says so."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, lr in ((here, 0.1), (there, 0.2)):
        folder.mkdir()
        (folder / "s.toml").write_text(scenario_file({**THREE, "training.optimizer.lr": lr}).read_text(), encoding="utf-8")
    from fedsim.real import apps

    words = {"scenario": "s.toml", "out": str(tmp_path / "real"), "wait-s": 1.0}
    nodes = NodesHere(apps.client_app(there), words, [{"partition-id": c} for c in range(3)])
    with pytest.raises(fedsim.RunError, match=r"cannot take part: the server's scenario is another than the node's"):
        apps.server_app(here)(nodes, Context(5, 1, {}, RecordDict(), words))
