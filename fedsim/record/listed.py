"""The runs in a folder, a line each: what their manifests say, and no table of theirs is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.core.errors import RunError
from fedsim.record import manifest

DEEP = 3
"""How many folders deep runs are looked for: those of a study or a comparison stand in a folder of their own."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One run: its *folder*, as seen from where it was looked for, how it stands, and what it came to.

    *status* is that of a manifest, or killed, or unreadable, and then *error* says why. *started* is ISO 8601; *rounds* are as asked for.
    """

    folder: str
    status: str
    name: str = ""
    seed: int = 0
    started: str = ""
    round: int = 0
    rounds: int = 0
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    virtual_s: float = 0.0
    wall_s: float = 0.0
    sent_bytes: int = 0
    ground: str = "virtual"
    error: str = ""


def listed(folder: Path) -> list[Listed]:
    """Return the runs in *folder*, the newest first. Raises RunError where it is no folder, or one that cannot be read."""
    if not folder.is_dir():
        raise RunError(f"{folder}: is no folder.")
    try:
        places = [path.parent for deep in range(DEEP + 1) for path in folder.glob("/".join(["*"] * deep + [manifest.FILE]))]
    except OSError as error:
        raise RunError(f"{error.filename or folder}: {error.strerror}.") from None
    runs = set(places)  # What lies in a run's own folder, an export of it for one, is that run.
    places = [place for place in places if runs.isdisjoint(place.parents) and not (place / manifest.TABLES).exists()]
    return sorted((_of(place, folder) for place in places), key=lambda each: (each.started, each.folder), reverse=True)


def _of(place: Path, folder: Path) -> Listed:
    seen = str(place.relative_to(folder)) if place != folder else str(place)
    try:
        about = manifest.read(place)
    except RunError as error:
        return Listed(seen, "unreadable", error=str(error))
    scenario, final = about["scenario"], dict(about.get("final", {}))
    scores = {name: float(value) for name, value in final.items() if name not in ("rounds", "scored_round") and _number(value)}
    return Listed(
        seen, manifest.status(about), str(scenario["name"]), int(about.get("seed", 0)), str(about.get("started", "")),
        int(final.get("rounds", 0)), int(scenario["server"]["rounds"]), scores, float(about.get("virtual_s", 0.0)),
        float(about.get("wall_s", 0.0)), int(about.get("bytes_down", 0)) + int(about.get("bytes_up", 0)),
        str(about.get("ground", "virtual")), str(about.get("error", "")),
    )  # fmt: skip


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
