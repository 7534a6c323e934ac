"""From a table that names a kind to what the kind makes, behind its checks. Knows nothing of what the kinds do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.core.errors import ScenarioError, door
from fedsim.data.source import Pool
from fedsim.scenario.guards import guarded, unwritable
from fedsim.scenario.kinds import Slot, chosen, slots
from fedsim.scenario.section import Table


def made(noun: str, table: Table, *, place: str = "", **given: Any) -> Any:
    """Return what the kind that *table*, which stands at *place*, names makes, *given* what the simulator fills in."""
    slot = slots()[noun]
    return made_at(replace(slot, key=place) if place else slot, table, **given)


def made_at(slot: Slot, table: Table, **given: Any) -> Any:
    """Return what the kind that *table* names makes where *slot* is; as ``made``, without looking at every noun there is."""
    function, settings = chosen(slot, table)
    with door(f"{slot.key}.kind = {table['kind']!r}"):
        thing = slot.registry.call(function, settings, **{name: unwritable(each) for name, each in given.items()})
    gives = slot.registry.gives
    if gives is None:
        return thing
    with door(f"{slot.key}.kind = {table['kind']!r}"):  # A property of its own may raise.
        missing = not isinstance(thing, Pool) and not all(hasattr(thing, name) for name in gives.names)
    if missing:  # What a package installed, too.
        raise ScenarioError(f"{slot.key}.kind = {table['kind']!r}: returned a {type(thing).__name__}, not {gives.what}.")
    return guarded(thing, gives, f"{slot.key}.kind = {table['kind']!r}", given) if ":" in table["kind"] else thing
