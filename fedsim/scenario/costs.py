"""What a scenario's clients have, from its tables: devices, links, who is there when, and what brings their mini-batches."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TypedDict

import numpy as np
from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]  # It has none.

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import FloatArray, IntArray
from fedsim.cost.availability import Availability, Leaving
from fedsim.cost.carbon import KEY as INTENSITY
from fedsim.cost.carbon import intensity
from fedsim.cost.cells import Cells
from fedsim.cost.compute import Compute
from fedsim.cost.edges import Edges
from fedsim.cost.failures import Failures, silent_for_ever
from fedsim.cost.loading import Loader
from fedsim.cost.meter import Meter
from fedsim.cost.network import Network, Overhead, ServerLink, pieces
from fedsim.cost.serving import Aggregation
from fedsim.cost.transport import Transport
from fedsim.data.federation import Federation
from fedsim.data.source import finder
from fedsim.scenario import between
from fedsim.scenario.load import Loaded
from fedsim.scenario.making import made
from fedsim.scenario.schema import Energy, Scenario
from fedsim.scenario.section import Aggregation as AggregationSection
from fedsim.scenario.section import Overhead as OverheadSection
from fedsim.scenario.section import ServerLink as LinkSection
from fedsim.scenario.section import Table
from fedsim.strategy.pacing import Pacing


class Costs(TypedDict):
    """What a ``Fleet`` takes of what its clients have."""

    compute: Compute
    network: Network
    availability: Availability
    transport: Transport | None
    loader: Loader | None
    server: ServerLink | None
    overhead: Overhead | None
    failures: Failures | None
    leaving: Leaving
    energy: Meter | None
    edges: Edges | None
    cells: Cells | None
    pacing: Pacing | None
    aggregation: Aggregation | None


def of(loaded: Loaded, key: Key, federation: Federation) -> Costs:
    """Return what the clients of a scenario have, who hold what those of *federation* do. Raises ScenarioError."""
    scenario, clients = loaded.scenario, loaded.scenario.clients
    files = {name: finder(loaded.folder, f"clients.{name}.path") for name in ("compute", "network", "availability")}
    network: Network = made("network", clients.network, key=key.fold("link"), find=files["network"])
    check_leaving(scenario, network)
    held = Held(federation, key.fold("volume"))
    return {
        "compute": made("compute", clients.compute, key=key.fold("device"), find=files["compute"], volumes=held),
        "network": network,
        "availability": made("availability", clients.availability, key=key.fold("availability"), find=files["availability"]),
        "transport": None if scenario.transport is None else Transport(key.fold("transport"), **scenario.transport.model_dump()),
        "server": server_link(scenario.server.link),
        "overhead": overhead(clients.overhead),
        "failures": None if clients.failures is None else failing(clients.failures, key.fold("failures"), clients.count),
        "leaving": clients.leaving,
        "loader": None if clients.loading is None else made("loader", clients.loading, key=key.fold("loading")),
        "cells": None if clients.cells is None else between.cells(clients.cells, clients.count, key.fold("cells")),
        "edges": None if scenario.edges is None else between.edges(loaded, key.fold("edges")),
        "pacing": None if scenario.server.pacing is None else made("pacing", scenario.server.pacing),
        "aggregation": aggregation(scenario.server.aggregation),
        "energy": meter(loaded, clients.energy, key, network, brought=scenario.transport is None),
    }


def failing(table: Table, key: Key, count: int) -> Failures:
    """Return the failures that *table* names. Raises ScenarioError where none of *count* clients would ever answer."""
    found: Failures = made("failure", table, key=key)
    if silent_for_ever(found, count):
        raise ScenarioError(f"clients.failures: none of the {count:,} clients ever answers: all of them are silent. Take a smaller share.")
    return found


def check_leaving(scenario: Scenario, network: Network) -> None:
    """Refuse to let clients go in the middle where what they are at is not theirs alone, or nobody knows yet how long it takes."""
    leaving = scenario.clients.leaving
    if leaving == "finish":
        return
    access = None if scenario.edges is None else scenario.edges.access
    shared = (
        ("server.link", scenario.server.link), ("clients.cells", scenario.clients.cells), ("edges.access", access),
        ("transport", scenario.transport),
    )  # fmt: skip
    beside = [name for name, there in shared if there is not None]
    if beside:
        raise ScenarioError(
            f"clients.leaving = {leaving!r}: goes with links and devices of clients' own, and there is {' and '.join(beside)}. Leave"
            f" that out, or take 'finish'."
        )
    if leaving == "pause" and pieces(network) is not None:
        raise ScenarioError(
            f"clients.leaving = 'pause': goes with links whose rates stay, and those of clients.network.kind ="
            f" {scenario.clients.network['kind']!r} go with time. Take 'abort' or 'finish'."
        )


def meter(loaded: Loaded, section: Energy | None, key: Key, network: Network, *, brought: bool) -> Meter | None:
    """Return what charges messages over *network*, *brought* at once or looked for; None where nothing is counted."""
    if section is None:
        return None
    model = made("energy", section.table, key=key.fold("energy"))
    return Meter(section.kind, model, network, intensity(section.intensity, finder(loaded.folder, INTENSITY)), brought)


class Held:
    """Says how much each client holds, as the normal score of its rank; worked out when it is first asked, and before it travels."""

    def __init__(self, federation: Federation, key: Key) -> None:
        self._federation, self._key = federation, key

    def __call__(self, clients: IntArray) -> FloatArray:
        """Return the score of each of *clients*. Shapes: (n,) -> (n,)."""
        return self._scores[clients]

    def __getstate__(self) -> dict[str, FloatArray]:
        """Return the scores: where they go nobody needs the examples for them."""
        return {"_scores": self._scores}

    @cached_property
    def _scores(self) -> FloatArray:
        everyone = np.arange(self._federation.count)
        # Those who hold as much have an order of their own draw: shared ranks would spread less than a normal does.
        order = np.lexsort((self._key.uniform(everyone), self._federation.sizes(everyone)))
        ranks = np.empty(len(everyone))
        ranks[order] = everyone + 0.5
        return ndtri(ranks / len(everyone))


def files_of(costs: Iterable[object]) -> dict[str, str]:
    """Return the files that *costs* were read from, each with its SHA-256."""
    found: dict[str, str] = {}
    for each in costs:
        found |= getattr(each, "files", {})
    return found


def server_link(section: LinkSection | None) -> ServerLink | None:
    """Return what a table says of the server's own link; None where there is none."""
    return None if section is None else ServerLink(section.egress_mbps, section.ingress_mbps)


def aggregation(section: AggregationSection | None) -> Aggregation | None:
    """Return what a table says that aggregating takes; None where there is none."""
    return None if section is None else Aggregation(section.seconds, section.per_reply_s, section.per_mb_s)


def overhead(section: OverheadSection | None) -> Overhead | None:
    """Return what a table says that the protocols of links add; None where there is none."""
    return None if section is None else Overhead(section.message_bytes, section.share, section.loss)
