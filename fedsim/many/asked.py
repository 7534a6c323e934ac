"""How many processes, which seeds, and how long: what whoever wants many runs may ask for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fedsim.core.errors import ScenarioError
from fedsim.core.types import Seconds

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}


def jobs_of(asked: int | None) -> int:
    """Return how many processes: *asked*, or one per core that we may use. Raises ScenarioError for none, and for too many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked is not None and not 1 <= asked <= 256:
        raise ScenarioError(f"--jobs {asked}: must be between 1 and 256 processes.")
    return cores if asked is None else asked


def safe(done: int, folder: Path) -> str:
    """Return what is left of work that was ended early: how many runs are *done*, and where.

    >>> safe(0, Path("runs/x")), safe(1, Path("runs/x"))
    ('no run is done yet', '1 run is done, and safe in runs/x')
    """
    return f"{done:,} run{'s are' if done > 1 else ' is'} done, and safe in {folder}" if done else "no run is done yet"


def read_seeds(asked: int | Sequence[int], first: int, word: str = "--seeds") -> tuple[int, ...]:
    """Return the seeds: so many from the scenario's *first* one on, or those named, as *word* has it. Raises ScenarioError for none."""
    seeds = tuple(range(first, first + asked)) if isinstance(asked, int) else tuple(dict.fromkeys(int(seed) for seed in asked))
    if not 1 <= len(seeds) <= 100 or not all(0 <= seed < 2**63 for seed in seeds):
        raise ScenarioError(f"{word} {asked}: must be between 1 and 100 seeds, none below 0.")
    return seeds


def span(words: str | float, option: str, example: str) -> Seconds:
    """Return the seconds that *words* of *option* name. Raises ScenarioError for what is none.

    >>> [span(words, "--budget", "10m") for words in ("10m", "90s", "1.5h", 30)]
    [600.0, 90.0, 5400.0, 30.0]
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(words))
    if not found or float(found[1]) <= 0:
        raise ScenarioError(f"{option} {words!r}: must look like {example}.")
    return float(found[1]) * UNITS[found[2]]
