"""Pools of examples that the runs of one process share (``core/lending``): what a source read, while its files stay as they are.

Of our own sources only, by their settings, where paths are seen from, and the key of those that draw. Nobody can write into such a pool.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from fedsim.core.answers import fixed
from fedsim.core.keys import Key
from fedsim.core.lending import Shelf, lending
from fedsim.data.source import DATA_VARIABLE, Examples, Pool, sources

KEPT_BYTES = 2**29
"""What pools may take in all; a larger one is read for each run."""


@dataclass(frozen=True, slots=True)
class _Read:
    pool: Pool
    marks: tuple[object, ...]


def _size(read: _Read) -> int:
    pool = read.pool
    parts = [array for part in (pool.train, pool.test) if part is not None for array in (part.x, part.y)]
    return sum(array.nbytes for array in (*parts, pool.groups, pool.times_s) if array is not None)


_pools: Shelf[_Read] = Shelf(KEPT_BYTES, _size)


def source(make: Callable[..., Any], table: Mapping[str, Any], folder: Path, *, key: Key, **given: Any) -> Any:
    """Return what *make* makes of the source in *table*, seen from *folder*; where that is a pool which was read before, that pool.

    *key* is that of its draws; it and what else is *given* go to *make*.
    """
    def made() -> Any:
        return make("source", table, key=key, **given)

    if not lending():
        return made()
    function = sources.get(str(table["kind"]), at=sources.key)
    if not function.__module__.startswith("fedsim."):  # Nobody knows what a stranger's goes by.
        return made()
    drawn = key.digest if "key" in signature(function).parameters else None
    name = json.dumps(table, sort_keys=True, default=str), str(folder.resolve()), os.environ.get(DATA_VARIABLE), drawn
    read = _pools.of(name)
    if read is not None and read.marks == _marks(read.pool):
        return read.pool
    pool = made()
    if not isinstance(pool, Pool):  # What is made client by client is kept by nobody.
        return pool
    pool = replace(
        pool, train=_fixed(pool.train), test=None if pool.test is None else _fixed(pool.test),
        groups=None if pool.groups is None else fixed(pool.groups), times_s=None if pool.times_s is None else fixed(pool.times_s),
    )  # fmt: skip
    _pools.keep(name, _Read(pool, _marks(pool)))
    return pool


def _marks(pool: Pool) -> tuple[object, ...]:
    """Return what changes with the files that *pool* was read from: where each lies, how long it is, when it was written."""
    found: list[object] = []
    for file in pool.files:
        try:
            about = Path(file).stat()
            found.append((file, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))
        except OSError:
            return (object(),)  # Like no other: whoever reads it says what is wrong.
    return tuple(found)


def _fixed(examples: Examples) -> Examples:
    return Examples(fixed(examples.x), fixed(examples.y))
