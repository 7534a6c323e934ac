"""What a client on a stream predicted before it trained, told when the run is over: written beside what it keeps, a record a message.

Training messages carry none of it. A record that was cut off by a kill is not there.
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

NEWS = "fedsim-news"
"""The name of its record in what a node tells."""
_FIELDS = ("items", "y", "prediction", "loss", "alarms")


def wrote(path: Path, message: str, news: News) -> None:
    """Append *news* of the task of a *message* to the file *path*. Raises RunError where the disk does not take it."""
    state: State = {name: np.asarray(getattr(news, name), np.float64 if name == "loss" else np.int64) for name in _FIELDS}
    packed = pack(state)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("ab") as file:
            file.write(f"{message} {len(packed)}\n".encode() + packed)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{error.filename or path}: what a client predicted cannot be written ({error.strerror}).") from None


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


def told(record: Mapping[str, Any]) -> dict[str, News]:
    """Return the news in a *record*, by message. Raises RunError where it is damaged."""
    states = {message: unpack(packed) for message, packed in record.items()}
    return {message: News(**{name: state[name] for name in _FIELDS}) for message, state in states.items()}  # pyright: ignore[reportArgumentType]
