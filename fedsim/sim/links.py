"""Links: how long a message is on its way, as events on the virtual clock. Rates and latencies are the network's (``cost/network``).

Knows bytes and clients; knows no message. Whether links share a capacity is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import simpy

from fedsim.cost.network import Network


class Links(Protocol):
    """The links between the server and its clients."""

    def down(self, client: int, size_bytes: int) -> simpy.Event:
        """Return what happens when *size_bytes*, sent now, have come from the server to *client*."""
        ...

    def up(self, client: int, size_bytes: int) -> simpy.Event:
        """Return what happens when *size_bytes*, sent now, have come from *client* to the server."""
        ...


Lay = Callable[[simpy.Environment, Network], Links]
"""Makes the links of a world, from its clock and its network."""


@dataclass(frozen=True, slots=True)
class Unshared:
    """Links of their own for each client: what one sends slows down nobody else."""

    env: simpy.Environment
    network: Network

    def down(self, client: int, size_bytes: int) -> simpy.Event:
        """Return the end of the time that the network says, down."""
        return self.env.timeout(self.network.down_s(client, size_bytes))

    def up(self, client: int, size_bytes: int) -> simpy.Event:
        """Return the end of the time that the network says, up."""
        return self.env.timeout(self.network.up_s(client, size_bytes))
