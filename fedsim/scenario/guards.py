"""A reader's own kinds behind the one door: whatever a method raises, and an answer of another form, is one line by its own word.

What an answer must be is told by noun and method. Knows no model, objective, source or strategy: those are tried before a run.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from fedsim.core.errors import ScenarioError, door
from fedsim.core.types import Array, Range
from fedsim.data.source import Examples
from fedsim.learn.work import Mix

Check = Callable[..., Any]
"""Takes an answer and the arguments it was given for, and returns it in the type that we use. Raises ValueError in words."""


def _array(given: Any, kinds: str, what: str, rows: int | None = None) -> Array:
    array = np.asarray(given)
    if array.dtype.kind not in kinds or array.ndim != 1 or (rows is not None and len(array) != rows):
        wanted = f"({rows},)" if rows is not None else "one dimension"
        raise ValueError(f"{array.dtype!s} of shape {array.shape}, expected {what} of {wanted if rows is None else f'shape {wanted}'}")
    return array


def _wrong(array: Array, bad: Array, what: str) -> None:
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(f"{array[at]} at [{at}], expected {what}")


def _numbers(given: Any, rows: int | None = None, *, least: float = -math.inf, above: bool = False, endless: bool = False) -> Array:
    array = _array(given, "iuf", "numbers", rows).astype(np.float64)
    far = np.isnan(array) if endless else ~np.isfinite(array)
    sign = ">" if above else ">="
    what = f"{'' if endless else 'finite '}numbers{'' if least == -math.inf else f' {sign} {least:g}'}"
    _wrong(array, far | ((array <= least) if above else (array < least)), what)
    return array


def _whole(given: Any, rows: int | None = None, *, least: int = 0, most: float = math.inf) -> Array:
    array = _array(given, "iu", "whole numbers", rows).astype(np.int64)
    _wrong(array, (array < least) | (array > most), f"whole numbers from {least}{'' if most == math.inf else f' to {int(most)}'}")
    return array


def _one(given: Any, *, least: float = -math.inf, endless: bool = False) -> float:
    if isinstance(given, bool | np.bool_) or not isinstance(given, numbers.Real):
        raise ValueError(f"a {type(given).__name__}, expected a number")
    value = float(given)
    if math.isnan(value) or value < least or (math.isinf(value) and not endless):
        raise ValueError(f"{value}, expected a {'' if endless else 'finite '}number{'' if least == -math.inf else f' >= {least:g}'}")
    return value


def _pair(given: Any) -> tuple[Any, Any]:
    if not isinstance(given, tuple) or len(given) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise ValueError(f"a {type(given).__name__}, expected two things")  # pyright: ignore[reportUnknownArgumentType]
    return given  # pyright: ignore[reportUnknownVariableType]


def _ascending(array: Array) -> Array:
    _wrong(array[1:], np.diff(array) < 0, "times in ascending order")
    return array


def _arrivals(given: Any, _client: int, count: int) -> Array:
    times = _ascending(_numbers(given, least=0.0))
    if len(times) > count:
        raise ValueError(f"{len(times)} times, expected {count} at most")
    return times


def _labels(given: Any, _client: int, arrived_s: Array) -> Array:
    times = _numbers(given, len(arrived_s), endless=True)
    _wrong(times, times < arrived_s, "no label before its item has arrived")
    return times


def _items(given: Any, _client: int, positions: Array, _labels: Any) -> tuple[Array, Array]:
    which, concepts = _pair(given)
    chosen = _whole(which, most=len(positions) - 1)
    return chosen, _whole(concepts, len(chosen))


def _picked(given: Any, _client: int, labels: Array, concepts: Array) -> tuple[Array, Array]:
    which, true = _pair(given)
    return _whole(which, len(concepts), least=-1, most=len(labels) - 1), _whole(true, len(concepts))


def _altered(given: Any, _client: int, _places: Array, examples: Any, _amounts: Array) -> Any:
    for name in ("x", "y"):
        new, old = getattr(given, name, None), getattr(examples, name)
        if not isinstance(new, np.ndarray) or new.shape != old.shape:  # pyright: ignore[reportUnknownMemberType]
            raise ValueError(f"{name} of shape {np.shape(new)}, expected {old.shape} as given")  # pyright: ignore[reportArgumentType, reportCallIssue]
    return given


def _available(given: Any, clients: Array, _now: float) -> Array:
    return _array(given, "b", "truths", len(clients))


def _next(given: Any, _clients: Array, now: float) -> float:
    at = _one(given, endless=True)
    if at <= now:
        raise ValueError(f"{at}, expected a time after now, which is {now}")
    return at


def _fed(given: Any, _state: bytes, errors: Array) -> tuple[bytes, Array]:
    state, alarms = _pair(given)
    if not isinstance(state, bytes):
        raise ValueError(f"a state of type {type(state).__name__}, expected bytes")
    found = _whole(alarms, most=len(errors) - 1)
    _wrong(found[1:], np.diff(found) <= 0, "each alarm once, in order")
    return state, found


def _bytes(given: Any, *_: Any) -> bytes:
    if not isinstance(given, bytes):
        raise ValueError(f"a {type(given).__name__}, expected bytes")
    return given


def _truth(given: Any) -> bool:
    if not isinstance(given, bool | np.bool_):
        raise ValueError(f"a {type(given).__name__}, expected true or false")
    return bool(given)


def _count(least: int) -> Check:
    def check(given: Any) -> int:
        if isinstance(given, bool) or not isinstance(given, numbers.Integral) or given < least:
            raise ValueError(f"{given!r}, expected a whole number from {least}")
        return int(given)

    return check


def _duration(given: Any, *_: Any) -> float:
    return _one(given, least=0.0)


def _speeds(given: Any, clients: Array) -> Array:
    return _numbers(given, len(clients), least=0.0, above=True)


CHECKS: dict[str, dict[str, Check]] = {
    "arrivals": {"times": _arrivals},
    "order": {"items": _items, "shares": _truth, "keeps": _truth, "tasks": _count(1)},
    "labels": {"times": _labels},
    "change": {"pick": _picked, "alter": _altered, "concepts": _count(0), "whole": _truth},
    "schedule": {
        "amounts": lambda given, since_s, _draws, concepts: _numbers(given, len(since_s), least=0.0), "concepts": _count(0),
        "changes_s": lambda given, _since_s, _concepts: _ascending(_numbers(given)),
    },
    "onset": {"begins_s": lambda given, _client: _one(given, endless=True)},
    "compute": {"gflops": _speeds, "seconds": _duration},
    "network": {"down_s": _duration, "up_s": _duration, "down_mbps": _speeds, "up_mbps": _speeds},
    "availability": {"available": _available, "next_change": _next},
    "trigger": {"ready_s": lambda given, _stream, _until_s, now: _one(given, least=now, endless=True)},
    "detector": {"feed": _fed, "start": _bytes, "takes_losses": _truth},
    "replay": {},
}  # fmt: skip
"""What methods and properties answer, by noun: those of nouns that are values (a partition, an optimizer) are looked at once."""


class Guarded:
    """Something of a reader's own, *made* for *noun*; *at* is the reader's word for it. Whatever is asked of it goes through the door."""

    def __init__(self, made: Any, noun: str, at: str) -> None:
        self.__dict__ |= {"_made": made, "_noun": noun, "_at": at}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_made" not in self.__dict__:  # While it is unpickled there is nothing yet.
            raise AttributeError(name)
        made, at, check = self._made, self._at, CHECKS[self._noun].get(name)
        value, absent = None, False
        with door(at, f"its {name} raised"):
            try:
                value = getattr(made, name)
            except AttributeError:
                if inspect.getattr_static(made, name, None) is not None:  # It is there, and something else was not.
                    raise
                absent = True
        if absent:
            raise AttributeError(name)
        if not callable(value):
            return _checked(value, check, at, name, ())

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            with door(at, f"its {name}() raised"):
                answer = value(*map(unwritable, args), **{key: unwritable(each) for key, each in kwargs.items()})
            return _checked(answer, check, at, f"{name}()", (*args, *kwargs.values()))

        return call


def unwritable(given: Any) -> Any:
    """Return *given*, or where it is an array or examples a view that cannot be written to: others read the same memory."""
    if isinstance(given, Examples):
        return Examples(unwritable(given.x), unwritable(given.y))
    if not isinstance(given, np.ndarray):
        return given
    view: Array = given.view()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    view.setflags(write=False)
    return view


def _checked(answer: Any, check: Check | None, at: str, name: str, args: tuple[Any, ...]) -> Any:
    if check is None:
        return answer
    try:
        return check(answer, *args)
    except ValueError as error:
        raise ScenarioError(f"{at}: its {name} gives {error}.") from error


def guarded(made: Any, noun: str, at: str, given: dict[str, Any]) -> Any:
    """Return a reader's own *made* behind the door; where it is a value, *given* what it was made of, it is looked at here and now."""
    if noun == "partition":
        order, offsets = made.order, made.offsets
        clients, examples = given["clients"], len(given["labels"])
        try:
            order, offsets = _whole(order, most=examples - 1), _whole(offsets, clients + 1, most=len(made.order))
            _wrong(offsets[1:], np.diff(offsets) < 0, "offsets in ascending order")
            if offsets[0] or offsets[-1] != len(order):
                raise ValueError(f"offsets from {offsets[0]} to {offsets[-1]}, expected 0 to {len(order)}, the length of order")
            twice = np.bincount(order, minlength=examples) > 1
            if twice.any():
                raise ValueError(f"example {int(twice.argmax())} to more than one place, expected each once")
        except ValueError as error:
            raise ScenarioError(f"{at}: gives {error}.") from error
        return made
    if noun == "change" and not hasattr(made, "pick") and not (hasattr(made, "alter") and hasattr(made, "whole")):
        raise ScenarioError(f"{at}: returned a {type(made).__name__}, which has neither pick nor alter and whole.")
    for name, check in VALUES.get(noun, {}).items():
        value = getattr(made, name)
        try:
            found = check(value)
        except ValueError as error:
            raise ScenarioError(f"{at}: its {name} is {error}.") from error
        if found is not value:
            made = replace(made, **{name: found})
    if noun == "optimizer" and made.nesterov and not made.momentum:
        raise ScenarioError(f"{at}: its nesterov is true, and wants momentum > 0; 0.9 is usual.")
    return Guarded(made, noun, at) if noun in CHECKS else made


def _within(**bounds: Any) -> Check:
    inside = Range(**bounds)

    def check(given: Any) -> float:
        value = _one(given)
        if not inside.holds(value):
            raise ValueError(f"{value}, expected a number {inside}")
        return given if type(given) in (int, float) else value

    return check


def _maybe(check: Check) -> Check:
    return lambda given: None if given is None else check(given)


def _among(*words: str) -> Check:
    def check(given: Any) -> Any:
        if given not in words:
            raise ValueError(f"{given!r}, expected one of {', '.join(words)}")
        return given

    return check


VALUES: dict[str, dict[str, Check]] = {
    "optimizer": {"lr": _within(gt=0), "momentum": _within(ge=0, lt=1), "weight_decay": _within(ge=0), "nesterov": _truth},
    "rehearsal": {
        "ratio": _within(ge=0, lt=1), "mix": _among(*get_args(Mix)), "alpha": _within(ge=0), "beta": _within(ge=0),
        "temperature": _within(gt=0),
    },
    "reaction": {
        "keep_share": _within(ge=0, le=1), "lr_factor": _within(gt=0), "lr_steps": _count(0), "replay_share": _maybe(_within(ge=0, lt=1)),
        "tell": _truth,
    },
}  # fmt: skip
"""What the fields of values are, by noun."""
