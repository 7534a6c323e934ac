"""Python's and numpy's global generators, which code that is not ours draws from: borrowed, and given back as they were."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

_random: Any = np.random  # Some of its functions are in no stub.
_MT19937_BYTES = 625 * 4
"""What numpy keeps at the ``ctypes.state_address`` of its Mersenne Twister: 624 words, and how many of them are used."""


@contextmanager
def borrowed() -> Generator[None]:
    """Within, the global generators of Python and numpy, as they are, are the caller's to seed and to draw from; then they are given back.

    >>> np.random.seed(1); random.seed(1)
    >>> with borrowed():
    ...     np.random.seed(7); random.seed(7)
    >>> (np.random.rand(), random.random()) == (np.random.RandomState(1).rand(), random.Random(1).random())
    True
    """
    python, numpy = random.getstate(), _random.get_bit_generator()
    if not isinstance(numpy, np.random.MT19937):
        state: Any = np.random.get_state(legacy=False)
        try:
            yield
        finally:
            random.setstate(python)
            _random.set_bit_generator(numpy)
            np.random.set_state(state)
        return
    # By its memory: numpy takes 0.2 ms to tell its state, number by number, and as long to take it.
    address: Any = numpy.ctypes.state_address
    before = ctypes.string_at(address, _MT19937_BYTES)
    normal: float | None = np.random.standard_normal()  # Normals come in pairs, and of one the other may still be waiting.
    if ctypes.string_at(address, _MT19937_BYTES) != before:
        normal = None

    def back() -> None:
        _random.set_bit_generator(numpy)  # No normal is waiting then.
        ctypes.memmove(address, before, _MT19937_BYTES)
        if normal is not None:
            np.random.set_state({**np.random.get_state(legacy=False), "has_gauss": 1, "gauss": normal})

    back()
    try:
        yield
    finally:
        random.setstate(python)
        back()
