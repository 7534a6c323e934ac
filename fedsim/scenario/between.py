"""What is between the clients and the server, edges and cells, from its table; what does not go with it is refused. Knows no clock."""

from __future__ import annotations

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.keys import Key
from fedsim.core.types import IntArray
from fedsim.cost.cells import Cells
from fedsim.cost.edges import Assign, Edges, assigned
from fedsim.cost.network import Network, ServerLink
from fedsim.data.source import finder
from fedsim.flower.rounds import starts_itself
from fedsim.learn.job import Job
from fedsim.scenario.load import Loaded
from fedsim.scenario.making import made
from fedsim.scenario.schema import Scenario
from fedsim.scenario.tiers import Cells as CellsSection
from fedsim.strategy.stock import AT, MEANS, Built, family_of

REAL = "edges: real clients are a SuperLink's, and nothing of ours stands between them. Leave [edges] out, or simulate with fedsim run."
"""Why no edges stand where clients are real."""


def refuse_real(scenario: Scenario) -> None:
    """Refuse edges where clients are real. Raises ScenarioError."""
    if scenario.edges is not None:
        raise ScenarioError(REAL)


def edges(loaded: Loaded, key: Key) -> Edges:
    """Return the edges of a scenario that has some. Raises ScenarioError."""
    scenario, asked = loaded.scenario, loaded.scenario.edges
    if asked is None:
        raise ScenarioError("edges: there are none.")
    clients = scenario.clients.count
    _check(scenario)
    of = _assigned("edges", asked.assign, clients, asked.count, key)
    find = finder(loaded.folder, "edges.network.path")
    network: Network = made("network", asked.network, place="edges.network", key=key.fold("link"), find=find)
    access = None if asked.access is None else ServerLink(asked.access.egress_mbps, asked.access.ingress_mbps)
    return Edges(asked.count, of, network, asked.rounds, asked.timeout_s, access)


def remark(scenario: Scenario) -> str:
    """Return what a reader must know of edges that wait for clients who may never answer; empty where there is no such thing."""
    clients = scenario.clients
    if scenario.edges is None or scenario.edges.timeout_s is not None or (clients.failures is None and clients.leaving != "abort"):
        return ""
    who = "clients.failures" if clients.failures is not None else f"clients.leaving = {clients.leaving!r}"
    return (
        f"edges.timeout_s: not given, so that an edge waits for all of its clients. Where one never answers, by {who}, all that its edge"
        f" did in the round is late at server.round_timeout_s = {scenario.server.round_timeout_s:g}."
    )


def cells(asked: CellsSection, clients: int, key: Key) -> Cells:
    """Return the cells that *clients* clients are in. Raises ScenarioError."""
    of = _assigned("clients.cells", asked.assign, clients, asked.count, key)
    return Cells(asked.count, of, asked.down_mbps, asked.up_mbps)


def _assigned(at: str, assign: Assign | list[int], clients: int, count: int, key: Key) -> IntArray:
    """Return which of *count* edges or cells, told of *at* a key, each client has. Raises ScenarioError."""
    each = at.rpartition(".")[2].removesuffix("s")
    if count > clients:
        raise ScenarioError(f"{at}.count = {count}: more {each}s than the {clients} clients (clients.count), and each needs one.")
    if isinstance(assign, list):
        if len(assign) != clients:
            raise ScenarioError(f"{at}.assign: lists the {each}s of {len(assign)} clients, and clients.count = {clients}.")
        if (worst := max(assign)) >= count:
            raise ScenarioError(
                f"{at}.assign: client {assign.index(worst)} has {each} {worst}, and {at}.count = {count}: {each}s are 0 to {count - 1}."
            )
    return assigned(assign, clients, count, key.fold("assign"))


def _check(scenario: Scenario) -> None:
    """Refuse what is elsewhere in *scenario* that edges do not go with."""
    for name in ("pacing", "aggregation"):  # What a server has that counts single replies.
        if getattr(scenario.server, name, None) is not None:
            raise ScenarioError(
                f"server.{name}: goes by the replies that a server gets, and with [edges] these are edges'; edges.timeout_s says how long"
                f" an edge waits. Leave one of them out."
            )
    if scenario.codec is not None:
        raise ScenarioError(
            "edges: average models as they are, and [codec] has something else travel in their place. Leave one of them out."
        )
    if scenario.transport is not None:
        raise ScenarioError(
            "edges: hand messages on at once, and [transport] has Flower's processes look for them at a SuperLink. Leave one of them out."
        )


def check_goes(scenario: Scenario, built: Built, job: Job) -> None:
    """Refuse edges where what they hand on, means, is not what the server's half of a method goes by. Raises ScenarioError."""
    if scenario.edges is None:
        return
    kind = scenario.server.strategy["kind"]
    family = family_of(type(built.strategy))
    if family is not None and family not in MEANS:
        raise ScenarioError(
            f"{AT}.kind = {kind!r}: looks at each client's reply, and [edges] send up means of theirs. {choices('', MEANS)}"
        )
    if starts_itself(built.strategy):
        raise ScenarioError(
            f"{AT}.kind = {kind!r}: has a start() of its own, which sends and waits as it likes, and [edges] are at work in rounds. Leave"
            f" [edges] out."
        )
    algorithm = job.algorithm
    if algorithm is not None and (algorithm.up or algorithm.down or algorithm.server(scenario.clients.count) is not None):
        raise ScenarioError(
            f"training.algorithm.kind = {(scenario.training.algorithm or {})['kind']!r}: has a server's half that goes by each client's"
            f" reply, and [edges] send up means of theirs. Leave one of them out."
        )
