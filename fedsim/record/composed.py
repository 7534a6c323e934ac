"""A manifest composed of what a run is and how far it came. Takes plain values; knows no part of a run, and looks up the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.record import digest, manifest

PROMISES = {
    True: "On one machine type the digest is the same for a second run, and for any engine.chunk and engine.workers.",
    False: (
        "On a GPU of one type the digest was the same for a second run, wherever that was tried; it is not promised, and is not a CPU's."
        " It rests on fingerprints of 128 bits that were computed there (fedsim-words-1), in the place of SHA-256 over parameters."
    ),
}
"""What a digest promises, on a CPU and elsewhere."""
EVERYWHERE = (
    "On every x86-64 machine with AVX2 the digest is the same for a second run, and for any engine.chunk and engine.workers, where"
    " libraries answer as in rests_on, and code of your own computes with torch and numpy alone."
)
"""What it promises where arithmetic is pinned."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is before its first round: its *scenario* as a plain table, the *folder* that lies in, and what was built of it.

    *files* are the data files that were read, with their marks; *classes* and *clients* their names, where they have some;
    *asks* is what the scenario's file says of itself: its question, what it expects, where that is from.
    """

    scenario: Mapping[str, Any]
    scenario_digest: str
    folder: Path
    seed: int
    model: Mapping[str, Any]
    executor: Mapping[str, Any]
    hindsight: bool
    classes: Sequence[str]
    clients: Sequence[str]
    files: Mapping[str, str]
    asks: Mapping[str, str] = field(default_factory=dict[str, str])
    rests: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What equal bits on every machine rest on; nothing where they are not promised."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a run came, and what is to be said of it; *digest* and *metrics_digest* are None unless it is done.

    *stopped* is what of [stop] came true, empty where nothing did.
    """

    status: str
    error: str
    digest: str | None
    metrics_digest: str | None
    final: Mapping[str, float]
    virtual_s: float
    down_bytes: int
    up_bytes: int
    wasted_bytes: int
    notes: Sequence[str]
    privacy: Mapping[str, Any] | None
    stopped: str = ""
    ground: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What is to be said of where it ran, section by section; nothing where that was virtual."""


def composed(run: Path, setup: Setup, reached: Reached, began_wall_s: float) -> dict[str, Any]:
    """Return the manifest, for the folder *run*, of a run that began at *began_wall_s*, seconds since 1970."""
    return {
        "status": reached.status,
        **({"error": reached.error} if reached.error else {}),
        "scenario": setup.scenario,
        "scenario_digest": setup.scenario_digest,
        "folder": os.path.relpath(setup.folder.resolve(), run.resolve()),
        "origin": manifest.origin(setup.folder),
        "seed": setup.seed,
        **({"asked": dict(setup.asks)} if setup.asks else {}),
        "digest": reached.digest,
        "metrics_digest": reached.metrics_digest,
        "digest_format": digest.FORMAT,
        "final": dict(reached.final),
        **({"stopped": reached.stopped} if reached.stopped else {}),
        "virtual_s": reached.virtual_s,
        "bytes_down": reached.down_bytes,
        "bytes_up": reached.up_bytes,
        "bytes_wasted": reached.wasted_bytes,
        "wall_s": round(time.time() - began_wall_s, 3),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began_wall_s)),
        "model": dict(setup.model),
        "executor": setup.executor,
        "promise": EVERYWHERE if setup.rests else PROMISES[setup.executor["device"] == "cpu"],
        **({"rests_on": dict(setup.rests)} if setup.rests else {}),
        "notes": list(reached.notes),
        **({"privacy": reached.privacy} if reached.privacy is not None else {}),
        **reached.ground,
        "hindsight": setup.hindsight,
        **({"classes": list(setup.classes)} if setup.classes else {}),
        **({"natural_clients": list(setup.clients)} if setup.clients else {}),
        "files": manifest.seen_from(setup.folder, setup.files),
        "code": manifest.own_code(setup.scenario, setup.folder),
        "versions": manifest.versions(),
        "machine": manifest.machine(),
        "interpreter": manifest.interpreter(),
        "process": manifest.process(),
    }
