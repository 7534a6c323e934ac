"""What a node knows of its tasks beside their times, told when the run is over: files beside what it keeps, a record a message.

What a client on a stream predicted before it trained, and what was watched of its training. Training messages carry none of it. A
record that was cut off by a kill is not there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord

from fedsim.client.program import News
from fedsim.core.errors import RunError
from fedsim.core.state import State, pack, unpack

NEWS, WATCHED = "fedsim-news", "fedsim-watched"
"""The names of their records in what a node tells: what was predicted, and what was watched."""
_FIELDS = ("items", "y", "prediction", "loss", "alarms")


def wrote(path: Path, message: str, state: State) -> None:
    """Append the *state* of a *message* to the file *path*. Raises RunError where the disk does not take it."""
    packed = pack(state)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("ab") as file:
            file.write(f"{message} {len(packed)}\n".encode() + packed)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{error.filename or path}: what a client predicted or watched cannot be written ({error.strerror}).") from None


def read(path: Path) -> ConfigRecord:
    """Return what *path* holds, by message, as it is told."""
    found: dict[str, Any] = {}
    try:
        content = path.read_bytes()
    except OSError:
        return ConfigRecord({})
    while content:
        head, _, rest = content.partition(b"\n")
        words = head.split()
        if len(words) != 2 or not words[1].isdigit() or len(rest) < int(words[1]):
            break  # Cut off.
        found[words[0].decode()], content = rest[: int(words[1])], rest[int(words[1]) :]
    return ConfigRecord(found)


def told(record: Mapping[str, Any]) -> dict[str, State]:
    """Return the states in a *record*, by message. Raises RunError where it is damaged."""
    return {message: unpack(packed) for message, packed in record.items()}


def state_of(news: News) -> State:
    """Return what a client predicted, as it is written."""
    return {name: np.asarray(getattr(news, name), np.float64 if name == "loss" else np.int64) for name in _FIELDS}


def news_of(state: State) -> News:
    """Return what a client predicted, from what was written."""
    return News(**{name: state[name] for name in _FIELDS})  # pyright: ignore[reportArgumentType]
