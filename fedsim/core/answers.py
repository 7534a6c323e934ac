"""What a kind answers, whoever wrote it: checks that return an answer in our own type, or say in words what is wrong with it.

Knows no noun: each registry says by ``Gives`` what its kinds return. A check takes an answer and the arguments it was given for, and
raises ValueError in words that go on after "gives".
"""

from __future__ import annotations

import math
import numbers as abstract
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fedsim.core.state import TYPES, State
from fedsim.core.types import Array, Range

Check = Callable[..., Any]  # A function of a module, or a partial of one: a kind behind its checks travels to workers.


@dataclass(frozen=True, slots=True)
class Gives:
    """What the kinds of a registry return: *what* it is in words, and the *names* by which it is known.

    *answers* checks what methods and properties give, each time that they are asked; None where nothing stands between. *fields*
    checks what a value holds, once. *looked* looks at the whole, and at what it was made of, and raises ValueError in words.
    """

    what: str
    names: tuple[str, ...]
    answers: Mapping[str, Check] | None = None
    fields: Mapping[str, Check] = field(default_factory=dict[str, Check])
    looked: Callable[[Any, Mapping[str, Any]], None] | None = None


def elements(given: Any, kinds: str, what: str, rows: int | None = None) -> Array:
    """Return *given* as an array of one dimension, of *rows* where that is said and of the *kinds* of numpy."""
    array = np.asarray(given)
    if array.dtype.kind not in kinds or array.ndim != 1 or (rows is not None and len(array) != rows):
        wanted = f"({rows},)" if rows is not None else "one dimension"
        raise ValueError(f"{array.dtype!s} of shape {array.shape}, expected {what} of {wanted if rows is None else f'shape {wanted}'}")
    return array


def wrong(array: Array, bad: Array, what: str) -> None:
    """Refuse *array* by the first element that is *bad*."""
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(f"{array[at]} at [{at}], expected {what}")


def numbers(given: Any, rows: int | None = None, *, least: float = -math.inf, above: bool = False, endless: bool = False) -> Array:
    """Return numbers as float64, *least* at the least, or *above* it; *endless* ones may be infinite."""
    array = elements(given, "iuf", "numbers", rows).astype(np.float64)
    far = np.isnan(array) if endless else ~np.isfinite(array)
    sign = ">" if above else ">="
    what = f"{'' if endless else 'finite '}numbers{'' if least == -math.inf else f' {sign} {least:g}'}"
    wrong(array, far | ((array <= least) if above else (array < least)), what)
    return array


def whole(given: Any, rows: int | None = None, *, least: int = 0, most: float = math.inf) -> Array:
    """Return whole numbers from *least* to *most* as int64."""
    array = elements(given, "iu", "whole numbers", rows).astype(np.int64)
    wrong(array, (array < least) | (array > most), f"whole numbers from {least}{'' if most == math.inf else f' to {int(most)}'}")
    return array


def one(given: Any, *, least: float = -math.inf, endless: bool = False) -> float:
    """Return one number as a float, *least* at the least; an *endless* one may be infinite."""
    if isinstance(given, bool | np.bool_) or not isinstance(given, abstract.Real):
        raise ValueError(f"a {type(given).__name__}, expected a number")
    value = float(given)
    if math.isnan(value) or value < least or (math.isinf(value) and not endless):
        raise ValueError(f"{value}, expected a {'' if endless else 'finite '}number{'' if least == -math.inf else f' >= {least:g}'}")
    return value


def pair(given: Any) -> tuple[Any, Any]:
    """Return two things."""
    if not isinstance(given, tuple) or len(given) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise ValueError(f"a {type(given).__name__}, expected two things")  # pyright: ignore[reportUnknownArgumentType]
    return given  # pyright: ignore[reportUnknownVariableType]


def ascending(array: Array) -> Array:
    """Return times that never go back."""
    wrong(array[1:], np.diff(array) < 0, "times in ascending order")
    return array


def names(given: Any, *_: Any) -> tuple[str, ...]:
    """Return names, whichever they are."""
    if not isinstance(given, tuple) or not all(isinstance(each, str) for each in given):  # pyright: ignore[reportUnknownVariableType]
        raise ValueError(f"{given!r:.60}, expected a tuple of names")
    return given  # pyright: ignore[reportUnknownVariableType]


def some_of(known: tuple[str, ...]) -> Check:
    """Return the check of a tuple of some of the names *known*."""
    return partial(_some, known)


def _some(known: tuple[str, ...], given: Any, *_: Any) -> tuple[str, ...]:
    if not isinstance(given, tuple) or not all(name in known for name in given):  # pyright: ignore[reportUnknownVariableType]
        raise ValueError(f"{given!r:.60}, expected a tuple of some of {', '.join(known)}")
    return given  # pyright: ignore[reportUnknownVariableType]


def octets(given: Any, *_: Any) -> bytes:
    """Return bytes."""
    if not isinstance(given, bytes):
        raise ValueError(f"a {type(given).__name__}, expected bytes")
    return given


def truth(given: Any, *_: Any) -> bool:
    """Return a truth as Python's own."""
    if not isinstance(given, bool | np.bool_):
        raise ValueError(f"a {type(given).__name__}, expected true or false")
    return bool(given)


def count(least: int) -> Check:
    """Return the check of a whole number from *least*."""
    return partial(_counted, least)


def _counted(least: int, given: Any, *_: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, abstract.Integral) or given < least:
        raise ValueError(f"{given!r}, expected a whole number from {least}")
    return int(given)


def fixed(array: Array) -> Array:
    """Return a view of *array* that cannot be written to."""
    view: Array = array.view()
    view.setflags(write=False)
    return view


def state(given: Any, *_: Any) -> State:
    """Return named arrays as a client may keep them."""
    if not isinstance(given, dict):
        raise ValueError(f"a {type(given).__name__}, expected named arrays")
    for name, array in given.items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(name, str) or not isinstance(array, np.ndarray) or array.dtype.str not in TYPES:  # pyright: ignore[reportUnknownMemberType]
            raise ValueError(f"{name!r}: a {_kind(array)}, expected names of arrays of {', '.join(map(_named, TYPES))}")  # pyright: ignore[reportUnknownArgumentType]
    return given  # pyright: ignore[reportUnknownVariableType]


def _named(dtype: str) -> str:
    return np.dtype(dtype).name


def _kind(given: Any) -> str:
    return f"array of {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__  # pyright: ignore[reportUnknownMemberType]


def duration(given: Any, *_: Any) -> float:
    """Return seconds, 0 at the least."""
    return one(given, least=0.0)


def piece(given: Any, _client: Any, now: float) -> tuple[float, float]:
    """Return a rate, 0 at the least, and a time later than *now* until which it holds."""
    rate, until = pair(given)
    found = one(rate, least=0.0), one(until, endless=True)
    if found[1] <= now:
        raise ValueError(f"a rate until {found[1]}, expected a time after now, which is {now}")
    return found


def speeds(given: Any, clients: Array) -> Array:
    """Return a positive number for each of *clients*."""
    return numbers(given, len(clients), least=0.0, above=True)


def within(**bounds: Any) -> Check:
    """Return the check of a number within *bounds*, those of ``Range``."""
    return partial(_inside, Range(**bounds))


def _inside(bounds: Range, given: Any, *_: Any) -> float:
    value = one(given)
    if not bounds.holds(value):
        raise ValueError(f"{value}, expected a number {bounds}")
    return given if type(given) in (int, float) else value


def maybe(check: Check) -> Check:
    """Return *check*, and let None pass."""
    return partial(_maybe, check)


def _maybe(check: Check, given: Any, *args: Any) -> Any:
    return None if given is None else check(given, *args)


def among(*words: str) -> Check:
    """Return the check of one of *words*."""
    return partial(_among, words)


def _among(words: tuple[str, ...], given: Any, *_: Any) -> Any:
    if given not in words:
        raise ValueError(f"{given!r}, expected one of {', '.join(words)}")
    return given


def real(given: Any) -> Array:
    """Return an array of numbers, of any shape."""
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "iuf":
        raise ValueError(f"a {_kind(given)}, expected an array of numbers")
    return given
