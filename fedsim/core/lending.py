"""What the runs of one process may share: values kept by the content of all that determines them. Off until somebody lends.

A process that serves many runs, one after the other, lends (``many/worker.py``); any other makes everything anew. Knows not what is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_lending = False


def lend() -> None:
    """From now on, let the runs of this process share what they may."""
    global _lending
    _lending = True


def stop() -> None:
    """Share nothing any more, and let go of what was kept."""
    global _lending
    _lending = False
    for shelf in _shelves:
        shelf.clear()


def lending() -> bool:
    """Return whether runs of this process share."""
    return _lending


@dataclass(eq=False)
class Shelf(Generic[T]):
    """Up to *most* values by key, the longest unused of which go first. *size* tells what a value counts for."""

    most: int
    size: Callable[[T], int] = lambda _: 1
    _kept: OrderedDict[Hashable, T] = field(default_factory=OrderedDict[Hashable, T])

    def __post_init__(self) -> None:
        _shelves.append(self)

    def of(self, key: Hashable) -> T | None:
        """Return what is kept by *key*; None where nothing is, or nobody lends."""
        if not _lending or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def keep(self, key: Hashable, value: T) -> None:
        """Keep *value* by *key*, where somebody lends and there is room for it."""
        if not _lending or self.size(value) > self.most:
            return
        self._kept[key] = value
        while sum(map(self.size, self._kept.values())) > self.most:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()


_shelves: list[Shelf[Any]] = []
