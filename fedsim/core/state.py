"""State: named arrays, the one form in which anything is kept from message to message; and its bytes. Knows not whose it is."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from fedsim.core.errors import RunError, must
from fedsim.core.types import Array

State: TypeAlias = dict[str, Array]
"""Named arrays of whole numbers and floats."""

# As bytes: a line of JSON that names the arrays, the arrays, and a hash of both.

_MARK = b"fedsim state 1\n"
_HASH_BYTES = 16
TYPES = ("<f4", "<f8", "<i8", "|u1", "|b1")
"""The types of numbers that a state's arrays may have, in numpy's words."""


def pack(state: State) -> bytes:
    """Return *state* as bytes, the same in every process; ``unpack`` undoes it.

    >>> unpack(pack({"items": np.arange(3)}))["items"].tolist()
    [0, 1, 2]
    """
    arrays = {name: np.asarray(state[name], order="C") for name in sorted(state)}  # Not ascontiguousarray: it gives all a dimension.
    must(all(array.dtype.str in TYPES for array in arrays.values()), "a state holds int64, float64, float32, bytes and truths")
    head = json.dumps([[name, array.dtype.str, array.shape] for name, array in arrays.items()]).encode() + b"\n"
    body = head + b"".join(array.tobytes() for array in arrays.values())
    return _MARK + hashlib.blake2b(body, digest_size=_HASH_BYTES).digest() + body


def unpack(data: bytes) -> State:
    """Return the state in *data*. Raises RunError when these are not the bytes of one, all of them."""
    if not data.startswith(_MARK):
        raise RunError(f"a client's memory starts with {data[:16]!r}: it must start with {_MARK!r}.")
    digest, body = data[len(_MARK) :][:_HASH_BYTES], data[len(_MARK) + _HASH_BYTES :]
    if hashlib.blake2b(body, digest_size=_HASH_BYTES).digest() != digest:
        raise RunError(f"a client's memory of {len(data)} bytes is damaged: its hash does not fit.")
    head, _, body = body.partition(b"\n")
    state: State = {}
    at = 0
    for name, dtype, shape in json.loads(head):
        count = math.prod(shape)
        # Copied: an array over bytes is read-only, and would keep all of them alive.
        state[name] = np.frombuffer(body, np.dtype(dtype), count, offset=at).reshape(shape).copy()
        at += state[name].nbytes
    return state


def joined(parts: Mapping[str, Mapping[str, Array]]) -> State:
    """Return the states in *parts* as one, each name behind that of its part and a stroke; ``parted`` takes it apart.

    >>> parted(joined({"replay": {"items": np.arange(2)}, "rehearsal": {"logits/items": np.arange(3)}}))["rehearsal"]
    {'logits/items': array([0, 1, 2])}
    """
    return {f"{part}/{name}": array for part, state in parts.items() for name, array in state.items()}


def parted(state: Mapping[str, Array]) -> dict[str, State]:
    """Return the parts that *state* was joined of; one that held nothing is not among them."""
    parts: dict[str, State] = {}
    for name, array in state.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = array
    return parts
