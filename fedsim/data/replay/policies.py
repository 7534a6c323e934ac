"""Replay policies that decide by position: what came when, with which label.

Each is a rule: which slot does the item take that passes by. An item that finds a free slot always takes one, unless
its class has no more: with ``max_age_s`` what grew too old leaves free slots behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core.errors import RunError, ScenarioError
from fedsim.data.replay import AT, Age, Bytes, Capacity, Replay, lifetime, replays, room
from fedsim.data.replay.memory import REFUSED, Memory, Positions


@replays.register("none")
def none() -> Positions:
    """Return the policy that remembers nothing."""
    return Positions(0, nobody_enters)


@replays.register("fifo")
def fifo(
    example_bytes: int, capacity: Capacity = None, capacity_bytes: Bytes = None, max_age_s: Age = None
) -> Positions:
    """Return the policy that remembers the last *capacity* items: a sliding window."""
    return Positions(room(capacity, capacity_bytes, example_bytes), oldest_leaves, lifetime(max_age_s))


@replays.register("reservoir")
def reservoir(
    example_bytes: int, capacity: Capacity = None, capacity_bytes: Bytes = None, max_age_s: Age = None
) -> Positions:
    """Return the policy under which every item seen so far is remembered with the same chance.

    Reference: Vitter 1985, ACM TOMS 11(1), algorithm R.
    """
    return Positions(room(capacity, capacity_bytes, example_bytes), any_leaves, lifetime(max_age_s))


@replays.register("cbrs")
def cbrs(
    example_bytes: int, capacity: Capacity = None, capacity_bytes: Bytes = None, max_age_s: Age = None
) -> Positions:
    """Return the class-balancing reservoir: classes as even as the stream allows, each a uniform sample of its own.

    Reference: Chrysakis and Moens 2020 (ICML), algorithm 1.
    """
    return Positions(room(capacity, capacity_bytes, example_bytes), largest_class_gives, lifetime(max_age_s))


@replays.register("ring")
def ring(
    example_bytes: int,
    outputs: int,
    capacity: Capacity = None,
    capacity_bytes: Bytes = None,
    max_age_s: Age = None,
) -> Positions:
    """Return a sliding window per class, all *outputs* classes known beforehand.

    A class has capacity / outputs slots, rounded down; the first classes share out what is left. Slots of classes
    that never come stay empty.
    Reference: Chaudhry et al. 2019, arXiv:1902.10486, section 4.
    """
    examples = room(capacity, capacity_bytes, example_bytes)
    if examples < outputs:
        raise ScenarioError(
            f"{AT}.capacity = {examples}: a ring holds each class, and there are {outputs}. At least {outputs} works."
        )
    return Positions(examples, OldestOfClassLeaves(outputs, *divmod(examples, outputs)), lifetime(max_age_s))


@replays.register("gdumb")
def gdumb(
    example_bytes: int, capacity: Capacity = None, capacity_bytes: Bytes = None, max_age_s: Age = None
) -> Positions:
    """Return the greedy balancer: a class below its even share takes a random slot of the largest class.

    Classes are learnt as they come; with C of them seen the share is capacity / C.
    Reference: Prabhu et al. 2020 (ECCV), algorithm 1.
    """
    return Positions(room(capacity, capacity_bytes, example_bytes), below_share_enters, lifetime(max_age_s))


def sorts_by_class(replay: Replay) -> bool:
    """Return whether labels may decide how many examples *replay* holds; False only where it is known that they do not.

    >>> sorts_by_class(fifo(1, capacity=9)), sorts_by_class(cbrs(1, capacity=9))
    (False, True)
    """
    return not (type(replay) is Positions and replay.rule in (nobody_enters, oldest_leaves, any_leaves))


# Rules: (memory, label, uniform draw) -> slot. They travel to workers with a task, so none is a closure.


def nobody_enters(memory: Memory, label: int, u: float) -> int:
    """Return no slot."""
    return REFUSED


def oldest_leaves(memory: Memory, label: int, u: float) -> int:
    """Return a free slot, or that of the oldest item."""
    return int(memory.items.argmin()) if memory.full else memory.held


def any_leaves(memory: Memory, label: int, u: float) -> int:
    """Return a free slot, or any with chance capacity / (items seen, this one included): algorithm R."""
    if not memory.full:
        return memory.held
    slot = int(u * (memory.total + 1))
    return slot if slot < memory.capacity else REFUSED


def largest_class_gives(memory: Memory, label: int, u: float) -> int:
    """Return a free slot, or one of a largest class, or, for a class that is or was largest, one of its own or none.

    A class that was never largest has lost nothing, so that all it ever sent is still there: nothing else is stored.
    """
    if not memory.full:
        return memory.held
    own, seen = memory.kept.get(label, 0), memory.seen.get(label, 0)
    most = max(memory.kept.values())
    if own == seen and own < most:
        largest = np.array([name for name, number in memory.kept.items() if number == most])
        slots = np.flatnonzero(np.isin(memory.labels, largest))
        return int(slots[int(u * len(slots))])
    place = int(u * (seen + 1))  # Algorithm R within the class: enters with chance own / seen, this one included.
    return int(memory.slots_of(label)[place]) if place < own else REFUSED


def below_share_enters(memory: Memory, label: int, u: float) -> int:
    """Return a free slot, or, for a class below its even share, a random one of the largest class."""
    classes = len(memory.seen) + (label not in memory.seen)
    own = memory.kept.get(label, 0)
    if own * classes >= memory.capacity:  # At its share already: refused even where there is room (line 4).
        return REFUSED
    if not memory.full:
        return memory.held
    largest = max(memory.kept, key=lambda name: (memory.kept[name], -name))
    slots = memory.slots_of(largest)
    return int(slots[int(u * len(slots))])


@dataclass(frozen=True, slots=True)
class OldestOfClassLeaves:
    """The rule of a ring: each of *outputs* classes has *share* slots, the first *left* of them one more."""

    outputs: int
    share: int
    left: int

    def __call__(self, memory: Memory, label: int, u: float) -> int:
        """Return a free slot of the class, or that of its oldest item."""
        if not 0 <= label < self.outputs:
            raise RunError(f"replay 'ring': an item of class {label} arrived, and the model knows 0 to {self.outputs - 1}.")
        if memory.kept.get(label, 0) < self.share + (label < self.left):
            return memory.held
        return memory.oldest_of(label)
