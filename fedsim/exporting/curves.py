"""The scores of a run as curves: a scope, a name, a value per round and virtual time. Knows no program that draws them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import numpy as np

from fedsim.core.types import Frame
from fedsim.score.fairness import tenths
from fedsim.score.run import Run
from fedsim.score.target import upwards


@dataclass(frozen=True, slots=True)
class Point:
    """A *value* of what is called *name* in a *scope*, after a *round*, at *now_s* virtual seconds."""

    scope: str
    name: str
    round: int
    now_s: float
    value: float


def curves(run: Run) -> Iterator[Point]:
    """Yield every score of a run, in order of recording; then what it cost, round by round, and how its clients' scores lie."""
    metrics = run.metrics
    for row in metrics.itertuples(index=False):
        each: Any = row
        yield Point(each.scope, each.name, int(each.round), float(each.now_s), float(each.value))
    last = metrics.groupby("round", as_index=False).last()
    for name in ("down_bytes", "up_bytes", "now_s"):
        shown = "virtual_s" if name == "now_s" else name
        for number, now_s, value in zip(last["round"], last.now_s, last[name], strict=True):
            yield Point("cost", shown, int(number), float(now_s), float(value))
    frame, ends = run.clients, {int(n): float(t) for n, t in zip(last["round"], last.now_s, strict=True)}
    for name in ("accuracy", "loss", "train_loss"):
        yield from _spread(frame, name, ends)


def _spread(frame: Frame, name: str, ends: Mapping[int, float]) -> Iterator[Point]:
    """Yield median and worst tenth of what clients told of *name*, of the rounds whose end is known."""
    told = frame.loc[np.isfinite(frame[name].to_numpy()), ["round", name]]
    for number, values in told.groupby("round")[name]:
        if int(cast(int, number)) in ends:
            found = values.to_numpy(dtype=np.float64)
            at = int(cast(int, number)), ends[int(cast(int, number))]
            yield Point("clients", f"{name} median", *at, float(np.median(found)))
            yield Point("clients", f"{name} worst tenth", *at, tenths(found, upwards=upwards(name))[0])


def began_s(run: Run) -> float:
    """Return when the run was started, in seconds since 1970: what virtual time is added to, where a program wants a date."""
    return datetime.strptime(str(run.manifest["started"]), "%Y-%m-%dT%H:%M:%S%z").timestamp()


def flat(table: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return the leaves of nested tables by dotted key, as text.

    >>> flat({"server": {"rounds": 3, "strategy": {"kind": "FedAvg"}}, "seed": 7})
    {'server.rounds': '3', 'server.strategy.kind': 'FedAvg', 'seed': '7'}
    """
    found: dict[str, str] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            found |= flat(cast(Mapping[str, Any], value), f"{above}{name}.")
        else:
            found[f"{above}{name}"] = str(value)
    return found
