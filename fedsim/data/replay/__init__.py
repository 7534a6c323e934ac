"""Replay: which items of its stream a client still remembers, as values and a protocol.

Items are numbers in a stream, never examples, so that a memory is small and travels: in `Context.state`, in a
checkpoint, in a digest. Knows no policy (policies, losses, vectors), no tensor and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias, cast

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.state import State
from fedsim.core.types import Array, FloatArray, IntArray, Range, Seconds

Capacity: TypeAlias = Annotated[int, Range(ge=1, why="examples that the memory holds")] | None
Bytes: TypeAlias = Annotated[int, Range(ge=1, why="as many examples as fit")] | None
Age: TypeAlias = Annotated[float, Range(gt=0, why="older examples are forgotten, in virtual seconds")] | None

AT = "clients.replay"  # Where a scenario names its memory: error lines start with it.
MOST = 10_000_000  # Items a memory may hold: at 24 bytes each, 240 MB for one client's state.


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A few stream items in order of arrival. Shapes: all (k,)."""

    items: IntArray
    """The item's number in the client's stream, from 0, ascending; numbers may be missing."""
    labels: IntArray
    arrived_s: FloatArray

    def __getitem__(self, cut: slice) -> Arrivals:
        """Return the arrivals at *cut*, as views.

        >>> Arrivals(np.arange(3), np.zeros(3, int), np.arange(3.0))[1:].items.tolist()
        [1, 2]
        """
        return Arrivals(self.items[cut], self.labels[cut], self.arrived_s[cut])


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is replayed. Shapes: all (r,); a weight is 1 unless the policy weighs by importance."""

    slots: IntArray
    items: IntArray
    weights: FloatArray


class Replay(Protocol):
    """A policy: pure functions of (memory, key). A memory that goes in is never changed.

    What becomes of item t is drawn from the key at t, so every *add* of one client takes the same key, and the
    memory does not depend on how arrivals were cut into mini-batches. A *draw* takes a key of its own.
    """

    @property
    def capacity(self) -> int:
        """Return how many examples are held at most."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Return which numbers *add* and *update* are told: none, losses (k,), gradients (k, d) or features (k, d).

        Vectors are kept by that name, (m, d), so that it is known how wide they are.
        """
        ...

    @property
    def candidates(self) -> int:
        """Return of how many drawn examples the caller keeps the most interfered ones; 0: a draw is final."""
        ...

    def empty(self) -> State:
        """Return the memory of a client that has seen nothing; ``items`` (m,), in slot order, is always there."""
        ...

    def add(self, state: State, new: Arrivals, key: Key, numbers: Mapping[str, Array] | None = None) -> State:
        """Return the memory after *new* arrived, one item after the other; *numbers* holds what the policy needs."""
        ...

    def draw(self, state: State, count: int, key: Key, now: Seconds) -> Drawn:
        """Return min(count, held) remembered examples; none that is too old at *now*."""
        ...

    def update(self, state: State, slots: IntArray, numbers: Array) -> State:
        """Return the memory that knows new *numbers* of the examples in *slots*: what the policy needs, per slot."""
        ...

    def held(self, state: State) -> IntArray:
        """Return the items remembered, in slot order."""
        ...


NUMBERS = frozenset({"losses", "gradients", "features"})


def _needs(given: Any, *_: Any) -> frozenset[str]:
    if not isinstance(given, frozenset | set) or not given <= NUMBERS or len(given) > 1:  # pyright: ignore[reportUnknownArgumentType]
        raise ValueError(f"{given!r}, expected a set of one of {', '.join(sorted(NUMBERS))}, or of none")
    return frozenset(given)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _first(given: Any) -> State:
    return _known(given, np.zeros(0, dtype=np.int64))


def _added(given: Any, state: State, new: Arrivals, *_: Any) -> State:
    return _known(given, np.concatenate([state["items"], new.items]))


def _updated(given: Any, state: State, *_: Any) -> State:
    return _known(given, state["items"])


def _known(given: Any, items: IntArray) -> State:
    state = answers.state(given)
    if "items" not in state:
        raise ValueError("a memory without its items")
    # It will go in again, and a memory that goes in is never changed.
    return {name: answers.fixed(array) for name, array in state.items()} | {"items": answers.fixed(_among(state["items"], items))}


def _among(given: Any, items: IntArray) -> IntArray:
    found = answers.whole(given)
    answers.wrong(found, ~np.isin(found, items), "items that came, or were remembered")
    return found


def _drawn(given: Any, state: State, *_: Any) -> Drawn:
    if not all(hasattr(given, name) for name in ("slots", "items", "weights")):
        raise ValueError(f"a {type(given).__name__}, expected a Drawn")
    items = _among(given.items, state["items"])
    return Drawn(answers.whole(given.slots, len(items)), items, answers.numbers(given.weights, len(items), least=0.0))


def _held(given: Any, state: State) -> IntArray:
    return _among(given, state["items"])


replays: Registry[Callable[..., Replay]] = Registry(
    "replay", given=["outputs", "example_bytes"], key="clients.replay",
    gives=answers.Gives(
        "a Replay", ("capacity", "needs", "candidates", "empty", "add", "draw", "update", "held"),
        {
            "capacity": answers.count(0), "needs": _needs, "candidates": answers.count(0), "empty": _first, "add": _added,
            "draw": _drawn, "update": _updated, "held": _held,
        },
    ),
)  # fmt: skip
"""Functions that return a Replay. Given: ``outputs``, how many classes there are; ``example_bytes``, what one takes."""


def room(capacity: int | None, capacity_bytes: int | None, example_bytes: int) -> int:
    """Return how many examples fit. Raises ScenarioError unless one of the two settings is there and makes sense.

    >>> room(None, 10_000, 784)
    12
    """
    if (capacity is None) == (capacity_bytes is None):
        given = "neither is given" if capacity is None else "both are given"
        raise ScenarioError(f"{AT}.capacity: {given}. Set capacity (in examples) or capacity_bytes, one of the two.")
    if capacity_bytes is not None:
        said, examples = f"{AT}.capacity_bytes = {capacity_bytes}", capacity_bytes // example_bytes
        if examples < 1:
            raise ScenarioError(f"{said}: holds not one example. An example takes {example_bytes} bytes.")
    else:
        said, examples = f"{AT}.capacity = {capacity}", cast(int, capacity)
        if examples < 1:
            raise ScenarioError(f"{said}: must be >= 1 (examples that the memory holds); kind 'none' holds none.")
    if examples > MOST:
        raise ScenarioError(f"{said}: {examples} examples are more than a memory can list. At most {MOST} work.")
    return examples


def lifetime(max_age_s: float | None) -> Seconds:
    """Return how old a remembered example may grow; without a setting, any age."""
    if max_age_s is None:
        return math.inf
    if not max_age_s > 0:
        raise ScenarioError(f"{AT}.max_age_s = {max_age_s}: must be > 0 (older examples are forgotten).")
    return float(max_age_s)


def told(policy: str, numbers: Mapping[str, Array] | None, name: str, new: Arrivals) -> Array:
    """Return the numbers called *name* that came with *new*, as float64. Raises RunError when they did not."""
    given = None if numbers is None else numbers.get(name)
    if given is None or len(given) != len(new.items):
        what = "none" if given is None else f"{len(given)}"
        raise RunError(f"replay {policy!r} is told the {name} of new items: {what} came for {len(new.items)} items.")
    return given.astype(np.float64)
