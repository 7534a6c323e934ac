"""The digests of a run: hash chains over rows as they become certain, sealed with the final parameters.

What is hashed is spelled out here and frozen: ``fedsim-digest-1``. Knows the names of columns; knows nothing of how rows are stored.

A row may get new columns, at its end and with a plain default: they are hashed by name, after the others, where they are not at
their default. So a run that makes no use of what is new keeps its digest. Whatever else changes the bytes takes a new FORMAT.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np

from fedsim.core.errors import must
from fedsim.core.types import Array, Params
from fedsim.learn.work import digest_of

FORMAT = "fedsim-digest-1"
"""Digests of different formats are never compared; the manifest says which it is."""

TASK = (
    "message", "client", "number", "kind", "round", "version", "outcome", "sent_s", "received_s", "started_s", "computed_s",
    "arrived_s", "examples", "steps", "flops", "down_bytes", "down_framing_bytes", "up_bytes", "up_framing_bytes", "loss", "result",
    "failure",
)  # fmt: skip
"""The 22 columns of a message's row, in the order in which they are hashed."""
TESTED = {
    "client": "", "message": "", "round": "", "version": "", "now_s": "", "items": "<i8", "arrived_s": "<f8", "labelled_s": "<f8",
    "y": "<i8", "prediction": "<i8", "loss": "<f8", "concepts": "<i8", "alarms": "<i8", "drifts_s": "<f8",
}  # fmt: skip
"""Those of what a client predicted, each with the numbers as which the bytes of an array are written."""
METRIC = ("round", "now_s", "scope", "name", "value", "down_bytes", "up_bytes")
"""Those of a score."""

_task, _metric = attrgetter(*TASK), attrgetter(*METRIC)


def task(row: Any) -> tuple[Any, ...]:
    """Return what is hashed of a message's row: in ``digest`` where it is of training, in ``metrics_digest`` where of evaluation."""
    return (*_task(row), *_since(row, TASK))


def tested(row: Any) -> tuple[Any, ...]:
    """Return what is hashed, in ``metrics_digest``, of what a client predicted before it trained."""
    known = (_bytes(getattr(row, name), numbers) if numbers else getattr(row, name) for name, numbers in TESTED.items())
    return (*known, *_since(row, tuple(TESTED)))


def metric(row: Any) -> tuple[Any, ...]:
    """Return what is hashed of a score, in ``metrics_digest``."""
    return (*_metric(row), *_since(row, METRIC))


def seal(params: Params, extras: Mapping[str, Array] | None = None) -> tuple[str]:
    """Return what ends ``digest``: the digest of the final parameters, and after them of the *extras* that a server keeps beside."""
    return (digest_of({**params, **(extras or {})}),)


class Chain:
    """SHA-256 over rows, each link over the one before: the value after row n stands for rows 1 to n."""

    def __init__(self) -> None:
        self._link = hashlib.sha256(FORMAT.encode()).digest()

    def add(self, *values: Any) -> None:
        """Append a row. Floats count to the last bit (``repr`` gives the shortest text that reads back the same)."""
        self._link = hashlib.sha256(self._link + repr(values).encode()).digest()

    @property
    def value(self) -> str:
        """Return the digest so far, in hex."""
        return self._link.hex()


def _since(row: Any, known: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """Return the columns of *row* beyond those *known* that are not at their default, each as its name and its value."""
    names, defaults, values_of = _newer(type(row), known)
    if not names:
        return ()
    values = values_of(row)
    if values == defaults:  # As with nearly all of them.
        return ()
    return tuple((name, value) for name, value, default in zip(names, values, defaults, strict=True) if value != default)


@cache
def _newer(kind: type, known: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Any, ...], Callable[[Any], tuple[Any, ...]]]:
    """Return the names and the defaults of columns of rows of a *kind* beyond those *known*, and what takes these from a row."""
    newer = tuple((column.name, column.default) for column in dataclasses.fields(kind) if column.name not in known)
    for name, default in newer:
        plain = default is not dataclasses.MISSING and default == default  # NaN is never at its default.
        must(plain, f"{kind.__name__}.{name} is not in {FORMAT} and has no plain default")
    names, defaults = tuple(name for name, _ in newer), tuple(default for _, default in newer)
    if len(names) == 1:
        return names, defaults, lambda row: (getattr(row, names[0]),)
    return names, defaults, attrgetter(*names) if names else lambda _row: ()


def _bytes(array: Array, numbers: str) -> bytes:
    return np.ascontiguousarray(array, dtype=numbers).tobytes()
