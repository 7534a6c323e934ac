"""What has sizes and no numbers: a model, or examples, of which a scenario only says how large they are. Refuses to train it."""

from __future__ import annotations

from typing import Any

from fedsim.core.errors import ScenarioError
from fedsim.data.federation import Federation
from fedsim.scenario.schema import Scenario


def hollow(scenario: Scenario, model: Any, federation: Federation) -> str:
    """Return what of *scenario* has sizes and no numbers to learn from, like ``model.kind = 'sized'``; empty where all has."""
    if getattr(model, "only_sized", False):
        return f"model.kind = {scenario.model.kind!r}"
    return f"data.source.kind = {scenario.data.source['kind']!r}" if getattr(federation.generator, "untested", False) else ""


def check_trains(scenario: Scenario, model: Any, federation: Federation) -> None:
    """Refuse to train what has sizes and no numbers."""
    if what := hollow(scenario, model, federation):
        raise ScenarioError(
            f"{what}: has sizes, and no numbers to learn from. 'fedsim check' and 'fedsim size' foretell what it costs; to train, name"
            f" a model and data."
        )
