"""Labellings: when the label of an item comes, if ever.

Functions of (key, client, arrival times). Knows no item and no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import Array, FloatArray, NonNegative, Range

Missing = Annotated[float, Range(ge=0, lt=1, why="the share of labels that never come; with none, nothing is learned")]


class Labelling(Protocol):
    """When labels come: equal arguments, equal answers, whatever was asked before."""

    def times(self, client: int, arrived_s: FloatArray) -> FloatArray:
        """Return when each label comes, never before its item; infinity where it never does. Shapes: (n,) -> (n,)."""
        ...


def _labels(given: Any, _client: int, arrived_s: Array) -> Array:
    times = answers.numbers(given, len(arrived_s), endless=True)
    answers.wrong(times, times < arrived_s, "no label before its item has arrived")
    return times


labellings: Registry[Callable[..., Labelling]] = Registry(
    "labels", given=["key"], key="stream.labels", gives=answers.Gives("a Labelling", ("times",), {"times": _labels})
)
"""Functions that return a Labelling. Given: ``key``."""


@dataclass(frozen=True, slots=True)
class Delayed:
    """Labels that come later, or never. See ``constant`` and ``exponential``."""

    delay_s: float
    random: bool
    missing: float
    key: Key

    def times(self, client: int, arrived_s: FloatArray) -> FloatArray:
        """Return when each label comes. Shapes: (n,) -> (n,)."""
        items, delays_s = np.arange(len(arrived_s)), np.full(len(arrived_s), self.delay_s)
        if self.random:  # A draw per item, so that another share of missing labels moves no delay.
            delays_s *= -np.log(self.key.fold("delays", client).uniform(items))
        if self.missing:
            delays_s[self.key.fold("missing", client).uniform(items) < self.missing] = np.inf
        return arrived_s + delays_s


@labellings.register("at_once")
def at_once(key: Key, *, missing: Missing = 0.0) -> Delayed:
    """Return labels that come with their items, but for a share *missing* that never does.

    >>> at_once(Key(0)).times(0, np.array([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    return Delayed(0.0, False, missing, key)


@labellings.register("constant")
def constant(key: Key, *, delay_s: NonNegative, missing: Missing = 0.0) -> Delayed:
    """Return labels that come *delay_s* after their items, but for a share *missing* that never does.

    >>> constant(Key(0), delay_s=60.0).times(0, np.array([1.0, 2.0])).tolist()
    [61.0, 62.0]
    """
    return Delayed(delay_s, False, missing, key)


@labellings.register("exponential")
def exponential(key: Key, *, delay_s: NonNegative, missing: Missing = 0.0) -> Delayed:
    """Return labels that come after exponential delays of mean *delay_s*, so out of order; a share *missing* never.

    >>> bool((exponential(Key(0), delay_s=60.0).times(0, np.array([1.0, 2.0])) > [1.0, 2.0]).all())
    True
    """
    return Delayed(delay_s, True, missing, key)
