"""The forms that a run can be exported to: each is registered, a file each. Knows no form, and writes nothing itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsim.core.answers import Gives
from fedsim.core.errors import RunError, ScenarioError, door
from fedsim.core.registry import Registry
from fedsim.score.run import Run

BELOW = "export"
"""The folder in a run's that exports go to, each below its own name."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """One form: its *title*, what writes it, and the *packages* besides ours that this takes: module, package and extra of each.

    ``write(run, folder, place)`` writes into *folder*, which is there and empty, and becomes *place* once it is whole; it may return notes
    that a reader must hear.
    """

    title: str
    write: Callable[[Run, Path, Path], Sequence[str] | None]
    packages: tuple[tuple[str, str, str], ...] = ()


exporters: Registry[Callable[[], Exporter]] = Registry(
    "exporter", gives=Gives("an exporter", ("title", "write", "packages"))
)
"""Functions that return an exporter. An installed package registers its own by an entry point of the group ``fedsim.exporter``."""


def exporter(name: str) -> Exporter:
    """Return the exporter called *name*. Raises ScenarioError where there is none, or a package that it takes is not installed."""
    made = exporters.call(exporters.get(name, at="--to"), {})
    if exporters.gives is not None and not all(hasattr(made, each) for each in exporters.gives.names):
        raise ScenarioError(f"--to {name}: returned a {type(made).__name__}, not {exporters.gives.what}.")
    for module, package, extra in made.packages:
        if not _there(module):
            raise ScenarioError(f"--to {name}: needs the package {package}: pip install 'fedsim-online[{extra}]', or {package} itself.")
    return made


def library(module: str, package: str) -> Any:
    """Return the *module* of a *package* that is an extra. Raises RunError where it is there and cannot be imported."""
    with door(f"the package {package}", "cannot be imported:", wrong=RunError):
        return import_module(module)


@contextmanager
def surrounded(**variables: str) -> Generator[None]:
    """Let environment *variables* have these values for a while: what other programs' writers take from there."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _there(module: str) -> bool:
    """Return whether *module* can be found; a name that was set to None is not there."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
