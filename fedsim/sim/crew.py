"""Who answers messages in the virtual federation: what the world, and the grid around it, ask of clients, of mail and of a handover.

Protocols, and one value that holds the three together. Knows not what a client does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message

from fedsim.core.types import Seconds
from fedsim.cost.availability import Availability, Leaving
from fedsim.cost.network import Network
from fedsim.cost.transport import Transport
from fedsim.sim.bulk import Foresight
from fedsim.sim.ledger import Ledger
from fedsim.sim.links import Lay, Unshared
from fedsim.sim.mail import Delivery, Read


class Clients(Protocol):
    """What clients make of messages. The world moves these; of a client it knows only how long it takes."""

    @property
    def foresight(self) -> Foresight | None:
        """Return what knows beforehand what they will take; None where nothing does."""
        ...

    def sent(self, delivery: Delivery) -> None:
        """Take that *delivery* is on its way to a client that is there."""
        ...

    def ready_s(self, delivery: Delivery, now: Seconds) -> Seconds:
        """Return when the client acts on *delivery*, which is there *now* and whose turn it is; infinity for never."""
        ...

    def begin(self, delivery: Delivery, now: Seconds) -> Seconds:
        """Let the client begin, and return how long it takes; ``delivery.up`` is then known.

        Raises Unable where it answers with an error. ``delivery.fault`` then says what goes wrong with it, ``leaves_s`` before when the
        client leaves.
        """
        ...

    def ended(self, client: int, now: Seconds) -> bool:
        """Return whether nothing is left for *client* to do, now or ever."""
        ...

    def abandon(self, delivery: Delivery) -> None:
        """Wait for *delivery* no more."""
        ...


class Post(Protocol):
    """Makes deliveries of messages."""

    sent: int

    @property
    def newest(self) -> int:
        """Return the number of the newest model sent, -1 before the first."""
        ...

    def delivery(self, message: Message, now: Seconds, read: Read) -> Delivery:
        """Return *message*, as it is *now*, as a delivery; *read* holds what was read in this push."""
        ...


class Desk(Protocol):
    """Answers deliveries that have arrived, and tells the fate of each."""

    @property
    def ledger(self) -> Ledger:
        """Return what is open, and what became of the rest."""
        ...

    def late(self, delivery: Delivery) -> None:
        """Tell the fate of a delivery that nobody waited for."""
        ...

    def answered(self, ready: list[Delivery], flying: Iterable[Delivery], now: Seconds) -> list[Message]:
        """Return the replies to *ready*, sorted by client. What is *flying* may be computed with them."""
        ...

    def finish(self, *, broken: bool = False) -> None:
        """Settle what has no fate yet."""
        ...


@dataclass(frozen=True, slots=True)
class Crew:
    """*count* clients behind their links, as *lay* lays them, and who carries and hands over for them.

    Where *leaving* is not "finish", links and devices are clients' own.
    """

    count: int
    availability: Availability
    network: Network
    clients: Clients
    post: Post
    desk: Desk
    transport: Transport | None = None
    lay: Lay = Unshared
    leaving: Leaving = "finish"
