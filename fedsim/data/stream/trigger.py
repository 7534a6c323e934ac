"""Triggers: when a client on a stream answers a message that has reached it. Functions of its stream and of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.registry import Registry
from fedsim.core.types import Count, Positive, Seconds
from fedsim.data.stream import Stream


class Trigger(Protocol):
    """A rule for when a client has enough. It always wants at least one new example with its label."""

    def ready_s(self, stream: Stream, until_s: Seconds, now: Seconds) -> Seconds:
        """Return when the rule first holds, *now* or later; infinity when it never will.

        *until_s* is the time of the client's last task: what had its label by then is not new. When the stream ends
        first, what is left is enough, once it is all there.
        """
        ...


triggers: Registry[Callable[..., Trigger]] = Registry(
    "trigger", key="stream.trigger",
    gives=answers.Gives(
        "a Trigger", ("ready_s",), {"ready_s": lambda given, _stream, _until_s, now: answers.one(given, least=now, endless=True)}
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Enough:
    """*examples* new ones, or *every_s* seconds since the last task, whichever comes first."""

    examples: int = 1
    every_s: Seconds = math.inf

    def ready_s(self, stream: Stream, until_s: Seconds, now: Seconds) -> Seconds:
        """Return when there is enough.

        >>> times = np.array([1.0, 2.0, 5.0])
        >>> stream = Stream(times, times, np.arange(3), np.zeros(3, int))
        >>> [Enough(2).ready_s(stream, until, 0.0) for until in (-math.inf, 1.0, 2.0, 5.0)]
        [2.0, 5.0, 5.0, inf]
        >>> Enough(2, every_s=3.5).ready_s(stream, 1.0, 0.0), Enough(3, every_s=0.5).ready_s(stream, 0.0, 0.0)
        (4.5, 1.0)
        """
        coming = upcoming(stream, until_s)
        if not len(coming):
            return math.inf
        by_count = float(coming[min(self.examples, len(coming)) - 1])
        by_time = max(until_s, 0.0) + self.every_s
        return max(now, float(coming[0]), min(by_count, by_time))


@dataclass(frozen=True, slots=True)
class AtLeast:
    """*trigger*, but not before *examples* new ones have their labels. A stream's last few, fewer than these, are not trained on."""

    trigger: Trigger
    examples: int

    def ready_s(self, stream: Stream, until_s: Seconds, now: Seconds) -> Seconds:
        """Return when there is enough.

        >>> times = np.array([1.0, 2.0, 5.0])
        >>> stream = Stream(times, times, np.arange(3), np.zeros(3, int))
        >>> [AtLeast(Enough(), 2).ready_s(stream, until, 0.0) for until in (-math.inf, 1.0, 2.0)]
        [2.0, 5.0, inf]
        """
        coming = upcoming(stream, until_s)
        if len(coming) < self.examples:
            return math.inf
        return max(self.trigger.ready_s(stream, until_s, now), float(coming[self.examples - 1]))


def upcoming(stream: Stream, until_s: Seconds) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return when labels come after *until_s*, ascending; labels that never come are left out."""
    times = stream.labelled_s
    if len(times) > 1 and not (times[1:] >= times[:-1]).all():
        times = np.sort(times[times > until_s])
    first, last = np.searchsorted(times, [until_s, np.finfo(np.float64).max], side="right")
    return times[first:last]


@triggers.register("arrival")
def arrival() -> Trigger:
    """At once, or as soon as there is one new example."""
    return Enough()


@triggers.register("count")
def count(*, examples: Count) -> Trigger:
    """After so many new examples."""
    return Enough(examples)


@dataclass(frozen=True, slots=True)
class Every:
    """*every_s* seconds after the last task, and then as soon as there is one new example."""

    every_s: Seconds

    def ready_s(self, stream: Stream, until_s: Seconds, now: Seconds) -> Seconds:
        """Return when the time is up."""
        coming = upcoming(stream, until_s)
        return max(now, float(coming[0]), max(until_s, 0.0) + self.every_s) if len(coming) else math.inf


@triggers.register("time")
def time(*, every_s: Positive) -> Trigger:
    """So long after the client's last task, counted from the start for its first."""
    return Every(every_s)


@triggers.register("count_or_time")
def count_or_time(*, examples: Count, every_s: Positive) -> Trigger:
    """After so many new examples or so long after the last task, whichever comes first."""
    return Enough(examples, every_s)
