"""What a law says when it is broken, and what laws ask of what they are given. Knows no noun.

Laws speak by ``raise`` and never by ``assert``, so that they hold under ``python -O`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedsim.core.errors import FedsimError
from fedsim.core.state import TYPES, State, pack

Make = Callable[..., Any]
"""Makes the kind anew, each time that it is called, of what the simulator fills in, by name."""
Law = Callable[[Make], None]

SAID = 120
"""Characters of a value that a line shows."""


class Broken(FedsimError):
    """A kind breaks a law: one line that says which, with what input, and what came."""


def want(holds: Any, words: str) -> None:
    """Raise Broken with *words* unless it *holds*."""
    if not bool(holds):
        raise Broken(words)


def alike(expected: Any, found: Any, words: str) -> None:
    """Raise Broken unless *found* is *expected*: arrays by type, shape and every bit. *words* say what they are."""
    if not same(expected, found):
        raise Broken(f"{words}: {_said(found)} came, expected {_said(expected)}")


def same(one: Any, two: Any) -> bool:
    """Return whether two values are the same: arrays and tensors by type, shape and bits, what holds them by what it holds.

    >>> same({"a": [np.zeros(2)]}, {"a": [np.zeros(2)]}), same(np.zeros(2), np.zeros(2, np.float32)), same(0.0, -0.0)
    (True, False, True)
    """
    if hasattr(one, "dtype") and hasattr(two, "dtype"):
        a, b = np.asarray(one), np.asarray(two)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))  # pyright: ignore[reportUnknownArgumentType]
    return bool(one == two)


def keepable(state: Any, words: str) -> State:
    """Return *state*; raise Broken where it is not what a client may keep: named arrays of the types that travel."""
    want(isinstance(state, dict), f"{words}: a {type(state).__name__} came, expected named arrays")
    for name, array in state.items():
        fits = isinstance(name, str) and isinstance(array, np.ndarray | np.generic) and array.dtype.str in TYPES
        want(fits, f"{words}: {name!r} is a {getattr(array, 'dtype', type(array).__name__)}, which nobody can keep")
    return state


def alike_states(expected: State, found: State, words: str) -> None:
    """Raise Broken unless two states are the same, to the byte in which they are kept."""
    if pack(expected) != pack(found):
        raise Broken(f"{words}: {_said(found)} came, expected {_said(expected)}")


def luck() -> str:
    """Return where numpy's global generator stands: its position too, which is all that a draw moves, most times."""
    return repr(np.random.get_state(legacy=False))  # To see that nobody draws from it.


def asks(make: Make, name: str) -> bool:
    """Return whether the kind asks for what the simulator fills in as *name*."""
    return name in getattr(make, "asks", {name})


def setting(make: Make, name: str, default: Any = None) -> Any:
    """Return a setting of the kind, where it is given."""
    return getattr(make, "settings", {}).get(name, default)


def _said(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value).replace("\n", " ")  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return text if len(text) <= SAID else f"{text[:SAID]}..."
