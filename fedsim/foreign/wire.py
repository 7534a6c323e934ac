"""What goes between a run and the processes of its ClientApp: records as plain tuples, and frames over a socket.

Records that Flower has hashed cannot be pickled; their public parts can. Knows no app and no clock.
"""

from __future__ import annotations

import hashlib
import pickle
import socket
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, TypeAlias

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsim.flower import compat

Plain: TypeAlias = tuple[tuple[str, str, tuple[Any, ...]], ...]
"""A RecordDict: (name, "a", ((key, dtype, shape, stype, bytes), ...)), or "m" or "c" with ((key, value), ...), per record."""

KNOWN = 8
"""Contents that a process remembers: those of a round are mostly one."""
NUMBER = struct.Struct("<q")
"""How a process writes, into memory that it shares, which message it is at: that outlives it."""
_HEADER = struct.Struct("<Q")


def plain(content: RecordDict) -> Plain:
    """Return *content* as tuples that share its bytes: two are equal where nothing was changed."""
    found: list[tuple[str, str, tuple[Any, ...]]] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = tuple((key, array.dtype, tuple(array.shape), array.stype, array.data) for key, array in record.items())
            found.append((name, "a", arrays))
        else:
            kind = "m" if isinstance(record, MetricRecord) else "c"
            items = tuple((key, list(value) if isinstance(value, list) else value) for key, value in record.items())
            found.append((name, kind, items))
    return tuple(found)


def records(form: Plain) -> RecordDict:
    """Return the RecordDict that *form* was made of, sharing nothing that can be changed."""
    made: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, kind, items in form:
        if kind == "a":
            made[name] = kind, {key: Array(dtype=dtype, shape=shape, stype=stype, data=data) for key, dtype, shape, stype, data in items}
        else:
            made[name] = kind, {key: list(value) if isinstance(value, list) else value for key, value in items}
    quick = compat.quick_content(made)
    if quick is not None:
        return quick
    content = RecordDict()
    for name, (kind, items) in made.items():
        content[name] = {"a": ArrayRecord, "m": MetricRecord, "c": ConfigRecord}[kind](items)
    return content


def digest(form: Plain, *, arrays_only: bool = False) -> str:
    """Return a SHA-256, in hex, over all that *form* says; over the arrays of its first record of arrays where that is asked for."""
    mark = hashlib.sha256()
    for name, kind, items in form:
        if kind == "a":
            mark.update(f"|{name}|".encode() if not arrays_only else b"")
            for key, dtype, shape, stype, data in items:
                mark.update(f"|{key}:{dtype}:{shape}:{stype}|".encode())
                mark.update(data)
            if arrays_only:
                break
        elif not arrays_only:
            mark.update(f"|{name}:{kind}:{items!r}|".encode())
    return mark.hexdigest()


@dataclass(frozen=True, slots=True)
class Load:
    """What a process is to load: the ClientApp at *reference* in *folder*, and what is the same for all of its messages."""

    path: list[str]
    reference: str
    folder: str
    seed: int
    run_config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """A message for a client: its *content* by number, and the pickled form where the process may not know that number.

    *state* is the client's, pickled (empty: nothing). Metadata is Flower's, as it is. *times* says how often to compute it: what comes
    before the last time warms up, and is forgotten.
    """

    number: int
    content: int
    form: bytes | None
    metadata: Any
    node: int
    node_config: dict[str, Any]
    state: bytes
    seed: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class Told:
    """What came of an Ask: the reply as plain records and the client's state, or a *code* of Flower's and the *reason*.

    *wall_s* is how long the app took, on the host's clock.
    """

    number: int
    form: Plain = ()
    state: bytes | None = None
    code: int = -1
    reason: str = ""
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ready:
    """The ClientApp is loaded; or it is not, and *refusal* says why."""

    refusal: str = ""


class Recent:
    """Which contents the other side remembers: kept alike on both sides, by the same rule."""

    def __init__(self) -> None:
        self._forms: OrderedDict[int, bytes] = OrderedDict()

    def seen(self, content: int, form: bytes | None = None) -> bytes | None:
        """Return the form of *content* where it is remembered, else remember *form* and return None."""
        if content in self._forms:
            self._forms.move_to_end(content)
            return self._forms[content]
        self._forms[content] = form or b""
        if len(self._forms) > KNOWN:
            self._forms.popitem(last=False)
        return None


def send(end: socket.socket, message: object) -> None:
    """Send *message* whole. Raises OSError where the other end is gone."""
    text = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    if len(text) < 1 << 16:
        end.sendall(_HEADER.pack(len(text)) + text)
    else:
        end.sendall(_HEADER.pack(len(text)))
        end.sendall(text)


def receive(end: socket.socket) -> Any:
    """Return the next message. Raises EOFError or OSError where the other end is gone."""
    (size,) = _HEADER.unpack(_exactly(end, _HEADER.size))
    return pickle.loads(_exactly(end, size))


def _exactly(end: socket.socket, size: int) -> bytearray:
    text, filled = bytearray(size), 0
    view = memoryview(text)
    while filled < size:
        count = end.recv_into(view[filled:])
        if not count:
            raise EOFError("the other end is gone")
        filled += count
    return text
