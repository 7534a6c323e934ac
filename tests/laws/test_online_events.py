"""When clients on streams act, notice and end: triggers, detectors and reactions, ends of streams, polling servers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from test_online import DDM, HINKLEY, NONE, ONLINE, program_of, remembering

import fedsim
from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.errors import RunError
from fedsim.core.keys import Key
from fedsim.data.stream import Stream
from fedsim.data.stream.arrivals import arrivals
from fedsim.data.stream.trigger import Trigger, triggers
from fedsim.flower import compat, records
from fedsim.learn.engine.queue import here
from fedsim.learn.work import Start
from fedsim.sim.grid import VirtualGrid
from fedsim.sim.invariants import Invariants
from fedsim.sim.rows import PredictionRow

Go = Callable[..., fedsim.Run]
FAST = {"kind": "constant", "gflops": 1e9, "overhead_s": 0.0}


@pytest.fixture
def quick(go: Go) -> Go:
    """Return ``go`` on the streams of ONLINE."""
    return lambda overrides=None, **settings: go({**ONLINE, **(overrides or {})}, **settings)


def stream_of(times: Any) -> Stream:
    return Stream(np.asarray(times, float), np.asarray(times, float), np.arange(len(times)), np.zeros(len(times), int))


def acts(trigger: Trigger, stream: Stream) -> np.ndarray[Any, Any]:
    """Return when a client acts that is always asked and takes no time."""
    found, now = [-math.inf], 0.0
    while (now := trigger.ready_s(stream, found[-1], max(now, 0.0))) < math.inf:
        found.append(now)
    return np.array(found[1:])


# Triggers.


def erlang_z(times: Any, trigger: Trigger, count: int, per_s: float) -> float:
    """Return how far mean and variance of the waits are from Erlang(count, per_s), in standard errors."""
    waits = np.diff(acts(trigger, stream_of(times)), prepend=0.0)[:-1]  # The last one takes what is left.
    n, mean, variance = len(waits), count / per_s, count / per_s**2
    z_mean = (waits.mean() - mean) / math.sqrt(variance / n)
    z_variance = (waits.var() - variance) / (variance * math.sqrt((2 + 6 / count) / n))
    return max(abs(z_mean), abs(z_variance))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_waits_for_a_count_are_erlang(seed: int) -> None:
    """With Poisson arrivals of rate 0.5 a client that waits for 5 examples waits Erlang(5, 0.5); |z| < 4, and not of 4 or 6."""
    times = arrivals.call(arrivals.get("poisson", at=""), {"per_s": 0.5}, key=Key(seed)).times(0, 10_000)
    even = arrivals.call(arrivals.get("constant", at=""), {"per_s": 0.5}, key=Key(seed)).times(0, 10_000)
    count = triggers.call(triggers.get("count", at=""), {"examples": 5})

    assert erlang_z(times, count, 5, 0.5) < 4
    assert min(erlang_z(times, count, n, 0.5) for n in (4, 6)) > 4
    assert erlang_z(even, count, 5, 0.5) > 4


def test_a_run_acts_when_its_trigger_says(quick: Go, tiny: Any) -> None:
    """When work takes no time, tasks of a run start exactly when the trigger holds, up to the end of the stream."""
    for trigger in ({"kind": "count", "examples": 7}, {"kind": "time", "every_s": 6.5},
                    {"kind": "count_or_time", "examples": 7, "every_s": 6.5}, {"kind": "arrival"}):  # fmt: skip
        only = {"clients.count": 2, "stream.trigger": trigger, "stream.items": 30, "server.rounds": 90, "evaluate.every": 90,
                "clients.compute": FAST, "clients.network": {"kind": "ideal"}, "server.round_timeout_s": 1e-9}  # fmt: skip
        alone = {**only, "clients.count": 1, "server.strategy": {"kind": "FedAvg", "min_available_nodes": 1, "clients_per_round": 1}}
        run = quick({**alone, "server.round_timeout_s": 1e9, "clients.replay": NONE})
        _, _, stream = program_of(tiny, alone)
        kind = dict(trigger)
        expected = acts(triggers.call(triggers.get(str(kind.pop("kind")), at=""), kind), stream)
        started = run.tasks[run.tasks.outcome == "arrived"].started_s

        assert len(expected) == len(started)
        assert np.allclose(expected, started, rtol=1e-5)
        assert ("done", 30) == (run.status, len(run.tested))


def test_time_and_count_by_hand() -> None:
    """Every so often; at a count or a time, whichever is first; and never before there is something new."""
    stream = stream_of([1.0, 2.0, 3.0, 20.0, 21.0, 22.0, 23.0])
    time = triggers.call(triggers.get("time", at=""), {"every_s": 5.0})
    either = triggers.call(triggers.get("count_or_time", at=""), {"examples": 3, "every_s": 5.0})

    assert [5.0, 20.0, 25.0] == acts(time, stream).tolist()
    assert [3.0, 20.0, 23.0] == acts(either, stream).tolist()


# Ends.


def test_a_run_ends_when_all_streams_have(quick: Go) -> None:
    """What is left is trained on, further messages are answered with an error, and the run is done before its last round."""
    run = quick({"server.rounds": 50})
    tasks = run.tasks
    failed = tasks[tasks.outcome == "failed"]

    assert "done" == run.status and run.final["rounds"] < 15
    assert {"the client's stream has ended"} == set(failed.failure)
    assert {0, 1, 2} == set(failed.client)
    assert 180 == len(run.tested)
    assert run.final["scored_round"] if "scored_round" in run.final else True


def test_a_sample_whose_streams_have_ended_ends_nothing(quick: Go) -> None:
    """A round that happens to ask only clients at their end leaves the others their turn."""
    run = quick({"server.rounds": 80, "server.strategy": {"kind": "FedAvg", "clients_per_round": 1}, "evaluate.every": 80})
    tasks = run.tasks
    first = tasks[tasks.outcome == "failed"]["round"].min()

    assert ((tasks.outcome == "arrived") & (tasks["round"] > first)).any()
    assert (180, "done") == (len(run.tested), run.status)
    assert run.final["rounds"] < 80


def test_a_client_without_a_stream_stalls_nobody(quick: Go, tmp_path: Any) -> None:
    """A client that never gets an example answers at once that there is nothing; the others take as long as without it."""
    lines = [f"{client},{time}" for client in (0, 1) for time in range(1, 25)]
    (tmp_path / "some.csv").write_text("client,time_s\n" + "\n".join(lines) + "\n")
    run = quick({"stream.arrivals": {"kind": "trace", "path": str(tmp_path / "some.csv")}, "server.rounds": 20})
    tasks = run.tasks
    empty = tasks[tasks.client == 2]

    assert "done" == run.status
    assert {"failed"} == set(empty.outcome)
    assert (empty.started_s == empty.received_s).all()
    assert {0: 24, 1: 24} == run.tested.groupby("client").size().to_dict()


# Detectors.


def test_alarms_are_those_of_the_labels_in_order(quick: Go, tiny: Any) -> None:
    """Alarms are the detector's on the errors in the order of their labels, at the first task after; never on unknown labels."""
    labels = {"kind": "exponential", "delay_s": 6.0, "missing": 0.2}
    settings = {"stream.labels": labels, "server.rounds": 6, "clients.detector": HINKLEY, "clients.replay": NONE}
    run = quick(settings)
    parts, _, _ = program_of(tiny, settings)
    online, streams = parts.fleet.online, parts.federation.streams
    assert online is not None and streams is not None
    expected: list[Any] = []
    for client in range(3):
        rows, stream = run.tested[run.tested.client == client], streams.of(client)
        wrong = dict(zip(rows.item, (rows.y != rows.prediction).astype(float), strict=True))
        state, before = online.detector.start(parts.key.fold("client", client, "detector")), -math.inf
        tasks = run.tasks[(run.tasks.client == client) & (run.tasks.outcome == "arrived")]
        for number, now in zip(tasks["round"], tasks.started_s, strict=True):
            known = [i for i in np.argsort(stream.labelled_s, kind="stable").tolist() if before < stream.labelled_s[i] <= now]
            state, signals = online.detector.feed(state, np.array([wrong[i] for i in known]))
            expected += [(client, number, now, known[signal]) for signal in signals.tolist()]
            before = now

    assert 0 < len(expected)
    assert sorted(expected) == sorted(run.alarms[["client", "round", "time_s", "item"]].itertuples(index=False, name=None))


def test_a_reaction_begins_with_the_next_task(tiny: Any) -> None:
    """After an alarm the memory shrinks at once, the next tasks have a higher rate that fades, and replay more."""
    reaction = {"kind": "adapt", "buffer": "shrink", "keep": 0.25, "lr_factor": 5.0, "lr_steps": 8, "replay_share": 0.8}
    parts, program, _ = program_of(tiny, {"clients.detector": DDM, "clients.reaction": reaction})
    memory, alarm_step, steps, seen = Kept(), -1, 0, 0
    for now in (6.0, 12.0, 18.0, 24.0, 30.0, 36.0, 80.0):
        held = len(memory.parts["replay"]["items"]) if memory.parts else 0
        task, memory = program.plan(Order(parts.job, Start(parts.first)), memory, now)
        left = 0.0 if alarm_step < 0 else max(0.0, 1 - (steps - alarm_step) / 8)
        assert np.allclose(task.step_rates, 0.1 * (1 + 4 * left), rtol=1e-9)
        batches = task.batches
        assert batches is not None
        ratio = 16 if alarm_step >= 0 else 4
        assert min(ratio, held) == batches.sizes[0] - batches.fresh[0]
        before = memory.parts["replay"]["items"]
        result = parts.engine.run([task])[0]
        done = program.finish(task, result, memory)
        memory, news, answer = memory.having(done.parts), done.news, done.reply
        assert news is not None
        steps += task.steps
        after = memory.parts["replay"]["items"]
        assert len(news.alarms) == answer.metrics["drift"]
        if len(news.alarms):
            alarm_step, seen = steps, seen + 1
            assert sorted(before)[len(before) - math.ceil(len(before) / 4) :] == sorted(after)
        else:
            assert before.tolist() == after.tolist()

    assert 0 < seen < 7


def test_the_server_hears_of_drift(quick: Go) -> None:
    """The alarms of a round are in its training metrics, averaged as the strategy weighs; without telling they are not."""
    settings = {"clients.detector": DDM, "server.rounds": 5, "server.strategy": {"kind": "FedAvg"}, "stream.weight": "held"}
    told = quick({**settings, "clients.replay": {"kind": "reservoir", "capacity": 1}})
    mute = quick({**settings, "clients.reaction": {"kind": "adapt", "tell": False}, "clients.replay": {"kind": "reservoir", "capacity": 1}})
    heard = told.series("drift", "training").set_index("round").value
    counted = told.alarms.groupby("round").size()

    assert 0 < len(told.alarms) == len(mute.alarms)
    assert all(math.isclose(heard[number], counted.get(number, 0) / 3) for number in heard.index)
    assert not len(mute.series("drift", "training"))


@pytest.mark.parametrize("weight", ["trained", "seen", "held"])
def test_a_client_weighs_what_the_scenario_says(weight: str, tiny: Any) -> None:
    """In averages a client counts for the examples it has just trained on, all it has seen, or all it holds."""
    parts, program, stream = program_of(tiny, {"stream.weight": weight})
    memory = Kept()
    for now in (6.0, 16.0, 40.0):
        task, memory = program.plan(Order(parts.job, Start(parts.first)), memory, now)
        seen = stream.arrived(now)
        assert {"trained": len(task.positions), "seen": seen, "held": min(12, seen)}[weight] == task.examples


# Servers that poll; memories.


class Ears:
    """Keeps what is tested."""

    def __init__(self) -> None:
        self.rows: list[PredictionRow] = []

    def task(self, row: Any) -> None: ...

    def round(self, row: Any) -> None: ...

    def version(self, row: Any) -> None: ...

    def heard(self, row: Any) -> None: ...

    def tested(self, row: PredictionRow) -> None:
        self.rows.append(row)


@pytest.mark.parametrize("more", [{}, {"training.rehearsal": {"kind": "der"}}, {"clients.detector": DDM}, remembering("prioritised")])
def test_a_polling_server_needs_no_rounds(more: dict[str, Any], tiny: Any) -> None:
    """Four messages to each client at once, without a round: each is worked on in turn, all that is tested is told once."""
    parts, _, _ = program_of(tiny, more)
    ears = Ears()
    queue = here(parts.engine)
    grid = VirtualGrid(parts.fleet, queue, ears)
    content = RecordDict({"arrays": compat.array_record(parts.first), "config": records.job_config(parts.job)})
    waiting = list(grid.push_messages([Message(content, records.node_of(c), "train") for c in (0, 1, 2, 0, 1, 2, 0, 1, 2)]))
    replies: list[Message] = []
    while len(replies) < len(waiting):
        replies += grid.pull_messages(waiting)
    grid.finish()
    items = {c: sorted(i for row in ears.rows if row.client == c for i in row.items.tolist()) for c in range(3)}

    assert 9 == len(replies) == len(ears.rows) and not any(reply.has_error() for reply in replies)
    assert all(found == list(range(len(found))) and len(found) >= 27 for found in items.values())
    assert ({}, {}) == (queue._pending, queue._done)


def test_a_memory_beyond_its_capacity_stops_the_run(tiny: Any) -> None:
    """The invariant stops a run whose policy holds more than it says, and names the message and the client."""
    parts, _, _ = program_of(tiny)
    online = parts.fleet.online
    assert online is not None
    liar = Liar(online.replay)
    grid = VirtualGrid(replace(parts.fleet, online=replace(online, replay=liar)), here(parts.engine), Ears())
    content = RecordDict({"arrays": compat.array_record(parts.first), "config": records.job_config(parts.job)})
    with pytest.raises(RunError, match="invariant broken at message m000000001 to client 0: the client remembers"):
        list(grid.send_and_receive([Message(content, records.node_of(0), "train")]))
    Invariants.remembered("here", 3, 3)


class Liar:
    """A policy that says it holds three."""

    capacity = 3

    def __init__(self, honest: Any) -> None:
        self._honest = honest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)
