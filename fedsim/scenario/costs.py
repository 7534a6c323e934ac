"""What a scenario's clients have, from its tables: devices, links, who is there when, and what brings their mini-batches."""

from __future__ import annotations

from typing import TypedDict

from fedsim.core.keys import Key
from fedsim.cost.availability import Availability
from fedsim.cost.compute import Compute
from fedsim.cost.loading import Loader
from fedsim.cost.network import Network, ServerLink
from fedsim.cost.transport import Transport
from fedsim.scenario.making import made
from fedsim.scenario.schema import Scenario
from fedsim.scenario.section import ServerLink as LinkSection


class Costs(TypedDict):
    """What a ``Fleet`` takes of what its clients have."""

    compute: Compute
    network: Network
    availability: Availability
    transport: Transport | None
    loader: Loader | None
    server: ServerLink | None


def of(scenario: Scenario, key: Key) -> Costs:
    """Return what the clients of *scenario* have. Raises ScenarioError."""
    clients = scenario.clients
    return {
        "compute": made("compute", clients.compute, key=key.fold("device")),
        "network": made("network", clients.network, key=key.fold("link")),
        "availability": made("availability", clients.availability, key=key.fold("availability")),
        "transport": None if scenario.transport is None else Transport(key.fold("transport"), **scenario.transport.model_dump()),
        "server": server_link(scenario.server.link),
        "loader": None if clients.loading is None else made("loader", clients.loading, key=key.fold("loading")),
    }


def server_link(section: LinkSection | None) -> ServerLink | None:
    """Return what a table says of the server's own link; None where there is none."""
    return None if section is None else ServerLink(section.egress_mbps, section.ingress_mbps)
