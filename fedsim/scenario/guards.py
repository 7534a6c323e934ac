"""A reader's own kinds behind the one door: whatever a method raises, and an answer of another form, is one line by its own word.

What an answer must be stands with the noun's registry (``core/answers.py``). Knows no model, objective, source or strategy: those
are tried before a run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np

from fedsim.core.answers import Check, Gives, fixed
from fedsim.core.errors import ScenarioError, door
from fedsim.data.replay import Arrivals
from fedsim.data.source import Examples


class Guarded:
    """Something of a reader's own; *at* is the reader's word for it. Whatever is asked of it goes through the door, and *answers*."""

    def __init__(self, made: Any, answers: Mapping[str, Check], at: str) -> None:
        self.__dict__ |= {"_made": made, "_answers": answers, "_at": at}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_made" not in self.__dict__:  # While it is unpickled there is nothing yet.
            raise AttributeError(name)
        made, at, check = self._made, self._at, self._answers.get(name)
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
    """Return *given*, or where it is an array, examples or arrivals views that cannot be written to: others read the same memory."""
    if isinstance(given, Examples):
        return Examples(unwritable(given.x), unwritable(given.y))
    if isinstance(given, Arrivals):
        return Arrivals(unwritable(given.items), unwritable(given.labels), unwritable(given.arrived_s))
    return fixed(given) if isinstance(given, np.ndarray) else given  # pyright: ignore[reportUnknownArgumentType]


def _checked(answer: Any, check: Check | None, at: str, name: str, args: tuple[Any, ...]) -> Any:
    if check is None:
        return answer
    try:
        return check(answer, *args)
    except ValueError as error:
        raise ScenarioError(f"{at}: its {name} gives {error}.") from error


def _having(made: Any, name: str, value: Any) -> Any:
    """Return *made* with *value* under *name*, as numpy's numbers are Python's."""
    if is_dataclass(made) and not isinstance(made, type):
        return replace(made, **{name: value})
    with suppress(AttributeError, TypeError):  # One that cannot be set stays as it is, which is as good.
        setattr(made, name, value)
    return made


def guarded(made: Any, gives: Gives, at: str, given: Mapping[str, Any]) -> Any:
    """Return a reader's own *made* behind the door. What it holds is looked at here and now, *given* what it was made of."""
    for name, check in gives.fields.items():
        value = getattr(made, name)
        try:
            found = check(value)
        except ValueError as error:
            raise ScenarioError(f"{at}: its {name} is {error}.") from error
        if found is not value:
            made = _having(made, name, found)
    whole = made if gives.answers is None else Guarded(made, gives.answers, at)
    for name in gives.names if gives.answers else ():
        getattr(whole, name)  # What is no method is checked by that.
    if gives.looked:
        try:
            gives.looked(whole, given)
        except ValueError as error:
            said = str(error).replace(f"a {Guarded.__name__},", f"a {type(made).__name__},")  # What stands behind the door.
            raise ScenarioError(f"{at}: {said}.") from error
    return whole
