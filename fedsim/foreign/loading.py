"""Loading a component of an app: what it names, or one line that says where its own code broke. Used in the run and in its processes."""

from __future__ import annotations

import random
import sys
import traceback
from pathlib import Path
from typing import Any

from fedsim.core.errors import ScenarioError, reason
from fedsim.flower import compat_app


def loaded(key: str, reference: str, folder: Path, kind: type) -> Any:
    """Return the component at *reference*, of *kind*, that stands in the app's pyproject.toml at *key*. Raises ScenarioError."""
    at = f"{key} = {reference!r}"
    try:
        found = compat_app.component(reference, folder)
    except KeyboardInterrupt:
        raise
    except compat_app.Unloadable as error:
        raise ScenarioError(f"{at}: {str(error).strip().splitlines()[0].rstrip('.')}.") from None
    except BaseException as error:  # Whatever a stranger's module raises while it loads, SystemExit too.
        place = where(error, folder)
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and missing.partition(".")[0] == reference.partition(".")[0].partition(":")[0] and not place:
            raise ScenarioError(f"{at}: there is no module {missing!r} in {folder}.") from None
        if missing and not (folder / missing.partition(".")[0]).exists():
            raise ScenarioError(
                f"{at}: needs the package {missing.partition('.')[0]!r}, which is not installed here{f' ({place})' if place else ''}."
                f" Install what the app asks for: pip install {folder}"
            ) from error
        raise ScenarioError(f"{at}: cannot be imported: {reason(error)}{f' ({place})' if place else ''}.") from error
    if not isinstance(found, kind):
        raise ScenarioError(f"{at}: is a {type(found).__name__}, not a {kind.__name__}.")
    return found


def where(error: BaseException, folder: Path) -> str:
    """Return the innermost line of the code in *folder* that *error* came through, like ``task.py, line 12``; empty where none."""
    found = ""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(folder):
        return f"{Path(error.filename).name}, line {error.lineno}"
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).is_relative_to(folder):
            found = f"{Path(frame.filename).name}, line {frame.lineno}"
    return found


def seed_globals(seed: int) -> None:
    """Set the global generators of Python, and of numpy and torch where they are imported, to *seed*."""
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(seed)
