"""What a run came to and what it took, measure by measure, to be set beside another's; and what "not reached" is worth then.

Reads frames and the manifest of one run; compares nothing but two lists of figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.types import FloatArray, Frame
from fedsim.score import online
from fedsim.score.fairness import tenths
from fedsim.score.fared import last
from fedsim.score.run import Run
from fedsim.score.target import Target, upwards

TO_TARGET = ("rounds_to_target", "virtual_s_to_target", "bytes_to_target")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a run; what it had spent at its end, where it never *reached* its target."""

    value: float
    reached: bool = True


Taken = Mapping[str, Figure]
"""The figures of a run by measure."""


def taken(run: Run, target: Target | None) -> dict[str, Figure]:
    """Return the figures of *run*: final and best scores, what it took to *target* and in all, and its worst tenth of clients.

    A measure that the run does not have is left out. Raises ScenarioError where the server never reports the target's score.
    """
    metrics, about = run.metrics, run.manifest
    central: Frame = metrics[metrics.scope == "central"]
    found: dict[str, Figure] = {}
    for name, scores in central.groupby("name"):
        values = scores["value"].to_numpy(dtype=float)
        found[f"final {name}"] = Figure(float(values[-1]))
        found[f"best {name}"] = Figure(float(np.nanmax(values) if upwards(str(name)) else np.nanmin(values)))
    if target is not None:
        found |= _to_target(central, target, about)
    found |= _worst(run)
    found["virtual_s"] = Figure(float(about["virtual_s"]))
    found["bytes"] = Figure(float(about["bytes_down"] + about["bytes_up"]))
    return found


def _to_target(central: Frame, target: Target, about: Mapping[str, Any]) -> dict[str, Figure]:
    scores: Frame = central[central.name == target.metric]
    if scores.empty:
        known = sorted({str(name) for name in central.name})
        raise ScenarioError(f"--target {target}: {target.metric!r} is not reported here. {choices(target.metric, known)}")
    held: Frame = scores[[target.holds(float(value)) for value in scores["value"]]]
    if held.empty:
        spent = (about["final"].get("rounds", 0), about["virtual_s"], about["bytes_down"] + about["bytes_up"])
    else:
        first = held.iloc[0]
        spent = (first["round"], first["now_s"], first["down_bytes"] + first["up_bytes"])
    return {name: Figure(float(value), not held.empty) for name, value in zip(TO_TARGET, spent, strict=True)}


def best_of(run: Run, target: Target) -> float:
    """Return how far *run* came on the way to *target*: the best of its central scores; NaN where it has none."""
    metrics = run.metrics
    scores: Frame = metrics[(metrics.scope == "central") & (metrics.name == target.metric)]
    values = scores["value"].to_numpy(dtype=float)
    known = values[~np.isnan(values)]
    return float(known.max() if target.upwards else known.min()) if len(known) else math.nan


def _worst(run: Run) -> dict[str, Figure]:
    """Return the scores of the worst tenth of clients: on streams of what they predicted, else by their last federated evaluation."""
    found: dict[str, Figure] = {}
    if "stream" in run.manifest["scenario"] and (pooled := online.pooled(run.tested)["accuracy"]) is not None:
        found["prequential accuracy"] = Figure(float(pooled))
        table: Frame = run.prequential()
        worst = table.set_index("scope").accuracy.get("worst tenth", math.nan)
        if math.isfinite(worst):
            found["worst tenth, prequential accuracy"] = Figure(float(worst))
    clients = run.clients
    for name in ("accuracy", "loss"):
        told = last(clients, name)["value"].to_numpy(dtype=float)
        if len(told):
            found[f"worst tenth, {name}"] = Figure(tenths(told, upwards=upwards(name))[0])
    return found


def side_by_side(ours: Sequence[Figure], theirs: Sequence[Figure], *, pairs: bool) -> tuple[FloatArray, FloatArray]:
    """Return the values of both sides, cut where a run that did not reach its target had stopped looking.

    In a pair both count up to the end of the one that did not reach it (of both, the earlier end), so that the difference is at least what
    is said, and that of two that did not is 0. Unpaired, all count up to the earliest such end. Nobody is left out.

    >>> reached, never = Figure(4.0), Figure(10.0, False)
    >>> [each.tolist() for each in side_by_side([never, never], [reached, Figure(12.0, False)], pairs=True)]
    [[10.0, 10.0], [4.0, 10.0]]
    """
    ends = [[math.inf if figure.reached else figure.value for figure in side] for side in (ours, theirs)]
    if pairs:
        cut = np.minimum(*np.array(ends)) if ours else np.zeros(0)
        cuts = (cut, cut)
    else:
        earliest = min([*ends[0], *ends[1]], default=math.inf)
        cuts = (np.full(len(ours), earliest), np.full(len(theirs), earliest))
    values = [np.array([figure.value for figure in side], dtype=float) for side in (ours, theirs)]
    return np.minimum(values[0], cuts[0]), np.minimum(values[1], cuts[1])


def better_upwards(measure: str) -> bool:
    """Return whether more of *measure* is better: of scores as they say, of time, rounds and bytes never.

    >>> better_upwards("final accuracy"), better_upwards("worst tenth, loss"), better_upwards("virtual_s_to_target")
    (True, False, False)
    """
    return upwards(measure) and measure not in (*TO_TARGET, "virtual_s", "bytes")
