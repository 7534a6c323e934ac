"""What a server's pacing goes with: checks, and notes, of how long and for how many a round waits. Knows no clock and no message."""

from __future__ import annotations

import math

from fedsim.core.errors import ScenarioError
from fedsim.scenario.schema import Scenario
from fedsim.strategy.pacing import Pacing, Wait


def first_wait(pacing: Pacing | None, asked: int) -> Wait:
    """Return how the first round waits for the replies to *asked* messages; for all where there is no *pacing*."""
    return Wait() if pacing is None else pacing.wait(pacing.first(), max(1, asked))


def check_pacing(scenario: Scenario, pacing: Pacing | None, asked: int) -> None:
    """Refuse to go on with more replies than a round ever asks clients, *asked* of them; 0 where nobody knows."""
    enough = first_wait(pacing, asked).enough
    if asked and enough is not None and enough > asked:
        raise ScenarioError(
            f"server.pacing.take = {enough}: a round asks {asked} client{'s' * (asked > 1)}, and would go on with the first {enough}."
            f" Take {asked} at the most, or ask more (server.strategy.clients_per_round)."
        )


def pacing_notes(scenario: Scenario, pacing: Pacing | None, asked: int, *, own_start: bool) -> list[str]:
    """Return what a reader must know of a pacing that does nothing here, or nothing where the strategy goes another way."""
    if pacing is None:
        return []
    wait, longest_s, found = first_wait(pacing, asked), scenario.server.round_timeout_s, list[str]()
    if longest_s <= wait.until_s < math.inf:
        found.append(
            f"server.pacing.seconds: its deadline of {wait.until_s:g} s never comes: server.round_timeout_s ends each round after"
            f" {longest_s:g} s."
        )
    if asked and wait.enough == asked and not wait.least:
        found.append(f"server.pacing.take: is all of the {asked} clients that a round asks, so that every reply is waited for.")
    if own_start:
        found.append(
            f"server.pacing: holds where {scenario.server.strategy['kind']} calls grid.send_and_receive; how it waits for what it pushes by"
            f" itself is its own matter."
        )
    return found
