"""A client on a stream, on a real node: what it remembers lives in Flower's state, and its bits are the simulator's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from clients.client_app import app as entry
from fedsim.core.types import Params
from fedsim.flower import compat, records
from fedsim.flower.apps import Site, client_app
from fedsim.learn.engine.queue import here
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load
from fedsim.sim.grid import VirtualGrid

STREAM: dict[str, Any] = {
    "clients.count": 2, "stream": {"arrivals": {"kind": "poisson", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 9}},
    "clients.network": {"kind": "ideal"}, "training.batch_size": 4, "clients.replay": {"kind": "reservoir", "capacity": 12},
}  # fmt: skip
DDM = {"kind": "ddm", "warm_start": 8, "drift_threshold": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "er": {},
    "der++": {"training.rehearsal": {"kind": "der++"}},
    "ewc": {"training.rehearsal": {"kind": "ewc"}, "clients.replay": {"kind": "none"}},
    "prioritised": {"clients.replay": {"kind": "prioritised", "capacity": 12}},
    "gss": {"clients.replay": {"kind": "gss", "capacity": 12}},
    "herding": {"clients.replay": {"kind": "herding", "capacity": 12}},
    "paced": {
        "clients.detector": DDM, "clients.reaction": {"kind": "adapt", "lr_factor": 2.0}, "training.scale_with_batch": {"base": 4},
        "training.schedule": {"kind": "exponential", "rate": 0.9, "clock": "local_step", "warmup": 5},
    },
    "seconds": {"training.schedule": {"kind": "exponential", "rate": 0.9, "clock": "virtual_s"}},
    "local": {"stream.predict": "local"},
    "own statistics": {"server.statistics": "keep_local", "model": {"kind": "logreg", "standardise": True}},
    "detector": {
        "stream.labels": {"kind": "exponential", "delay_s": 4.0, "missing": 0.2}, "clients.detector": DDM,
        "clients.reaction": {"kind": "adapt", "buffer": "shrink", "lr_factor": 2.0},
    },
}  # fmt: skip


class Times:
    """Hears when tasks began."""

    def __init__(self) -> None:
        self.started: dict[tuple[int, int], float] = {}

    def task(self, row: Any) -> None:
        self.started[row.client, row.number] = row.started_s

    def tested(self, row: Any) -> None: ...

    def round(self, row: Any) -> None: ...

    def version(self, row: Any) -> None: ...

    def heard(self, row: Any) -> None: ...


def carried(state: RecordDict) -> RecordDict:
    """Return *state* as Flower hands it to the next process: through its own bytes."""
    data = recorddict_to_proto(state).SerializeToString()
    return recorddict_from_proto(RecordDictProto.FromString(data))


def answers(parts: Parts, app: Callable[[int], ClientApp], keep: Callable[[RecordDict], RecordDict] = carried) -> list[bool]:
    """Return of each message whether the real client's reply is the simulated one's, bit for bit.

    ``app(n)`` is the app at message n, its process as fresh as a reader likes.
    """
    times = Times()
    grid = VirtualGrid(parts.fleet, here(parts.engine), times)
    states = {client: RecordDict() for client in range(2)}
    params, same = parts.first, list[bool]()
    for number in range(4):
        config = records.job_config(parts.job)
        config["server-round"] = number + 1
        content = RecordDict({"arrays": compat.array_record(params), "config": config})
        simulated = list(grid.send_and_receive([Message(content, records.node_of(c), "train") for c in range(2)]))
        for client, ours in enumerate(simulated):
            context = Context(
                1, records.node_of(client), {"partition-id": client}, keep(states[client]), {"at": times.started[client, number]}
            )
            theirs = app(number)(Message(content, records.node_of(client), "train"), context)
            states[client] = context.state
            same.append(equal(theirs.content, ours.content))
        params = records.params_of(simulated[1].content["arrays"])
    return same


def equal(one: RecordDict, two: RecordDict) -> bool:
    pairs = zip(params_in(one).items(), params_in(two).items(), strict=True)
    return dict(one["metrics"]) == dict(two["metrics"]) and all(a == b and np.array_equal(x, y) for (a, x), (b, y) in pairs)


def params_in(content: RecordDict) -> Params:
    record = content["arrays"]
    assert isinstance(record, ArrayRecord)
    return records.params_of(record)


@pytest.mark.parametrize("name", CASES)
def test_a_real_client_on_a_stream_answers_as_the_simulated_one(name: str, tiny: Any) -> None:
    """Fresh processes that know no more than Flower's state give the simulator's bits, message after message."""
    table = tiny({**STREAM, **CASES[name]})
    parts = build(load(table))
    others = [build(load(table)) for _ in range(2)]

    def fresh(number: int) -> ClientApp:
        here = others[number % 2]
        return client_app(
            lambda context: Site(
                here.fleet.client(int(context.node_config["partition-id"])), here.job, here.engine,
                now=lambda context: context.run_config["at"],  # type: ignore[return-value]
            )
        )  # fmt: skip

    assert [True] * 8 == answers(parts, fresh)
    # Teeth: one that forgets gives other bits from the second message on.
    assert False in answers(build(load(table)), fresh, keep=lambda _: RecordDict())[2:]


def test_the_entry_waits_and_says_when_the_stream_has_ended(scenario_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's entry lets real seconds pass until the trigger holds, trains on what came, and ends with an error reply."""
    path = scenario_file({**STREAM, "stream.items": 20})
    clock = [1_000_000.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    fake = SimpleNamespace(time=lambda: clock[0], monotonic=lambda: clock[0], process_time=lambda: 0.0, sleep=sleep)
    monkeypatch.setattr("fedsim.real.client.time", fake)
    parts = build(load(path))
    streams = parts.federation.streams
    assert streams is not None
    arrived = streams.of(1).arrived_s
    state = RecordDict()
    weights: list[Any] = []
    for _ in range(4):
        content = RecordDict({"arrays": compat.array_record(parts.first), "config": records.job_config(parts.job)})
        context = Context(1, records.node_of(1), {"partition-id": 1}, carried(state), {"scenario": str(path)})
        reply = entry(Message(content, records.node_of(1), "train"), context)
        state = context.state
        weights.append(reply.error.reason if reply.has_error() else reply.content["metrics"]["num-examples"])

    assert [9 + 2 * 4, "the client's stream has ended"] == [weights[0], weights[-1]]
    assert np.isclose(arrived[8], slept[0], atol=1e-3)
    assert np.isclose(sum(slept), arrived[-1], atol=1e-3)
