"""A Flower app as it lies on disk: where it is, its components and its run config. Loads nothing of it."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click import ClickException

from fedsim.core.errors import ScenarioError, choices
from fedsim.flower import compat_app

CONFIG = "pyproject.toml"
SERVER, CLIENT = "tool.flwr.app.components.serverapp", "tool.flwr.app.components.clientapp"
"""Where an app's components stand."""
BUNDLE = ".fab"
"""How the file of an app's bundle ends."""
OTHERS = f"a {BUNDLE} file, or @publisher/name of one that 'flwr install' installed"
"""What else names an app."""
LEFT_OUT = {"__pycache__", "node_modules", "venv", "build", "dist"}
"""Folders in an app that hold nothing of its own code; nor does one whose name begins with a dot."""
FILES = 500
"""Files of an app's own code that a manifest names at most."""


@dataclass(frozen=True, slots=True)
class App:
    """An app: its *folder*, the references of its components, and its flat run config, with what was asked for merged in."""

    folder: Path
    name: str
    version: str
    server: str
    client: str
    run_config: dict[str, Any]

    @property
    def files(self) -> dict[str, str]:
        """Return the Python and TOML files of the app, by name as seen from its folder, each with its SHA-256."""
        found: dict[str, str] = {}
        for path in sorted([*self.folder.rglob("*.py"), *self.folder.rglob("*.toml")]):
            inside = path.relative_to(self.folder)
            if len(found) < FILES and not any(part in LEFT_OUT or part.startswith(".") for part in inside.parts[:-1]):
                found[str(inside)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def find(where: str | Path, words: Sequence[str] | Mapping[str, Any] = ()) -> App:
    """Return the app *where* says: a folder, a bundle (a .fab file, installed first), or an installed one. Raises ScenarioError.

    An installed one is called as Flower calls it: ``@publisher/name``, or ``@publisher/name==version``.
    *words* are the run config that is asked for: ``key=value``, as ``flwr run --run-config`` takes them, or a table.
    """
    folder = _folder(where)
    try:
        with (folder / CONFIG).open("rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{folder / CONFIG}: not valid TOML: {error}.") from None
    except OSError as error:
        raise ScenarioError(f"{folder / CONFIG}: cannot be read ({error.strerror}).") from None
    try:
        wrong = compat_app.faults(table)
    except (ValueError, TypeError, AttributeError) as error:
        raise ScenarioError(f"{folder / CONFIG}: {str(error).rstrip('.')}.") from None
    components = table.get("tool", {}).get("flwr", {}).get("app", {}).get("components", {})
    if wrong or not {"serverapp", "clientapp"} <= set(components):
        said = wrong[0] if wrong else "it has no serverapp and clientapp in [tool.flwr.app.components]"
        raise ScenarioError(f"{folder}: not a Flower app: {said[:1].lower()}{said[1:].rstrip('.')} ({CONFIG}).")
    for key, reference in ((SERVER, components["serverapp"]), (CLIENT, components["clientapp"])):
        module, colon, attribute = str(reference).partition(":")
        if not isinstance(reference, str) or not colon or not all(p.isidentifier() for p in (*module.split("."), *attribute.split("."))):
            raise ScenarioError(f"{key} = {reference!r}: must look like 'package.module:name'.")
    about = table["project"]
    return App(
        folder, str(about["name"]), str(about["version"]), components["serverapp"], components["clientapp"],
        _run_config(table["tool"]["flwr"]["app"].get("config", {}), words),
    )  # fmt: skip


def is_app(where: Path) -> bool:
    """Return whether *where* is a folder that holds a pyproject.toml: no scenario, but perhaps an app."""
    return where.is_dir() and (where / CONFIG).is_file()


def _folder(where: str | Path) -> Path:
    folder = Path(where)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise ScenarioError(f"{folder}: not a Flower app: it has no {CONFIG}.")
        return folder.resolve()
    if folder.is_file():
        return _bundled(folder)
    if folder.suffix == BUNDLE:
        raise ScenarioError(f"{folder}: there is no such file. 'flwr build' makes an app's bundle.")
    if str(where).startswith("@") or (str(where).count("/") == 1 and not str(where).startswith((".", "/", "~"))):
        return _installed(str(where))
    raise ScenarioError(f"{where}: there is no such folder. An app is a folder with a {CONFIG}, {OTHERS}.")


def _bundled(file: Path) -> Path:
    """Return the folder of the app in the bundle *file*, installed where Flower keeps apps. Raises ScenarioError."""
    if file.suffix != BUNDLE:
        raise ScenarioError(f"{file}: not a Flower app: it is a file. An app is a folder with a {CONFIG}, {OTHERS}.")
    try:
        return compat_app.install(file).resolve()
    except ValueError as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise ScenarioError(f"{file}: not a bundle of a Flower app: {said[:1].lower()}{said[1:]}. 'flwr build' makes one.") from None
    except OSError as error:
        raise ScenarioError(f"{error.filename or file}: cannot be read or written ({error.strerror}).") from None


def _installed(words: str) -> Path:
    """Return the folder of the app that *words* (``@publisher/name==version``) names: without a version, that installed last."""
    try:
        name, version = compat_app.app_spec(words)
    except ValueError as error:
        raise ScenarioError(f"{words}: {str(error).rstrip('.')}; there is no such folder either.") from None
    home = compat_app.installed()
    beginning = f"{name.replace('/', '.')}."
    found = {path: path.name.removeprefix(beginning).rpartition(".")[0] for path in home.glob(f"{beginning}*") if (path / CONFIG).is_file()}
    there = [path for path, its in found.items() if version in (None, its)]
    if there:
        return max(there, key=lambda path: (path.stat().st_mtime, path.name)).resolve()
    if found:
        others = ", ".join(sorted(set(found.values())))
        raise ScenarioError(f"{words}: of that app another version is installed in {home}: {others}.")
    raise ScenarioError(
        f"{words}: there is no such folder, and no app of that name is installed in {home}. An app is a folder with a {CONFIG}, {OTHERS}."
    )


def _run_config(defaults: dict[str, Any], words: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(words, Mapping):
        flat = compat_app.run_config(defaults, ())
        if strange := sorted(set(words) - set(flat)):
            raise ScenarioError(f"--run-config {strange[0]}: the app has no such key. {choices(strange[0], flat)}")
        if wrong := [key for key, value in words.items() if not isinstance(value, bool | int | float | str)]:
            raise ScenarioError(f"--run-config {wrong[0]} = {words[wrong[0]]!r}: must be a number, text, true or false.")
        return {**flat, **words}
    try:
        return compat_app.run_config(defaults, words)
    except ClickException as error:
        raise ScenarioError(f"--run-config {' '.join(words)!r}: {error.message.splitlines()[0].rstrip('.')}.") from None
    except (ValueError, OSError) as error:
        flat = compat_app.run_config(defaults, ())
        said = str(error).rstrip(".")
        name = said.split("'")[1] if said.count("'") >= 2 else ""
        hint = f" {choices(name, flat)}" if name not in flat else ""
        raise ScenarioError(f"--run-config {' '.join(words)!r}: {said}.{hint}") from None
