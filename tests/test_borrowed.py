"""Global generators that were borrowed are given back as they were, to the last number that they would have given."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest

from fedsim.core.borrowed import borrowed

KINDS = [np.random.MT19937, np.random.PCG64]
"""numpy's own, which is told by its memory, and one that a reader put in its place."""


@contextmanager
def swapped() -> Generator[None]:
    """Borrow wrongly: numpy's generator without what numpy keeps beside it, the second normal of a pair."""
    python, numpy = random.getstate(), np.random.get_bit_generator()
    state = numpy.state
    yield
    random.setstate(python)
    np.random.set_bit_generator(numpy)
    numpy.state = state


def unmoved(borrow: Callable[[], AbstractContextManager[None]], kind: Callable[[int], Any], numbers: int, normals: int) -> bool:
    """Return whether somebody who had drawn *numbers* and *normals* sees nothing of what was drawn meanwhile."""
    def told() -> tuple[object, ...]:
        return random.getstate(), np.random.get_bit_generator(), repr(np.random.get_state(legacy=False))

    own = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(kind(1))
        np.random.random(numbers), np.random.standard_normal(normals)
        before = told()
        with borrow():
            lent = told()
            random.seed(7)
            np.random.random(400), np.random.standard_normal(3)
        return before == lent == told()
    finally:
        np.random.set_bit_generator(own)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_borrowed_is_given_back(kind: Callable[[int], Any]) -> None:
    """Wherever a generator stood, with a normal waiting or without, and whatever was drawn; one that forgets the normal is seen."""
    assert all(unmoved(borrowed, kind, numbers, normals) for numbers in (0, 1, 623, 700) for normals in (0, 1, 2))
    assert unmoved(swapped, kind, 1, 2) and not unmoved(swapped, kind, 1, 1)


def test_a_generator_that_was_changed_for_another_is_back_too() -> None:
    """Code that puts a generator of its own in the place of numpy's, or raises, takes it away with it."""
    before = np.random.get_bit_generator(), repr(np.random.get_state(legacy=False))
    with pytest.raises(ValueError), borrowed():
        np.random.set_bit_generator(np.random.PCG64(1))
        np.random.random(3)
        raise ValueError

    assert before == (np.random.get_bit_generator(), repr(np.random.get_state(legacy=False)))
