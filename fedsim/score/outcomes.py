"""What did not count in a run, and whether its streams ended it: words and numbers of its rows and its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedsim.sim.rows import STREAM_ENDED

if TYPE_CHECKING:
    import pandas as pd

STREAMS_END = "came after a stream's end"
DISCARDED = {"enough": "not needed", "abandoned": "in an abandoned round"}
"""What became of replies that are late by no deadline, by the row's word for why, in a reader's."""


def streams_ended(about: Mapping[str, Any]) -> bool:
    """Return whether the run that *about* tells of was done before all its rounds because every stream had ended."""
    scenario, final, stop = about["scenario"], about["final"], about["scenario"].get("stop") or {}
    reached = final.get(stop.get("metric"), math.nan)
    # What of [stop] came true is in the manifest; in one of before 2026-11-30 the scores say it.
    met = "stopped" in about or reached >= stop.get("at_least", math.inf) or reached <= stop.get("at_most", -math.inf)
    return about["status"] == "done" and "stream" in scenario and final.get("rounds", 0) < scenario["server"]["rounds"] and not met


def waiting(tasks: pd.DataFrame) -> float:
    """Return the share of the time that devices were at work on training tasks in which they waited for mini-batches to be loaded."""
    done = tasks[(tasks.kind == "train") & tasks.computed_s.notna()]
    worked = float((done.computed_s - done.started_s).sum())
    return float(done.waited_s.sum()) / worked if worked else 0.0


def named(tasks: pd.DataFrame) -> pd.Series:
    """Return what became of each of *tasks*, as ``uncounted`` has it: its outcome, or a word for one that is of another kind."""
    found = tasks.outcome.where(tasks.failure != STREAM_ENDED, STREAMS_END)
    return found.where(tasks.discarded == "", tasks.discarded.map(DISCARDED)) if "discarded" in tasks else found  # Older runs have none.


def deadline_of(about: Mapping[str, Any]) -> float:
    """Return after how many seconds rounds of the run that *about* tells of ended at the latest; infinity where that is not one number."""
    server = about["scenario"]["server"]
    pacing = server.get("pacing") or {}
    if pacing.get("kind") == "adaptive":
        return math.inf
    return min(float(server.get("round_timeout_s", math.inf)), float(pacing.get("seconds", math.inf)))


def uncounted(tasks: pd.DataFrame) -> dict[str, int]:
    """Return how many client tasks did not count, by why: words of a summary; a stream's end is no failure."""
    counts: Any = named(tasks).value_counts()
    found = {name: int(counts.get(name, 0)) for name in ("late", *DISCARDED.values(), "failed", "in flight", STREAMS_END)}
    return {name: count for name, count in found.items() if count}
