"""A deployed run is retraced: a simulation in which everything happens when it really did has its numbers, to the bit; no other has."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from nodes_here import IDS, NodesHere

import fedsim
from clients.client_app import app as client_app
from clients.server_app import app as server_app
from fedsim.core.errors import RunError
from fedsim.real import retracing, roll, validation
from fedsim.real.retracing import observed, retraced, same_predictions
from fedsim.session import verify
from fedsim.sim.observed import Observed

STREAM: dict[str, Any] = {
    "clients.count": 3, "server.rounds": 3, "data.test_fraction": 0.7, "training.batch_size": 1, "training.optimizer.lr": 0.02,
    "stream": {"arrivals": {"kind": "constant", "per_s": 5.0}, "trigger": {"kind": "arrival"}},
    "clients.replay": {"kind": "reservoir", "capacity": 12}, "training.rehearsal": {"kind": "er", "ratio": 0.5, "mix": "concat"},
}  # fmt: skip
Fault = Callable[[NodesHere, int, int, Message, Message], Message | None]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(roll, "SILENT_S", 0.3)
    monkeypatch.setattr(roll, "LATER_S", 0.5)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))


def served(path: Path, out: Path, fault: Fault = lambda grid, node, count, message, reply: reply) -> fedsim.Run:
    """Run the scenario in *path* on three nodes of this process, on wall time, with a *fault*."""
    words = {"scenario": str(path), "out": str(out), "wait-s": 5.0}
    nodes = NodesHere(client_app, words, [{"partition-id": c, "state-dir": f"{out}-{c}"} for c in (2, 0, 1)])
    nodes.fault = lambda *said: fault(nodes, *said)
    server_app(nodes, Context(5, 1, {}, RecordDict(), words))
    return fedsim.load(out)


def moved(seen: Observed, number: int, by_s: float) -> Observed:
    """Return *seen* with the moment at which a client acted on a message moved: a retracing of it is wrong."""
    row = seen.tasks[number]
    return replace(seen, tasks={**seen.tasks, number: replace(row, started_s=row.started_s + by_s, computed_s=row.computed_s + by_s)})


def content(run: fedsim.Run) -> str:
    return str(run.manifest["model"]["content"])


def test_a_stream_with_replay(scenario_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At wall times no simulation foresees what clients hold; at the observed moments, its parameters and predictions are the same."""
    path = scenario_file(STREAM)

    def slowly(grid: NodesHere, node: int, count: int, message: Message, reply: Message) -> Message:
        time.sleep(0.3 if count == 2 else 0.0)  # So that the first to act in round 1 could have acted later, and held more.
        return reply

    real = served(path, tmp_path / "real", slowly)
    rows = validation._retraced(real, tmp_path / "again", lambda words: None)
    plain, again = fedsim.run(path, out=tmp_path / "plain"), fedsim.load(tmp_path / "again")
    first = int(real.tasks.sort_values("started_s").message.iloc[0][1:])
    times = ["sent_s", "received_s", "started_s", "computed_s", "arrived_s"]

    assert content(plain) != content(real) and not same_predictions(plain, real)
    assert content(again) == content(real) and same_predictions(again, real) and len(real.tested)
    assert real.final == again.final and real.rounds.equals(again.rounds)
    assert real.tasks[[*times, "number", "examples"]].equals(again.tasks[[*times, "number", "examples"]])
    assert "observed" == again.manifest["ground"]
    parts = ["final parameters", "final accuracy", "final loss", "predictions"]
    assert [(f"{part}, at the observed moments", True) for part in parts] == [(row.what, row.agrees) for row in rows]
    wrong = moved(observed(real), first, 0.3)
    monkeypatch.setattr(retracing, "observed", lambda run: wrong)
    (row,) = validation._retraced(real, tmp_path / "wrong", lambda words: None)
    said = rf"none: message {first}: the task that client \d makes of it at .* s has examples \d+; observed was \d+"
    assert not row.agrees and re.match(said, str(row.observed))
    with pytest.raises(RunError, match="retraced"):
        verify(again.path, tmp_path / "verified")


def test_what_came_late_comes_late(scenario_file: Any, tmp_path: Path) -> None:
    """A reply that missed its deadline on real time misses it again, and what its client keeps goes on from there."""
    held: list[Message] = []

    def fault(grid: NodesHere, node: int, count: int, message: Message, reply: Message) -> Message | None:
        if node == IDS[0] and count == 2:
            held.append(reply)
            return None
        if held and node == IDS[1] and count == 3:
            grid.deliver(held.pop())
        return reply

    settings = {"clients.count": 3, "server.rounds": 3, "server.round_timeout_s": 1.0, "training.algorithm": {"kind": "scaffold"}}
    path = scenario_file(settings)
    real = served(path, tmp_path / "real", fault)
    plain, again = fedsim.run(path, out=tmp_path / "plain"), retraced(real.path, tmp_path / "again")

    assert ["late"] == real.tasks[real.tasks.outcome != "arrived"].outcome.tolist()
    assert content(again) == content(real) != content(plain)
    assert real.tasks.outcome.tolist() == again.tasks.outcome.tolist()
    assert real.versions.merged.map(list).tolist() == again.versions.merged.map(list).tolist()


def test_a_plain_run_has_the_digest_of_the_deployed_one(scenario_file: Any, tmp_path: Path) -> None:
    """Where replies are all that a task leaves, every row is the same at the same moments, and so the digest; another way is refused."""
    path = scenario_file({"clients.count": 3, "server.rounds": 2, "evaluate.federated_fraction": 0.5})
    real = served(path, tmp_path / "real")
    seen = observed(real)

    assert retraced(real.path, tmp_path / "again").digest == real.digest
    for number, (wrong, said) in enumerate((
        (replace(seen, tasks={n: row for n, row in seen.tasks.items() if n <= 7}), "message 8: 7 were observed"),
        (replace(seen, tasks={**seen.tasks, 1: replace(seen.tasks[1], round=2)}),
         "message 1: is train in round 1, .* observed was train in round 2"),
        (replace(seen, tasks={**seen.tasks, 4: replace(seen.tasks[4], sent_s=0.0)}), "message 4: is sent at"),
        (replace(seen, ends={}), "no wait was observed"),
    )):  # fmt: skip
        with pytest.raises(RunError, match=said):
            retraced(real.path, tmp_path / f"wrong-{number}", wrong)
    with pytest.raises(RunError, match="is a simulated run"):
        retraced(fedsim.run(path, out=tmp_path / "plain").path, tmp_path / "never")


def test_a_paced_run_counts_the_same_replies(scenario_file: Any, tmp_path: Path) -> None:
    """Real nodes are paced as simulated ones: the first two of three count, an abandoned round does not; a retracing repeats it."""

    def fault(grid: NodesHere, node: int, count: int, message: Message, reply: Message) -> Message | None:
        return None if node == IDS[0] and count == 3 and grid.run_config["scenario"].endswith("all.toml") else reply  # Of the second round.

    for name, pacing in (
        ("first", {"kind": "over_selection", "take": 2}),
        ("all", {"kind": "minimum_fraction", "fraction": 1.0, "seconds": 1.0, "early": False}),
    ):
        path = scenario_file({"clients.count": 3, "server.rounds": 3, "server.pacing": pacing, "server.aggregation": {"seconds": 9.0}})
        path = path.rename(path.with_name(f"{name}.toml"))
        real = served(path, tmp_path / name, fault)
        again = retraced(real.path, tmp_path / f"{name}-again")

        assert content(again) == content(real)
        assert again.tasks[["message", "outcome", "discarded"]].equals(real.tasks[["message", "outcome", "discarded"]])
        assert any("server.aggregation: clients are real" in note for note in real.manifest["notes"])
        if name == "first":
            assert again.digest == real.digest
            assert [2, 2, 2] == real.rounds.arrived.tolist() and ["enough"] * 3 == [each for each in real.tasks.discarded if each]
        else:
            assert [3, 0, 3] == real.rounds.arrived.tolist() and (real.tasks.discarded == "abandoned").sum() >= 2
            assert real.rounds.abandoned[1].startswith("2 of 3 replies after 1") and real.rounds.abandoned[1].endswith("and 3 are wanted")
            assert "server.pacing: 1 round was abandoned (round 2): 2 of 3 replies" in " ".join(real.manifest["notes"])
