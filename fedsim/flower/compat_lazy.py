"""Messages that are made when somebody looks at them, and Flower's averages taken where the numbers lie: more touches of private names.

A stock strategy looks at no reply of a round: Flower's own functions for averaging are given what replies would be made of, and sum in
the order, the types and so the bits of the originals. Whoever looks finds ordinary messages. Each touch has a canary, and a law.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy, fedavg, strategy_utils

from fedsim.core.types import Params
from fedsim.flower import compat
from fedsim.learn.weighted import weighted
from fedsim.learn.work import Row

_STOCK_ARRAYS, _STOCK_METRICS = strategy_utils.aggregate_arrayrecords, strategy_utils.aggregate_metricrecords
_STOCK_CHECK = strategy_utils.validate_message_reply_consistency


Made = tuple[Params | Row, Mapping[str, float | int]]
"""What a reply is made of: parameters, and metrics."""


class LazyContent(compat.QuickDict):
    """A reply's content, of *params* (arrays by name, or a row of stacked ones) and *metrics*, which is made when somebody looks at it."""

    __slots__ = ("_metrics", "_params", "_whole", "_writable")

    def __init__(self, params: Params | Row, metrics: Mapping[str, float | int], *, writable: bool) -> None:
        self._params, self._metrics, self._writable = params, metrics, writable
        self._whole: dict[str, Any] | None = None

    @property
    def unseen(self) -> bool:
        """Return whether nobody has looked at it."""
        return self._whole is None

    @property
    def made_of(self) -> Made:
        """Return what it is made of."""
        return self._params, self._metrics

    @property
    def __dict__(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]  # All of Flower's go by it.
        if self._whole is None:
            params = self._params.stack.row(self._params.at) if isinstance(self._params, Row) else self._params
            self._whole = compat.reply_record(params, self._metrics, writable=self._writable).__dict__
        return self._whole

    def copy(self) -> Any:
        """Return a content of the same records."""
        return compat.filled(compat.blank(), dict(self.__dict__["_data"]))

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordDict, (dict(self.__dict__["_data"]),)


LazyContent.__qualname__ = "RecordDict"  # The name goes into the object's id.


class Lazy(Message):
    """A message whose metadata are made when somebody looks at them: by *make*, with the *id* that it was given."""

    @property
    def metadata(self) -> Any:
        """Return the metadata."""
        mine = self.__dict__
        if "_metadata" not in mine:
            mine["_metadata"] = metadata = mine["_make"](mine["_about"])
            metadata.__dict__["_message_id"] = mine["_id"]
        return mine["_metadata"]

    def __reduce__(self) -> tuple[Any, ...]:
        return compat.with_metadata, (self.content, self.metadata)


Lazy.__qualname__ = "Message"


def reply_to(message: Message, content: RecordDict, message_id: str) -> Message:
    """Return a reply with *content* to *message*, called *message_id*, as ``compat.reply_to`` does, made when somebody looks."""
    reply: Any = object.__new__(Lazy)
    reply.__dict__.update(_content=content, _error=None, _make=compat.reply_metadata, _about=message, _id=message_id)
    return reply


def set_message_id(message: Message, message_id: str) -> None:
    """Give *message* an id, whether it is made already or not."""
    mine = message.__dict__
    if "_metadata" in mine:
        mine["_metadata"].__dict__["_message_id"] = message_id
    else:
        mine["_id"] = message_id


def addressed(message: Message) -> tuple[str, str, int]:
    """Return a message's id, its type, and the node that it goes to, without making what is not made."""
    mine = message.__dict__
    if "_metadata" not in mine and mine["_make"] is _sending:
        node, kind = mine["_about"]
        return mine["_id"], kind, node
    metadata = message.metadata
    return metadata.message_id, metadata.message_type, metadata.dst_node_id


def _sending(about: tuple[int, str]) -> Any:
    return Message(RecordDict(), about[0], about[1]).metadata


def _sent(*args: Any, **given: Any) -> Message:
    """Return what ``Message`` would, made when somebody looks where it is as strategies send it: a content, to a node, of a type."""
    content, node, kind = given.get("content"), given.get("dst_node_id"), given.get("message_type")
    if args or len(given) != 3 or not isinstance(content, RecordDict) or not isinstance(node, int) or not isinstance(kind, str):
        return Message(*args, **given)
    message: Any = object.__new__(Lazy)
    message.__dict__.update(_content=content, _error=None, _make=_sending, _about=(node, kind), _id="")
    return message


def _checked(replies: Sequence[RecordDict], weighted_by_key: str, check_arrayrecord: bool) -> None:
    """Check what Flower checks of *replies*; where nobody has looked at them, by what they are made of."""
    if _unseen(replies, weighted_by_key, with_arrays=check_arrayrecord) is None:
        _STOCK_CHECK(cast(list[RecordDict], replies), weighted_by_key, check_arrayrecord)


def _unseen(replies: Sequence[RecordDict], key: str, *, with_arrays: bool | None) -> Sequence[Made] | None:
    """Return what *replies* are made of, where nobody has looked at any, and all have numbers of the same names, the weight *key* among
    them, and arrays of the same names; none *with_arrays* False, and any way with None. Otherwise None.
    """
    if not replies or not all(type(reply) is LazyContent and reply.unseen for reply in replies):
        return None
    made = [cast(LazyContent, reply).made_of for reply in replies]
    names = made[0][1].keys()
    if key not in names or not all(metrics.keys() == names for _, metrics in made):
        return None
    params = {id(each.stack): each for each, _ in made if isinstance(each, Row)}
    arrays = {*(row.stack.names for row in params.values()), *(tuple(each) for each, _ in made if not isinstance(each, Row))}
    # With arrays there are two records, and Flower looks at one.
    return made if len(arrays) == 1 and with_arrays in (None, arrays != {()}) else None


def _factors(made: Sequence[Made], key: str) -> list[float]:
    weights = [metrics[key] for _, metrics in made]
    total = sum(weights)
    return [weight / total for weight in weights]


def mean_arrays(records: list[RecordDict], weighting_metric_name: str) -> ArrayRecord:
    """Return what Flower's ``aggregate_arrayrecords`` does, to the last bit, and without making *records* that nobody has looked at."""
    made = _unseen(records, weighting_metric_name, with_arrays=True)
    mean = None if made is None else weighted([given for given, _ in made], _factors(made, weighting_metric_name))
    return _STOCK_ARRAYS(records, weighting_metric_name) if mean is None else compat.array_record(mean)


def mean_metrics(records: list[RecordDict], weighting_metric_name: str) -> MetricRecord:
    """Return what Flower's ``aggregate_metricrecords`` does, to the last bit, and without making *records* that nobody has looked at."""
    made = _unseen(records, weighting_metric_name, with_arrays=None)
    if made is None:
        return _STOCK_METRICS(records, weighting_metric_name)
    factors, found = _factors(made, weighting_metric_name), dict[str, float]()
    for name in made[0][1]:
        if name != weighting_metric_name:
            total, *rest = [metrics[name] * factor for (_, metrics), factor in zip(made, factors, strict=True)]
            for each in rest:  # By hand: from Python 3.12 on ``sum`` mends what rounding leaves out, and Flower does not.
                total += each
            found[name] = total
    return MetricRecord(cast(Any, found))


@contextmanager
def lazily(strategy: Strategy) -> Generator[None]:
    """Within, what stock strategies send is made when somebody looks, and they average without looking; *strategy* is the one at work."""
    if not lazy_messages_work():
        yield
        return
    changed: list[tuple[Any, str, Callable[..., Any]]] = []
    rule: Any = strategy
    while isinstance(rule, Strategy):
        for name in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"):
            if vars(rule).get(name) is _STOCK_METRICS:
                changed.append((rule, name, _STOCK_METRICS))
                setattr(rule, name, mean_metrics)
        rule = getattr(rule, "strategy", None)
    try:
        with (
            compat.replaced(fedavg, "Message", _sent), compat.replaced(fedavg, "aggregate_arrayrecords", mean_arrays),
            compat.replaced(fedavg, "validate_message_reply_consistency", _checked),
        ):  # fmt: skip
            yield
    finally:
        for rule, name, function in changed:
            setattr(rule, name, function)


@functools.cache
def lazy_messages_work() -> bool:
    """Return whether messages made late are, to this flwr, the messages they claim to be; their wall-clock times apart."""
    import numpy as np

    times = ("_created_at", "_ttl")

    def told(message: Message) -> dict[str, Any]:
        return {name: value for name, value in message.metadata.__dict__.items() if name not in times}

    try:
        params, metrics = {"a": np.arange(3, dtype=np.float32)}, {"num-examples": 3, "loss": 0.5}
        content = RecordDict({"m": MetricRecord({"x": 1.0})})
        late, plain = _sent(content=content, message_type="train", dst_node_id=7), Message(content, 7, "train")
        if addressed(late) != addressed(plain) or late.content is not content:
            return False
        for each in (late, plain):
            set_message_id(each, "m1")
        if told(late) != told(plain):
            return False
        lazy, whole = LazyContent(params, metrics, writable=False), compat.reply_record(params, metrics, writable=False)
        answer, quick = reply_to(late, lazy, "r1"), compat.reply_to(plain, whole)
        set_message_id(quick, "r1")
        same = lazy.unseen and lazy.object_id == whole.object_id and not lazy.unseen
        return same and told(answer) == told(quick) and answer.has_content() and not answer.has_error() and dict(lazy) == dict(whole)
    except Exception:  # As with lazy arrays: then everything is made at once, slower and as right.
        return False
