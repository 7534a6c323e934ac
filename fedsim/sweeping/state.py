"""``sweep.json``: what a sweep's folder says of itself, so that another command can go on; and whose the folder is meanwhile."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import RunError, ScenarioError, reason
from fedsim.record import manifest
from fedsim.sweeping.space import Space, read

try:
    import fcntl
except ImportError:  # Where there is none, nobody is kept out.
    fcntl = None

FILE, LOCK = "sweep.json", ".lock"
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class State:
    """How a sweep stands: its *status* (running, done, interrupted, failed, killed), what was *asked*, where, how much of it is done."""

    status: str
    asked: Mapping[str, Any]
    beside: str
    done: int
    total: int


def look(folder: Path) -> State | None:
    """Return how the sweep in *folder* stands; None where there is none. Raises RunError where what is there cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        status = "killed" if told["status"] == RUNNING and manifest.gone(told) else str(told["status"])
        return State(status, dict(told["sweep"]), str(told["beside"]), int(told["done"]), int(told["total"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({reason(error)}).") from None


def tell(folder: Path, space: Space, seeds: tuple[int, ...], status: str, done: int, total: int) -> None:
    """Write how the sweep of *space* in *folder* stands."""
    manifest.whole(folder / FILE, json.dumps({
        "status": status, "sweep": {**space.asked, "seeds": list(seeds)}, "beside": str(space.folder), "done": done, "total": total,
        "process": manifest.process(),
    }, indent=2) + "\n")  # fmt: skip


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Within, the sweep in *folder* is this process's. Raises RunError where it is another's; a killed one's claim is gone with it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            found = look(folder)
            far = f" ({found.done:,} of {found.total:,} runs are done)" if found is not None else ""
            raise RunError(
                f"{folder}: another process is at this sweep{far}. Wait for it, or name another folder (--out, in Python out=); --read"
                f" (only_read=True) looks at what is done."
            ) from None
        yield


def again(folder: Path, settings: Mapping[str, Any] | None, **more: Any) -> Space:
    """Return the sweep that was asked for in *folder*; *settings* and *more* as ``read`` takes them. Raises ScenarioError for none."""
    found = look(folder)
    if found is None:
        raise ScenarioError(f"{folder}: no sweep (it has no {FILE}). Name a sweep's file (.toml), or its folder.")
    table: dict[str, Any] = {"name": folder.name.removesuffix(".sweep"), **found.asked}
    if isinstance(table.get("scenario"), str):
        table["scenario"] = str(Path(found.beside) / table["scenario"])
    return read(table, settings, **more)
