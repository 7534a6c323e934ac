"""Edges at work: each is sent one copy of the model, hands it to its clients, averages what they make of it, and sends one model up.

HierFAVG (Liu et al. 2020, arXiv:1905.06641): a round of the server is *rounds* of an edge's, and every edge is at its own pace. What the
server is given are the replies behind the models that came up, since the weighted mean of edges' means is that of all. Knows when and how
much; the numbers are the desk's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy
from flwr.app import ArrayRecord, Message, RecordDict

from fedsim.core.errors import RunError
from fedsim.core.types import Seconds
from fedsim.cost.cells import Cells
from fedsim.cost.edges import Edges
from fedsim.cost.network import Network, ServerLink
from fedsim.flower import compat, compat_lazy, records
from fedsim.sim.handover import Handover, Held
from fedsim.sim.inbox import Inbox
from fedsim.sim.invariants import Invariants
from fedsim.sim.links import Lay, Links, Shared, Unshared, crossing, laid
from fedsim.sim.mail import NEVER, Delivery, Made, Mail, Parcel, Read
from fedsim.sim.rows import EdgeRow, Observer, Outcome, RoundRow

Push = Callable[[Sequence[Message], Read], list[Delivery]]
"""Sends messages to clients now."""
Drop = Callable[[Delivery], None]
"""Waits for a delivery no more."""


@dataclass
class Leg:
    """What passes between the server and one *edge* in a round: *messages* for its clients, that all carry *parcel*."""

    edge: int
    messages: list[Message]
    parcel: Parcel
    sent_s: Seconds
    over: simpy.Event
    received_s: Seconds = NEVER
    answered_s: Seconds = NEVER
    arrived_s: Seconds = NEVER
    played: int = 0
    sent: list[int] = field(default_factory=list[int])
    """Numbers of all that it sent to its clients."""
    flying: list[Delivery] = field(default_factory=list[Delivery])
    """Of those what is not answered."""
    ready: list[Delivery] = field(default_factory=list[Delivery])
    """What it was answered last, and has not read."""
    held: list[Held] = field(default_factory=list[Held])
    """What it has read."""
    last: list[Message] = field(default_factory=list[Message])
    """The replies of its latest round in which anybody answered, where it has read them."""
    settled: bool = False

    @property
    def open_bytes(self) -> int:
        """Return what was put on its link, and has no fate yet."""
        return 0 if self.settled else self.parcel.down.total + (self.up if self.answered_s != NEVER else 0)

    @property
    def up(self) -> int:
        """Return the bytes of what it sends up, both ways; none where it has nothing to send."""
        return self.parcel.up.total + self.parcel.up.back if self.answers else 0

    @property
    def answers(self) -> bool:
        """Return whether it has a model, or scores, to send up."""
        return bool(self.held) or any(not delivery.failure for delivery in self.ready)

    def row(self, outcome: Outcome) -> EdgeRow:
        """Return the row that tells what became of it."""
        down, up = self.parcel.down, self.parcel.up
        sent = self.answered_s != NEVER and self.answers
        numbers = np.array(self.sent, dtype=np.int64)
        return EdgeRow(
            self.parcel.round, self.parcel.kind, self.edge, self.parcel.version, outcome, self.sent_s, self.received_s, self.answered_s,
            self.arrived_s, self.played, len(self.messages), down.payload, down.framing + (up.back if sent else 0),
            up.payload if sent else 0, up.framing if sent else 0, numbers,
        )  # fmt: skip


class Relay:
    """The *edges* between a server and the clients behind *push*. *link* is the server's own, which transfers to and from edges share."""

    def __init__(
        self, edges: Edges, env: simpy.Environment, link: ServerLink | None, inbox: Inbox, invariants: Invariants, observer: Observer,
        mail: Mail, desk: Handover, push: Push, drop: Drop,
    ) -> None:  # fmt: skip
        self._edges, self._env, self._links = edges, env, laid(link)(env, edges.network)
        self._inbox, self._invariants, self._observer = inbox, invariants, observer
        self._mail, self._desk, self._push, self._drop = mail, desk, push, drop
        self._wasted_bytes = 0
        self._open: list[Leg] = []  # What has no fate yet.
        self._going: dict[int, Generator[simpy.Event, None, None]] = {}  # By leg.

    def exchange(self, messages: Iterable[Message], timeout: Seconds | None) -> tuple[list[Delivery], list[Message], RoundRow | None]:
        """Send *messages* by way of their edges; return what is answered then, replies that were read on the way, and this round's row."""
        started, read = float(self._env.now), Read(still=True)
        legs, strangers = self._legs(messages, read)
        if not legs and not strangers:
            return [], [], None
        ready = self._push(strangers, read)
        self._inbox.take([delivery.id for delivery in ready])
        if legs:
            for leg in legs:
                self._going[id(leg)] = self._carry(leg, read)
            self._inbox.run(self._env.all_of([self._env.process(self._going[id(leg)]) for leg in legs]), timeout)
        replies, asked, now = list[Message](), len(ready), float(self._env.now)
        for leg in legs:
            asked += len(leg.messages)
            if leg.arrived_s == NEVER:
                self._give_up(leg)
                continue
            self._settle(leg, "arrived" if leg.answers else "failed")
            self._desk.merged(leg.held, now)
            if leg.last and all(delivery.failure for delivery in leg.ready):  # Its model is that of a round before.
                self._desk.passed(leg.ready, (), now)
                replies += leg.last
            else:
                ready += leg.ready
        first, arrived = (legs[0].parcel if legs else ready[0].parcel), len(ready) + len(replies)
        row = RoundRow(first.round, first.kind, started, now, asked, arrived, 0, asked - arrived)
        self._balance("the end of a round of edges")
        return ready, replies, row

    def described(self) -> Mapping[str, Any]:
        """Return what a manifest says: how many edges and rounds of theirs, and the bytes between them and the server."""
        sent = self._invariants
        return {
            "count": self._edges.count, "rounds": self._edges.rounds, "bytes_down": sent.edge_down_bytes, "bytes_up": sent.edge_up_bytes,
            "bytes_wasted": self._wasted_bytes,
        }  # fmt: skip

    def finish(self, *, broken: bool = False) -> None:
        """Settle what has no fate yet: the run is over. No byte is missing, unless it is *broken* anyway."""
        for leg in list(self._open):
            self._settle(leg, "in flight")
        if not broken:
            self._balance("the end of the run")

    def close(self) -> None:
        """Let go of whatever is still on its way."""
        self._links.close()
        for carried in self._going.values():
            carried.close()
        self._going.clear()
        del self._push, self._drop

    # -- inside -------------------------------------------------------------------------------------------------

    def _legs(self, messages: Iterable[Message], read: Read) -> tuple[list[Leg], list[Message]]:
        """Return *messages* by edge, ascending, and those to nodes that there are not. Raises RunError where one edge's are not alike."""
        still, found, strangers = isinstance(messages, list), dict[int, tuple[Parcel, RecordDict, list[Message]]](), list[Message]()
        for message in messages:
            _, kind, node = compat_lazy.addressed(message)
            client = records.client_of(node)
            if not 0 <= client < len(self._edges.of):
                strangers.append(message)
                continue
            edge = int(self._edges.of[client])
            if edge not in found:
                found[edge] = self._mail.parcel(message, kind, read if still else Read()), message.content, []
            parcel, content, mine = found[edge]
            same = (still and message.content is content) or records.unchanged(message.content, parcel.content)
            if kind != parcel.kind or not same:
                raise RunError(
                    f"round {parcel.round}: server.strategy sends the clients of edge {edge} other things than each other, and an edge is"
                    f" sent one copy for all of its clients. Leave [edges] out, or take a strategy that sends all of them the same."
                )
            mine.append(message if still else compat.with_metadata(parcel.content, message.metadata))
        now = float(self._env.now)
        legs = [Leg(edge, found[edge][2], found[edge][0], now, self._env.event()) for edge in sorted(found)]
        self._desk.ledger.versions.sent(self._mail.newest, now)
        for leg in legs:
            self._invariants.passed(down=leg.parcel.down.total)
        self._open += legs
        return legs, strangers

    def _carry(self, leg: Leg, read: Read) -> Generator[simpy.Event, None, None]:
        """Carry the model to an edge, let it play its rounds, and carry what it made of it up."""
        yield self._links.down(leg.edge, leg.parcel.down.total)
        leg.received_s = float(self._env.now)
        rounds = self._edges.rounds if leg.parcel.kind == "train" else 1
        while not leg.over.triggered and leg.played < rounds:
            if leg.played:
                read = self._read(leg)
            yield from self._play(leg, read)
        if leg.over.triggered:
            self._late(leg)
            del self._going[id(leg)]
            return
        leg.answered_s = float(self._env.now)
        if leg.answers:
            self._invariants.passed(up=leg.parcel.up.total, down=leg.parcel.up.back)
            yield self._links.up(leg.edge, leg.parcel.up.total)
        leg.arrived_s = float(self._env.now)
        self._invariants.at(leg.arrived_s, f"the arrival of edge {leg.edge}'s model of round {leg.parcel.round}")
        if leg.over.triggered:
            self._late(leg)
        del self._going[id(leg)]

    def _play(self, leg: Leg, read: Read) -> Generator[simpy.Event, None, None]:
        """Let an edge send its clients what it has, and wait for them."""
        sent = self._push(leg.messages, read)
        ids = [delivery.id for delivery in sent]
        leg.sent += [delivery.number for delivery in sent]
        leg.flying = sent
        limit = [] if self._edges.timeout_s is None else [self._inbox.deadline(self._edges.timeout_s)]
        yield self._env.any_of([self._inbox.whole(ids), leg.over, *limit])
        if leg.over.triggered:
            return
        leg.ready = self._inbox.take(ids)
        self._give_up_on(leg)
        leg.played += 1

    def _read(self, leg: Leg) -> Read:
        """Let an edge average what its clients answered, and return what its next messages carry."""
        ready, leg.ready = leg.ready, []
        replies, held = self._desk.passed(ready, self._inbox.flying.values(), float(self._env.now))
        leg.held += held
        good = [reply for reply in replies if not reply.has_error()]
        content = leg.messages[0].content
        if good:
            leg.last = replies
            content = averaged(content, [reply.content for reply in good], self._edges.weight)
        leg.messages = [compat.with_metadata(content, copy.copy(message.metadata)) for message in leg.messages]
        return Read(still=True, made=Made(leg.edge, leg.parcel.version, leg.played))

    def _give_up_on(self, leg: Leg) -> None:
        """Let an edge wait no more for those of its clients that have not answered."""
        for delivery in leg.flying:
            if delivery.stage != "arrived":
                self._inbox.forget([delivery.id])
                self._drop(delivery)
        leg.flying = []

    def _give_up(self, leg: Leg) -> None:
        """Take that the server waits no more for an edge: it begins no round more, and nothing that its clients did comes to anything."""
        leg.over.succeed()
        if leg.flying:
            leg.ready = self._inbox.take([delivery.id for delivery in leg.flying])
            self._give_up_on(leg)
        if leg.received_s != NEVER and leg.answered_s == NEVER:  # Nothing of it is on its link.
            self._late(leg)
        for delivery in leg.ready:
            self._drop(delivery)
        self._desk.dropped(leg.held)

    def _late(self, leg: Leg) -> None:
        if not leg.settled:
            self._settle(leg, "late")

    def _settle(self, leg: Leg, outcome: Outcome) -> None:
        row = leg.row(outcome)
        leg.settled = True
        self._open.remove(leg)
        self._invariants.edge(row)
        self._wasted_bytes += row.wire_bytes if outcome != "arrived" else 0
        self._observer.edge(row)

    def _balance(self, event: str) -> None:
        self._invariants.balanced(event, sum(leg.open_bytes for leg in self._open))


def averaged(content: RecordDict, replies: list[RecordDict], weight: str) -> RecordDict:
    """Return *content* with the mean of *replies*, weighed as FedAvg weighs them, in the place of its model; types stay its own."""
    mean, found, first = records.params_of(compat_lazy.mean_arrays(replies, weight)), RecordDict(), True
    for name, record in content.items():
        if first and isinstance(record, ArrayRecord):
            was = records.params_of(record)
            record = compat.array_record({key: mean[key].astype(was[key].dtype) if key in mean else was[key] for key in was})
            first = False
        found[name] = record
    return found


def behind(edges: Edges, cells: Cells | None = None) -> Lay:
    """Return what lays the links between edges and their clients: those of one edge share what *access* carries, *cells* theirs."""
    access = edges.access
    if cells is not None:
        return crossing(cells, access, lambda client: int(edges.of[client]), edges.count)
    if access is None:
        return Unshared
    return lambda env, network: _Behind(env, network, edges, access)


class _Behind:
    """Links whose other ends are edges', each of them shared by the clients that are behind it."""

    def __init__(self, env: simpy.Environment, network: Network, edges: Edges, access: ServerLink) -> None:
        self._env, self._network, self._edges, self._access = env, network, edges, access
        self._shared: dict[int, Shared] = {}

    def down(self, client: int, size_bytes: int) -> simpy.Event:
        """Return the arrival of *size_bytes* at *client*."""
        return self._of(client).down(client, size_bytes)

    def up(self, client: int, size_bytes: int) -> simpy.Event:
        """Return the arrival of *size_bytes* at the client's edge."""
        return self._of(client).up(client, size_bytes)

    def close(self) -> None:
        """Let go of whatever is still on its way."""
        for shared in self._shared.values():
            shared.close()

    def _of(self, client: int) -> Links:
        edge = int(self._edges.of[client])
        if edge not in self._shared:
            self._shared[edge] = Shared(self._env, self._network, self._access.egress, self._access.ingress)
        return self._shared[edge]
