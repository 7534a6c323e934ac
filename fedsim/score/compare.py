"""What differs between two runs of one scenario: the first row, the parameters, or a figure of the manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedsim.learn.work import digest_of
from fedsim.record import manifest
from fedsim.score.run import Run

FIGURES = ("virtual_s", "bytes_down", "bytes_up", "bytes_wasted", "digest", "metrics_digest", "scenario_digest", "seed")
"""What a manifest says that follows from the scenario alone, beside its final scores."""
SECTIONS = ("final", "model", "privacy")
"""Those of its sections that do."""
SAID = ("hindsight", "classes", "natural_clients", "promise")
"""What follows from it too, where a manifest has it: older ones need not."""


def difference(old: Run, new: Run) -> str | None:
    """Return what differs first between *old* and *new*, in words; None where nothing does.

    Rows are compared even where the digests agree: a journal may have been edited after the run, and a manifest too. Where bits were
    promised everywhere, and libraries answer otherwise now, the words say of what.
    """
    found = _first(old, new)
    then, now = (about.manifest.get("rests_on", {}).get("answers", {}) for about in (old, new))
    others = [name for name in then if name in now and then[name] != now[name]]
    return f"{found} (libraries answer otherwise here than there, of {', '.join(others)})" if found and others else found


def _first(old: Run, new: Run) -> str | None:
    for table in ("tasks", "rounds", "metrics", "tested", "alarms", "drifts"):
        before, after = getattr(old, table), getattr(new, table)
        for i, (a, b) in enumerate(zip(before.itertuples(index=False), after.itertuples(index=False), strict=False)):
            for column, left, right in zip(before.columns, a, b, strict=True):
                if left != right and not (left is None and right is None) and not _both_nan(left, right):
                    return f"{table} row {i + 1} ({_row_name(a)}): {column} was {left!r}, is now {right!r}"
        if len(before) != len(after):
            return f"{table}: {len(before)} rows before, {len(after)} now"
    if digest_of(old.stored()) != digest_of(new.stored()):
        return "the parameters in model.safetensors"
    return _figures(old.manifest, new.manifest)


def _figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return the first figure that differs between two manifests: what ``show`` prints is what was computed."""
    one, two = (
        {
            **{f"{part}.{k}": v for part in SECTIONS for k, v in about.get(part, {}).items()},
            **{k: about[k] for k in FIGURES},
            **{k: about.get(k) for k in SAID if k in old},
        }
        for about in (old, new)
    )
    for name in [*one, *(name for name in two if name not in one)]:
        left, right = one.get(name), two.get(name)
        if left != right and not _both_nan(left, right):
            return f"{name} in {manifest.FILE} was {left!r}, is now {right!r}"
    return None


def _row_name(row: Any) -> str:
    about = f"client {row.client}" if hasattr(row, "client") else row.name if hasattr(row, "value") else row.kind
    return f"round {row.round}, {about}"


def _both_nan(left: Any, right: Any) -> bool:
    return isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right)
