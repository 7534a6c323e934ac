"""The keys of a fleet file: the clients that a Flower app runs on, and how long its code takes there. Stands beside the scenario's schema.

Devices, links and availability are the kinds of a scenario's ``clients``; what the app itself does, no fleet says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.cost.availability import Availability, availabilities
from fedsim.cost.compute import Compute, computes
from fedsim.cost.network import Network, Overhead, ServerLink, networks
from fedsim.cost.transport import Transport
from fedsim.data.source import finder
from fedsim.scenario.costs import overhead, server_link
from fedsim.scenario.explain import Wanted, explain, sections
from fedsim.scenario.kinds import Slot
from fedsim.scenario.load import read_table
from fedsim.scenario.making import made_at
from fedsim.scenario.section import FleetClients, Section, Table
from fedsim.scenario.section import ServerLink as ServerLinkSection
from fedsim.scenario.section import Transport as TransportSection

WAYS = ("seconds_per_example", "flops_per_example", "seconds", "function")
"""The ways to say what a message costs, of which one is given."""
KINDS = r"(train|evaluate|query)(\.[A-Za-z_]\w*)?"
"""The kinds of messages that cost something, as a regular expression: those of Flower, each with an action or without."""
SCENARIOS_ONLY = ("failures", "leaving", "energy", "cells")
"""What clients of a scenario may have, and those of a Flower app have not: what an app's code is at breaks off nowhere."""
_PER_EXAMPLE = "Seconds that an example takes on a device of on_gflops; a message's examples are the num-examples of its reply."
_FLOPS = "Floating-point operations that an example takes."
_SECONDS = "Seconds that a message takes on a device of on_gflops, however many examples."
_FUNCTION = "'package.module:name', called with those of client, kind, task and examples that it asks for: seconds, whatever the device."
_MEASURED = "Whether the figure was measured, by --measure; nobody declares that."


class Cost(Section):
    """What a message of one kind costs; on top comes what any task costs on the device (overhead_s)."""

    seconds_per_example: Annotated[float | None, Field(ge=0, description=_PER_EXAMPLE)] = None
    flops_per_example: Annotated[float | None, Field(ge=0, description=_FLOPS)] = None
    seconds: Annotated[float | None, Field(ge=0, description=_SECONDS)] = None
    function: Annotated[str | None, Field(description=_FUNCTION)] = None
    measured: Annotated[bool, Field(description=_MEASURED)] = False

    @model_validator(mode="after")
    def _one_way(self) -> Cost:
        given = [name for name in WAYS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(WAYS)} ({' and '.join(given) or 'none'} given), like seconds_per_example = 0.01")
        return self


class FleetEngine(Section):
    """How the app's messages are computed; nothing here moves a digest."""

    workers: Annotated[int | None, Field(ge=1, le=64, description="Processes for the ClientApp; one per core unless given.")] = None

    @property
    def processes(self) -> int:
        """Return how many processes there are to be."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, 64) if self.workers is None else self.workers


class FleetServer(Section):
    """The server of a fleet: its own link."""

    link: Annotated[ServerLinkSection, Field(description="What its own link carries, shared by all transfers in progress.")]


class Fleet(Section):
    """A fleet: its clients, and what the messages of an app cost there."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    clients: FleetClients
    on_gflops: Annotated[
        float | None, Field(gt=0, description="The speed of the device that seconds are of; clients.compute.gflops unless given.")
    ] = None
    compute: Annotated[dict[str, Cost], Field(description="What a message costs, by its kind.")] = Field(default_factory=dict[str, Cost])
    server: Annotated[FleetServer | None, Field(description="The server that the app's clients talk to.")] = None
    transport: TransportSection | None = None
    engine: FleetEngine = FleetEngine()

    @field_validator("compute")
    @classmethod
    def _kinds(cls, given: dict[str, Cost]) -> dict[str, Cost]:
        for kind in given:
            if not re.fullmatch(KINDS, kind):
                raise ValueError(f"{kind!r} is no kind of message; it takes train, evaluate and query, and actions like 'train.warm_up'")
        return given

    @property
    def gflops(self) -> float | None:
        """Return the speed of the device that seconds are of; None where nobody says it."""
        found = self.clients.compute.get("gflops")
        return self.on_gflops or (float(found) if isinstance(found, int | float) else None)

    def cost(self, kind: str) -> Cost | None:
        """Return what a message of *kind* costs: that of its action, or of its category; None where nobody says it.

        A query has no examples, and costs what any task costs on its device unless the fleet says more.
        """
        category = kind.partition(".")[0]
        free = None if category in ("train", "evaluate") else Cost(seconds=0.0)
        return self.compute.get(kind) or self.compute.get(category) or free

    def plain(self) -> dict[str, Any]:
        """Return the fleet as plain tables, without the keys that stand empty."""
        return self.model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True, slots=True)
class LoadedFleet:
    """A checked fleet and the folder beside which its own code is looked up."""

    fleet: Fleet
    folder: Path


@dataclass(frozen=True, slots=True)
class Devices:
    """What a fleet's clients have; functions of (key, client)."""

    compute: Compute
    network: Network
    availability: Availability
    transport: Transport | None = None
    server: ServerLink | None = None
    overhead: Overhead | None = None


def load_fleet(
    source: str | Path | Mapping[str, Any] | Fleet, overrides: Mapping[str, Any] | None = None, seed: int | None = None
) -> LoadedFleet:
    """Return the fleet in *source* (a file, a table, or a Fleet) with *overrides* by dotted key. Raises ScenarioError."""
    table, folder = read_table(source.plain() if isinstance(source, Fleet) else source, overrides, seed, Fleet)
    if isinstance(engine := table.get("engine"), Mapping) and "reproducible" in engine:
        asked: Any = engine["reproducible"]
        raise ScenarioError(
            f"engine.reproducible = {asked!r}: a Flower app computes with what it brings, by kernels that nobody chose. Leave it out of a"
            f" fleet; scenarios take it."
        )
    if isinstance(clients := table.get("clients"), Mapping) and (asked := [name for name in SCENARIOS_ONLY if name in clients]):
        raise ScenarioError(f"clients.{asked[0]}: a fleet has no {', '.join(SCENARIOS_ONLY)}. Leave it out; scenarios take it.")
    try:
        fleet = Fleet.model_validate(table)
    except ValidationError as error:
        takes = sections(Fleet)
        costs = {kind: Wanted("table", "", sections(Cost)) for kind in table.get("compute", {}) if isinstance(kind, str)}
        line = explain(error, "", {**takes, "compute": Wanted("table", "", costs)})
        raise ScenarioError(line.replace("A scenario needs it", "A fleet needs it")) from None
    if fleet.gflops is None and any(cost.seconds or cost.seconds_per_example for cost in fleet.compute.values()):
        raise ScenarioError("on_gflops: missing. Seconds are of a device of some speed, and clients.compute has no gflops; give it here.")
    return LoadedFleet(fleet, folder)


def devices(loaded: LoadedFleet) -> Devices:
    """Return the devices, links and availability of a fleet. Raises ScenarioError; own kinds and files are looked up as in a scenario."""
    from fedsim.cost import profiles, recorded  # pyright: ignore[reportUnusedImport]  # noqa: F401  # Importing registers.

    fleet = loaded.fleet
    key, clients = Key(fleet.seed), fleet.clients

    def of(registry: Any, table: Table, name: str) -> Any:
        find = finder(loaded.folder, f"{registry.key}.path")
        return made_at(Slot(registry.key, registry.noun, registry), table, key=key.fold(name), find=find, volumes=None)

    return Devices(
        of(computes, clients.compute, "device"), of(networks, clients.network, "link"),
        of(availabilities, clients.availability, "availability"),
        None if fleet.transport is None else Transport(key.fold("transport"), **fleet.transport.model_dump()),
        server_link(fleet.server.link if fleet.server else None), overhead(clients.overhead),
    )  # fmt: skip


def on_fleet(fleet: Fleet) -> dict[str, Any]:
    """Return, by dotted key, what a scenario takes over from *fleet*: devices, links, availability; the server's and transport, if any.

    How many clients there are is the scenario's.
    """
    found: dict[str, Any] = {f"clients.{name}": getattr(fleet.clients, name) for name in ("compute", "network", "availability")}
    if fleet.clients.overhead is not None:
        found["clients.overhead"] = fleet.clients.overhead.model_dump()
    if fleet.server is not None:
        found["server.link"] = fleet.server.link.model_dump(exclude_none=True)
    return found if fleet.transport is None else {**found, "transport": fleet.transport.model_dump(exclude_none=True)}
