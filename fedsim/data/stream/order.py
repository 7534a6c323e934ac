"""Orders: in which order a client's examples come, whatever the times.

Functions of (key, client, positions). Knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import Array, IntArray

Labels = Callable[[], IntArray]
"""Gives the labels of a client's positions, in their order; called only where an order needs them."""


class Order(Protocol):
    """The order of each client's examples: equal arguments, equal answers."""

    @property
    def shares(self) -> bool:
        """Return whether a client reads examples that others hold as well."""
        ...

    @property
    def keeps(self) -> bool:
        """Return whether examples come in the order of the data, as replayed time stamps need it."""
        ...

    @property
    def tasks(self) -> int:
        """Return how many concepts the order itself makes, one after the other: 1 where it makes no change."""
        ...

    def items(self, client: int, positions: IntArray, labels: Labels) -> tuple[IntArray, IntArray]:
        """Return (indices into *positions*, concepts) of what *client* gets, in order. Shapes: (n,) -> (m,), (m,)."""
        ...


def _items(given: Any, _client: int, positions: Array, _labels: Any) -> tuple[Array, Array]:
    which, concepts = answers.pair(given)
    chosen = answers.whole(which, most=len(positions) - 1)
    return chosen, answers.whole(concepts, len(chosen))


orders: Registry[Callable[..., Order]] = Registry(
    "order", given=["key", "outputs"], key="stream.order",
    gives=answers.Gives(
        "an Order", ("shares", "keeps", "tasks", "items"),
        {"items": _items, "shares": answers.truth, "keeps": answers.truth, "tasks": answers.count(1)}
    ),
)  # fmt: skip
"""Functions that return an Order. Given: ``key``, ``outputs`` (the number of classes)."""


@dataclass(frozen=True, slots=True)
class AsIs:
    """Examples in the order of the data, from the client's own first one on. See ``as_is`` and ``offset``."""

    shares: bool = False
    keeps: bool = True
    tasks: int = 1

    def items(self, client: int, positions: IntArray, labels: Labels) -> tuple[IntArray, IntArray]:
        """Return every index, ascending."""
        n = len(positions)
        return np.arange(n, dtype=np.int64), np.zeros(n, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Examples at random. See ``shuffled``."""

    key: Key
    shares: bool = False
    keeps: bool = False
    tasks: int = 1

    def items(self, client: int, positions: IntArray, labels: Labels) -> tuple[IntArray, IntArray]:
        """Return every index, in an order of the client's own."""
        n = len(positions)
        return self.key.fold("client", client).numpy().permutation(n).astype(np.int64), np.zeros(n, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ClassIncremental:
    """Examples task by task. See ``class_incremental``. *task_of* (outputs,) is each class's task, -1 for none."""

    task_of: IntArray
    tasks: int
    key: Key
    shares: bool = False
    keeps: bool = False

    def items(self, client: int, positions: IntArray, labels: Labels) -> tuple[IntArray, IntArray]:
        """Return the indices of the first task's examples, shuffled, then the second's; the concept is the task."""
        task = self.task_of[labels()]
        order = self.key.fold("client", client).numpy().permutation(len(positions)).astype(np.int64)
        order = order[np.argsort(task[order], kind="stable")]
        order = order[task[order] >= 0]
        return order, task[order]


@orders.register("as_is")
def as_is() -> AsIs:
    """Return the order of the data: the rows of a file as they stand.

    >>> as_is().items(0, np.array([4, 7]), lambda: np.zeros(2, dtype=np.int64))[0].tolist()
    [0, 1]
    """
    return AsIs()


@orders.register("shuffled")
def shuffled(key: Key) -> Shuffled:
    """Return an order of each client's own, at random.

    >>> sorted(shuffled(Key(0)).items(0, np.array([4, 7]), lambda: np.zeros(2, dtype=np.int64))[0].tolist())
    [0, 1]
    """
    return Shuffled(key)


@orders.register("offset")
def offset() -> AsIs:
    """Return the order of the whole data, each client starting at its own first example and reading on, round the end.

    All clients so read the same stream, each from another place: take the partition 'blocks'. A client's stream is
    all that is trained on, without what it keeps back for evaluation itself.
    """
    return AsIs(shares=True, keeps=False)


@orders.register("class_incremental")
def class_incremental(key: Key, outputs: int, *, tasks: list[list[int]]) -> ClassIncremental:
    """Return all examples of the first task's classes, then all of the second's, shuffled within a task.

    The true concept of an item is its task, counted from 0, and a client's drifts are where a task begins that is not
    its first. A class in no task never comes; a client that holds none of a task's classes goes on to the next.
    Reference: van de Ven et al. 2022, 'Three types of incremental learning', Nature Machine Intelligence 4.

    >>> split = class_incremental(Key(0), 4, tasks=[[2, 3], [0, 1]])
    >>> split.items(0, np.arange(4), lambda: np.array([0, 1, 2, 3]))[1].tolist()
    [0, 0, 1, 1]
    """
    task_of = np.full(outputs, -1, dtype=np.int64)
    for number, classes in enumerate(tasks):
        check_classes(f"stream.order.tasks.{number}", classes, outputs)
        for label in classes:
            if task_of[label] >= 0:
                raise ScenarioError(f"stream.order.tasks.{number} = {classes}: class {label} is in two tasks, expected in one.")
            task_of[label] = number
    return ClassIncremental(task_of, len(tasks), key)


def check_classes(at: str, classes: Sequence[int], outputs: int) -> None:
    """Raise ScenarioError unless *classes*, which stand at key *at*, are some of the data's."""
    if not classes:
        raise ScenarioError(f"{at} = []: must name at least one class, from 0 to {outputs - 1}.")
    for label in classes:
        if not 0 <= label < outputs:
            raise ScenarioError(f"{at} = {list(classes)}: there is no class {label}. The data have 0 to {outputs - 1}.")
