"""What a sizing looks at: how many clients a round asks, and how long it waits. Reads options and a first dry run; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.core.types import FloatArray, Seconds
from fedsim.scenario.schema import Scenario
from fedsim.score.target import Target
from fedsim.sizing.seen import Setting
from fedsim.strategy import stock

ASKED = (0.5, 1.0, 1.3, 2.0)
"""Cohorts that are looked at, in times of the scenario's; 1.3 is the over-selection of Bonawitz et al. 2019 (arXiv:1902.01046)."""
WAITED = (0.5, 0.8, 0.95, 1.0)
"""Deadlines of rounds that are looked at: by when these shares of replies are there, rounded up to a number that reads well."""
NICE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
PATIENT_S = 1e8
"""A deadline that nobody misses: three years."""
LEAST = ("bytes", "time")


@dataclass(frozen=True, slots=True)
class Plan:
    """The question: *settings* of *scenario* with *seeds*; what counts as learned; by when, in virtual seconds; *least* of what is best."""

    settings: tuple[Setting, ...]
    own: Setting
    seeds: tuple[int, ...]
    rounds: int
    target: Target | None
    deadline_s: Seconds | None
    least: str


def own_clients(scenario: Scenario) -> int | None:
    """Return how many clients a round of *scenario* asks; None where its strategy has its own way of choosing."""
    table = scenario.server.strategy
    takes = stock.arguments(table["kind"]) if table["kind"] in stock.names() else {}
    if "fraction_train" not in takes:
        return None
    count = scenario.clients.count
    asked: Any = table.get("clients_per_round")
    if asked is None:
        asked = max(int(count * float(table.get("fraction_train", 1.0))), int(table.get("min_train_nodes", min(2, count))))
    return min(int(asked), count)


def cohorts(scenario: Scenario, asked: str | Sequence[int] | None) -> tuple[int | None, ...]:
    """Return how many clients a round is to ask, by what was *asked* for, or around the scenario's own number."""
    own = own_clients(scenario)
    if own is None:
        if asked is not None:
            raise ScenarioError(
                f"--clients {asked}: server.strategy.kind = {scenario.server.strategy['kind']!r} chooses its clients itself. Leave it out."
            )
        return (None,)
    if asked is None:
        return tuple(sorted({min(scenario.clients.count, max(1, math.ceil(own * times))) for times in ASKED} | {own}))
    found = numbers("--clients", asked, "10,13,20")
    for number in found:
        if number != int(number) or not 1 <= number <= scenario.clients.count:
            raise ScenarioError(f"--clients {asked}: {number:g} must be a whole number from 1 to clients.count = {scenario.clients.count}.")
    return tuple(int(number) for number in found)


def deadlines(replied_s: FloatArray, own_s: Seconds) -> tuple[Seconds, ...]:
    """Return deadlines of rounds to look at, from when replies were there after they were asked for; *own_s*, the scenario's, among them.

    >>> deadlines(np.array([3.2, 4.1, 4.2, 7.9, 33.0]), 600.0)
    (5.0, 15.0, 30.0, 40.0, 600.0)
    """
    if not len(replied_s):
        return (own_s,)
    return tuple(sorted({nice(float(at)) for at in np.quantile(replied_s, WAITED)} | {own_s}))


def nice(seconds: float) -> float:
    """Return the next number from *seconds* on that reads well.

    >>> nice(33.0), nice(7.9), nice(0.012), nice(95.0)
    (40.0, 8.0, 0.015, 100.0)
    """
    power = 10.0 ** math.floor(math.log10(max(seconds, 1e-6)))
    return float(f"{next(each for each in NICE if each * power >= seconds * (1 - 1e-9)) * power:.6g}")


def numbers(option: str, asked: str | Sequence[float], example: str) -> tuple[float, ...]:
    """Return the numbers that *option* lists, ascending. Raises ScenarioError for what is none."""
    words = asked.split(",") if isinstance(asked, str) else list(asked)
    try:
        found = sorted({float(word) for word in words})
    except (TypeError, ValueError):
        found = []
    if not found or not all(math.isfinite(number) and number > 0 for number in found):
        raise ScenarioError(f"{option} {asked!r}: must be numbers above 0 with commas between, like {example}.")
    return tuple(found)
