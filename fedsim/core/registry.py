"""The registry: how a kind named in a scenario becomes a function, whoever wrote it.

A registry knows names, functions and their settings. It knows nothing of what the functions do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from fedsim.core import own
from fedsim.core.answers import Gives
from fedsim.core.errors import ScenarioError, choices, door

F = TypeVar("F", bound=Callable[..., Any])


OWN = "Your own goes in as 'package.module:name'."


class Registry(Generic[F]):
    """Functions by name: what the simulator gives them by name, the rest of their parameters a scenario may set.

    *noun* is the word that error lines and entry points (group ``fedsim.<noun>``) use; *given* are the parameter
    names that the simulator fills in itself, where a function asks for them. *key* is the scenario's dotted key for it, *also* are
    further ones, *gives* is what must come back. *own* ends the error line about a name that there is not: what a reader can do who
    wants another.
    """

    all: ClassVar[list[Registry[Any]]] = []
    """Every registry of this process."""

    def __init__(
        self, noun: str, given: Iterable[str] = (), *, key: str = "", also: tuple[str, ...] = (), gives: Gives | None = None, own: str = OWN
    ) -> None:
        self.noun, self.key, self.also, self.gives, self.own = noun, key, also, gives, own
        self.given = frozenset(given)
        self._entries: dict[str, F] = {}
        Registry.all.append(self)

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that files a function under *name*."""

        def file(function: F) -> F:
            if name in self._entries:
                raise ValueError(f"{self.noun} {name!r} is registered twice")
            self._entries[name] = function
            return function

        return file

    def registered(self, name: str) -> F | None:
        """Return the function that was registered under *name* in this process; None where none was."""
        return self._entries.get(name)

    def names(self) -> list[str]:
        """Return every name, sorted: ours, and those that installed packages bring."""
        return sorted({*self._entries, *(point.name for point in entry_points(group=f"fedsim.{self.noun}"))})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str, *, at: str) -> F:
        """Return the function called *name*; ``package.module:name`` is imported.

        *at* is the dotted key of the scenario that asks. Raises ScenarioError when there is none.
        """
        if name in self._entries:
            return self._entries[name]
        if ":" in name:
            return load_object(name, at=at)
        for point in entry_points(group=f"fedsim.{self.noun}", name=name):
            with door(f"{at} = {name!r}", f"cannot import {point.value!r}:"):
                return point.load()
        raise ScenarioError(
            f"{at} = {name!r}: no such {self.noun}. {choices(name, self.names())}"
            f" {self.own}"
        )

    def settings(self, function: F) -> dict[str, inspect.Parameter]:
        """Return what a scenario may set of *function*: its parameters but the given ones, annotations resolved.

        >>> def ring(key, *, capacity: int = 10): ...
        >>> list(Registry("replay", given=["key"]).settings(ring))
        ['capacity']
        """
        named = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        hints = _hints(function)
        return {
            name: parameter.replace(annotation=hints.get(name, Any))
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind in named and name not in self.given
        }

    def call(self, function: F, settings: Mapping[str, Any], **given: Any) -> Any:
        """Return ``function(...)`` with *settings* and those of *given* that it asks for by name."""
        asked = inspect.signature(function).parameters
        return function(**{name: value for name, value in given.items() if name in asked}, **settings)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function.__init__ if inspect.isclass(function) else function
    try:
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError):  # A stranger's annotations may not resolve; their settings then go unchecked.
        return {}


def load_object(path: str, *, at: str) -> Any:
    """Return what ``package.module:name`` calls; raise ScenarioError, in one line, when it is not there or no function."""
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ScenarioError(f"{at} = {path!r}: must look like 'package.module:name'.")
    with door(f"{at} = {path!r}", f"cannot import {module_name!r}:"):  # Whatever it raises while it loads is the reader's to see.
        module = own.module(module_name, at=at, kind=path)
    public = [entry for entry, value in vars(module).items() if not entry.startswith("_") and callable(value)]
    try:
        found = getattr(module, name)
    except AttributeError:
        raise ScenarioError(f"{at} = {path!r}: {module_name!r} has no {name!r}. {choices(name, public)}") from None
    if not callable(found):
        raise ScenarioError(
            f"{at} = {path!r}: is a {type(found).__name__}, not a function or class. {choices(name, public)}"
        )
    with door(f"{at} = {path!r}", "cannot be called by a scenario, since its parameters cannot be read:"):
        inspect.signature(found)
    return found
