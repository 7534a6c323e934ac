"""Averages taken where numbers lie are Flower's own, to the last bit; and what is made late is what it would have been."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy

from fedsim.core.types import Params
from fedsim.flower import compat, compat_lazy
from fedsim.learn import weighted
from fedsim.learn.engine.stack import Stack
from fedsim.learn.work import Row

compat.set_identity()
FAMILY = [flower.FedAvg, flower.FedAvgM, flower.FedProx, flower.FedAdam, flower.FedYogi, flower.FedAdagrad]
SHAPES = {"one": (1,), "number": (), "two": (2,), "weight": (7, 33), "wide": (3, 900)}
CLIENTS = 53


class Nodes:
    """A grid of so many nodes, as far as sampling looks."""

    def get_node_ids(self) -> list[int]:
        return list(range(1000, 1000 + CLIENTS))


def stacked(dtype: type) -> list[Params | Row]:
    """Return rows of three stacks in no order, and some that lie alone, of large and small numbers: sums of them round."""
    draw, each = np.random.default_rng(3), list[Params | Row]()
    for rows in (20, 1, 25):
        arrays = [draw.normal(size=(rows, *s)) * 10.0 ** draw.integers(-4, 5, (rows, *[1] * len(s))) for s in SHAPES.values()]
        stack = Stack(list(SHAPES), [torch.from_numpy(array.astype(dtype)) for array in arrays])
        each += [Row(stack, at) for at in range(rows)]
    alone = CLIENTS - len(each)
    each += [{name: np.asarray(draw.normal(size=shape), dtype=dtype) for name, shape in SHAPES.items()} for _ in range(alone)]
    return [each[i] for i in draw.permutation(CLIENTS)]


def answers(each: Sequence[Params | Row], make: Callable[[Any, dict[str, Any]], RecordDict]) -> list[Message]:
    draw, replies = np.random.default_rng(4), list[Message]()
    for i, params in enumerate(each):
        asked = Message(RecordDict(), 1000 + i, "train")
        metrics = {"num-examples": int(draw.integers(1, 500)), "train_loss": float(draw.normal()), "more": float(draw.normal() * 1e8)}
        replies.append(compat_lazy.reply_to(asked, make(params, metrics), f"r{i}"))
    return replies


def plain(params: Params | Row, metrics: dict[str, Any]) -> RecordDict:
    return compat.reply_record(params.stack.row(params.at) if isinstance(params, Row) else params, metrics, writable=True)


def lazy(params: Params | Row, metrics: dict[str, Any]) -> RecordDict:
    return compat_lazy.LazyContent(params, metrics, writable=False)


def played(strategy: Strategy, dtype: type, make: Callable[[Any, dict[str, Any]], RecordDict], rounds: int = 2) -> list[Any]:
    """Return the bytes of each round's arrays, and its metrics; replies are the same in each."""
    given, each, found = {name: np.zeros(shape, dtype) for name, shape in SHAPES.items()}, stacked(dtype), list[Any]()
    arrays: Any = compat.array_record(given)
    for number in range(1, rounds + 1):
        list(strategy.configure_train(number, arrays, ConfigRecord(), Nodes()))  # pyright: ignore[reportArgumentType]
        arrays, metrics = strategy.aggregate_train(number, answers(each, make))
        assert arrays is not None and metrics is not None
        found.append(({name: (array.dtype, tuple(array.shape), array.numpy().tobytes()) for name, array in arrays.items()}, dict(metrics)))
        arrays = ArrayRecord({name: Array(array.numpy().astype(dtype)) for name, array in arrays.items()})
    return found


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_averages_from_stacks_have_the_bits_of_the_stock_methods(kind: Any, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays and metrics are Flower's own, whatever fits into a block; no reply is made."""
    more: dict[str, Any] = {"proximal_mu": 0.1} if kind is flower.FedProx else {}
    stock, made = played(kind(fraction_evaluate=0.0, **more), dtype, plain), list[Any]()

    def noted(params: Params | Row, metrics: dict[str, Any]) -> RecordDict:
        made.append(lazy(params, metrics))
        return made[-1]

    for block in (weighted.BLOCK_NUMBERS, 40, 1):
        monkeypatch.setattr(weighted, "BLOCK_NUMBERS", block)
        ours = kind(fraction_evaluate=0.0, **more)
        with compat_lazy.lazily(ours):
            assert stock == played(ours, dtype, noted)
        assert made and all(content.unseen for content in made)
        assert ours.train_metrics_aggr_fn is compat_lazy._STOCK_METRICS  # pyright: ignore[reportPrivateUsage]


def test_a_sum_in_another_order_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law has teeth: numpy's own sum along the clients, in pairs, is nearly the same, and that is not enough."""

    def in_pairs(pieces: Any, own: Any, factors: Any, shape: tuple[int, ...]) -> np.ndarray:
        rows: dict[int, np.ndarray] = dict(own)
        for array, places, numbers in pieces:
            rows.update((int(place), array[row]) for place, row in zip(places, numbers, strict=True))
        return np.asarray(np.ascontiguousarray(np.stack([rows[i] * factors[i] for i in range(len(factors))], -1)).sum(-1))

    stock, ours = played(FedAvg(fraction_evaluate=0.0), np.float32, plain), FedAvg(fraction_evaluate=0.0)
    monkeypatch.setattr(weighted, "_sum", in_pairs)
    with compat_lazy.lazily(ours):
        assert stock != played(ours, np.float32, lazy)


def test_who_looks_finds_ordinary_messages() -> None:
    """A strategy that reads replies gets what it would have got, may write into it, and averages what it wrote."""

    class Doubling(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            for reply in replies[:5]:
                record = next(iter(reply.content.array_records.values()))
                reply.content["arrays"] = ArrayRecord({n: Array(np.asarray(2 * a.numpy())) for n, a in record.items()})
                reply.content["metrics"]["num-examples"] *= 2  # pyright: ignore
            return super().aggregate_train(server_round, replies)

    for kind in (Doubling, FedMedian):
        ours = kind(fraction_evaluate=0.0)
        with compat_lazy.lazily(ours):
            assert played(kind(fraction_evaluate=0.0), np.float32, plain) == played(ours, np.float32, lazy)


def test_what_flower_refuses_is_refused() -> None:
    """Replies of which one lacks the weight, or an array, are refused by Flower's own words."""
    each, ours = stacked(np.float32), FedAvg(fraction_evaluate=0.0)
    for cut in ({"x": 1.0}, {"num-examples": 3}):
        replies = answers(each, lazy)
        replies[7] = compat_lazy.reply_to(replies[7], lazy({"other": np.zeros(3, np.float32)}, cut), "r")
        with compat_lazy.lazily(ours), pytest.raises(Exception, match=r"must have the same keys"):
            ours.aggregate_train(1, replies)


def test_what_is_made_late_is_what_it_would_have_been() -> None:
    """Messages sent by stock strategies and replies to them: metadata, ids of objects, pickled copies; ours answer the canary."""
    assert compat_lazy.lazy_messages_work()
    strategy, arrays = FedAvg(fraction_evaluate=0.0), compat.array_record({"a": np.ones(3, np.float32)})
    with compat_lazy.lazily(strategy):
        sent = list(strategy.configure_train(3, arrays, ConfigRecord(), Nodes()))  # pyright: ignore[reportArgumentType]
    assert all(isinstance(message, Message) and "_metadata" not in vars(message) for message in sent)
    assert {("", "train", message.metadata.dst_node_id) for message in sent} == {compat_lazy.addressed(message) for message in sent}
    content = lazy({"a": np.arange(3, dtype=np.float32)}, {"num-examples": 3})
    reply = compat_lazy.reply_to(sent[0], content, "r1")
    back = pickle.loads(pickle.dumps(reply))

    assert reply.metadata.src_node_id == sent[0].metadata.dst_node_id and "r1" == back.metadata.message_id
    assert content.object_id == plain({"a": np.arange(3, dtype=np.float32)}, {"num-examples": 3}).object_id
    assert np.array_equal(back.content["arrays"]["a"].numpy(), np.arange(3, dtype=np.float32)) and dict(content.copy()) == dict(content)
