"""Laws of training on streams: digests, what is tested and trained on when, triggers, memory, detectors, late tasks."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedsim
from fedsim.client.kept import Kept
from fedsim.client.program import Order, Program
from fedsim.data.replay import losses, policies, replays, vectors  # noqa: F401  # Importing registers.
from fedsim.data.stream import Stream
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.engine.queue import Queue
from fedsim.learn.work import Start, Task
from fedsim.preview import preview
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load
from fedsim.session import verify

Go = Callable[..., fedsim.Run]

ONLINE: dict[str, Any] = {
    "clients.count": 3, "data.test_fraction": 0.9, "server.rounds": 3,
    "stream": {"arrivals": {"kind": "poisson", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 9}},
    "clients.replay": {"kind": "reservoir", "capacity": 12}, "training.batch_size": 4,
    "clients.compute": {"kind": "lognormal", "gflops": 5.0, "sigma": 0.6, "overhead_s": 1.0},
}  # fmt: skip
"""Three clients with 60 examples each, one a second, of which the reservoir holds 12."""
NONE = {"kind": "none"}
HINKLEY = {"kind": "page_hinkley", "min_instances": 4, "threshold": 0.5, "only_worse": False}
DDM = {"kind": "ddm", "warm_start": 8, "drift_threshold": 0.5}
SLOW = {"kind": "lognormal", "gflops": 0.000003, "sigma": 1.0, "overhead_s": 1.0}
LATE = {"server.round_timeout_s": 14.0, "server.rounds": 6, "clients.compute": SLOW}
SWAP = {"change": {"kind": "swap_labels", "pairs": [[0, 1, 2, 3]]}, "schedule": {"kind": "abrupt", "at_s": [25.0]}}
ROTATE = {"change": {"kind": "rotate", "degrees": 90.0}, "schedule": {"kind": "abrupt", "at_s": [25.0]}}
PLUGIN = """
from torch import nn

def dropped(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, outputs))
"""
DROPPED = {"model": {"kind": "online_plugin:dropped"}}


def rehearsing(kind: str, **settings: Any) -> dict[str, Any]:
    needs = kind not in ("lwf", "ewc")
    return {"training.rehearsal": {"kind": kind, **settings}, **({} if needs else {"clients.replay": NONE})}


def remembering(kind: str) -> dict[str, Any]:
    return {"clients.replay": NONE if kind == "none" else {"kind": kind, "capacity": 12}}


CASES: dict[str, dict[str, Any]] = {
    "er": {},
    "er sum": rehearsing("er", mix="sum"),
    **{kind: rehearsing(kind) for kind in ("er_ace", "der", "der++", "a_gem", "lwf", "ewc", "union")},
    **{f"replay {kind}": remembering(kind) for kind in replays},
    "der and ring": {**rehearsing("der"), **remembering("ring")},
    "der and herding": {**rehearsing("der"), **remembering("herding")},
    "covariate drift, der": {"stream.drift": ROTATE, **rehearsing("der")},
    "real drift, mir": {"stream.drift": SWAP, **remembering("mir")},
    "labels late, detector": {"stream.labels": {"kind": "exponential", "delay_s": 9.0, "missing": 0.3}, "clients.detector": HINKLEY},
    "late tasks, der": {**LATE, **rehearsing("der")},
    "late tasks, detector": {**LATE, "clients.detector": DDM},
    "local": {"stream.predict": "local"},
    "reaction": {
        "clients.detector": DDM,
        "clients.reaction": {"kind": "adapt", "buffer": "shrink", "lr_factor": 3.0, "lr_steps": 4, "replay_share": 0.7},
    },
    "reset of losses": {"clients.detector": DDM, "clients.reaction": {"kind": "adapt", "buffer": "reset"}, **remembering("prioritised")},
    "steps, dropout, der": {**rehearsing("der"), "training.epochs": None, "training.steps": 2, **DROPPED},
    "dropout, ewc": {**rehearsing("ewc"), **DROPPED},
    "dropout, mir": {**remembering("mir"), **DROPPED},
    "dropout, er": DROPPED,
    "full batches": {"training.batch_size": "full", "training.epochs": 2},
    "momentum": {"training.optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}, **rehearsing("der")},
    "proximal": {"server.strategy": {"kind": "FedProx", "proximal_mu": 0.5}, **rehearsing("a_gem")},
    "initial loss": {"server.strategy": {"kind": "QFedAvg", "client_learning_rate": 0.1}, **rehearsing("der")},
    "weight held": {"stream.weight": "held", **remembering("herding")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _plugin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "online"
    folder.mkdir(exist_ok=True)
    (folder / "online_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def quick(go: Go, hands: None) -> Go:
    """Return ``go`` on the streams of ONLINE, its workers those that serve all tests."""
    return lambda overrides=None, **settings: go({**ONLINE, **(overrides or {})}, **settings)


def digests(runs: list[fedsim.Run]) -> set[tuple[str, str]]:
    return {(run.digest, run.metrics_digest) for run in runs}


# The same bits.


@pytest.mark.parametrize("name", CASES)
def test_chunks_and_workers_move_no_bit(name: str, quick: Go) -> None:
    """One client after the other here, or together in two processes: the digests are the same."""
    runs = [quick({**CASES[name], **more}) for more in ({"engine.chunk": 1}, {"engine.workers": 2, "engine.chunk": 2})]

    assert 1 == len(digests(runs))
    assert len(runs[0].tested) > 60


@pytest.mark.parametrize("name", ["er", "er_ace", "late tasks, detector"])
def test_whole_cohorts_move_no_bit(name: str, quick: Go) -> None:
    """Ragged clients on streams, one by one or all eight together, give the same digests."""
    ragged = {"clients.count": 8, "data.test_fraction": 0.8, "data.partition": {"kind": "quantity", "sigma": 1.0}}
    runs = [quick({**CASES[name], **ragged, "engine.chunk": chunk}) for chunk in (1, 64)]

    assert 1 == len(digests(runs))


# What a client trains on.


def program_of(tiny: Any, overrides: dict[str, Any] | None = None, client: int = 0) -> tuple[Parts, Program, Stream]:
    parts = build(load(tiny({**ONLINE, **(overrides or {})})))
    assert parts.federation.streams is not None
    return parts, parts.fleet.client(client), parts.federation.streams.of(client)


TIMES = (6.0, 16.0, 24.0, 31.0, 80.0)


def union_gap(tiny: Any, order: Callable[[Any], Any]) -> bool:
    """Return whether tasks on everything so far, put in *order*, have the engine's bits at every message."""
    parts, program, stream = program_of(tiny, {**rehearsing("union"), "clients.replay": {"kind": "reservoir", "capacity": 1000}})
    memory, start, same = Kept(), Start(parts.first), True
    for number, now in enumerate((3.0, 14.5, 31.0)):
        task, memory = program.plan(Order(parts.job, start), memory, now)
        positions = order(stream.positions[: stream.arrived(now)])
        key = parts.key.fold("client", 0, "task", number)
        ours, theirs = parts.engine.run([task, Task(0, number, parts.job, start, positions, key)])
        memory = memory.having(program.finish(task, ours, memory).parts)
        same = same and all(np.array_equal(a, b) for a, b in zip(ours.params.values(), theirs.params.values(), strict=True))
        start = Start(ours.params)
    return same


def test_union_with_room_for_all_is_fedavg_on_all_so_far(tiny: Any) -> None:
    """A memory as large as the stream makes each task FedAvg on the union so far, bit for bit; in another order it is not."""
    assert union_gap(tiny, np.sort)
    assert not union_gap(tiny, lambda positions: positions[::-1])


def ledger(tiny: Any, overrides: dict[str, Any], *, local: bool = False) -> tuple[Stream, list[Any], list[Any]]:
    """Return the stream, (time, item) of each test and (time, item) of each time a new item is trained on.

    On the way each prediction is compared with that of the parameters received, or of the last that the client had.
    """
    settings = {"clients.replay": NONE, "stream.predict": "local" if local else "received", **overrides}
    parts, program, stream = program_of(tiny, settings)
    pool = parts.federation.pooled
    assert pool is not None
    place = {position: item for item, position in enumerate(stream.positions.tolist())}
    memory, last = Kept(), parts.first
    tested: list[Any] = []
    trained: list[Any] = []
    for number, now in enumerate(TIMES):
        received = {name: array + np.float32(0.01 * number) for name, array in parts.first.items()}
        task, memory = program.plan(Order(parts.job, Start(received)), memory, now)
        result = parts.engine.run([task])[0]
        done = program.finish(task, result, memory)
        memory, news = memory.having(done.parts), done.news
        assert news is not None
        by = last if local and number else received
        weight, bias = by.values()
        outputs = pool.x[stream.positions[news.items]].reshape(len(news.items), -1) @ weight.T + bias
        assert outputs.argmax(1).tolist() == news.prediction.tolist()
        last = result.params
        tested += [(now, item) for item in news.items.tolist()]
        trained += [(now, place[position]) for position in task.positions.tolist()]
    return stream, tested, trained


def keeps_the_order(stream: Stream, tested: list[Any], trained: list[Any], passes: int) -> bool:
    """Return whether every item is tested once, then trained on in *passes*, each as soon as a task could."""
    due = {item: min((now for now in TIMES if now >= at), default=math.inf) for item, at in enumerate(stream.arrived_s)}
    known = {item: min((now for now in TIMES if now >= at), default=math.inf) for item, at in enumerate(stream.labelled_s)}
    first = sorted((now, item) for item, now in due.items() if now < math.inf)
    then = sorted((now, item) for item, now in known.items() if now < math.inf)
    return sorted(tested) == first and sorted(trained) == sorted(then * passes) and tested == first


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("labels", [{"kind": "at_once"}, {"kind": "exponential", "delay_s": 9.0, "missing": 0.3}])
def test_every_item_is_tested_once_and_then_trained_on(labels: dict[str, Any], local: bool, tiny: Any) -> None:
    """What has come is tested once, by the right parameters; what has its label is trained on once per epoch; nothing else."""
    stream, tested, trained = ledger(tiny, {"stream.labels": labels, "training.epochs": 2}, local=local)

    assert keeps_the_order(stream, tested, trained, 2)
    assert not keeps_the_order(stream, tested[1:], trained, 2)
    assert not keeps_the_order(stream, tested, trained[1:], 2)
    assert not keeps_the_order(stream, [*tested, tested[-1]], trained, 2)
    assert not keeps_the_order(stream, tested, trained, 1)
    if labels["kind"] != "at_once":
        assert 0 < np.isinf(stream.labelled_s).sum()
        assert set(dict(map(reversed, trained))) < set(dict(map(reversed, tested)))  # type: ignore[arg-type]


def test_a_batch_is_predicted_whole_before_it_is_learned(quick: Go) -> None:
    """In a run no item is tested before it came, and none twice; without timeouts all that came by the last task is tested."""
    run = quick({"stream.labels": {"kind": "exponential", "delay_s": 9.0, "missing": 0.3}, "server.rounds": 6})
    tested, tasks = run.tested, run.tasks

    assert not tested.duplicated(["client", "item"]).any()
    assert (tested.time_s >= tested.arrived_s).all() and (tested.labelled_s >= tested.arrived_s).all()
    for client, rows in tested.groupby("client"):
        last = tasks[(tasks.client == client) & (tasks.outcome == "arrived")].started_s.max()
        assert list(range(len(rows))) == rows.item.tolist()
        assert rows.arrived_s.max() <= last
        assert set(rows.time_s) <= set(tasks[tasks.client == client].started_s)


@pytest.mark.parametrize("more", [{}, rehearsing("der"), {"clients.detector": DDM}], ids=["er", "der", "detector"])
def test_late_tasks_are_computed_once_and_tell_what_they_predicted(
    more: dict[str, Any], quick: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half of the tasks late each begun one is computed once, its tests are known, and the engine is empty in the end."""
    queues: list[Queue] = []
    computed: list[tuple[int, int]] = []
    honest = CohortEngine.run

    def run(self: CohortEngine, tasks: list[Task]) -> Any:
        computed.extend((task.client, task.number) for task in tasks)
        return honest(self, tasks)

    monkeypatch.setattr(CohortEngine, "run", run)
    monkeypatch.setattr("fedsim.session.Queue", lambda *given: queues.append(Queue(*given)) or queues[-1])
    found = quick({**LATE, **more})
    tasks, tested = found.tasks, found.tested
    begun = [(row.client, row.number) for row in tasks.itertuples() if row.number >= 0]

    assert {"arrived", "late"} <= set(tasks.outcome)
    assert sorted(begun) == sorted(computed)
    assert not tested.duplicated(["client", "item"]).any()
    for client, rows in tested.groupby("client"):
        last = tasks[(tasks.client == client) & (tasks.number >= 0)].started_s.max()
        stream_end = rows.arrived_s.max()
        assert list(range(len(rows))) == sorted(rows.item)
        assert stream_end <= last
    assert ({}, {}) == (queues[0]._pending, queues[0]._done)


EVENTS = ["message", "client", "number", "round", "outcome", "sent_s", "received_s", "started_s", "computed_s", "arrived_s"]


def test_another_policy_moves_no_event(quick: Go) -> None:
    """Policies that hold as many move no arrival, no link, no device: every time is the same; sizes that differ do move times."""
    runs = [quick(remembering(kind)) for kind in ("reservoir", "cbrs", "fifo", "prioritised", "loss_aware")]
    for run in runs[1:]:
        pd.testing.assert_frame_equal(runs[0].tasks[EVENTS], run.tasks[EVENTS], check_exact=True)
        assert runs[0].tested.arrived_s.tolist() == run.tested.arrived_s.tolist()
    fewer = quick({"clients.replay": {"kind": "reservoir", "capacity": 3}})

    assert 4 <= len({run.digest for run in runs})
    assert runs[0].tasks.computed_s.tolist() != fewer.tasks.computed_s.tolist()
    assert sorted(runs[0].tested.arrived_s)[:30] == sorted(fewer.tested.arrived_s)[:30]


def test_a_foretold_memory_holds_what_the_real_one_does(tiny: Any) -> None:
    """How many examples a policy that goes by numbers holds is known when the task is made."""
    for kind in ("prioritised", "loss_aware", "mir", "gss", "herding"):
        parts, program, _ = program_of(
            tiny, {**remembering(kind), "stream.order": {"kind": "class_incremental", "tasks": [[0, 1], [2, 3, 4], [5]]}}
        )
        memory = Kept()
        for now in (5.0, 17.0, 40.0):
            task, memory = program.plan(Order(parts.job, Start(parts.first)), memory, now)
            before = memory.parts
            memory = memory.having(program.finish(task, parts.engine.run([task])[0], memory).parts)
            foretold, real = before["replay"]["labels"], memory.parts["replay"]["labels"]
            assert len(foretold) == len(real)
            assert kind != "herding" or sorted(foretold) == sorted(real)


PASSES: dict[str, tuple[dict[str, Any], Callable[[int, int], tuple[int, int]]]] = {
    "er": ({}, lambda new, replayed: (0, 0)),
    "der": (rehearsing("der"), lambda new, replayed: (0, 0)),
    "lwf": (rehearsing("lwf"), lambda new, replayed: (new, 0)),
    "ewc": (rehearsing("ewc"), lambda new, replayed: (0, new)),
    "gss": (remembering("gss"), lambda new, replayed: (0, new + replayed)),
    "herding": (remembering("herding"), lambda new, replayed: (new + replayed, 0)),
    "mir": ({"clients.replay": {"kind": "mir", "capacity": 12, "candidates": 10}}, lambda new, replayed: (2 * 10 * 4, new)),
}


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_through_the_model_takes_its_time(name: str, tiny: Any) -> None:
    """Teachers, Fisher information, candidates and vectors cost what their passes through the model do."""
    more, beside = PASSES[name]
    parts, program, stream = program_of(tiny, more)
    order = Order(parts.job, Start(parts.first))
    task, memory = program.plan(order, Kept(), float(stream.arrived_s[12]))
    memory = memory.having(program.finish(task, parts.engine.run([task])[0], memory).parts)
    task, memory = program.plan(order, memory, float(stream.arrived_s[28]))  # 16 new ones, in four steps.
    flops, (forward, training) = parts.fleet.flops, beside(16, task.seen - 16)
    plain = flops.of(Task(0, 0, parts.job, order.start, np.arange(16), task.key))

    assert (4, 16, 16) == (task.steps, task.tested, task.seen - 16 if name not in ("lwf", "ewc") else 16)
    extra = flops.forward * (16 + forward) + flops.training * (task.seen - 16 + training)
    assert math.isclose(plain + extra, flops.of(task))


@pytest.mark.parametrize("name", ["er", "der", "replay mir", "replay herding", "late tasks, der", "labels late, detector"])
def test_a_preview_foretells_the_time_of_a_run(name: str, quick: Go, tiny: Any) -> None:
    """Driving the events without training takes the virtual time and the bytes of the run, to the last bit."""
    run = quick(CASES[name])
    foretold = preview(load(tiny({**ONLINE, **CASES[name]})))

    assert run.manifest["virtual_s"] == foretold.round_s * foretold.rounds
    assert run.manifest["bytes_down"] == foretold.down_bytes_per_round * foretold.rounds


def test_what_was_tested_is_verified(quick: Go, tmp_path: Path) -> None:
    """A run on streams verifies, and one whose predictions were edited afterwards does not."""
    run = quick(rehearsing("der"))
    assert verify(run.path, tmp_path / "again") is None

    file = sqlite3.connect(run.path / "journal.sqlite")
    file.execute("UPDATE tested SET prediction = y WHERE client = 1")
    file.commit()
    file.close()
    said = verify(run.path, tmp_path / "once more")

    assert said is not None and said.startswith("tested row")
