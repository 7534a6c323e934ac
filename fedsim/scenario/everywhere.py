"""What ``engine.reproducible = "everywhere"`` goes with: refuses what cannot be held to one arithmetic. Reads scenarios, runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedsim.core import pinned
from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.scenario.schema import Scenario

ASKED = "engine.reproducible = 'everywhere'"
REAL = "real clients compute with what their machines have"
LEAVE = "leave reproducible at 'machine'"
EXECUTORS = ("local", "processes")
"""What computes in processes that began as this one did."""


def check(scenario: Scenario) -> None:
    """Refuse to promise bits everywhere where *scenario* or this machine makes them otherwise. Raises ScenarioError."""
    engine = scenario.engine
    if not engine.everywhere:
        return
    if engine.device != "cpu":
        what = "takes a GPU where there is one" if engine.device == "auto" else "is a GPU, whose sums come in any order"
        raise ScenarioError(f"{ASKED}: is promised of CPUs, and engine.device = {engine.device!r} {what}. Take device = 'cpu', or {LEAVE}.")
    if engine.precision is not None:
        raise ScenarioError(
            f"{ASKED}: what such products round to goes by the processor, and engine.precision = {engine.precision!r}. Leave"
            f" precision out, or {LEAVE}."
        )
    if (kind := engine.executing.get("kind")) not in EXECUTORS:
        raise ScenarioError(
            f"{ASKED}: nobody knows on what engine.executor.kind = {kind!r} computes. Take {' or '.join(map(repr, EXECUTORS))}, or {LEAVE}."
        )
    if lacking := pinned.lacking():
        raise ScenarioError(f"{ASKED}: {lacking}. It takes an x86-64 processor with AVX2; 'machine' works on any.")


def check_kinds(scenario: Scenario) -> None:
    """Refuse kinds that are in this process alone: of a notebook's cell, or registered here and not by what is installed."""
    for key, kind in _kinds(scenario.plain()):
        where = ""
        if kind.partition(":")[0] == "__main__":
            where = "is in this process alone (a notebook's cell, or the script that runs)"
        elif _registered_here(key, kind):
            where = "was registered in this process"
        if where:
            raise ScenarioError(
                f"{key}.kind = {kind!r}: {where}, and {ASKED} runs in one of its own. Put it into a file beside the scenario and name it"
                f" 'file:name', or {LEAVE}."
            )


def refuse(scenario: Scenario, why: str) -> None:
    """Refuse bits that are promised everywhere where that means nothing, because *why*. Raises ScenarioError."""
    if scenario.engine.everywhere:
        raise ScenarioError(f"{ASKED}: {why}. Leave it at 'machine'; 'fedsim run' simulates with 'everywhere'.")


def _registered_here(key: str, kind: str) -> bool:
    """Return whether *kind*, at *key*, is one that neither fedsim nor an installed package registers."""
    for registry in Registry.all:
        if key in (registry.key, *registry.also) and (function := registry.registered(kind)) is not None:
            return str(getattr(function, "__module__", "")).partition(".")[0] != "fedsim"
    return False


def _kinds(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield each kind that *table* names, with the dotted key of its table."""
    for name, value in table.items():
        if name == "kind" and isinstance(value, str):
            yield above, value
        elif isinstance(value, Mapping):
            yield from _kinds(value, f"{above}.{name}" if above else name)
