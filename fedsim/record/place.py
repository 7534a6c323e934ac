"""Where a run goes: a folder of its own, which holds a manifest from its first moment on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedsim.core.errors import ScenarioError
from fedsim.record.leaving import spoken

ELSEWHERE = "--out, or in Python out="
"""How a reader names another folder."""
LONGEST = 255
"""Bytes in a name, on the file systems there are."""


def check_place(name: str, seed: int, out: str | Path | None) -> None:
    """Refuse a folder that cannot be written, before anything costly is done. Raises ScenarioError."""
    if out is not None and (not isinstance(out, str | os.PathLike) or not str(out) or "\0" in str(out)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ScenarioError(f"--out (in Python: out=) {out!r}: names no folder.")
    folder = Path("runs") / f"{name}-{seed}" if out is None else Path(out)
    what = "name" if out is None else "folder"
    if out is not None and folder.exists() and (not folder.is_dir() or _filled(folder, out)):
        raise ScenarioError(f"{out}: is there already and not empty. Name a new folder ({ELSEWHERE}).")
    for part in folder.parts:
        if len(os.fsencode(part)) > LONGEST - 10:
            raise ScenarioError(f"{what} {part[:40]}...: is too long for a folder ({len(os.fsencode(part))} bytes). {LONGEST - 10} work.")
    try:
        above = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(parent))
        if above.is_symlink() and not above.exists():
            raise ScenarioError(f"{_seen(folder, above)}: is a link to {os.readlink(above)}, which is not there. {_wish(out)}")
        if not above.is_dir():
            raise ScenarioError(f"{_seen(folder, above)}: is a file, not a folder. {_wish(out)}")
        if not os.access(above, os.W_OK | os.X_OK):
            raise ScenarioError(f"{_seen(folder, above)}: cannot be written into (Permission denied). {_wish(out)}")
    except OSError as error:
        raise ScenarioError(f"{what} {out or name}: cannot be made ({spoken(error)}). {_wish(out)}") from None


def take_place(name: str, seed: int, out: str | Path | None, first: Callable[[Path], None]) -> Path:
    """Return a new folder for a run, with what *first* writes in it; one that holds something is never written into.

    Raises ScenarioError where there is none to be had.
    """
    stem = Path("runs") / f"{name}-{seed}" if out is None else Path(out)
    try:
        if out is not None:
            if stem.is_dir() and not any(stem.iterdir()):  # The reader's own folder: it may be a mount, or where they stand.
                first(stem)
            else:
                _claim(stem, first)
            return stem
        for number in range(1, 1_000_000):
            folder = stem if number == 1 else stem.with_name(f"{stem.name}.{number}")
            with suppress(FileExistsError):
                _claim(folder, first)
                return folder
    except FileExistsError:
        raise ScenarioError(f"{out}: is there already and not empty. Name a new folder ({ELSEWHERE}).") from None
    except OSError as error:
        raise ScenarioError(f"{error.filename or stem}: cannot be written ({spoken(error)}). {_wish(out)}") from None
    raise ScenarioError(f"{stem}: too many runs of this name; clear the folder runs/.")


def _claim(folder: Path, first: Callable[[Path], None]) -> None:
    """Make *folder*: beside, and renamed, so that whoever kills us at any moment leaves no name taken without a manifest.

    Raises FileExistsError where something is in the way, OSError for the rest.
    """
    if os.path.lexists(folder):  # Renaming would take the place of an empty folder.
        raise FileExistsError(17, "File exists", str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name[:200]}.{os.getpid()}")
    try:
        draft.mkdir()
        first(draft)
        try:
            os.rename(draft, folder)
        except OSError as error:
            if os.path.lexists(folder):
                raise FileExistsError(error.errno, error.strerror, str(folder)) from None
            raise
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(draft)
        raise


def _filled(folder: Path, out: str | Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError as error:
        raise ScenarioError(f"{out}: cannot be looked into ({spoken(error)}). Name another folder.") from None


def _seen(folder: Path, above: Path) -> str:
    return (
        f"{above.relative_to(Path.cwd())}"
        if not folder.is_absolute() and above != Path.cwd() and above.is_relative_to(Path.cwd())
        else str(above)
    )


def _wish(out: str | Path | None) -> str:
    return "Name another folder." if out is not None else f"Name a folder ({ELSEWHERE})."
