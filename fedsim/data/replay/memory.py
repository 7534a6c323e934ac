"""The memory at work: items pass by one after the other, and a rule says which slot each takes.

A rule is one function; ageing, bookkeeping and drawing are the same for all. Numbers that belong to a slot follow it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fedsim.core.errors import must
from fedsim.core.keys import Key
from fedsim.core.state import State
from fedsim.core.types import Array, FloatArray, IntArray, Seconds
from fedsim.data.replay import Arrivals, Drawn, Replay

REFUSED = -1


class Memory:
    """The slots while items pass by: made of a state, which it leaves as it is, and turned into a new one.

    A *row* counts what the memory may choose from: first the old slots, then the new items.
    """

    __slots__ = ("_arrived_s", "_kept", "_new", "_oldest_s", "_queues", "_state", "_was",
                 "capacity", "held", "items", "labels", "row", "rows", "seen", "total")  # fmt: skip

    def __init__(self, state: State, new: Arrivals, capacity: int) -> None:
        self.capacity = capacity
        self.held = len(state["items"])
        size = min(capacity, self.held + len(new.items))  # No larger: a huge capacity costs what it holds.
        self.items = _grown(state["items"], size)
        self.labels = _grown(state["labels"], size)
        self.rows = np.arange(size)
        self.seen: dict[int, int] = dict(zip(state["classes"].tolist(), state["seen"].tolist(), strict=True))
        """How many items of each label have passed by, this one not counted; labels in order of appearance."""
        self.total = sum(self.seen.values())
        self.row = 0
        """The row of the item that passes by."""
        self._state, self._new, self._was = state, new, self.held
        self._arrived_s: FloatArray | None = None
        self._oldest_s = -math.inf
        self._kept: dict[int, int] | None = None
        self._queues: dict[int, deque[int]] = {}  # Slots by age, of labels that were asked for.

    @property
    def full(self) -> bool:
        """Return whether every slot is taken."""
        return self.held == self.capacity

    @property
    def kept(self) -> dict[int, int]:
        """Return how many items of each label are in the memory; labels that are not are missing or 0."""
        if self._kept is None:  # Counted when first asked for: most rules never do.
            labels, numbers = np.unique(self.labels[: self.held], return_counts=True)
            self._kept = dict(zip(labels.tolist(), numbers.tolist(), strict=True))
        return self._kept

    def slots_of(self, label: int) -> IntArray:
        """Return the slots of the items labelled *label*, ascending."""
        return np.flatnonzero(self.labels[: self.held] == label)

    def oldest_of(self, label: int) -> int:
        """Return the slot of the oldest item labelled *label*, of which there is one."""
        queue = self._queues.get(label)
        if queue is None:
            slots = self.slots_of(label)
            queue = self._queues[label] = deque(slots[self.items[slots].argsort()].tolist())
        return queue[0]

    def take(self, rule: Rule, uniforms: Sequence[float], max_age_s: Seconds, begin: int, end: int) -> None:
        """Let the new items *begin* to *end* pass by; *uniforms* holds one number in (0, 1) per new item."""
        ages = math.isfinite(max_age_s)
        numbers = self._new.items[begin:end].tolist()
        labels = self._new.labels[begin:end].tolist()
        for at, (number, label) in enumerate(zip(numbers, labels, strict=True), begin):
            if ages:
                self._forget(float(self._new.arrived_s[at]), max_age_s)
            self.row = self._was + at
            slot = rule(self, label, uniforms[at])
            self.seen[label] = self.seen.get(label, 0) + 1
            self.total += 1
            if slot != REFUSED:
                self._put(slot, number, label)

    def column(self, old: Array, new: Array) -> Array:
        """Return numbers in slot order, of those of the old slots and those of the new items. Shapes: (m, ...)."""
        return np.concatenate([old, new])[self.rows[: self.held]]

    def state(self) -> State:
        """Return the memory as it is now."""
        return {
            "items": self.items[: self.held].copy(),
            "labels": self.labels[: self.held].copy(),
            "arrived_s": self.column(self._state["arrived_s"], self._new.arrived_s),
            "classes": np.fromiter(self.seen.keys(), np.int64, len(self.seen)),
            "seen": np.fromiter(self.seen.values(), np.int64, len(self.seen)),
        }

    def alive(self, now: Seconds, max_age_s: Seconds) -> IntArray:
        """Return the slots whose items are not too old."""
        return np.flatnonzero(now - self._arrivals()[self.rows[: self.held]] <= max_age_s)

    def _arrivals(self) -> FloatArray:
        if self._arrived_s is None:
            self._arrived_s = np.concatenate([self._state["arrived_s"], self._new.arrived_s])
        return self._arrived_s

    def _forget(self, now: Seconds, max_age_s: Seconds) -> None:
        if now - self._oldest_s <= max_age_s or not self.held:
            return
        alive = self.alive(now, max_age_s)
        for column in (self.items, self.labels, self.rows):
            column[: len(alive)] = column[: self.held][alive]
        self.held = len(alive)
        self._kept = None
        self._queues = {}
        # A bound: the oldest may since have been replaced, which costs another look when its time comes.
        self._oldest_s = float(self._arrivals()[self.rows[: self.held]].min()) if self.held else now

    def _put(self, slot: int, number: int, label: int) -> None:
        must(0 <= slot <= self.held and slot < self.capacity, "a memory never exceeds its capacity")
        if self._kept is not None:
            if slot < self.held:
                self._kept[int(self.labels[slot])] -= 1
            self._kept[label] = self._kept.get(label, 0) + 1
        if self._queues and slot < self.held:
            before = self._queues.pop(int(self.labels[slot]), None)
            if before and before[0] == slot:  # Otherwise not the oldest left: that label is sorted anew when asked for.
                before.popleft()
                self._queues[int(self.labels[slot])] = before
        if label in self._queues:
            self._queues[label].append(slot)
        self.held = max(self.held, slot + 1)
        self.items[slot], self.labels[slot], self.rows[slot] = number, label, self.row


Rule: TypeAlias = Callable[[Memory, int, float], int]
"""(memory, label, a uniform draw of the item's own) -> the slot that the item takes, ``memory.held`` for a fresh one,
or REFUSED."""


@dataclass(frozen=True, slots=True)
class Positions:
    """A policy that decides by what came when, with which label; draws are uniform, without replacement."""

    capacity: int
    rule: Rule
    max_age_s: Seconds = math.inf
    needs: frozenset[str] = frozenset()
    candidates: int = 0

    def empty(self) -> State:
        """Return the memory of a client that has seen nothing."""
        none = np.zeros(0, dtype=np.int64)
        return {"items": none, "labels": none, "arrived_s": np.zeros(0), "classes": none, "seen": none}

    def add(self, state: State, new: Arrivals, key: Key, numbers: Mapping[str, Array] | None = None) -> State:
        """Return the memory after *new* arrived."""
        return self.walk(state, new, key, self.rule).state() if self.capacity else state

    def walk(self, state: State, new: Arrivals, key: Key, rule: Rule) -> Memory:
        """Return the memory at work after *new* passed by under *rule*, for policies that keep more than items."""
        memory = Memory(state, new, self.capacity)
        memory.take(rule, place(new, key), self.max_age_s, 0, len(new.items))
        return memory

    def draw(self, state: State, count: int, key: Key, now: Seconds) -> Drawn:
        """Return a uniform sample without replacement of what is not too old at *now*."""
        alive = alive_slots(state, now, self.max_age_s)
        of = len(state["items"]) if alive is None else len(alive)
        r = min(max(count, self.candidates), of)
        slots = np.array(subset(key.uniform(np.arange(r)).tolist(), of), dtype=np.int64)
        slots = slots if alive is None else alive[slots]
        return Drawn(slots, state["items"][slots], np.ones(r))

    def update(self, state: State, slots: IntArray, numbers: Array) -> State:
        """Return *state*: nothing here depends on numbers."""
        return state

    def held(self, state: State) -> IntArray:
        """Return the items remembered, in slot order."""
        return state["items"]


def schedule(
    replay: Replay,
    state: State,
    new: Arrivals,
    sizes: Sequence[int],
    count: int,
    key: Key,
    first_step: int,
    now: Seconds,
) -> tuple[list[Drawn], State]:
    """Return what each mini-batch replays, and the memory in the end, for a policy that needs no numbers.

    As if for step s = first_step, ...: ``draw(state, count, key.fold("draw", s), now)``, and only then ``add`` of the
    mini-batch's own items under *key*. The first draw of an empty memory so is empty (Buzzega et al. 2020,
    arXiv:2010.05595). *sizes* sum to the number of arrivals; a size may be 0, for a step that reads no new item.
    """
    must(not replay.needs, "a policy that needs numbers is asked step by step")
    must(sum(sizes) == len(new.items), "the mini-batches hold the arrivals")
    draws = key.fold("draw")
    found: list[Drawn] = []
    at = 0
    if not (isinstance(replay, Positions) and replay.capacity and replay.max_age_s == math.inf):
        for step, size in enumerate(sizes, first_step):
            found.append(replay.draw(state, count, draws.fold(step), now))
            if size:
                state = replay.add(state, new[at : at + size], key)
            at += size
        return found, state
    memory, uniforms = Memory(state, new, replay.capacity), place(new, key)
    ids, ones = np.arange(count), np.ones(count)
    for step, size in enumerate(sizes, first_step):
        r = min(count, memory.held)
        slots = np.array(subset(draws.fold(step).uniform(ids[:r]).tolist(), memory.held), dtype=np.int64)
        found.append(Drawn(slots, memory.items[slots], ones[:r]))
        memory.take(replay.rule, uniforms, math.inf, at, at + size)
        at += size
    return found, memory.state()


def place(new: Arrivals, key: Key) -> list[float]:
    """Return the draw that decides about each item: a function of the key and the item's number alone."""
    return key.fold("place").uniform(new.items).tolist()


def subset(uniforms: Sequence[float], of: int) -> list[int]:
    """Return ``len(uniforms)`` different numbers below *of*: each subset is as likely as any other.

    Costs what it returns, however large *of* is.
    Reference: R. Floyd in Bentley and Floyd 1987, CACM 30(9), algorithm F2.

    >>> sorted(subset([0.1, 0.7, 0.2], 3))
    [0, 1, 2]
    """
    chosen: dict[int, None] = {}
    for u, top in zip(uniforms, range(of - len(uniforms), of), strict=True):
        pick = int(u * (top + 1))
        chosen[top if pick in chosen else pick] = None
    return list(chosen)


def alive_slots(state: State, now: Seconds, max_age_s: Seconds) -> IntArray | None:
    """Return the slots whose items are not too old at *now*; None for all of them."""
    if max_age_s == math.inf:
        return None
    return np.flatnonzero(now - state["arrived_s"] <= max_age_s)


def _grown(column: IntArray, size: int) -> IntArray:
    grown = np.empty(size, dtype=np.int64)
    grown[: len(column)] = column
    return grown
