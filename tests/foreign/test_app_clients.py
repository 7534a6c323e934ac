"""How messages of an app go on virtual time: in the order in which they reach a client, late ones too, as on a real SuperNode."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

import fedsim
from fedsim.flower import compat, records
from fedsim.foreign import wire
from fedsim.foreign.clients import examples_of
from fedsim.foreign.server import odd_reply

Go = Callable[..., fedsim.Run]
Table = Callable[..., dict[str, Any]]
Make = Callable[..., Path]

CLIENT = """
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def counted(message, context):
        state = context.state.config_records.setdefault("mine", ConfigRecord({"seen": 0}))
        state["seen"] += 1
        content = {"m": MetricRecord({"num-examples": 10, "seen": state["seen"], "drawn": float(np.random.random())})}
        if message.metadata.message_type != "query":
            content["a"] = ArrayRecord({"w": Array(np.zeros(3))})
        return Message(RecordDict(content), reply_to=message)

    app.train()(counted)
    app.train("twice")(counted)
    app.query()(counted)
    """
SERVER = """
    import time
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.serverapp import ServerApp

    app = ServerApp()

    def message(node, size=3, kind="train"):
        return Message(RecordDict({"a": ArrayRecord({"w": Array(np.zeros(size))}), "c": ConfigRecord({"server-round": 1})}), node, kind)

    def seen(reply):
        return reply.error.reason if reply.has_error() else int(reply.content["m"]["seen"])

    @app.main()
    def main(grid, context):
    BODY
    """


@pytest.fixture
def said(run: Go, app_of: Make, fleet: Table) -> Callable[..., tuple[fedsim.Run, list[str]]]:
    """Return what runs a server of the given body over the counting client, and the lines that it printed."""

    def go(body: str, **clients: Any) -> tuple[fedsim.Run, list[str]]:
        server = textwrap.dedent(SERVER).replace("BODY", textwrap.indent(textwrap.dedent(body), "    "))
        links = {"kind": "constant", "down_mbps": 8.0, "up_mbps": 8.0}
        slow = {"count": 3, "compute": {"kind": "constant", "gflops": 1.0}, "network": links}
        app = app_of(f"app{abs(hash(body))}", server_app=server, client_app=CLIENT)
        costs = {"train": {"seconds": 1.0}, "train.twice": {"seconds": 2.0}}
        done = run(app, fleet(clients={**slow, **clients}, compute=costs))
        said = done.path / "app.log"
        return done, said.read_text().splitlines() if said.exists() else []

    return go


def test_a_message_that_overtakes_another_is_seen_first(said: Any) -> None:
    """A small message sent after a large one reaches the client first, and the large one sees what it left behind."""
    done, lines = said("""
        nodes = list(grid.get_node_ids())
        ids = list(grid.push_messages([message(nodes[0], 1_000_000)])) + list(grid.push_messages([message(nodes[0], 3)]))
        replies = []
        while len(replies) < 2:
            replies += [(reply.metadata.reply_to_message_id, seen(reply)) for reply in grid.pull_messages(ids)]
            time.sleep(0.1)
        print(sorted(replies))
        """)

    assert ["[('m000000001', 2), ('m000000002', 1)]"] == lines
    assert [1, 0] == list(done.tasks.sort_values("message").number)


def test_a_late_reply_leaves_its_mark_at_the_client(said: Any) -> None:
    """Who waits too short gets nothing and the row says late; the client has acted on the message all the same."""
    done, lines = said("""
        node = list(grid.get_node_ids())[0]
        print(len(list(grid.send_and_receive([message(node)], timeout=0.5))))
        print([seen(reply) for reply in grid.send_and_receive([message(node)])])
        """)

    assert ["0", "[2]"] == lines
    assert ["late", "arrived"] == list(done.tasks.outcome)


def test_kinds_and_their_actions_cost_what_the_fleet_says(said: Any) -> None:
    """An action has a cost of its own, a query none but the device's; each kind counts its own tasks."""
    done, lines = said("""
        node = list(grid.get_node_ids())[0]
        for kind in ("train", "train.twice", "query", "train"):
            print([seen(reply) for reply in grid.send_and_receive([message(node, kind=kind)])])
        """)
    took = (done.tasks.computed_s - done.tasks.started_s).round(9)

    assert ["[1]", "[2]", "[3]", "[4]"] == lines
    assert [1.0, 2.0, 0.0, 1.0] == list(took)
    assert [("train", 0), ("train.twice", 0), ("query", 0), ("train", 1)] == list(zip(done.tasks.kind, done.tasks.number, strict=True))


def test_who_is_not_there_is_an_error_reply(said: Any) -> None:
    """A message to a node that there is not is answered at once by Flower's error, and nothing is computed."""
    done, lines = said("""
        reply, = grid.send_and_receive([message(7)])
        print(reply.has_error(), reply.error.code)
        """)

    assert ["True 5"] == lines
    assert ["failed"] == list(done.tasks.outcome)


def test_pulls_return_at_once_and_polls_without_sleep_go_on(said: Any) -> None:
    """A pull finds nothing before a reply is there; asked again at the same instant, it comes back with the next arrival."""
    _, lines = said("""
        ids = list(grid.push_messages([message(node) for node in grid.get_node_ids()]))
        print(len(list(grid.pull_messages(ids))), round(time.time() - 1_767_225_600.0, 3))
        found = 0
        while found < 3:
            found += len(list(grid.pull_messages(ids)))
        print(found, time.monotonic() > 1.0)
        """)

    assert ["0 0.0", "3 True"] == lines


def test_what_is_sent_is_what_it_was_then(said: Any) -> None:
    """A server that changes a content after the push, arrays too, changes nothing that is on its way."""
    done, _ = said("""
        node, other = list(grid.get_node_ids())[:2]
        content = RecordDict({"a": ArrayRecord({"w": Array(np.zeros(3))}), "c": ConfigRecord({"server-round": 1})})
        ids = list(grid.push_messages([Message(content, node, "train")]))
        content["a"]["w"] = Array(np.ones(30))
        content["c"]["server-round"] = 2
        ids += list(grid.push_messages([Message(content, other, "train")]))
        time.sleep(9)
        list(grid.pull_messages(ids))
        """)

    assert [1, 2] == list(done.tasks["round"])
    assert [0, 1] == list(done.tasks.version)
    assert 27 * 8 == done.tasks.down_bytes.diff().iloc[1]


def test_records_cross_as_they_are() -> None:
    """Any content comes back equal, lists and bytes too, also once Flower has hashed it; the digest sees every part."""
    content = RecordDict({
        "a": ArrayRecord({"x": Array(np.arange(6, dtype=np.float32).reshape(2, 3)), "y": Array(np.array(3, dtype=np.int64))}),
        "m": MetricRecord({"i": 1, "f": 0.5, "l": [1.0, 2.0]}),
        "c": ConfigRecord({"s": "x", "b": b"\\0", "t": True, "k": ["a", "b"]}),
    })  # fmt: skip
    _ = content.object_id
    back = wire.records(wire.plain(content))

    assert back == content and back.object_id == content.object_id
    assert list(back) == list(content)
    digests = {wire.digest(wire.plain(content))}
    for change in (lambda c: c["m"].update(i=2), lambda c: c["c"].update(t=False), lambda c: c["a"].update(y=Array(np.array(4)))):
        other = wire.records(wire.plain(content))
        change(other)
        digests.add(wire.digest(wire.plain(other)))
    assert 4 == len(digests)


def test_a_replys_examples_are_found_wherever_they_are_told() -> None:
    """Today's replies say num-examples, legacy ones have a record for it; who says none has none."""
    def told(**items: Any) -> int | None:
        return examples_of(wire.plain(RecordDict({"m": MetricRecord(items)})))

    assert (7, 7, None) == (told(**{"num-examples": 7}), told(num_examples=7), told(loss=1.0))


def test_replies_that_agree_are_not_odd() -> None:
    """Only names and shapes count: other numbers, and errors between, are no oddity."""
    from flwr.app import Error, Message

    compat.set_identity()
    sent = [Message(RecordDict({"c": ConfigRecord()}), records.node_of(client), "train") for client in range(3)]
    replies = [Message(RecordDict({"a": ArrayRecord({"w": Array(np.full(2, i))})}), reply_to=m) for i, m in enumerate(sent)]

    assert "" == odd_reply([replies[0], Message(Error(2, "x"), reply_to=sent[1]), replies[2]])
