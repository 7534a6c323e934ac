"""Canaries: each touch of Flower's private names still does what we rely on, and each model of Flower's bytes holds."""

import pickle
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import superlink
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, strategy_utils

from fedsim.client.program import Reply
from fedsim.core.keys import Key
from fedsim.core.types import Params
from fedsim.flower import compat, compat_steps, records
from fedsim.learn.job import Job

compat.set_identity()
SHAPES = {"a.weight": (200, 784), "a.bias": (200,), "b.weight": (10, 200), "b.bias": (10,)}


def params(dtype: str = "float32") -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


class Nodes:
    """A grid of ten nodes, as far as sampling looks."""

    def get_node_ids(self) -> list[int]:
        return list(range(1000, 1010))


def test_a_message_needs_the_identity_that_we_set() -> None:
    """Without ``set_identity`` Flower refuses to make a message: the touch is still needed, and still enough."""
    code = "from flwr.app import Message, RecordDict; {} Message(RecordDict(), 5, 'train'); print('made')"
    bare = subprocess.run([sys.executable, "-c", code.format("")], capture_output=True, text=True, check=False)
    ours = code.format("from fedsim.flower import compat; compat.set_identity();")
    told = subprocess.run([sys.executable, "-c", ours], capture_output=True, text=True, check=False)

    assert "RuntimeError" in bare.stderr
    assert "made" in told.stdout, told.stderr


def test_a_message_keeps_the_id_and_the_source_that_it_is_given() -> None:
    """The id we set is the one that a reply refers to, and the node we set is the one that it goes to."""
    message = Message(RecordDict(), 5, "train")
    compat.set_message_id(message, "m7")
    compat.set_source(message, 1003)

    assert ("m7", 1003) == (message.metadata.message_id, message.metadata.src_node_id)
    assert 1003 == Message(RecordDict(), reply_to=message).metadata.dst_node_id
    assert "m7" == Message(RecordDict(), reply_to=message).metadata.reply_to_message_id


def test_a_quick_reply_is_a_reply_to_flower() -> None:
    """A reply made without Flower's checks has the metadata that Flower gives one, its wall-clock times apart."""
    compat.set_identity()
    sent = Message(RecordDict({"a": MetricRecord({"x": 1.0})}), 1003, "train", group_id="5")
    compat.set_message_id(sent, "m7")
    quick, plain = compat.reply_to(sent, sent.content), Message(sent.content, reply_to=sent)
    about = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "message_type", "message_id")

    assert compat.quick_messages_work()
    assert [getattr(plain.metadata, name) for name in about] == [getattr(quick.metadata, name) for name in about]
    assert plain.content == quick.content


def test_a_lazy_array_is_an_array_to_flower() -> None:
    """Object id, bytes and numbers of a lazy record are those of a plain one, and it pickles after hashing."""
    lazy, plain = compat.array_record(params()), ArrayRecord({n: Array(a) for n, a in params().items()})

    assert compat.lazy_arrays_work()
    assert plain.object_id == lazy.object_id
    assert plain.count_bytes() == lazy.count_bytes()
    back = pickle.loads(pickle.dumps(lazy))
    assert all(np.array_equal(back[name].numpy(), array) for name, array in params().items())


def test_replies_that_share_memory_cannot_be_written() -> None:
    """A read-only reply raises on writing; a writable one hands out copies."""
    mine = params()
    shared, owned = compat.array_record(mine, writable=False), compat.array_record(mine, writable=True)

    with pytest.raises(ValueError, match="read-only"):
        shared["a.bias"].numpy()[0] = 1.0
    before = mine["a.bias"][0]
    owned["a.bias"].numpy()[0] = 1e9
    assert before == mine["a.bias"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (200, 784), (7, 1, 5, 5)])
def test_the_size_of_an_array_follows_from_its_shape(dtype: str, shape: tuple[int, ...]) -> None:
    """``encoded_bytes`` is the length of what Flower makes of the array."""
    assert len(Array(np.zeros(shape, dtype)).data) == compat.encoded_bytes(dtype, shape)


def test_a_reply_weighs_what_was_foretold() -> None:
    """The size foretold from shapes is the encoded size, and Flower's own count of the payload."""
    reply = Reply(params(), {"num-examples": 600, "train_loss": 0.5})
    content = records.reply_content(reply, writable=True)
    foretold = records.reply_size(records.forms(params()), ("num-examples", "train_loss"))

    assert foretold == records.size_of(content, records.UP)
    assert foretold.payload == sum(record.count_bytes() for record in content.values())


@pytest.mark.parametrize("training", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize("arrays", [
    {"w": np.zeros(8, "float32")}, params(), params("float64"), {f"layers.{i}.weight": np.full((16, 16), i, "float32") for i in range(40)},
    {"embedding.weight": np.ones((1300, 1024), "float64"), "bias": np.zeros(7, "float32")},
], ids=["one", "two", "float64", "many", "in pieces"])  # fmt: skip
def test_framing_is_what_a_superlink_counts(training: bool, arrays: Params) -> None:
    """Payload plus framing of a message and its reply is what a SuperLink counts, each way, within 1 % and 32 bytes."""
    config = records.job_config(Job()) if training else ConfigRecord()
    config["server-round"] = 12
    message = Message(RecordDict({"arrays": compat.array_record(arrays), "config": config}), 2**63 + 5, "train" if training else "evaluate")
    moved = superlink.down(message)  # Which gives it its id, that the reply names.
    trained = {name: array + 1 for name, array in arrays.items()} if training else {}
    reply = Message(records.reply_content(Reply(trained, {"num-examples": 600, "train_loss": 0.5}), writable=True), reply_to=message)
    ours_up = records.size_of(reply.content, records.UP)
    up, answered = superlink.up(reply)

    for ours, counted in (
        (records.size_of(message.content, records.DOWN).total, moved),
        (ours_up.total, up), (ours_up.back, answered),
    ):
        assert abs(ours - counted) <= 32 + 0.01 * counted


def test_sampling_waits_on_the_clock_it_is_given() -> None:
    """Within ``virtual_sleep`` node sampling sleeps where we say, and not after it."""
    slept: list[float] = []

    class Late(Nodes):
        def get_node_ids(self) -> list[int]:
            return super().get_node_ids() if slept else []

    with compat.virtual_sleep(slept.append):
        strategy_utils.sample_nodes(Late(), 2, 2)  # pyright: ignore[reportArgumentType]

    assert [1] == slept
    assert slept.append is not strategy_utils.sleep


def test_draws_are_named_by_round_and_leave_no_trace() -> None:
    """Two strategies draw the same nodes in round 3 whatever was drawn before; the global generators do not move."""
    arrays = compat.array_record(params())

    def nodes(rounds: list[int], key: Key) -> list[list[int]]:
        strategy: Any = compat_steps.name_draws(FedAvg(fraction_train=0.5), key)
        asked = [strategy.configure_train(r, arrays, ConfigRecord(), Nodes()) for r in rounds]
        return [[m.metadata.dst_node_id for m in messages] for messages in asked]

    before, before_numpy = random.getstate(), repr(np.random.get_state(legacy=False))
    one, other = nodes([1, 2, 3], Key(1)), nodes([3], Key(1))

    assert one[2] == other[0]
    assert one[0] != one[1]
    assert one[2] != nodes([3], Key(2))[0]
    assert before == random.getstate()
    assert before_numpy == repr(np.random.get_state(legacy=False))


def test_unnamed_draws_would_be_noticed() -> None:
    """Flower's own sampling, unnamed, depends on what was drawn before: the test above can fail."""
    arrays, asked = compat.array_record(params()), []
    for rounds in ([1, 2, 3], [3]):
        random.seed(1)
        strategy = FedAvg(fraction_train=0.5)
        messages = [list(strategy.configure_train(r, arrays, ConfigRecord(), Nodes())) for r in rounds]  # pyright: ignore[reportArgumentType]
        asked.append([m.metadata.dst_node_id for m in messages[-1]])

    assert asked[0] != asked[1]


def test_flowers_own_threads_draw_from_a_generator_of_their_own() -> None:
    """Heartbeats and pauses before another try leave Python's generator alone; without ``keep_apart`` they still would not."""
    beat = """
import importlib, random, threading
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.retry.retry_invoker import full_jitter
from fedsim.flower import compat_draws
{}
def heartbeat():
    with_one.append(threading.get_ident()); beaten.set(); return True
moved, beaten, with_one = [], threading.Event(), []
for what in ("heartbeat", "jitter", "pull"):
    before = random.getstate()
    if what == "heartbeat":
        sender = HeartbeatSender(heartbeat); sender.start(); beaten.wait(10); sender.stop()
    else:
        (full_jitter(1.0) if what == "jitter" else importlib.import_module(compat_draws.DRAWERS[2]).random.uniform(0, 1))
    moved += [what] if random.getstate() != before else []
print(len(with_one), *moved)
"""
    said = [
        subprocess.run([sys.executable, "-c", beat.replace("{}", words)], capture_output=True, text=True, check=True).stdout.split()
        for words in ("", "compat_draws.keep_apart()")
    ]

    assert [["1", "heartbeat", "jitter", "pull"], ["1"]] == said
