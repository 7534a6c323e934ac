"""VirtualGrid keeps Flower's contract, on virtual time."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.errors import RunError
from fedsim.flower import compat, records
from fedsim.learn.engine.queue import here
from fedsim.learn.stopping import Patience
from fedsim.learn.work import Start
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load
from fedsim.sim.grid import VirtualGrid
from fedsim.sim.rows import RoundRow, TaskRow, VersionRow

Table = dict[str, Any]


class Heard:
    """Keeps every row."""

    def __init__(self) -> None:
        self.tasks: list[TaskRow] = []
        self.rounds: list[RoundRow] = []
        self.versions: list[tuple[int, float, list[int]]] = []

    def task(self, row: TaskRow) -> None:
        self.tasks.append(row)

    def round(self, row: RoundRow) -> None:
        self.rounds.append(row)

    def heard(self, row: Any) -> None: ...

    def version(self, row: VersionRow) -> None:
        self.versions.append((row.version, row.now_s, row.merged.tolist()))


@pytest.fixture
def world(tiny: Callable[..., Table]) -> Callable[..., tuple[VirtualGrid, Parts, Heard]]:
    """Return ``world(overrides)``: a grid over the tiny scenario, what it was built from, and what it tells."""

    def make(overrides: Table | None = None, **settings: Any) -> tuple[VirtualGrid, Parts, Heard]:
        parts, heard = build(load(tiny(overrides or {}))), Heard()
        return VirtualGrid(parts.fleet, here(parts.engine), heard, **settings), parts, heard

    return make


def order(parts: Parts, client: int, kind: str = "train", **config: Any) -> Message:
    """Return a message to *client* that orders the scenario's job."""
    asked = records.job_config(parts.job) if kind == "train" else ConfigRecord()
    asked.update(config)
    content = RecordDict({"arrays": compat.array_record(parts.first), "config": asked})
    return Message(content, records.node_of(client), kind)


def test_content_is_as_it_was_when_sent(world: Any) -> None:
    """Changing a config record after the push changes nothing for clients that read it later."""
    grid, parts, heard = world()
    shared = order(parts, 0, **{"server-round": 1})
    ids = grid.push_messages([shared])
    shared.content["config"]["server-round"] = 2
    shared.content["config"]["lr"] = 1e9
    replies = grid.pull_messages(ids)

    assert 1 == heard.tasks[0].round
    assert all(np.isfinite(a.numpy()).all() for a in replies[0].content["arrays"].values())


def test_a_client_does_one_message_at_a_time(world: Any) -> None:
    """Of three messages to one client, each starts when the one before has left the device."""
    grid, parts, heard = world()
    ids = list(grid.push_messages([order(parts, 2) for _ in range(3)]))
    while len(heard.tasks) < 3:
        grid.pull_messages(ids)
    rows = sorted(heard.tasks, key=lambda row: row.started_s)

    assert [0, 1, 2] == [row.number for row in rows]
    assert all(later.started_s >= earlier.arrived_s for earlier, later in zip(rows, rows[1:], strict=False))


def test_replies_come_sorted_by_client(world: Any) -> None:
    """Whoever is first, replies are handed over by client: float sums depend on order."""
    grid, parts, heard = world({"clients.compute.sigma": 2.0})
    replies = grid.send_and_receive([order(parts, c) for c in (4, 1, 5, 0)], timeout=1e6)

    assert [0, 1, 4, 5] == [records.client_of(reply.metadata.src_node_id) for reply in replies]
    arrivals = [row.arrived_s for row in heard.tasks]
    assert arrivals != sorted(arrivals)  # They did not arrive in this order.


def test_polling_advances_to_the_next_arrival(world: Any) -> None:
    """``pull_messages`` with nothing there moves the clock to the next reply, and hands over just that one."""
    grid, parts, _ = world()
    ids = list(grid.push_messages([order(parts, c) for c in range(4)]))
    seen: list[float] = []
    count = 0
    while count < 4:
        got = list(grid.pull_messages(ids))
        count += len(got)
        seen.append(grid.now)

    assert seen == sorted(set(seen))
    assert [] == list(grid.pull_messages(ids))


def flops(parts: Any) -> float:
    """Return what the first client's first task takes."""
    task, _ = parts.fleet.client(0).plan(Order(parts.job, Start(parts.first)), Kept())
    return parts.fleet.flops.of(task)


def test_a_reply_at_the_deadline_is_in_time(world: Any) -> None:
    """With a task of exactly the timeout's length the reply counts; with a hair less time it is late."""
    length: dict[str, Any] = {
        "clients.compute": {"kind": "constant", "gflops": 1e9, "overhead_s": 5.0},
        "clients.network": {"kind": "ideal"},
    }
    grid, parts, _ = world(length)
    whole = grid.send_and_receive([order(parts, 0)], timeout=5.0 + flops(parts) / 1e18)
    grid, parts, heard = world(length)
    short = grid.send_and_receive([order(parts, 0)], timeout=4.999)

    assert (1, 0) == (len(list(whole)), len(list(short)))
    assert (1, 0) == (heard.rounds[0].missed, heard.rounds[0].arrived)


def test_a_late_reply_is_recorded_and_never_handed_over(world: Any) -> None:
    """After its deadline a reply is settled as late when it arrives; its bytes are accounted for."""
    grid, parts, heard = world()
    assert [] == list(grid.send_and_receive([order(parts, 0)], timeout=0.5))
    grid.send_and_receive([order(parts, 1)], timeout=1e6)
    grid.send_and_receive([order(parts, 0)], timeout=1e6)
    grid.finish()

    assert ["late", "arrived", "arrived"] == [row.outcome for row in sorted(heard.tasks, key=lambda row: row.message)]
    assert "" == next(row.result for row in heard.tasks if row.outcome == "late")


def test_unknown_work_and_unknown_nodes_get_flowers_error_codes(world: Any) -> None:
    """A query is answered with CLIENT_APP_RAISED_EXCEPTION, a node that is not there with NODE_UNAVAILABLE."""
    grid, parts, heard = world()
    query, nobody = order(parts, 0, kind="query"), order(parts, 99)
    codes = [reply.error.code for reply in grid.send_and_receive([query, nobody], timeout=60.0)]
    grid.finish()

    assert [records.CLIENT_RAISED, records.NODE_UNAVAILABLE] == codes
    assert {"failed"} == {row.outcome for row in heard.tasks}
    assert 0 == next(row.wire_bytes for row in heard.tasks if row.client == 99)


def test_a_mod_that_refuses_gives_an_error_reply(world: Any) -> None:
    """A mod's own error reply reaches the strategy under the request's id, whatever the mod wrote into it."""
    from flwr.app import Error

    def refuse(message: Message, context: Any, call_next: Any) -> Message:
        return Message(Error(6, "no"), reply_to=call_next(message, context))  # As LocalDpMod does: to the wrong one.

    grid, parts, heard = world(mods=[refuse])
    ids = list(grid.push_messages([order(parts, 0)]))
    replies = list(grid.pull_messages(ids))

    assert [6] == [reply.error.code for reply in replies]
    assert ["failed"] == [row.outcome for row in heard.tasks]


def test_waiting_for_nobody_ends_the_run(world: Any) -> None:
    """A wait for others when availability never changes stops the run and says so; a plain sleep there is a sleep."""
    grid, _, _ = world()
    grid.sleep(2.5)
    grid.sleep(0.0)
    assert 2.5 == grid.now
    with pytest.raises(RunError, match="no other will ever come"):
        grid.wait_for_others(1.0)
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(RunError, match="must be >= 0 and finite"):
            grid.sleep(wrong)


def test_what_comes_in_a_sleep_is_there_after_it(world: Any) -> None:
    """A sleep lets everything happen that it covers, the last instant included, and moves the clock by no more than itself."""
    grid, parts, heard = world()
    ids = list(grid.push_messages([order(parts, 0)]))
    assert 1 == len(grid.pull(ids))
    took_s = heard.tasks[0].arrived_s
    grid, parts, heard = world()
    ids = list(grid.push_messages([order(parts, c) for c in range(6)]))
    grid.sleep(took_s)
    replies = grid.pull(ids, timeout=0.0)

    assert took_s == grid.now
    assert 0 in [row.client for row in heard.tasks] and len(replies) == sum(row.arrived_s <= took_s for row in heard.tasks) < 6


def test_a_polling_server_waits_for_a_deadline(world: Any) -> None:
    """Pulls with a deadline hand over what came in time, end at the deadline or with the last reply, and lose nothing."""
    grid, parts, heard = world({"clients.compute.sigma": 2.0})
    ids = list(grid.push_messages([order(parts, c) for c in range(6)]))
    seen: list[list[float]] = []
    while sum(map(len, seen)) < 6:
        before = len(heard.tasks)
        began_s, replies = grid.now, grid.pull(ids, timeout=0.03)
        seen.append([row.arrived_s for row in heard.tasks[before:]])
        assert len(replies) == len(seen[-1]) and all(began_s < at <= began_s + 0.03 for at in seen[-1])
        assert grid.now == (began_s + 0.03 if sum(map(len, seen)) < 6 else max(seen[-1]))
    before_s = grid.now

    assert len([got for got in seen if got]) > 1 and not all(seen)
    assert [] == grid.pull(ids, timeout=5.0) and before_s == grid.now


def test_a_polling_server_waits_for_enough(world: Any) -> None:
    """A buffered server gets three replies at a time, those first that come first; asked for more than can come it gets the rest."""
    grid, parts, heard = world({"clients.compute.sigma": 2.0, "clients.count": 7})
    ids, sizes = list(grid.push_messages([order(parts, c) for c in range(7)])), []
    while replies := grid.pull(ids, enough=3):
        sizes.append(len(replies))
    arrived_s = [row.arrived_s for row in heard.tasks]

    assert [3, 3, 1] == sizes
    assert max(arrived_s[:3]) <= min(arrived_s[3:6]) and max(arrived_s[3:6]) <= arrived_s[6]


def test_bytes_that_vanish_are_noticed(world: Any) -> None:
    """An unaccounted byte breaks the invariant at the end: the check can fail."""
    grid, parts, _ = world()
    grid.send_and_receive([order(parts, 0)], timeout=1e6)
    grid.invariants.sent(up=1)
    with pytest.raises(RunError, match="invariant broken"):
        grid.finish()


def test_contents_from_a_generator_reach_whom_they_are_for(world: Any) -> None:
    """Sixty messages made one by one, each with its own round, arrive with it: no content is taken for another."""
    grid, parts, heard = world({"clients.count": 60})
    ids = list(grid.push_messages(order(parts, c, **{"server-round": c}) for c in range(60)))
    while len(heard.tasks) < 60:
        grid.pull_messages(ids)

    assert all(row.round == row.client for row in heard.tasks)


def test_one_content_that_changes_between_messages_is_read_each_time(world: Any) -> None:
    """A config record that changes while messages are being pushed reaches each client as it was then."""
    grid, parts, heard = world()
    shared = order(parts, 0).content

    def messages() -> Any:
        for client in range(4):
            shared["config"]["server-round"] = client
            yield Message(shared, records.node_of(client), "train")

    grid.send_and_receive(messages(), timeout=1e6)

    assert [0, 1, 2, 3] == [row.round for row in sorted(heard.tasks, key=lambda row: row.client)]


def test_a_version_is_a_model_not_an_object(world: Any) -> None:
    """The same parameters wrapped anew for each client are one version; others are another."""
    grid, parts, heard = world()
    grid.send_and_receive([order(parts, c) for c in range(3)], timeout=1e6)
    other = {name: array + 1 for name, array in parts.first.items()}
    for params in (other, parts.first):
        content = RecordDict({"arrays": compat.array_record(params), "config": records.job_config(parts.job)})
        grid.send_and_receive([Message(content, records.node_of(4), "train")], timeout=1e6)

    assert [0, 0, 0, 1, 0] == [row.version for row in heard.tasks]


def test_a_strategy_with_a_config_of_its_own_trains_the_scenarios_job(world: Any) -> None:
    """A config record without our keys leaves the job as the scenario says; one that contradicts itself stops the run."""
    grid, parts, heard = world({"training.steps": 3, "training.batch_size": 4})
    content = RecordDict({"arrays": compat.array_record(parts.first), "mine": ConfigRecord({"temperature": 1.0})})
    grid.send_and_receive([Message(content, records.node_of(0), "train")], timeout=1e6)

    assert [3] == [row.steps for row in heard.tasks]
    with pytest.raises(RunError, match="epochs = 3 and steps = 3"):
        grid.push_messages([order(parts, 0, epochs=3)])


def test_a_message_may_order_a_share_of_an_epoch(world: Any) -> None:
    """Half an epoch is half of its batches, in as many bytes; 2.0 epochs are 2. Without end, or with early stopping, it stops the run."""
    grid, parts, heard = world()
    assert isinstance(records.job_config(parts.job)["epochs"], int)
    sent = [order(parts, 0, epochs=epochs) for epochs in (1, 0.5, 2, 2.0)]
    for message in sent:
        grid.send_and_receive([message], timeout=1e6)

    assert [3, 2, 6, 6] == [row.steps for row in heard.tasks]
    assert 1 == len({row.down_bytes for row in heard.tasks})
    usual = dataclasses.replace(parts.job, stopping=Patience(1, 0.0))
    orders = [records.order_of(message, records.StartCache(), parts.job).job for message in sent[2:]]
    assert repr(orders[0]) == repr(orders[1])
    half = dataclasses.replace(parts.job, epochs=0.5)
    assert [0.5, 3] == [records.changed(half, changes)["epochs"] for changes in ({"lr_factor": 0.1}, {"epochs": 3})]
    for epochs, job, says in ((math.inf, parts.job, "epochs = inf"), (-1.0, parts.job, "epochs = -1.0"), (0.5, usual, "stops after whole")):
        with pytest.raises(RunError, match=says):
            records.order_of(order(parts, 0, epochs=epochs), records.StartCache(), job)


def test_a_message_can_be_sent_twice(world: Any) -> None:
    """Each sending has an id of its own, and each reply names the one it answers."""
    grid, parts, _ = world()
    message = order(parts, 0)
    ids = list(grid.push_messages([message, message]))
    replies = [*grid.pull_messages(ids), *grid.pull_messages(ids)]

    assert ids == [reply.metadata.reply_to_message_id for reply in replies]
