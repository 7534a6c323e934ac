"""Our values as Flower records and back, and how many bytes they are on the wire.

Here Flower's ``node_id`` becomes *client*, and stays so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.client.kept import Kept
from fedsim.client.program import Order, Reply
from fedsim.codec import Coding
from fedsim.core.errors import RunError
from fedsim.core.types import Params
from fedsim.cost.network import Overhead
from fedsim.flower.compat import LazyArray, encoded_bytes, reply_record, type_name
from fedsim.flower.compat_lazy import LazyContent, lazy_messages_work
from fedsim.learn.controllers import Changes
from fedsim.learn.job import Job
from fedsim.learn.pace import Clock
from fedsim.learn.work import Result, Start

NODE_OFFSET = 1000
"""node_id = client + 1000: deterministic, and clear of 0 and 1, which Flower keeps for itself."""

CHUNK_BYTES = 5 * 1024 * 1024
"""Flower sends an array in pieces of so many bytes at most."""


@dataclass(frozen=True, slots=True)
class Framing:
    """What Flower adds to what a message carries, in bytes: to the message, to each record, each array, and each piece of one.

    Counted as a SuperLink counts its traffic with SuperNodes: headers and ids of all objects, and the requests and answers around them.
    """

    message: int
    record: int = 222
    array: int = 288
    chunk: int = 160
    back: Framing | None = None

    def around(self, payload: int, records: int, arrays: Sequence[int]) -> Size:
        """Return the size of a message of so many *records*, with *arrays* of so many bytes each among the *payload*."""
        counted = records, len(arrays), chunks(arrays)
        return Size(payload, self.of(*counted), self.back.of(*counted) if self.back else 0)

    def of(self, records: int, arrays: int, pieces: int) -> int:
        """Return the bytes added to so many *records*, *arrays* and *pieces* of arrays."""
        return self.message + self.record * records + self.array * arrays + self.chunk * pieces


ACKNOWLEDGED = Framing(272, record=66, array=66, chunk=66)
"""What a server answers to a reply: the ids of those of its objects that it wants."""
DOWN, UP = Framing(408), Framing(571, back=ACKNOWLEDGED)
"""To a client and from it. Measured on flwr 1.41."""


def chunks(arrays: Iterable[int]) -> int:
    """Return in how many pieces arrays of so many bytes travel.

    >>> chunks([100, 6_000_000])
    3
    """
    return sum([max(1, -(-size // CHUNK_BYTES)) for size in arrays])


_JOB = {
    "epochs": "epochs", "steps": "steps", "batch_size": "batch-size", "lr": "lr", "momentum": "momentum", "weight_decay": "weight-decay",
    "nesterov": "nesterov", "proximal_mu": "proximal-mu", "initial_loss": "initial-loss", "drop_last": "drop-last",
}  # fmt: skip
"""What of a job travels, by which key: frozen, since every byte is on the clock. New settings are read from the scenario on both sides."""
ROUND, VERSION = "server-round", "server-version"
"""Keys of a message's config: Flower's of the round, and ours of how often the server had aggregated, only where a schedule goes by it."""
_STATE = "fedsim"
UNKNOWN, CLIENT_RAISED, NODE_UNAVAILABLE, CLIENT_CRASHED = 0, 2, 5, 8
"""Flower's ErrorCode of whatever has none, of a client app that raised, of a node that is not there, and of an app that died."""
KINDS = ("train", "evaluate")
"""The message types that our client takes."""


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of one message: what it carries, what is wrapped around it, and what goes *back* to who sent it, as an answer to it.

    *resent* says how much of the framing is there because it was sent more than once, and *back_resent* how much of what goes back.
    """

    payload: int
    framing: int
    back: int = 0
    resent: int = 0
    back_resent: int = 0

    @property
    def total(self) -> int:
        """Return payload and framing together."""
        return self.payload + self.framing

    def over(self, overhead: Overhead | None) -> Size:
        """Return the same on a link whose protocols have *overhead*."""
        if overhead is None:
            return self
        added, resent = overhead.of(self.total)
        if not self.back:
            return Size(self.payload, self.framing + added + resent, 0, resent)
        # It goes back over the connection that is there.
        more, again = dataclasses.replace(overhead, message_bytes=0).of(self.back)
        return Size(self.payload, self.framing + added + resent, self.back + more + again, resent, again)


def forms_of(arrays: ArrayRecord) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and shape of each array of a record."""
    return {name: (array.dtype, tuple(array.shape)) for name, array in arrays.items()}


def node_of(client: int) -> int:
    """Return Flower's node id of *client*."""
    return client + NODE_OFFSET


def client_of(node: int) -> int:
    """Return the client behind Flower's *node* id."""
    return node - NODE_OFFSET


def job_config(job: Job) -> ConfigRecord:
    """Return *job* as the config record that travels with the parameters; ``drop-last`` only where it is asked for.

    So is ``server-version``, which is 0 at first.
    """
    config = ConfigRecord({wire: getattr(job, name) for name, wire in _JOB.items() if name != "drop_last" or job.drop_last})
    if job.goes_by("version"):
        config[VERSION] = 0
    return config


def changed(job: Job, changes: Changes) -> dict[str, float | int]:
    """Return, by the keys that travel, what *changes* make of *job*; where they say nothing, what it has."""
    whole = {_JOB[name]: int(changes[name]) if name in changes else getattr(job, name) for name in ("batch_size", "epochs")}
    return {_JOB["lr"]: float(job.lr * changes.get("lr_factor", 1.0)), **whole}


def order_of(message: Message, starts: StartCache, usual: Job) -> Order:
    """Return what *message* asks for: the scenario's *usual* job, with what the message sets in any config record.

    Raises RunError for a message that no client of ours can read, or whose settings contradict each other.
    """
    content, kind = message.content, message.metadata.message_type
    if kind not in KINDS:
        raise RunError(f"a message of type {kind!r} came in; our client takes 'train' and 'evaluate'")
    arrays = next(iter(content.array_records.values()), None)
    if arrays is None:
        raise RunError(f"a {kind!r} message came in without parameters")
    if kind == "evaluate":
        return Order(Job(kind="evaluate", own_statistics=usual.own_statistics), starts.of(arrays))
    fields = {
        name: record[wire] for record in content.config_records.values() for name, wire in _JOB.items() if wire in record
    }
    job = dataclasses.replace(usual, **fields)
    if not math.isfinite(job.epochs) or job.epochs < 0:
        raise RunError(f"a message orders epochs = {job.epochs}; it takes a number that is not negative, like 1 or 0.5")
    if job.whole and not isinstance(job.epochs, int):  # As an int: 2.0 is then the very same order as 2.
        job = dataclasses.replace(job, epochs=int(job.epochs))
    if (job.epochs > 0) == (job.steps > 0):
        raise RunError(f"a message orders epochs = {job.epochs} and steps = {job.steps}; one of them must be 0")
    if job.stopping is not None and not job.whole:
        ordered = f"epochs = {job.epochs}" if job.epochs else f"steps = {job.steps}"
        raise RunError(f"a message orders {ordered}, and training.stopping stops after whole epochs")
    return Order(job, starts.of(arrays), *_clocks(content, job))


def _clocks(content: RecordDict, job: Job) -> tuple[int, int]:
    """Return the server's round and version, where the schedule of *job* goes by one of them. Raises RunError where nobody tells it."""
    if job.pace is None and not job.clocks:
        return 1, 0
    clocks: tuple[tuple[Clock, str], ...] = (("round", ROUND), ("version", VERSION))
    for clock, key in clocks:
        if job.goes_by(clock) and not any(key in record for record in content.config_records.values()):
            course = job.curriculum is not None and job.curriculum.clock == clock
            whose = "schedule" if job.pace and job.pace.needs(clock) else "curriculum" if course else "batch_policy"
            raise RunError(
                f"training.{whose}.clock = {clock!r}: a 'train' message came"
                f" without {key!r} in its config, which says what this clock shows. The strategy puts it there, or"
                f" takes another clock: 'local_step' and 'virtual_s' are the client's own."
            )
    return _said(content, ROUND, 1), _said(content, VERSION, 0)


def round_of(content: RecordDict) -> int:
    """Return the server's round, from whichever config record says so; 0 when none does."""
    return _said(content, ROUND, 0)


def _said(content: RecordDict, key: str, otherwise: int) -> int:
    found = [record[key] for record in content.config_records.values() if key in record]
    return int(found[0]) if found else otherwise  # pyright: ignore[reportArgumentType]


def unchanged(content: RecordDict, copy: RecordDict) -> bool:
    """Return whether *content* is still what its snapshot *copy* says."""
    return content.keys() == copy.keys() and all(
        record is copy[name] if isinstance(record, ArrayRecord) else record == copy[name]
        for name, record in content.items()
    )


class StartCache:
    """Decodes each set of parameters once, however many messages carry it, and numbers the models it has met."""

    def __init__(self, coding: Coding | None = None) -> None:
        self._coding = coding
        self._last: tuple[ArrayRecord, Start] | None = None
        self._versions: dict[str, int] = {}

    def version(self, arrays: ArrayRecord | None) -> int:
        """Return the number of the model in *arrays*, counted by content in the order of first meeting."""
        if arrays is None:
            return len(self._versions) - 1
        return self._versions.setdefault(self.of(arrays).content, len(self._versions))

    @property
    def newest(self) -> int:
        """Return the number of the newest model met, -1 before the first."""
        return len(self._versions) - 1

    def of(self, arrays: ArrayRecord) -> Start:
        """Return the parameters in *arrays*."""
        if self._last is None or self._last[0] is not arrays:
            came = params_of(arrays)
            self._last = (arrays, Start(self._coding.got_down(came) if self._coding else came))
        return self._last[1]


def params_of(arrays: ArrayRecord) -> Params:
    """Return the numpy arrays in a record."""
    return {name: array.numpy() for name, array in arrays.items()}


def snapshot(content: RecordDict) -> RecordDict:
    """Return *content* as it is now: strategies go on changing the config record they have sent.

    Array records are shared: their bytes cannot change.
    """
    copy = RecordDict()
    for name, record in content.items():
        copy[name] = record if isinstance(record, ArrayRecord) else record.copy()
    return copy


def reply_content(reply: Reply, *, writable: bool) -> RecordDict:
    """Return *reply* as Flower records: one of arrays (training) and one of metrics."""
    return reply_record(reply.params, reply.metrics, writable=writable)


def lazy_content(reply: Reply, *, writable: bool) -> RecordDict:
    """Return *reply* as Flower records which are made when somebody looks at them, where this flwr allows it."""
    if not lazy_messages_work():
        return reply_content(reply, writable=writable)
    return LazyContent(reply.given, reply.metrics, writable=writable)


def told(content: RecordDict) -> dict[str, float]:
    """Return the numbers that a reply's *content* tells by name: of its metric records, and of what a legacy app calls its metrics.

    Lists are no numbers, and of two of one name the first counts.
    """
    found: dict[str, float] = {}
    for name, record in content.items():
        if isinstance(record, MetricRecord) or (isinstance(record, ConfigRecord) and name.endswith(".metrics")):
            for key, value in record.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found.setdefault(key, float(value))
    return found


def digest_of_reply(reply: Message) -> str:
    """Return the digest of what *reply* carries, as ``Result.digest`` has it: mods may have changed it."""
    metrics = {name: float(value) for name, value in reply.content["metrics"].items() if name != "num-examples"}  # pyright: ignore
    arrays = reply.content.array_records.values()
    return Result(metrics, {name: array for record in arrays for name, array in params_of(record).items()}).digest


def size_of(content: RecordDict, framing: Framing) -> Size:
    """Return the bytes of *content* on the wire: the payload is what Flower's own ``count_bytes`` says.

    Arrays are measured by shape, not serialised for it.
    """
    payload, arrays = 0, list[int]()
    for record in content.values():
        if isinstance(record, ArrayRecord):
            arrays += [_array_bytes(array) for array in record.values()]
            payload += sum(map(len, record))
        else:
            payload += record.count_bytes()
    return framing.around(payload + sum(arrays), len(content), arrays)


def reply_size(params: Mapping[str, tuple[str, tuple[int, ...]]], metrics: tuple[str, ...]) -> Size:
    """Return the bytes of a reply from names, types and shapes alone, before any number in it exists."""
    arrays = [encoded_bytes(*form) for form in params.values()]
    payload = sum(8 + len(name) for name in metrics) + sum(map(len, params)) + sum(arrays)
    return UP.around(payload, 1 + bool(params), arrays)


def forms(params: Params) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and shape of each array: all that its size on the wire depends on."""
    return {name: (type_name(array.dtype), array.shape) for name, array in params.items()}


def kept_of(state: RecordDict) -> Kept:
    """Return what a client keeps, from its Flower state."""
    record: Any = state.config_records.get(_STATE)
    return Kept() if record is None else Kept.unpacked(record["kept"])


def keep(state: RecordDict, kept: Kept) -> None:
    """Write *kept* into a client's Flower state, where it outlives the process."""
    state[_STATE] = ConfigRecord({"kept": kept.packed()})


def forget(state: RecordDict) -> None:
    """Take what a client keeps out of its Flower state: it lies elsewhere."""
    state.pop(_STATE, None)


def _array_bytes(array: object) -> int:
    if isinstance(array, LazyArray):
        return encoded_bytes(array.dtype, array.shape)
    return len(array.data)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]


