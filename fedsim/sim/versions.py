"""Which training results each version of the model took in: told from what a server was handed, and from what it sends next.

Knows message numbers and times; knows no model, and nothing of rounds.
"""

from __future__ import annotations

import numpy as np

from fedsim.core.types import Seconds
from fedsim.sim.rows import Observer, VersionRow


class Versions:
    """Keeps which results are in no version yet, and tells *observer* of each version: once it is sent, or the run is over.

    A version has taken in what its server was handed since the one before. A server that aggregates by a strategy's steps says
    when it does, and whether a model came of it; of one that does not, what it sends says it: a model that was never sent before.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._newest = -1
        self._handed: list[int] = []  # Numbers of messages whose results the server has, and nobody knows what came of them.
        self._handed_s: Seconds = 0.0
        self._made: list[int] = []  # Of those that are in a model which was not sent yet.
        self._made_s: Seconds = 0.0

    def handed(self, message: int, now: Seconds) -> None:
        """Take that the server was given the training result of *message*."""
        self._handed.append(message)
        self._handed_s = now

    def aggregated(self, now: Seconds, *, made: bool) -> None:
        """Take that the server aggregated what it was handed, and whether that *made* a model; else it is in none, ever."""
        if made:
            self._made += self._handed
            self._made_s = now
        self._handed = []

    def sent(self, newest: int, now: Seconds) -> None:
        """Take that *newest* is the newest version sent so far, *now* where it is a new one."""
        if newest == self._newest:
            return
        merged, since_s = [*self._made, *self._handed], self._handed_s if self._handed else self._made_s
        self._tell(newest, since_s if merged else now, merged)
        self._newest, self._handed, self._made = newest, [], []

    def finish(self) -> None:
        """Tell of a last version that nobody was sent, where its server said that it made one."""
        if self._made:
            self._tell(self._newest + 1, self._made_s, self._made)
            self._made = []

    def _tell(self, version: int, now: Seconds, merged: list[int]) -> None:
        self._observer.version(VersionRow(version, now, np.array(merged, dtype=np.int64)))
