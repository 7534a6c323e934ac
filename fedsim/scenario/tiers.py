"""The keys of what stands between clients and server: cells, whose clients share a link, and edges, which average for theirs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from fedsim.cost.edges import Assign
from fedsim.scenario.section import Section, ServerLink, Table

_CELL = "which clients are in which cell: 'blocks' of their numbers, dealt out 'in_turn', 'drawn', or a list with the cell of each, from 0"
_ASSIGN = (
    "which clients are behind which edge: in 'blocks' of their numbers, as even as can be; dealt out 'in_turn'; 'drawn', each by itself;"
    " or a list with the edge of each client, from 0"
)
_EDGE_ROUNDS = "how many rounds an edge plays among its clients before it sends its model up: kappa2 of HierFAVG"
_EDGE_NETWORK = "How fast the link of each edge with the server is: up is to the server."
_EDGE_TIMEOUT = "how many seconds an edge waits for its clients in each of its rounds; until all have answered unless given"
_ACCESS = "What each edge's own link towards its clients carries, shared by their transfers; more than is ever asked unless given."


class Cells(Section):
    """Cells whose clients share a link, max-min fairly, each no faster than its own; server.link and edges.access are crossed at once."""

    count: Annotated[int, Field(ge=1, le=1_000_000, description="how many cells there are")]
    assign: Annotated[Assign | list[Annotated[int, Field(ge=0)]], Field(description=_CELL)] = "blocks"
    down_mbps: Annotated[float | None, Field(gt=0, description="what a cell's link carries to its clients; never full unless given")] = None
    up_mbps: Annotated[float | None, Field(gt=0, description="what a cell's link carries from its clients; never full unless given")] = None

    @model_validator(mode="after")
    def _some_way(self) -> Cells:
        if self.down_mbps is None and self.up_mbps is None:
            raise ValueError("give down_mbps, up_mbps, or both, like up_mbps = 10.0")
        return self


class Edges(Section):
    """Edges between the clients and the server: each hands one copy of the model on, averages, and sends one model up."""

    count: Annotated[int, Field(ge=1, le=1_000_000, description="how many edges there are")]
    assign: Annotated[Assign | list[Annotated[int, Field(ge=0)]], Field(description=_ASSIGN)] = "blocks"
    rounds: Annotated[int, Field(ge=1, le=1_000_000, description=_EDGE_ROUNDS)] = 1
    timeout_s: Annotated[float | None, Field(gt=0, description=_EDGE_TIMEOUT)] = None
    network: Annotated[Table, Field(description=_EDGE_NETWORK)] = Field(default_factory=lambda: {"kind": "ideal"})
    access: Annotated[ServerLink | None, Field(description=_ACCESS)] = None
