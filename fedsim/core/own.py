"""A reader's own code: found beside the scenario, loaded by path and content, and known by the hash of what ran.

Each folder is a *world* of its own: two folders may both have a ``net.py``, a ``test.py`` may stand beside a scenario
although Python has a ``test`` too, and a file that changed is loaded anew, in a new world. Knows modules and files; knows
nothing of what is in them.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import re
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions, requires
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim.core.errors import ScenarioError

ROOT = "_fedsim_own_"
"""How the names of worlds begin: a module ``net`` of a reader's is ``_fedsim_own_....net`` to Python."""
US = "fedsim-online"

_folders: ContextVar[tuple[Path, ...]] = ContextVar("folders", default=())
_worlds: dict[str, World] = {}


@dataclass
class World:
    """The modules of one folder, as its files were when they were loaded. *name* is the package they are in.

    *promised* is what another process loaded, by file: here it must be the same.
    """

    name: str
    folder: Path
    files: dict[Path, str] = field(default_factory=dict[Path, str])
    uses: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    promised: Mapping[str, str] = field(default_factory=dict[str, str])

    def place(self, module: str) -> Path | None:
        """Return the file of *module* (``a.b``), or the folder of a package without one; None where there is none.

        fedsim itself is never a reader's, also where a checkout of it is the folder: two of it would not know each other's types.
        """
        if module.partition(".")[0] == "fedsim":
            return None
        stem = self.folder.joinpath(*module.split("."))
        for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
            if path.is_file():
                return path
        # A folder without __init__.py is a package only where nothing else of its name is installed, as for Python itself.
        return stem if stem.is_dir() and any(stem.rglob("*.py")) and PathFinder.find_spec(module.partition(".")[0]) is None else None

    def stale(self) -> bool:
        """Return whether a file that was loaded is another now, or gone."""
        return any(not path.is_file() or _mark(path.read_bytes()) != mark for path, mark in self.files.items())

    def ran(self, module: str) -> dict[Path, str]:
        """Return the files of *module* and of all own modules that it imported, each with the hash of what ran."""
        seen: set[str] = set()
        waiting = [module]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)]
                waiting += [*parents, *self.uses.get(name, ())]
        places = [self.place(name) for name in sorted(seen)]
        return {path: self.files[path] for path in places if path in self.files}


def _mark(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Loader(Loader):
    """Runs one file of a world, as it is now and not as some cache has it."""

    def __init__(self, world: World, path: Path) -> None:
        self._world, self._path = world, path

    def exec_module(self, module: ModuleType) -> None:
        content = self._path.read_bytes()
        mark = self._world.files[self._path] = _mark(content)
        if self._world.promised.get(str(self._path), mark) != mark:
            raise ScenarioError(f"{self._path}: was changed while the run began. Run it again.")
        world, name = self._world, module.__name__.partition(".")[2]

        def find(asked: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0) -> ModuleType:
            top = asked.partition(".")[0]
            inside = (globals or {}).get("__name__", "")
            if level:
                found = builtins.__import__(asked, globals, locals, fromlist, level)
                package = inside if "__path__" in (globals or {}) else inside.rpartition(".")[0]
                base = package.split(".")[: len(package.split(".")) - level + 1][1:]
                _used(world, name, ".".join([*base, *([asked] if asked else [])]), fromlist)
                return found
            if world.place(top) is None:
                return builtins.__import__(asked, globals, locals, fromlist, level)
            whole = importlib.import_module(f"{world.name}.{asked}")
            _used(world, name, asked, fromlist)
            for part in fromlist or ():  # ``from package import module``
                if part != "*" and not hasattr(whole, part) and world.place(f"{asked}.{part}") is not None:
                    importlib.import_module(f"{world.name}.{asked}.{part}")
            return whole if fromlist else sys.modules[f"{world.name}.{top}"]

        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": find}
        exec(compile(content, str(self._path), "exec", dont_inherit=True), module.__dict__)


def _used(world: World, by: str, asked: str, names: Iterable[str] | None) -> None:
    uses = world.uses.setdefault(by, set())
    uses |= {asked, *(f"{asked}.{name}" for name in names or () if world.place(f"{asked}.{name}") is not None)} - {""}


class _Finder(MetaPathFinder):
    """Finds what is below the names of worlds."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        root, _, rest = fullname.partition(".")
        if root not in _worlds:
            return None
        world = _worlds[root]
        if not rest:
            return _package(fullname, world.folder)
        place = world.place(rest)
        if place is None:
            return None
        if place.is_dir():
            return _package(fullname, place)
        package = place.name == "__init__.py"
        spec = spec_from_loader(fullname, _Loader(world, place), origin=str(place), is_package=package)
        if spec is not None:
            spec.has_location = True
            if package:
                spec.submodule_search_locations = [str(place.parent)]
        return spec


def _package(name: str, folder: Path) -> ModuleSpec:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return spec


sys.meta_path.insert(0, _Finder())


@contextmanager
def beside(folder: Path, *others: Path) -> Generator[None]:
    """Look own code up in *folder*, then in *others*, while inside."""
    token = _folders.set((folder.resolve(), *(other.resolve() for other in others)))
    try:
        yield
    finally:
        _folders.reset(token)


def module(name: str, *, at: str, kind: str) -> ModuleType:
    """Return the module *name* of a reader: beside the scenario, in the current folder, or installed.

    Raises ScenarioError for a name of Python's own, of fedsim's or of what fedsim stands on: such a function is no kind,
    and naming it in a scenario would run it. Raises whatever the module raises.
    """
    top = name.partition(".")[0]
    for folder in dict.fromkeys((*_folders.get(), Path.cwd())):
        world = _world(folder)
        if world.place(name) is not None:
            if world.stale():
                world = _world(folder, anew=True)
            return importlib.import_module(f"{world.name}.{name}")
    if whose := _whose(top):
        raise ScenarioError(
            f"{at} = {kind!r}: {top!r} is {whose}, not code of yours. A kind of your own lies beside the scenario, in the current"
            f" folder, or in a package that you installed."
        )
    return importlib.import_module(name)


def _world(folder: Path, *, anew: bool = False) -> World:
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    numbers = [int(name.rpartition("_")[2]) for name in _worlds if name.startswith(f"{ROOT}{mark}_")]
    number = max(numbers, default=0) + (anew or not numbers)
    name = f"{ROOT}{mark}_{number}"
    return _worlds.setdefault(name, World(name, folder))


def _whose(top: str) -> str:
    """Return whose the module *top* is, where it is Python's, ours or a library's that we stand on; empty otherwise."""
    if top in sys.stdlib_module_names and top != "__main__":
        return "part of Python"
    if top == "fedsim":
        return "part of fedsim"
    owners = _owners().get(top, [])
    return f"part of {owners[0]}, on which fedsim stands" if any(_plain(owner) in _stood_on() for owner in owners) else ""


@cache
def _owners() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def _stood_on() -> set[str]:
    """Return the packages that fedsim needs, and those that these need, by distribution name."""
    found: set[str] = set()
    waiting = [US]
    while waiting:
        try:
            needed = requires(waiting.pop()) or []
        except ModuleNotFoundError:  # Not installed as a package: run from a checkout.
            continue
        for line in needed:
            name = _plain(line)
            if "extra ==" not in line and name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _plain(requirement: str) -> str:
    """Return the name in a requirement, as indices compare names.

    >>> _plain("Foo_bar.baz[extra]>=2; python_version > '3'")
    'foo-bar-baz'
    """
    found = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", found.group() if found else "").lower()


def ran(names: Iterable[str]) -> dict[Path, str]:
    """Return the files behind the modules *names* (``net``), with the SHA-256 of what ran; a notebook has none.

    Of an installed module it is the file as it is now.
    """
    found: dict[Path, str] = {}
    for name in names:
        world = next((w for w in _candidates() if f"{w.name}.{name}" in sys.modules), None)
        if world is not None:
            found |= world.ran(name)
        elif (file := getattr(sys.modules.get(name), "__file__", None)) and Path(file).is_file():
            found[Path(file)] = _mark(Path(file).read_bytes())
    return found


def where(error: BaseException) -> str:
    """Return the innermost line of a reader's own code that *error* came through, like ``net.py, line 12``; empty where none."""
    found, story = "", error.__traceback__
    while story is not None:
        if str(story.tb_frame.f_globals.get("__name__", "")).startswith(ROOT):
            found = f"{Path(story.tb_frame.f_code.co_filename).name}, line {story.tb_lineno}"
        story = story.tb_next
    return found


def _candidates() -> list[World]:
    """Return the newest world of each folder that is looked in, in order."""
    return [_world(folder) for folder in dict.fromkeys((*_folders.get(), Path.cwd()))]


def worlds() -> Mapping[str, tuple[str, dict[str, str]]]:
    """Return what another process needs to load the same code: by world, its folder, and its files with their hashes."""
    return {w.name: (str(w.folder), {str(path): mark for path, mark in w.files.items()}) for w in _worlds.values() if w.files}


def settle(known: Mapping[str, tuple[str, dict[str, str]]]) -> None:
    """Take over the worlds of another process. A file that is not what it was there raises ScenarioError where it is loaded.

    Worlds of earlier runs are among them, whose files may be others now, or gone: they are not loaded any more.
    """
    for name, (folder, files) in known.items():
        _worlds.setdefault(name, World(name, Path(folder), promised=files))
