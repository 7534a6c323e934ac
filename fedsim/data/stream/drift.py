"""Drift: when concepts change, and for whom. What a change does to the examples is in change.py.

A concept is a whole number, 0 before any drift; on the way from one to the next it is a fraction. Functions of
(key, client, arrival time). Knows no example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import FloatArray, IntArray, NonNegative, Positive, Range, Seconds, Share

Concepts = Annotated[int, Range(ge=2, why="with one nothing changes")]


class Schedule(Protocol):
    """When concepts change, on a clock that starts when drift may begin for a client: negative times are before."""

    @property
    def concepts(self) -> int:
        """Return how many concepts the schedule passes through; 0 where that is for the change to say."""
        ...

    def amounts(self, since_s: FloatArray, draws: FloatArray, concepts: int) -> FloatArray:
        """Return the concept of items that arrive at *since_s*, 0 to *concepts* - 1, fractions on the way.

        *draws* are one uniform number per item, for schedules under which old and new mix. Shapes: (n,), (n,) -> (n,).
        """
        ...

    def changes_s(self, since_s: FloatArray, concepts: int) -> FloatArray:
        """Return the times of the changes that items at *since_s* tell of, ascending. Shapes: (n,) -> (m,)."""
        ...


class Onset(Protocol):
    """For whom drift begins, and when: equal arguments, equal answers."""

    def begins_s(self, client: int) -> Seconds:
        """Return when the schedule starts for *client*; infinity for one that never drifts."""
        ...


schedules: Registry[Callable[..., Schedule]] = Registry(
    "schedule", key="stream.drift.schedule",
    gives=answers.Gives(
        "a Schedule", ("concepts", "amounts", "changes_s"),
        {
            "amounts": lambda given, since_s, _draws, concepts: answers.numbers(given, len(since_s), least=0.0),
            "concepts": answers.count(0),
            "changes_s": lambda given, _since_s, _concepts: answers.ascending(answers.numbers(given)),
        },
    ),
)  # fmt: skip
"""Functions that return a Schedule. Given: nothing."""
onsets: Registry[Callable[..., Onset]] = Registry(
    "onset", given=["key"], key="stream.drift.onset",
    gives=answers.Gives("an Onset", ("begins_s",), {"begins_s": lambda given, _client: answers.one(given, endless=True)}),
)  # fmt: skip
"""Functions that return an Onset. Given: ``key``."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A schedule and its onset together: the concept of each item of each client."""

    schedule: Schedule
    onset: Onset
    concepts: int
    key: Key

    def amounts(self, client: int, arrived_s: FloatArray) -> FloatArray:
        """Return the concept of each item of *client*, fractions on the way. Shapes: (n,) -> (n,)."""
        begins_s = self.onset.begins_s(client)
        if begins_s == math.inf:
            return np.zeros(len(arrived_s))
        draws = self.key.fold("mixing", client).uniform(np.arange(len(arrived_s)))
        return self.schedule.amounts(arrived_s - begins_s, draws, self.concepts)

    def whole(self, client: int, arrived_s: FloatArray) -> IntArray:
        """Return the concept of each item, a fraction of 0.3 being the next concept for three items in ten."""
        amounts = self.amounts(client, arrived_s)
        draws = self.key.fold("rounding", client).uniform(np.arange(len(arrived_s)))
        return (np.floor(amounts) + (draws < amounts % 1.0)).astype(np.int64)

    def changes_s(self, client: int, arrived_s: FloatArray) -> FloatArray:
        """Return the times of the drifts that *client* lives to see: an item comes before, and one at or after."""
        begins_s = self.onset.begins_s(client)
        if begins_s == math.inf or not len(arrived_s):
            return np.empty(0)
        changes_s = begins_s + self.schedule.changes_s(arrived_s - begins_s, self.concepts)
        return changes_s[(changes_s > arrived_s[0]) & (changes_s <= arrived_s[-1])]


@dataclass(frozen=True, slots=True)
class Steps:
    """Changes at given times, at once or gradually. See ``abrupt`` and ``gradual``. Width 0 is at once."""

    at_s: FloatArray
    width_s: Seconds

    @property
    def concepts(self) -> int:
        """Return one more than there are changes."""
        return len(self.at_s) + 1

    def amounts(self, since_s: FloatArray, draws: FloatArray, concepts: int) -> FloatArray:
        """Return whole concepts: how many changes an item lies behind. Shapes: (n,), (n,) -> (n,)."""
        behind = np.zeros(len(since_s))
        for at_s in self.at_s.tolist():
            if not self.width_s:
                behind += since_s >= at_s
            else:  # One draw for all changes: later ones are less likely, so an item never skips one.
                behind += draws < 1.0 / (1.0 + np.exp(np.clip(-4.0 * (since_s - at_s) / self.width_s, -700.0, 700.0)))
        return behind

    def changes_s(self, since_s: FloatArray, concepts: int) -> FloatArray:
        """Return the times of the changes, of gradual ones their centres. Shapes: (n,) -> (m,)."""
        return self.at_s[self.at_s <= since_s[-1]]


@dataclass(frozen=True, slots=True)
class Ramp:
    """One change that goes on for a while. See ``incremental``."""

    begin_s: Seconds
    end_s: Seconds
    concepts: int = 2

    def amounts(self, since_s: FloatArray, draws: FloatArray, concepts: int) -> FloatArray:
        """Return 0 up to the begin, 1 from the end on, and a fraction between. Shapes: (n,), (n,) -> (n,)."""
        return np.clip((since_s - self.begin_s) / (self.end_s - self.begin_s), 0.0, 1.0)

    def changes_s(self, since_s: FloatArray, concepts: int) -> FloatArray:
        """Return the begin: from there on a detector may be right. Shapes: (n,) -> (m,)."""
        return np.array([self.begin_s] if self.begin_s <= since_s[-1] else [])


@dataclass(frozen=True, slots=True)
class Cycle:
    """Changes that come back. See ``recurring``."""

    period_s: Seconds
    concepts: int

    def amounts(self, since_s: FloatArray, draws: FloatArray, concepts: int) -> FloatArray:
        """Return the number of the season, counted round. Shapes: (n,), (n,) -> (n,)."""
        return np.maximum(np.floor(since_s / self.period_s), 0.0) % concepts

    def changes_s(self, since_s: FloatArray, concepts: int) -> FloatArray:
        """Return the beginnings of those seasons that show another concept than the one an item came in before."""
        seasons = np.unique(np.maximum(np.floor(since_s / self.period_s), 0.0))
        return self.period_s * seasons[1:][np.diff(seasons % concepts) != 0]


@schedules.register("abrupt")
def abrupt(*, at_s: list[Positive]) -> Steps:
    """Return a change at each of *at_s*, ascending: all items from then on are of the next concept.

    >>> abrupt(at_s=[10.0, 20.0]).amounts(np.array([9.0, 10.0, 25.0]), np.zeros(3), 3).tolist()
    [0.0, 1.0, 2.0]
    """
    return Steps(_ascending(at_s), 0.0)


@schedules.register("gradual")
def gradual(*, at_s: list[Positive], width_s: Positive) -> Steps:
    """Return changes through which old and new mix: at t an item is new with chance 1 / (1 + exp(-4 (t - at) / width)).

    Between at - width / 2 and at + width / 2 the chance rises from 12 % to 88 %.
    Reference: Bifet et al. 2010, 'MOA: massive online analysis', section on concept drift; river's ConceptDriftStream.

    >>> gradual(at_s=[10.0], width_s=4.0).amounts(np.array([10.0, 10.0]), np.array([0.49, 0.51]), 2).tolist()
    [1.0, 0.0]
    """
    return Steps(_ascending(at_s), width_s)


@schedules.register("incremental")
def incremental(*, begin_s: NonNegative, end_s: Positive) -> Ramp:
    """Return one change that grows from nothing at *begin_s* to the whole at *end_s*: half of it halfway.

    A change that knows no halves (labels, features changing places) is whole for a growing share of the items.
    It counts as a drift at *begin_s*.

    >>> incremental(begin_s=10.0, end_s=20.0).amounts(np.array([0.0, 15.0, 99.0]), np.zeros(3), 2).tolist()
    [0.0, 0.5, 1.0]
    """
    if end_s <= begin_s:
        raise ScenarioError(f"stream.drift.schedule.end_s = {end_s:g}: must be > begin_s = {begin_s:g}.")
    return Ramp(begin_s, end_s)


@schedules.register("recurring")
def recurring(*, period_s: Positive, concepts: Concepts | None = None) -> Cycle:
    """Return a change every *period_s*, through all *concepts* and round again; by default as many as the change has.

    >>> recurring(period_s=10.0).amounts(np.array([5.0, 15.0, 25.0]), np.zeros(3), 2).tolist()
    [0.0, 1.0, 0.0]
    """
    if concepts == 1:
        raise ScenarioError("stream.drift.schedule.concepts = 1: must be >= 2, or nothing changes.")
    return Cycle(period_s, concepts or 0)


def _ascending(at_s: Sequence[float]) -> FloatArray:
    for earlier, later in pairwise(at_s):
        if later <= earlier:
            raise ScenarioError(f"stream.drift.schedule.at_s = {list(at_s)}: {later:g} comes after {earlier:g}. Sort them.")
    return np.array(at_s, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Begins:
    """When drift begins. See ``synchronous``, ``staggered`` and ``subset``."""

    step_s: Seconds
    spread_s: Seconds
    fraction: float
    key: Key

    def begins_s(self, client: int) -> Seconds:
        """Return when the schedule starts for *client*."""
        if self.fraction < 1.0 and self.key.fold("who").uniform_at(client) >= self.fraction:
            return math.inf
        spread = self.spread_s * self.key.fold("when").uniform_at(client) if self.spread_s else 0.0
        return self.step_s * client + spread


@onsets.register("synchronous")
def synchronous(key: Key) -> Begins:
    """Return the schedule's own times for all clients.

    >>> synchronous(Key(0)).begins_s(7)
    0.0
    """
    return Begins(0.0, 0.0, 1.0, key)


@onsets.register("staggered")
def staggered(key: Key, *, step_s: NonNegative = 0.0, spread_s: NonNegative = 0.0) -> Begins:
    """Return the schedule's times, later by *step_s* from one client to the next, and by up to *spread_s* at random.

    >>> staggered(Key(0), step_s=60.0).begins_s(7)
    420.0
    """
    if not step_s and not spread_s:
        raise ScenarioError("stream.drift.onset: 'staggered' needs step_s > 0 or spread_s > 0; else take 'synchronous'.")
    return Begins(step_s, spread_s, 1.0, key)


@onsets.register("subset")
def subset(key: Key, *, fraction: Share, spread_s: NonNegative = 0.0) -> Begins:
    """Return the schedule's times for a random *fraction* of the clients, later by up to *spread_s*; others never drift.

    Reference: Jothimurugesan et al. 2023 (FedDrift), arXiv:2206.00799: drifts that only some clients see.

    >>> subset(Key(0), fraction=0.0).begins_s(7)
    inf
    """
    return Begins(0.0, spread_s, fraction, key)
