"""Whether a scenario takes what a sweep varies at all: its keys, and what the kinds that these belong to may be given. Runs nothing.

Which settings a kind takes its registry knows, with torch and Flower behind it: so that is asked of a worker, which has these (``taken``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsim.core.errors import ScenarioError
from fedsim.many.runs import Crew
from fedsim.scenario.load import Loaded, load
from fedsim.score.taken import TO_TARGET
from fedsim.score.target import OURS, RANGES, Target
from fedsim.sweeping.found import SENT, named
from fedsim.sweeping.space import Assignment, Axis, Space

BY = "fedsim.sweeping.checking:taken"


def measured(space: Space, base: Loaded, target: Target | None) -> None:
    """Raise ScenarioError for a measure that no run can have; which scores an objective of a reader's own has, the first run tells."""
    if base.scenario.training.objective["kind"] != OURS:
        return
    scores = sorted(RANGES)
    known = [f"{which} {name}" for which in ("best", "final") for name in scores]
    known += ["virtual_s", "bytes", *SENT, *(TO_TARGET if target is not None else ())]
    maybe = ["prequential accuracy", *(f"worst tenth, {name}" for name in ("prequential accuracy", *scores))]  # By how clients are scored.
    given = space.file.measure
    for word in [given] if isinstance(given, str) else given or ():
        named(word, known if word not in maybe else maybe, "measure")
    for word in space.file.pareto or ():
        named(word, known if word not in maybe else maybe, "--pareto")


def probed(space: Space, base: Loaded) -> None:
    """Raise ScenarioError for an axis of which the scenario has no such key, whatever the others are set to."""
    plain = base.scenario.plain()
    for axis in space.axes:
        _some(list(tried(space, axis)), lambda each: load(plain, each))


def asked(space: Space, base: Loaded, crew: Crew) -> None:
    """Raise ScenarioError for an axis that no kind takes, whatever the others are set to; a worker of *crew* says so."""
    tables = [list(tried(space, axis)) for axis in space.axes]
    request = {"base": base.scenario.plain(), "folder": str(base.folder), "axes": tables, "out": "keys"}
    error = crew.done_by(BY, [request])[0] if tables else ""
    crew.done = crew.known = 0
    if error:
        raise ScenarioError(error)


def tried(space: Space, axis: Axis) -> Iterator[Assignment]:
    """Yield what the scenario is tried with for *axis*: its values by themselves, with the first of the others, and with each of these."""
    others = [other.ends for other in space.axes if other is not axis]
    firsts = {key: value for ends in others for key, value in ends[0].items()}
    for values in axis.ends:
        yield dict(values)
        yield {**firsts, **values}
    for values in axis.ends:
        for ends in others:
            yield from ({**firsts, **end, **values} for end in ends[1:])


def taken(request: Mapping[str, Any]) -> None:
    """Raise ScenarioError unless the scenario takes one of each list of overrides in *request*, its kinds looked at too."""
    for axis in request["axes"]:
        _some(axis, lambda each: _kinds(replace(load(request["base"], each), folder=Path(request["folder"]))))


def _some(tables: Sequence[Assignment], attempt: Callable[[Assignment], object]) -> None:
    """Return when *attempt* takes one of *tables*. Raises the ScenarioError of the first where it takes none."""
    first: ScenarioError | None = None
    for each in tables:
        try:
            attempt(each)
            return
        except ScenarioError as error:
            first = first or error
    if first is not None:
        raise first


def _kinds(loaded: Loaded) -> None:
    """Raise ScenarioError where a table of a kind has a setting, or a value of one, that the kind does not take."""
    from fedsim.core import own
    from fedsim.scenario.kinds import chosen, slots
    from fedsim.strategy.stock import build

    scenario, plain = loaded.scenario, loaded.scenario.plain()
    with own.beside(loaded.folder):
        build(scenario.server.strategy, scenario.clients.count, scenario.evaluate.federated_fraction)
        for slot in slots().values():
            for key in slot.keys:
                table: Any = plain
                for part in key.split("."):
                    table = table.get(part) if isinstance(table, Mapping) else None  # pyright: ignore[reportUnknownMemberType]
                if isinstance(table, Mapping) and "kind" in table:
                    chosen(replace(slot, key=key), {name: value for name, value in table.items() if name not in slot.shared})  # pyright: ignore[reportUnknownVariableType]
