"""Replay policies that depend on losses: what is replayed, what leaves, what a step would harm.

They are told losses with ``add`` (of the new items) and ``update`` (of the slots that were replayed), and keep one per
slot until a newer one is told: no policy here asks for another pass over the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.state import State
from fedsim.core.types import Array, Count, FloatArray, IntArray, NonNegative, Positive, Seconds, Share
from fedsim.data.replay import Age, Arrivals, Bytes, Capacity, Drawn, lifetime, replays, room, told
from fedsim.data.replay.memory import REFUSED, Memory, Positions, alive_slots
from fedsim.data.replay.policies import any_leaves

_LOSSES = frozenset({"losses"})


@replays.register("prioritised")
def prioritised(
    example_bytes: int,
    capacity: Capacity = None,
    capacity_bytes: Bytes = None,
    max_age_s: Age = None,
    alpha: NonNegative = 0.6,
    beta: Share = 0.4,
    eps: Positive = 1e-6,
) -> Prioritised:
    """Return a reservoir that replays an example the oftener, the larger its loss was when last replayed.

    P(i) = p_i^alpha / sum, p = |loss| + eps; a new example has the largest p there is. Its weight is
    (m P(i))^-beta over m remembered examples, divided by the largest: at beta = 1 weighted means are unbiased, up to
    that divisor. Draws are with replacement.
    Reference: Schaul et al. 2016, arXiv:1511.05952, section 3, but for its sliding window.
    """
    memory = Positions(room(capacity, capacity_bytes, example_bytes), any_leaves, lifetime(max_age_s))
    return Prioritised(memory, alpha, beta, eps)


@replays.register("loss_aware")
def loss_aware(
    example_bytes: int,
    capacity: Capacity = None,
    capacity_bytes: Bytes = None,
    max_age_s: Age = None,
    strength: NonNegative = 1.0,
) -> LossAware:
    """Return a reservoir in which an item of low loss leaves rather than one of high loss.

    An item enters as in a reservoir; who leaves is drawn in proportion to ((l_max - l) / (l_max - l_min))^strength.
    At strength 0, or with all losses equal, that is the reservoir itself.
    Reference: Buzzega et al. 2021, arXiv:2010.05595, section 3 (loss-aware reservoir; its class balance left out).
    """
    memory = Positions(room(capacity, capacity_bytes, example_bytes), any_leaves, lifetime(max_age_s))
    return LossAware(memory, strength)


@replays.register("mir")
def mir(
    example_bytes: int,
    capacity: Capacity = None,
    capacity_bytes: Bytes = None,
    max_age_s: Age = None,
    candidates: Count = 50,
) -> Positions:
    """Return a reservoir of which, per step, those of *candidates* drawn are replayed that the step would harm most.

    The engine takes the step, compares losses and keeps the ``most_interfered``.
    Reference: Aljundi et al. 2019, arXiv:1908.04742, section 3.1 (ER-MIR).
    """
    examples = room(capacity, capacity_bytes, example_bytes)
    return Positions(examples, any_leaves, lifetime(max_age_s), _LOSSES, candidates)


@dataclass(frozen=True, slots=True)
class Prioritised:
    """Draws by priority. State: ``priorities`` (m,), p to the power alpha."""

    memory: Positions
    alpha: float
    beta: float
    eps: float
    needs: frozenset[str] = _LOSSES
    candidates: int = 0

    @property
    def capacity(self) -> int:
        """Return how many examples are held at most."""
        return self.memory.capacity

    def empty(self) -> State:
        """Return the memory of a client that has seen nothing."""
        return {**self.memory.empty(), "priorities": np.zeros(0)}

    def add(self, state: State, new: Arrivals, key: Key, numbers: Mapping[str, Array] | None = None) -> State:
        """Return the memory after *new* arrived; their losses are not read."""
        known = state["priorities"]
        fresh = np.full(len(new.items), known.max() if len(known) else 1.0)
        memory = self.memory.walk(state, new, key, self.memory.rule)
        return {**memory.state(), "priorities": memory.column(known, fresh)}

    def draw(self, state: State, count: int, key: Key, now: Seconds) -> Drawn:
        """Return examples drawn by priority, with replacement, and their importance weights."""
        weights = state["priorities"]
        alive = alive_slots(state, now, self.memory.max_age_s)
        weights = weights if alive is None else weights[alive]
        r = min(count, len(weights))
        if not r:
            return self.memory.draw(state, 0, key, now)
        edges = weights.cumsum()
        picks = np.searchsorted(edges, key.uniform(np.arange(r)) * edges[-1], side="right")
        slots = picks if alive is None else alive[picks]
        # (m P)^-beta over its largest value, that of the smallest priority: m and the sum cancel.
        return Drawn(slots, state["items"][slots], (weights[picks] / weights.min()) ** -self.beta)

    def update(self, state: State, slots: IntArray, numbers: Array) -> State:
        """Return the memory with priorities by the losses (r,) of *slots*."""
        powers = state["priorities"].copy()
        losses = _finite(np.abs(numbers.astype(np.float64)))
        powers[slots] = (losses + self.eps) ** self.alpha
        return {**state, "priorities": powers}

    def held(self, state: State) -> IntArray:
        """Return the items remembered, in slot order."""
        return state["items"]


@dataclass(frozen=True, slots=True)
class LossAware:
    """A reservoir in which low losses leave. State: ``losses`` (m,), as last told."""

    memory: Positions
    strength: float
    needs: frozenset[str] = _LOSSES
    candidates: int = 0

    @property
    def capacity(self) -> int:
        """Return how many examples are held at most."""
        return self.memory.capacity

    def empty(self) -> State:
        """Return the memory of a client that has seen nothing."""
        return {**self.memory.empty(), "losses": np.zeros(0)}

    def add(self, state: State, new: Arrivals, key: Key, numbers: Mapping[str, Array] | None = None) -> State:
        """Return the memory after *new* arrived with ``losses`` (k,)."""
        fresh = _finite(told("loss_aware", numbers, "losses", new))
        losses = np.concatenate([state["losses"], fresh])

        def rule(memory: Memory, label: int, u: float) -> int:
            slot = any_leaves(memory, label, u)
            if slot == REFUSED or not memory.full:
                return slot
            mine = losses[memory.rows[: memory.held]]
            low, high = float(mine.min()), float(mine.max())
            if low == high or not self.strength:
                return slot
            edges = np.cumsum(((high - mine) / (high - low)) ** self.strength)
            # Given that the item enters, u (t + 1) / M is uniform: one draw decides both, as in the reservoir.
            share = u * (memory.total + 1) / memory.capacity
            return min(int(np.searchsorted(edges, share * edges[-1], side="right")), memory.held - 1)

        memory = self.memory.walk(state, new, key, rule)
        return {**memory.state(), "losses": memory.column(state["losses"], fresh)}

    def draw(self, state: State, count: int, key: Key, now: Seconds) -> Drawn:
        """Return a uniform sample without replacement."""
        return self.memory.draw(state, count, key, now)

    def update(self, state: State, slots: IntArray, numbers: Array) -> State:
        """Return the memory with new losses (r,) of *slots*."""
        losses = state["losses"].copy()
        losses[slots] = _finite(numbers.astype(np.float64))
        return {**state, "losses": losses}

    def held(self, state: State) -> IntArray:
        """Return the items remembered, in slot order."""
        return state["items"]


def most_interfered(before: FloatArray, after: FloatArray, count: int) -> IntArray:
    """Return the *count* candidates whose loss a step would raise most, the worst first.

    Shapes: before (c,), after (c,) -> (min(count, c),). Ties go to the first; a loss that is not a number comes last.
    Reference: Aljundi et al. 2019, arXiv:1908.04742, section 3.1.

    >>> most_interfered(np.array([1.0, 1.0, 1.0]), np.array([1.5, 0.2, 3.0]), 2).tolist()
    [2, 0]
    """
    return np.argsort(-(after - before), kind="stable")[:count]


def _finite(losses: FloatArray) -> FloatArray:
    """Return *losses*; one that is no number, or infinite, counts as the largest that a float32 holds."""
    most = float(np.finfo(np.float32).max)
    return np.nan_to_num(losses, nan=most, posinf=most, neginf=-most)
