"""The manifest: what a run was, so that it can be read, trusted and run again. Replaced whole, never half written."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedsim.core import own
from fedsim.core.children import interpreter_flags
from fedsim.core.errors import RunError, reason
from fedsim.core.machine import processor
from fedsim.data.source import DATA_VARIABLE, changed
from fedsim.record.about import fault

FILE = "manifest.json"
_PACKAGES = ("fedsim-online", "flwr", "torch", "numpy", "scipy", "simpy")


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write *manifest*, atomically: a reader sees the old one or the new one."""
    whole(folder / FILE, json.dumps(manifest, indent=2) + "\n")


def whole(path: Path, content: str | bytes) -> None:
    """Write *content* to *path*, atomically: a reader sees the file of before or the new one, and a full disk leaves the old."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


TABLES = "columns.json"
"""What an export to tables has beside its own copy of the manifest: it is no run, wherever it lies."""
NEWEST = 3
"""Runs that are named where another folder was asked for."""


def none_in(folder: Path, why: str = "") -> str:
    """Return the line about *folder*, which holds no manifest: that it is not there (and *why*), or is no run; and which runs are near."""
    there = folder.exists()
    place = folder if folder.is_dir() else folder.parent
    runs = [path for path in place.glob(f"*/{FILE}") if not path.parent.name.startswith(".") and not path.with_name(TABLES).exists()]
    newest = [str(path.parent) for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True)[:NEWEST]]
    said = f"not a run folder (it has no {FILE})" if there else f"is not there{why}"
    return f"{folder}: {said}." + (f" The newest {'in it' if place == folder else 'there'}: {', '.join(newest)}." if newest else "")


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest in *folder*. Raises RunError when there is none, or none that can be read."""
    path = folder / FILE
    if not path.is_file():
        raise RunError(none_in(folder))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({reason(error)}).") from None
    if wrong := fault(found):
        raise RunError(f"{path}: is no manifest that this version can read ({wrong}).")
    return found


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on: those that this process began with, which are loaded."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def interpreter() -> dict[str, Any]:
    """Return how Python was started, where that may matter: its flags, which workers get too."""
    return {"flags": interpreter_flags(), "PYTORCH_JIT": os.environ.get("PYTORCH_JIT", "1")}


def machine() -> dict[str, str]:
    """Return what kind of machine this is: digests are promised to be equal on one kind."""
    return {"system": platform.system(), "architecture": platform.machine(), "processor": processor()}


def process() -> dict[str, Any]:
    """Return which process this is: its number, where, and when it began, since numbers are given again."""
    return {"pid": os.getpid(), "host": platform.node(), "began": _began(os.getpid())}


def status(about: Mapping[str, Any]) -> str:
    """Return running, done, failed, interrupted or pruned; killed, where *about* says running and its process is gone."""
    said = str(about["status"])
    return "killed" if said == "running" and gone(about) else said


def gone(about: Mapping[str, Any]) -> bool:
    """Return whether the process that wrote a manifest is known to be gone; of another machine's nobody knows."""
    writer = about.get("process")
    if not writer or writer["host"] != platform.node():
        return False
    return _began(writer["pid"]) != writer["began"]


def _began(pid: int) -> str:
    """Return when process *pid* began, in the system's own ticks; empty where it does not run, "?" where nobody can tell."""
    if not Path("/proc/self/stat").is_file():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:
            pass
        return "?"
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if after_name[0] == "Z" else after_name[19]
    except (OSError, IndexError):
        return ""


def own_kinds(scenario: Mapping[str, Any]) -> list[str]:
    """Return what a scenario names as ``package.module:name``, sorted."""
    return sorted({word for word in _words(scenario) if ":" in word and " " not in word})


def own_code(scenario: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return the source files of a scenario's own kinds, by name as seen from its *folder*, each with the SHA-256 of what ran."""
    with own.beside(folder):
        return seen_from(folder, {str(p): mark for p, mark in own.ran({kind.partition(":")[0] for kind in own_kinds(scenario)}).items()})


def seen_from(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Return *files* with names that do not say whose home they lie in: from *folder*, or from the folder of data."""
    root = os.environ.get(DATA_VARIABLE)

    def named(file: str) -> str:
        path = Path(file).resolve()
        if path.is_relative_to(folder.resolve()):
            return str(path.relative_to(folder.resolve()))
        if root and path.is_relative_to(Path(root).resolve()):
            return f"${DATA_VARIABLE}/{path.relative_to(Path(root).resolve())}"
        return str(path)

    return {named(file): mark for file, mark in files.items()}


def found_from(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Return *files*, named by ``seen_from``, as paths on this machine."""
    return {str(folder / os.path.expandvars(file)): mark for file, mark in files.items()}


def scenario_folder(about: Mapping[str, Any], run: Path) -> Path:
    """Return the folder that a scenario's own paths are seen from, of the manifest *about* in the folder *run*."""
    return (run / str(about["folder"])).resolve()  # An absolute one (of before 2026-11-26) swallows what stands before it.


def origin(folder: Path) -> str:
    """Return a mark that only this user on this machine can set for a scenario in *folder*: whose code may run unasked."""
    try:
        machine_id = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine_id = ""
    who = f"{machine_id or uuid.getnode()}:{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}:{folder.resolve()}"
    return hashlib.sha256(who.encode()).hexdigest()


def check_trust(about: Mapping[str, Any], run: Path, *, trust: bool) -> Path:
    """Return the folder of the scenario whose own code is about to run. Raises RunError where that must be allowed first.

    A run folder may come from anybody: whoever runs its code runs theirs. What was recorded here, by this user, is ours.
    """
    folder, kinds = scenario_folder(about, run), own_kinds(about["scenario"])
    if not kinds:
        return folder
    files = found_from(folder, about.get("code", {}))
    if not trust and about.get("origin") != origin(folder):
        raise RunError(
            f"{run}: would run code that was not recorded here: {', '.join(kinds)} ({', '.join(files) or 'installed'}). Look at it,"
            f" then say --trust (in Python: trust=True)."
        )
    if gone := changed(files):
        raise RunError(f"{run}: its own code changed since the run (or is gone): {', '.join(gone)}.")
    return folder


def _words(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        kinds = [value["kind"]] if isinstance(value.get("kind"), str) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return kinds + [word for item in value.values() for word in _words(item)]  # pyright: ignore[reportUnknownVariableType]
    return []
