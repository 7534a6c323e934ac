"""Every touch of Flower's private names, here and in the ``compat_`` files beside; each has a canary test in ``tests/flower``.

Supports flwr 1.38 and later, below 2. A name that has moved makes the canary fail, not a run go wrong.
"""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.recorddict import _SyncedDict  # pyright: ignore[reportPrivateUsage]
from flwr.serverapp.strategy import multikrum, strategy_utils
from flwr.supercore.differential_privacy import KEY_NORM_BIT
from flwr.supercore.task_identity import TaskIdentity

from fedsim.core import warned
from fedsim.core.types import Array as NDArray
from fedsim.core.types import Params
from fedsim.flower.distances import squared_distances

_LOG = logging.getLogger("flwr")

NORM_BIT = KEY_NORM_BIT
"""The metric that Flower's adaptive clipping mod adds to a reply."""

SERVER_NODE = 1
"""The node id of Flower's SuperLink."""

READS_ONLY = frozenset({"FedAvg", "FedProx", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"})
"""Stock strategies that never write into a reply's arrays: these may read the engine's own memory."""


def set_identity(node: int = SERVER_NODE) -> None:
    """Tell Flower who is speaking: from 1.38 on ``Message()`` raises without it. Process-wide, hence constant."""
    identity: Any = TaskIdentity
    identity.task_id, identity.run_id, identity.node_id = 1, 1, node


def set_message_id(message: Message, message_id: str) -> None:
    """Give *message* an id. Flower's own grids do exactly this; there is no public setter."""
    message.metadata.__dict__["_message_id"] = message_id


def set_source(message: Message, node: int) -> None:
    """Let *message* come from *node*; there is no public setter."""
    message.metadata.__dict__["_src_node_id"] = node


def with_metadata(content: RecordDict, metadata: Any) -> Message:
    """Return a message with *content* and *metadata* as given; the constructor takes them, its signature hides it."""
    make: Any = Message
    return make(content, metadata=metadata)


def reply_to(message: Message, content: RecordDict) -> Message:
    """Return a reply with *content* to *message*, as ``Message(content, reply_to=message)``, without its checks."""
    return _quick_message(message, content) if quick_messages_work() else Message(content, reply_to=message)


def reply_metadata(message: Message) -> Any:
    """Return the metadata of a reply to *message*, which has no id yet."""
    asked = message.metadata.__dict__
    metadata: Any = object.__new__(type(message.metadata))
    metadata.__dict__.update(
        _run_id=asked["_run_id"], _message_id="", _src_node_id=asked["_dst_node_id"], _dst_node_id=asked["_src_node_id"],
        _src_task_id=asked["_dst_task_id"], _dst_task_id=asked["_src_task_id"],
        _reply_to_message_id=asked["_message_id"], _group_id=asked["_group_id"], _created_at=asked["_created_at"],
        _ttl=asked["_ttl"], _message_type=asked["_message_type"], _delivered_at="",
    )  # fmt: skip
    return metadata


def _quick_message(message: Message, content: RecordDict) -> Message:
    reply: Any = object.__new__(Message)
    reply.__dict__.update(_metadata=reply_metadata(message), _content=content, _error=None)
    return reply


@functools.cache
def quick_messages_work() -> bool:
    """Return whether a reply filled from behind is, to this flwr, the reply it claims to be; its wall-clock times apart."""
    times = ("_created_at", "_ttl")
    try:
        sent = Message(RecordDict(), 7, "train", group_id="2")
        set_message_id(sent, "m1")
        quick, plain = _quick_message(sent, RecordDict()), Message(RecordDict(), reply_to=sent)
        same = {name: value for name, value in plain.metadata.__dict__.items() if name not in times}
        mine = {name: value for name, value in quick.metadata.__dict__.items() if name not in times}
        return same == mine and quick.__dict__.keys() == plain.__dict__.keys() and not quick.has_error()
    except Exception:  # As with lazy arrays: then replies are made the long way.
        return False


@functools.lru_cache(maxsize=64)
def type_name(dtype: np.dtype[Any]) -> str:
    """Return numpy's name of a type, remembered: numpy puts it together anew each time."""
    return str(dtype)


class LazyArray(Array):
    """A Flower Array over a numpy array that is serialised only if someone asks for its bytes.

    ``numpy()`` returns the array itself, read-only, or a copy that may be written (*writable*).
    """

    __slots__ = ()

    def __init__(self, array: NDArray, *, writable: bool = False) -> None:
        view = array.view()
        view.flags.writeable = False
        self.__dict__.update(
            _array=view, _writable=writable, dtype=type_name(view.dtype), shape=view.shape, stype="numpy.ndarray"
        )

    @property
    def data(self) -> bytes:
        """Return the bytes that would be sent (numpy's .npy format)."""
        if "_data" not in self.__dict__:
            self.__dict__["_data"] = Array.from_numpy_ndarray(self.__dict__["_array"]).data
        return self.__dict__["_data"]

    @data.setter
    def data(self, value: bytes) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]  # Made on demand.
        self.__dict__["_data"] = value

    def numpy(self) -> NDArray:
        """Return the array without a detour over bytes."""
        array = self.__dict__["_array"]
        return array.copy() if self.__dict__["_writable"] else array

    def __reduce__(self) -> tuple[Any, ...]:
        return (Array, (self.dtype, self.shape, self.stype, self.data))


LazyArray.__qualname__ = "Array"  # Flower writes the class's name into the object's header, hence into its id.


@functools.cache
def lazy_arrays_work() -> bool:
    """Return whether this flwr takes a LazyArray for an Array: same object id, same bytes, same numbers."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    try:
        record, plain = ArrayRecord(), ArrayRecord({"a": Array(array)})
        record["a"] = LazyArray(array)
        return record.object_id == plain.object_id and np.array_equal(record["a"].numpy(), array)
    except Exception:  # Whatever a future flwr does with it: then every reply is serialised, slower and as right.
        return False


def array_record(params: Params, *, writable: bool = True) -> ArrayRecord:
    """Return *params* as an ArrayRecord, without serialising where this flwr allows it."""
    if not lazy_arrays_work():
        return ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in params.items()})
    record = ArrayRecord()
    for name, array in params.items():
        record[name] = LazyArray(array, writable=writable)
    return record


class QuickDict(RecordDict):
    """A RecordDict whose views by type are made without checking again what was checked when it was put in.

    Stock strategies ask for these views several times per reply, and each item of each is checked three times.
    """

    def _view(self, allowed: type[Any]) -> Any:
        view: Any = object.__new__(_SyncedDict)
        found = {name: record for name, record in self.__dict__["_data"].items() if isinstance(record, allowed)}
        view.__dict__.update(
            _check_key_fn=self.__dict__["_check_key_fn"], _check_value_fn=view.check_value, _data=found,
            recorddict=self, allowed_type=allowed,
        )  # fmt: skip
        return view

    @property
    def array_records(self) -> Any:
        """Return the array records; what is set in the view is set here."""
        return self._view(ArrayRecord)

    @property
    def metric_records(self) -> Any:
        """Return the metric records; what is set in the view is set here."""
        return self._view(MetricRecord)

    @property
    def config_records(self) -> Any:
        """Return the config records; what is set in the view is set here."""
        return self._view(ConfigRecord)


QuickDict.__qualname__ = "RecordDict"  # As for LazyArray: the name goes into the object's id.


@functools.cache
def _blanks() -> tuple[QuickDict, ArrayRecord, MetricRecord]:
    return QuickDict(), ArrayRecord(), MetricRecord()


def blank() -> RecordDict:
    """Return a content without records."""
    return _blanks()[0].copy()


def filled(blank: Any, data: dict[str, Any]) -> Any:
    """Return a record like *blank* that holds *data*, unchecked."""
    record = blank.copy()
    record.__dict__["_data"] = data
    return record


@functools.cache
def quick_records_work() -> bool:
    """Return whether records filled from behind are, to this flwr, the records they claim to be."""
    params, metrics = {"a": np.arange(3, dtype=np.float32)}, {"num-examples": 3, "loss": 0.5}
    try:
        quick, plain = _quick_reply(params, metrics, False), _plain_reply(params, metrics, False)
        quick.metric_records["more"] = MetricRecord({"x": 1.0})
        plain.metric_records["more"] = MetricRecord({"x": 1.0})
        views = all(dict(getattr(quick, v)) == dict(getattr(plain, v)) for v in ("metric_records", "config_records"))
        return views and quick.object_id == plain.object_id and "more" in quick
    except Exception:  # As with lazy arrays: then replies are built the long way.
        return False


def reply_record(params: Params, metrics: Mapping[str, float | int], *, writable: bool) -> RecordDict:
    """Return a reply's content: an array record (where there are *params*) and a metric record.

    *metrics* must be plain numbers by name, which is what Flower would check.
    """
    make = _quick_reply if lazy_arrays_work() and quick_records_work() else _plain_reply
    return make(params, metrics, writable)


def quick_content(data: Mapping[str, tuple[str, Mapping[str, Any]]]) -> RecordDict | None:
    """Return a content of records by name, each "a", "m" or "c" with its items, unchecked; None where this flwr wants them checked.

    The items must be what such records hold: they were taken out of checked ones.
    """
    if not quick_records_work():
        return None
    content, arrays, numbers = _blanks()
    blanks = {"a": arrays, "m": numbers, "c": ConfigRecord()}
    return filled(content, {name: filled(blanks[kind], dict(items)) for name, (kind, items) in data.items()})


def _quick_reply(params: Params, metrics: Mapping[str, float | int], writable: bool) -> RecordDict:
    content, arrays, numbers = _blanks()
    data: dict[str, Any] = {}
    if params:
        data["arrays"] = filled(arrays, {n: LazyArray(a, writable=writable) for n, a in params.items()})
    data["metrics"] = filled(numbers, dict(metrics))
    return filled(content, data)


def _plain_reply(params: Params, metrics: Mapping[str, float | int], writable: bool) -> RecordDict:
    content = RecordDict()
    if params:
        content["arrays"] = array_record(params, writable=writable)
    content["metrics"] = MetricRecord(dict(metrics))
    return content


@functools.lru_cache(maxsize=4096)
def encoded_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes Flower makes of an array, from its type and shape alone (numpy's .npy format).

    >>> encoded_bytes("float32", (200, 784))
    627328
    """
    header = BytesIO()
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return len(header.getvalue()) + int(np.prod(shape)) * np.dtype(dtype).itemsize


def virtual_sleep(sleep: Callable[[float], None]) -> AbstractContextManager[None]:
    """Within, Flower's node sampling waits on *sleep* instead of the host's clock."""
    return replaced(strategy_utils, "sleep", sleep)


def exact_distances() -> AbstractContextManager[None]:
    """Within, Krum, MultiKrum and Bulyan choose by ``squared_distances`` instead of differences of large float32 sums."""
    return replaced(multikrum, "compute_distances", squared_distances)


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Generator[None]:
    """Within, *name* of *module* is *value*."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


NEW_OBJECTS = 10_000
"""Objects made and not yet freed after which the collector looks among the new ones: about those of a thousand messages under way.

Python's own 700 are had by a push of fifty, all of which it then goes through time and again.
"""


@contextmanager
def cheap_collections() -> Generator[None]:
    """Within, the garbage collector leaves alone what was there before, and looks for circles seldom: a message leaves none.

    Flower's ``to_numpy_ndarrays`` collects garbage at every call, 0.2 s each with torch loaded.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def say(words: str, *values: object) -> None:
    """Say *words* in Flower's log, as its own ``start`` would."""
    _LOG.info(words, *values)


def say_start(rounds: int, arrays: ArrayRecord, train: ConfigRecord, evaluate: ConfigRecord) -> None:
    """Say in Flower's log what a strategy starts with, in Flower's words."""
    strategy_utils.log_strategy_start_info(rounds, arrays, train, evaluate)


def log_to(path: Path | None) -> AbstractContextManager[None]:
    """Within, Flower's log goes to the file *path* and nowhere else; to nowhere at all when there is no path."""
    return warned.log_to(path, "flwr")
