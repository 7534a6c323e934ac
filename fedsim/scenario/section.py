"""The base of every section, and the sections that a scenario and a fleet file share. Knows no kind."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Table = dict[str, Any]
"""A table ``{ kind = "...", settings }``; its settings are checked against the registered function (kinds.py)."""


class Section(BaseModel):
    """A frozen table that refuses unknown keys and takes no string for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Overhead(Section):
    """What the protocols of all links add to messages, as declared; nothing beyond Flower's own framing unless given."""

    message_bytes: Annotated[
        int, Field(ge=0, le=10**9, description="bytes of each message besides: handshakes and headers of TLS and HTTP/2, 1,000 to 6,000")
    ] = 0
    share: Annotated[float, Field(ge=0, le=10, description="of each byte besides: headers of packets and TLS records, some 0.03")] = 0.0
    loss: Annotated[float, Field(ge=0, lt=1, description="share of what is sent that is lost on the way, and sent again")] = 0.0


_OVERHEAD = "What the protocols of all links add to each message, and what is sent again; nothing unless given."


class FleetClients(Section):
    """How many clients there are, and their devices, links and availability: what a fleet says of them."""

    count: Annotated[int, Field(ge=1, le=10_000_000)]
    compute: Table = Field(default_factory=lambda: {"kind": "constant", "gflops": 5.0, "overhead_s": 1.0})
    network: Table = Field(default_factory=lambda: {"kind": "ideal"})
    overhead: Annotated[Overhead | None, Field(description=_OVERHEAD)] = None
    availability: Table = Field(default_factory=lambda: {"kind": "always"})


_EGRESS = "what the server sends at most, in Mbit/s, shared by all transfers to clients in progress; never binding unless given"
_INGRESS = "what the server takes in at most, in Mbit/s, shared by all transfers from clients in progress; never binding unless given"


class ServerLink(Section):
    """The server's own link. Transfers in progress share it max-min fairly, each no faster than its client's own link."""

    egress_mbps: Annotated[float | None, Field(gt=0, description=_EGRESS)] = None
    ingress_mbps: Annotated[float | None, Field(gt=0, description=_INGRESS)] = None

    @model_validator(mode="after")
    def _some_way(self) -> ServerLink:
        if self.egress_mbps is None and self.ingress_mbps is None:
            raise ValueError("give egress_mbps, ingress_mbps, or both, like ingress_mbps = 100.0")
        return self


class Aggregation(Section):
    """What aggregating takes the server, in virtual time: it does one thing at a time, so that the next version is later by as much.

    Counted each time that replies of training are handed over, errors apart.
    """

    seconds: Annotated[float, Field(ge=0, description="seconds each time, however many replies there are")] = 0.0
    per_reply_s: Annotated[float, Field(ge=0, description="seconds for each reply besides")] = 0.0
    per_mb_s: Annotated[float, Field(ge=0, description="seconds for each megabyte of replies besides, framing apart")] = 0.0


class Transport(Section):
    """What Flower's own processes add to links and devices: when they look for messages, and whose cores they share.

    Without it messages are brought at once. Flower's SuperNode looks every 3 s for messages and every 0.5 s for its app's reply, its
    own server every 3 s; a deployment of ours oftener, as ``fedsim calibrate`` finds.
    """

    node_poll_s: Annotated[float, Field(ge=0, description="seconds after which a SuperNode that found no message looks again")] = 3.0
    reply_poll_s: Annotated[float, Field(ge=0, description="seconds between its looks for the reply of its app")] = 0.5
    server_poll_s: Annotated[float, Field(ge=0, description="seconds between the server's looks for replies")] = 3.0
    server_s: Annotated[float, Field(ge=0, description="seconds that the server takes from one exchange to the next")] = 0.0
    cores: Annotated[
        float | None, Field(gt=0, description="cores of one computer that all clients share equally; a device for each unless given")
    ] = None
    crowd_from: Annotated[int | None, Field(ge=2, description="from how many at work at once on these cores on they are a crowd")] = None
    crowd_factor: Annotated[
        float | None, Field(ge=1, description="how many times its processor time work takes in a crowd: caches are shared too")
    ] = None

    @model_validator(mode="after")
    def _a_crowd_on_cores(self) -> Transport:
        given = [name for name in ("cores", "crowd_from", "crowd_factor") if getattr(self, name) is not None]
        if given not in ([], ["cores"], ["cores", "crowd_from", "crowd_factor"]):
            raise ValueError(f"crowd_from and crowd_factor go together, and with cores ({' and '.join(given)} given)")
        return self
