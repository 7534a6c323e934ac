"""Pacing: how long a server waits for the replies to a round's training messages, and for how many. Knows counts and seconds.

State goes in and comes out. Knows no clock, no message and no strategy: whoever sends a round's messages asks before, and tells after.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.core.state import State
from fedsim.core.types import Count, FloatArray, NonNegative, Positive, Range, Seconds


@dataclass(frozen=True, slots=True)
class Wait:
    """One round's wait: it is over *until_s* after the messages were sent, or once *enough* replies that are no errors are there.

    Without *enough*, once all have answered. With fewer than *least* such replies by then the round is abandoned: none of them counts.
    """

    until_s: Seconds = math.inf
    enough: int | None = None
    least: int = 0


@dataclass(frozen=True, slots=True)
class Lasted:
    """How a wait went: *asked* messages that no error answered, of which *took_s* (n,) is how long those took that were there by its end.

    *took_s* ascends.
    """

    asked: int
    took_s: FloatArray = field(default_factory=lambda: np.zeros(0))


class Pacing(Protocol):
    """How a server that plays rounds waits in each; nothing of this holds for messages of evaluation."""

    def first(self) -> State:
        """Return what it keeps before the first round."""
        ...

    def wait(self, state: State, asked: int) -> Wait:
        """Return how the server waits for the replies to *asked* messages."""
        ...

    def learned(self, state: State, lasted: Lasted) -> State:
        """Return what it keeps once a wait has *lasted*."""
        ...


def _wait(given: Any, _state: Any = None, asked: int = 1) -> Wait:
    if not isinstance(given, Wait):
        raise ValueError(f"a {type(given).__name__}, expected a fedsim.strategy.pacing.Wait")
    until_s = answers.one(given.until_s, least=0.0, endless=True)
    if not until_s:
        raise ValueError("a wait of 0 s, expected one > 0 s")
    enough = None if given.enough is None else answers.count(1)(given.enough)
    least = answers.count(0)(given.least)
    if least > min(asked, enough or asked):
        raise ValueError(f"a Wait for {enough or asked} replies, at least {least}, expected no more than the {asked} asked")
    return Wait(until_s, enough, least)


pacings: Registry[Callable[..., Pacing]] = Registry(
    "pacing", key="server.pacing",
    gives=answers.Gives("Pacing", ("first", "wait", "learned"), {"first": answers.state, "wait": _wait, "learned": answers.state}),
)  # fmt: skip
"""Functions that return Pacing."""


def share_of(share: float, asked: int) -> int:
    """Return how many of *asked* a *share* is, rounded up, one at least.

    >>> share_of(0.8, 10), share_of(0.77, 13), share_of(0.1, 3), share_of(0.7, 10)
    (8, 11, 1, 7)
    """
    return max(1, math.ceil(share * asked - 1e-9))  # 0.7 of 10 is 7, whatever floats make of it.


@dataclass(frozen=True, slots=True)
class Fixed:
    """A wait that no round changes. *enough* and *least* of those asked: a share below 1, or a whole number."""

    until_s: Seconds = math.inf
    enough: int | float | None = None
    least: float = 0.0

    def first(self) -> State:
        """Return nothing."""
        return {}

    def wait(self, state: State, asked: int) -> Wait:
        """Return the same wait for as many."""
        least = share_of(self.least, asked) if self.least else 0
        if self.enough is None or isinstance(self.enough, int):
            return Wait(self.until_s, self.enough, least)
        return Wait(self.until_s, share_of(self.enough, asked), least)

    def learned(self, state: State, lasted: Lasted) -> State:
        """Return nothing: what a round took changes nothing."""
        return state


@dataclass(frozen=True, slots=True)
class Adaptive:
    """A deadline that follows what rounds took. See ``adaptive``."""

    quantile: float
    first_s: Seconds
    slack: float
    last: int
    growth: float
    least_s: Seconds

    def first(self) -> State:
        """Return that nothing was seen, and the first deadline."""
        return _seen(np.zeros(0), np.zeros(0, dtype=np.int64), self.first_s)

    def wait(self, state: State, asked: int) -> Wait:
        """Return a wait until the deadline."""
        return Wait(float(state["deadline_s"]))

    def learned(self, state: State, lasted: Lasted) -> State:
        """Return what the latest rounds took, what was not there having taken for ever, and the deadline that follows."""
        took_s = np.concatenate([state["took_s"], lasted.took_s, np.full(lasted.asked - len(lasted.took_s), np.inf)])
        counts = np.append(state["counts"], lasted.asked)
        if len(counts) > self.last:
            took_s, counts = took_s[int(counts[: -self.last].sum()) :], counts[-self.last :]
        deadline_s = float(state["deadline_s"])
        if len(took_s):
            at_s = float(np.sort(took_s)[share_of(self.quantile, len(took_s)) - 1])
            if math.isfinite(at_s):
                deadline_s = max(self.least_s, self.slack * at_s)
            else:  # It lies beyond this deadline, and beyond all that was seen: otherwise slower replies could shorten the wait.
                seen_s = float(took_s[np.isfinite(took_s)].max(initial=0.0))
                deadline_s = max(max(self.growth, self.slack) * deadline_s, self.slack * seen_s)
        return _seen(took_s, counts, deadline_s)


def _seen(took_s: FloatArray, counts: Any, deadline_s: Seconds) -> State:
    return {"took_s": took_s, "counts": counts, "deadline_s": np.array(deadline_s)}


@pacings.register("all")
def everybody() -> Fixed:
    """Return a wait for every reply, until server.round_timeout_s: what Flower's own strategies do, and what is without pacing.

    >>> everybody().wait({}, 10)
    Wait(until_s=inf, enough=None, least=0)
    """
    return Fixed()


@pacings.register("deadline")
def deadline(*, seconds: Positive) -> Fixed:
    """Return a wait for every reply, until a deadline: whoever is not there by then is late, and at the very deadline is in time.

    >>> deadline(seconds=30.0).wait({}, 10)
    Wait(until_s=30.0, enough=None, least=0)
    """
    return Fixed(seconds)


@pacings.register("over_selection")
def over_selection(*, take: int | float) -> Fixed:
    """Return a wait for the first replies only: the strategy asks more clients than it needs, and the rest is discarded.

    *take* is how many, or a share below 1 of those asked (0.77 of 13 is 11: rounded up). Errors do not count to them. Bonawitz et al. 2019
    (arXiv:1902.01046) ask 130 % of what they need; who is slow is then heard less often.

    >>> over_selection(take=0.77).wait({}, 13)
    Wait(until_s=inf, enough=11, least=0)
    """
    if isinstance(take, bool) or not (take >= 1 if isinstance(take, int) else 0.0 < take < 1.0):
        raise ScenarioError(f"server.pacing.take = {take}: must be a whole number >= 1, or a share of those asked, > 0 and < 1, like 0.77.")
    return Fixed(enough=take)


@pacings.register("minimum_fraction")
def minimum_fraction(*, fraction: Annotated[float, Range(gt=0, le=1)], seconds: Positive, early: bool = True) -> Fixed:
    """Return a wait until a share of those asked has answered, and no longer than a deadline; with fewer by then a round is abandoned.

    What came of an abandoned round is discarded, and the model stays as it was (Bonawitz et al. 2019, section 2.2). Without *early* the
    server waits until the deadline, or for all, and takes what it has. Errors are no answers.

    >>> minimum_fraction(fraction=0.8, seconds=30.0).wait({}, 10), minimum_fraction(fraction=0.8, seconds=30.0, early=False).wait({}, 10)
    (Wait(until_s=30.0, enough=8, least=8), Wait(until_s=30.0, enough=None, least=8))
    """
    # A fraction of 1 is all of them, and as a number would be one.
    return Fixed(seconds, float(fraction) if early else None, float(fraction))


@pacings.register("adaptive")
def adaptive(
    *, quantile: Annotated[float, Range(gt=0, le=1)] = 0.8, first_s: Positive | None = None,
    slack: Annotated[float, Range(ge=1)] = 1.0, last: Count = 5, growth: Annotated[float, Range(gt=1)] = 1.5,
    least_s: NonNegative = 0.0,
) -> Adaptive:  # fmt: skip
    """Return a deadline by the time within which a quantile of the replies to the last rounds came, times a slack; the first is *first_s*.

    A reply that was not there is taken to be slower than any that was: where the quantile is among these, the deadline grows by *growth*,
    and beyond all that was seen. So it does not creep down by what it cut off itself, and where more than 1 - quantile never answer it
    grows up to server.round_timeout_s. Oort (Lai et al. 2021, OSDI) keeps such a quantile of durations as a round's preferred length, by
    which it weighs whom to ask; that it is a deadline here, its growth and its slack are our own.

    >>> pace = adaptive(quantile=0.5, first_s=60.0)
    >>> state = pace.learned(pace.first(), Lasted(4, np.array([10.0, 20.0, 30.0])))
    >>> pace.wait(state, 4).until_s, pace.wait(pace.learned(state, Lasted(8)), 4).until_s
    (20.0, 30.0)
    """
    return Adaptive(quantile, math.inf if first_s is None else first_s, slack, last, growth, least_s)
