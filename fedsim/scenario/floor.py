"""Whether a stop by the noise floor can ever come: it wants two clients whose updates of one model are handed over together."""

from __future__ import annotations

from fedsim.core.errors import ScenarioError
from fedsim.scenario.schema import Scenario


def check_floor(scenario: Scenario, asked: int, *, own_start: bool) -> None:
    """Refuse ``stop.noise_floor`` where rounds of *asked* clients never show noise between two.

    Whom a reader's own strategy asks nobody knows; one with a start of its own (*own_start*) may know no rounds.
    """
    floor, own = scenario.stop.noise_floor if scenario.stop else None, ":" in scenario.server.strategy["kind"]
    if floor is not None and not (own or own_start) and asked == 1:
        raise ScenarioError(
            f"stop.noise_floor = {floor}: goes by the noise between clients of a round, and a round asks 1 client, so it would never stop."
            f" Ask 2 or more (server.strategy.clients_per_round), or stop by a metric (at_least, at_most, plateau)."
        )


def floor_remark(scenario: Scenario, *, own_start: bool) -> str:
    """Return what to say of ``stop.noise_floor`` beside a strategy with a ``start`` of its own; empty where there is nothing."""
    floor = scenario.stop.noise_floor if scenario.stop else None
    if floor is None or not own_start:
        return ""
    return (
        f"stop.noise_floor = {floor}: goes by the noise between clients whose replies are handed over together, and"
        f" server.strategy.kind = {scenario.server.strategy['kind']!r} has a start() of its own: where it takes replies one at a time there"
        f" is none, and the run never stops by it."
    )


def floor_unseen(scenario: Scenario, seen: int) -> list[str]:
    """Return what to say at the end of a run in which the noise between clients was *seen* so often, where that was too seldom."""
    floor = scenario.stop.noise_floor if scenario.stop else None
    if floor is None or seen >= floor:
        return []
    return [
        f"stop.noise_floor = {floor}: had no effect: two clients' replies of one model were handed over together {seen} times, and it looks"
        f" at the last {floor}."
    ]
