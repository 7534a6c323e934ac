"""Replay policies that depend on vectors per example: gradients or features.

They are told vectors with ``add`` (of the new items) and ``update`` (of the slots that were replayed), and keep those
last told: no policy here asks for another pass over the memory. A vector of d numbers takes 4 d bytes of the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.state import State
from fedsim.core.types import Array, Count, IntArray, Seconds
from fedsim.data.replay import Age, Arrivals, Bytes, Capacity, Drawn, lifetime, replays, room, told
from fedsim.data.replay.memory import REFUSED, Memory, Positions, subset
from fedsim.data.replay.policies import any_leaves

_GRADIENTS, _FEATURES = frozenset({"gradients"}), frozenset({"features"})


@replays.register("gss")
def gss(
    example_bytes: int,
    capacity: Capacity = None,
    capacity_bytes: Bytes = None,
    max_age_s: Age = None,
    compared: Count = 10,
) -> Gss:
    """Return the greedy gradient-based selection: gradients that point the same way are stored once.

    A new item is compared with *compared* random ones of the memory. When full, only one whose gradient opposes all
    of them enters; who leaves is drawn by its own likeness score.
    Reference: Aljundi et al. 2019, arXiv:1903.08671, algorithm 2; gradients are those last told, where the paper
    takes them anew.
    """
    memory = Positions(room(capacity, capacity_bytes, example_bytes), any_leaves, lifetime(max_age_s))
    return Gss(memory, compared)


@replays.register("herding")
def herding(
    example_bytes: int, capacity: Capacity = None, capacity_bytes: Bytes = None, max_age_s: Age = None
) -> Herding:
    """Return exemplars per class whose mean feature stays near the mean of all that the class sent.

    Each class seen has an even share of the slots. Among what is held and what arrives together exemplars are chosen
    greedily, the best first; a class whose share shrinks drops its last. Features are scaled to length one.
    Reference: Rebuffi et al. 2017, arXiv:1611.07725, algorithms 4 and 5; from a stream, so that what was once let go
    cannot be chosen again.
    """
    memory = Positions(room(capacity, capacity_bytes, example_bytes), any_leaves, lifetime(max_age_s))
    return Herding(memory)


@dataclass(frozen=True, slots=True)
class Gss:
    """Directions that differ. State: ``gradients`` (m, d) float32 of length one; ``scores`` (m,), cosine + 1."""

    memory: Positions
    compared: int
    needs: frozenset[str] = _GRADIENTS
    candidates: int = 0

    @property
    def capacity(self) -> int:
        """Return how many examples are held at most."""
        return self.memory.capacity

    def empty(self) -> State:
        """Return the memory of a client that has seen nothing."""
        return {**self.memory.empty(), "gradients": np.zeros((0, 0), np.float32), "scores": np.zeros(0)}

    def add(self, state: State, new: Arrivals, key: Key, numbers: Mapping[str, Array] | None = None) -> State:
        """Return the memory after *new* arrived with ``gradients`` (k, d), or a sketch that keeps their angles."""
        fresh = _unit(told("gss", numbers, "gradients", new))
        known = len(state["items"])
        gradients = np.concatenate([_wide(state["gradients"], fresh), fresh])
        scores = np.concatenate([state["scores"], np.zeros(len(fresh))])
        accept = key.fold("accept").uniform(new.items).tolist()

        def rule(memory: Memory, label: int, u: float) -> int:
            at, rows = memory.row - known, memory.rows[: memory.held]
            score = 1.0  # With nothing to compare: as if at right angles.
            if memory.held:
                r = min(self.compared, memory.held)
                uniforms = key.fold("compared", int(new.items[at])).uniform(np.arange(r)).tolist()
                others = gradients[rows[subset(uniforms, memory.held)]].astype(np.float64)
                # Not BLAS: the bits of its products depend on where arrays lie in memory.
                cosines = (others * gradients[memory.row]).sum(axis=1)
                score = max(float(cosines.max()) + 1.0, 1e-9)
            scores[memory.row] = score
            if not memory.full:
                return memory.held
            if score >= 1:
                return REFUSED
            edges = np.cumsum(scores[rows])
            slot = int(np.searchsorted(edges, u * edges[-1], side="right"))
            theirs = float(scores[rows[slot]])
            return slot if accept[at] < theirs / (theirs + score) else REFUSED

        memory = self.memory.walk(state, new, key, rule)
        rows = memory.rows[: memory.held]
        return {**memory.state(), "gradients": gradients[rows], "scores": scores[rows]}

    def draw(self, state: State, count: int, key: Key, now: Seconds) -> Drawn:
        """Return a uniform sample without replacement."""
        return self.memory.draw(state, count, key, now)

    def update(self, state: State, slots: IntArray, numbers: Array) -> State:
        """Return the memory with new gradients (r, d) of *slots*; scores stay those of their arrival."""
        if not len(slots):  # Before anything came the width of vectors is unknown.
            return state
        gradients = state["gradients"].copy()
        gradients[slots] = _unit(numbers)
        return {**state, "gradients": gradients}

    def held(self, state: State) -> IntArray:
        """Return the items remembered, in slot order."""
        return state["items"]


@dataclass(frozen=True, slots=True)
class Herding:
    """Exemplars, class by class, the best first. State: ``features`` (m, d) float32, ``sums`` (classes seen, d)."""

    memory: Positions
    needs: frozenset[str] = _FEATURES
    candidates: int = 0

    @property
    def capacity(self) -> int:
        """Return how many examples are held at most."""
        return self.memory.capacity

    def empty(self) -> State:
        """Return the memory of a client that has seen nothing."""
        return {**self.memory.empty(), "features": np.zeros((0, 0), np.float32), "sums": np.zeros((0, 0))}

    def add(self, state: State, new: Arrivals, key: Key, numbers: Mapping[str, Array] | None = None) -> State:
        """Return the memory after *new* arrived together with ``features`` (k, d)."""
        fresh = _unit(told("herding", numbers, "features", new))
        if not len(new.items):
            return state
        labels = np.concatenate([state["labels"], new.labels])
        arrived_s = np.concatenate([state["arrived_s"], new.arrived_s])
        features = np.concatenate([_wide(state["features"], fresh), fresh])
        classes = list(dict.fromkeys([*state["classes"].tolist(), *new.labels.tolist()]))
        seen, sums = np.zeros(len(classes), np.int64), np.zeros((len(classes), fresh.shape[1]))
        seen[: len(state["seen"])] = state["seen"]
        sums[: len(state["seen"])] = _wide(state["sums"], fresh)
        index = np.array([classes.index(label) for label in new.labels.tolist()])
        np.add.at(seen, index, 1)
        np.add.at(sums, index, fresh)
        share, left = divmod(self.capacity, len(classes))
        arrived = np.arange(len(labels)) >= len(state["items"])
        fits = new.arrived_s[-1] - arrived_s <= self.memory.max_age_s
        chosen: list[IntArray] = []
        for at, label in enumerate(classes):
            rows = np.flatnonzero((labels == label) & fits)
            if arrived[rows].any():
                rows = rows[herd(features[rows], sums[at] / seen[at], share + (at < left))]
            chosen.append(rows[: share + (at < left)])
        rows = np.concatenate(chosen)
        return {
            "items": np.concatenate([state["items"], new.items])[rows],
            "labels": labels[rows],
            "arrived_s": arrived_s[rows],
            "classes": np.array(classes, np.int64),
            "seen": seen,
            "features": features[rows],
            "sums": sums,
        }

    def draw(self, state: State, count: int, key: Key, now: Seconds) -> Drawn:
        """Return a uniform sample without replacement."""
        return self.memory.draw(state, count, key, now)

    def update(self, state: State, slots: IntArray, numbers: Array) -> State:
        """Return the memory with new features (r, d) of *slots*; the classes' means stay those of arrival."""
        if not len(slots):  # Before anything came the width of vectors is unknown.
            return state
        features = state["features"].copy()
        features[slots] = _unit(numbers)
        return {**state, "features": features}

    def held(self, state: State) -> IntArray:
        """Return the items remembered, in slot order."""
        return state["items"]


def herd(features: Array, mean: Array, count: int) -> IntArray:
    """Return up to *count* rows, in the order in which each brings the mean of those chosen nearest to *mean*.

    Shapes: features (n, d), mean (d,) -> (min(count, n),). Ties go to the first row.
    Reference: Rebuffi et al. 2017, arXiv:1611.07725, algorithm 4.

    >>> herd(np.array([[0.0], [1.0], [2.0], [9.0]]), np.array([3.0]), 2).tolist()
    [2, 1]
    """
    vectors, mean = features.astype(np.float64), mean.astype(np.float64)
    lengths = np.square(vectors).sum(axis=1)
    gap = np.zeros(vectors.shape[1])
    chosen: list[int] = []
    for _ in range(min(count, len(vectors))):
        gap += mean  # After k choices k x mean - their sum: the nearest row x to it has the least |x|^2 - 2 gap . x.
        best = int((lengths - 2 * (vectors * gap).sum(axis=1)).argmin())
        chosen.append(best)
        lengths[best] = np.inf
        gap -= vectors[best]
    return np.array(chosen, dtype=np.int64)


def _unit(vectors: Array) -> Array:
    """Return *vectors* scaled to length one; those without direction become zero. Shapes: (k, d) -> (k, d)."""
    clean = np.nan_to_num(vectors.astype(np.float64), posinf=0.0, neginf=0.0)
    lengths = np.sqrt(np.square(clean).sum(axis=1, keepdims=True))
    return (clean / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def _wide(kept: Array, fresh: Array) -> Array:
    """Return what was kept; when there is nothing yet, it is as wide as what comes."""
    return kept if kept.shape[1] else np.zeros((len(kept), fresh.shape[1]), kept.dtype)
