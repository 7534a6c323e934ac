"""What parent and workers say to each other, and how it crosses: small pickled messages, a descriptor beside some.

Nothing of Flower or SimPy is in a message. A task's start crosses as its content id; whoever receives must have
learned that content before.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsim.core.errors import must
from fedsim.core.warned import Told
from fedsim.learn.arithmetic import Arithmetic
from fedsim.learn.engine.shared import Layout
from fedsim.learn.work import Start, Task

SENT = {"model": "model.kind", "objective": "training.objective.kind", "federation": "data.source.kind"}
"""What is pickled for a worker, and the key of the scenario it comes from."""

_HEADER = struct.Struct("<QQ")  # Bytes of the message, descriptors beside it.


@dataclass(frozen=True, slots=True)
class Settle:
    """What a worker computes with. Beside it: the block of the examples.

    What SENT names lies in the block too, each pickled by itself: a model may be large, and what of them cannot be
    loaded is to be named. *kept_bytes* is the worker's share of generated data, *device* the one that it computes on.
    """

    examples: Layout
    pooled: bool
    dtype: str
    chunk: int
    many_sizes: bool
    arithmetic: Arithmetic
    kept_bytes: int
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Learn:
    """Parameters that tasks will start from. Beside it: the block they lie in. Contents not in *keep* are forgotten."""

    content: str
    layout: Layout
    keep: frozenset[str]


@dataclass(frozen=True, slots=True)
class Fresh:
    """From now on results go here. Beside it: an empty block."""


@dataclass(frozen=True, slots=True)
class Train:
    """Tasks to be computed together."""

    tasks: list[Task]

    @property
    def starts(self) -> list[Start]:
        """Return what the tasks start from."""
        return [task.start for task in self.tasks]

    @property
    def labels(self) -> list[str]:
        """Return how error lines call what is in here."""
        return [task.label for task in self.tasks]


@dataclass(frozen=True, slots=True)
class Score:
    """A batch of the test part to be scored by the parameters *start*."""

    start: Start
    batch: int

    @property
    def starts(self) -> list[Start]:
        """Return what is scored."""
        return [self.start]

    @property
    def labels(self) -> list[str]:
        """Return how error lines call what is in here."""
        return [f"batch {self.batch} of the central evaluation"]


Unit = Train | Score


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a unit, one entry per task: metrics, arrays in the worker's block of results, digest.

    Beside it what it *warned* of, and *notes* of the worker's engine so far.
    """

    metrics: list[Mapping[str, float]]
    layouts: list[Layout]
    digests: list[str]
    warned: list[Told] = field(default_factory=list[Told])
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class Broken:
    """What broke in a worker: the error, where it can be pickled; its one line; the whole story; whether another error caused it."""

    error: bytes
    line: str
    story: str
    caused: bool


class Channel:
    """One end of a socket over which messages go, each whole and in order."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.starts: dict[str, Start] = {}
        """The starts that messages from the other side may name."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end; the other reads the end of the stream."""
        self._end.close()

    def send(self, message: object, *beside: int) -> None:
        """Send *message* and copies of the descriptors *beside* it. Raises OSError when the other end is gone."""
        text = io.BytesIO()
        _Pickler(text, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
        header = _HEADER.pack(text.tell(), len(beside))
        sent = socket.send_fds(self._end, [header], list(beside))
        self._end.sendall(header[sent:])
        self._end.sendall(text.getbuffer())

    def receive(self) -> tuple[Any, list[int]]:
        """Return the next message and the descriptors beside it. Raises EOFError when the other end is gone."""
        header, beside = b"", list[int]()
        while len(header) < _HEADER.size:
            part, descriptors, _, _ = socket.recv_fds(self._end, _HEADER.size - len(header), 1)
            beside += descriptors
            header = header + part if part else _end()
        size, count = _HEADER.unpack(header)
        must(len(beside) == count, f"{count} descriptors were sent, {len(beside)} came")
        text, filled = memoryview(bytearray(size)), 0
        while filled < size:
            filled += self._end.recv_into(text[filled:]) or _end()
        return _Unpickler(io.BytesIO(text), self.starts).load(), beside


def _end() -> Any:
    raise EOFError("the other end is gone")


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> str | None:
        return obj.content if type(obj) is Start else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, starts: Mapping[str, Start]) -> None:
        super().__init__(file)
        self._starts = starts

    def persistent_load(self, pid: str) -> Start:
        return self._starts[pid]
