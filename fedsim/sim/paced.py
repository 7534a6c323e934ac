"""Paced: how long each round of a run waits, which replies it goes on with, and whether rounds can come to anything at all.

Knows what a pacing answers, and when messages were sent and answered; moves no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from fedsim.core.errors import RunError
from fedsim.core.state import State
from fedsim.core.types import Seconds
from fedsim.strategy.pacing import Lasted, Pacing, Wait

HOPELESS = 10
"""Rounds in a row in which nobody was in time, and nobody known was fast enough to be: then a run is over."""
ENOUGH, ABANDONED = "enough", "abandoned"
"""Why replies are discarded, a deadline apart: the server had as many as it wanted, or abandoned the round."""


class Sent(Protocol):
    """A message, and how far it came; *arrived_s* is below 0 where no reply is there."""

    sent_s: Seconds
    arrived_s: Seconds
    failure: str

    @property
    def round(self) -> int:
        """Return the server's round that sent it."""
        ...

    @property
    def kind(self) -> str:
        """Return Flower's message type."""
        ...

    @property
    def number(self) -> int:
        """Return which message it is, in the order of sending."""
        ...


M = TypeVar("M", bound=Sent)


@dataclass(frozen=True, slots=True)
class Counted(Generic[M]):
    """What a round goes on with: replies *taken*, those *beyond* that nobody wants, and *why* none does of what is not there.

    Those beyond are in the order of sending. *abandoned* says in words why the whole round does not count; empty where it does.
    """

    taken: list[M]
    beyond: list[M] = field(default_factory=list[M])
    why: str = ""
    abandoned: str = ""


def _as_sent(those: list[M]) -> list[M]:
    return sorted(those, key=lambda each: each.number)


def _unknown(_: Sent) -> Seconds:
    return math.inf


class Paced:
    """One run's *pacing*, with what it keeps; None for waits as long as the strategy says."""

    def __init__(self, pacing: Pacing | None) -> None:
        self._pacing = pacing
        self._state: State = {} if pacing is None else pacing.first()
        self._fastest_s: Seconds = math.inf
        self._empty: list[tuple[int, Seconds]] = []  # Round and deadline of those in a row in which nobody was in time.
        self._unmet: tuple[int, int, Seconds] | None = None  # How many there were in all, and the first, with its deadline.
        self._abandoned: list[str] = []

    def wait(self, kind: str, asked: int) -> Wait:
        """Return how long, and for how many, *asked* messages of a *kind* are waited for."""
        return Wait() if self._pacing is None or kind != "train" else self._pacing.wait(self._state, asked)

    def late(self, took_s: Seconds) -> None:
        """Take what a client took whose reply nobody waits for any more."""
        self._fastest_s = min(self._fastest_s, took_s)

    def over(
        self, wait: Wait, limit_s: Seconds | None, sent: Sequence[M], ready: list[M], now: Seconds,
        due_s: Callable[[M], Seconds] = _unknown,
    ) -> Counted[M]:  # fmt: skip
        """Return which of the *ready* replies to *sent* count, now that *wait*, *limit_s* at the most, is over.

        *due_s* says what one that is still on its way takes. Raises RunError where nobody was in time again and again, and nobody of whom
        anything is known was fast enough to be.
        """
        if self._pacing is None or sent[0].kind != "train":
            return Counted(ready)
        first, usable = sent[0], sorted((each for each in ready if not each.failure), key=lambda each: (each.arrived_s, each.number))
        took_s = np.array([each.arrived_s - each.sent_s for each in usable], dtype=np.float64)
        self._state = self._pacing.learned(self._state, Lasted(len(sent) - (len(ready) - len(usable)), took_s))
        if len(took_s):
            self._empty, self._fastest_s = [], min(self._fastest_s, float(took_s[0]))
        elif limit_s is not None and len(ready) < len(sent):  # Where all have answered, by errors, it is not that there was no time.
            self._fastest_s = min(self._fastest_s, *(due_s(each) for each in sent if each.arrived_s < 0))
            self._nobody(first.round, limit_s)
        if len(usable) < wait.least:
            why = f"{len(usable)} of {len(sent)} replies after {now - first.sent_s:.3g} s, and {wait.least} are wanted"
            self._abandoned.append(f"(round {first.round}): {why}")
            return Counted([each for each in ready if each.failure], _as_sent(usable), ABANDONED, why)
        if wait.enough is None or len(usable) < wait.enough:
            return Counted(ready)
        beyond = _as_sent(usable[wait.enough :])
        others = {each.number for each in beyond}
        return Counted([each for each in ready if each.number not in others], beyond, ENOUGH)

    @property
    def notes(self) -> list[str]:
        """Return what a reader must know of how rounds went."""
        found: list[str] = []
        if many := len(self._abandoned):
            were = "rounds were abandoned, first" if many > 1 else "round was abandoned"
            found.append(f"server.pacing: {many:,} {were} {self._abandoned[0]}.")
        if self._unmet is not None:
            many, number, limit_s = self._unmet
            others = f" (nor {many - 1:,} more)" if many > 1 else ""
            found.append(f"server.pacing: {self._hopeless(f'round {number}{others}', limit_s)}.")
        return found

    def _nobody(self, number: int, limit_s: Seconds) -> None:
        """Take that nobody was in time in round *number*. Raises RunError where that makes one too many."""
        many, first, at_s = self._unmet or (0, number, limit_s)
        self._unmet = many + 1, first, at_s
        self._empty.append((number, limit_s))
        longest_s = max(each for _, each in self._empty)
        if len(self._empty) >= HOPELESS and longest_s < self._fastest_s < math.inf:
            raise RunError(
                f"server.pacing: {self._hopeless(f'any of rounds {self._empty[0][0]} to {number}', longest_s)}. Give them longer, or less"
                f" to do."
            )

    def _hopeless(self, which: str, limit_s: Seconds) -> str:
        known = limit_s < self._fastest_s < math.inf
        figures = f": fastest {self._fastest_s:.3g} s, deadline {limit_s:.3g} s" if known else f" of {limit_s:.3g} s"
        return f"no client could finish {which} before its deadline{figures}"
