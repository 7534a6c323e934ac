"""VirtualGrid: Flower's Grid on virtual time. The strategy is the driver; there are no threads.

Timing runs ahead (``world``); the numbers in a reply are computed when the reply is handed over (``handover``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim.core.errors import RunError, must
from fedsim.core.types import Seconds
from fedsim.cost.availability import Always
from fedsim.cost.serving import Aggregation
from fedsim.cost.transport import look_s
from fedsim.flower import compat, records
from fedsim.sim.crew import Crew
from fedsim.sim.inbox import Inbox
from fedsim.sim.invariants import Invariants
from fedsim.sim.links import crossing, laid
from fedsim.sim.mail import Delivery, Mail, Read
from fedsim.sim.metered import Metered
from fedsim.sim.observed import Observed, Repeating, delay
from fedsim.sim.paced import Counted, Paced
from fedsim.sim.patience import Patience
from fedsim.sim.rows import STREAM_ENDED, Observer, RoundRow
from fedsim.sim.world import World
from fedsim.strategy.pacing import Pacing

if TYPE_CHECKING:
    from fedsim.flower.apps import Mod
    from fedsim.learn.engine import Engine
    from fedsim.sim.edges import Relay
    from fedsim.sim.fleet import Fleet

OBSERVED = "Times are those of a run on real clients, which this one repeats. Its digest is the same for a second run at these times."
"""What a manifest promises of a run whose times were observed elsewhere."""


class VirtualGrid(Grid):
    """A federation of ``fleet.federation.count`` virtual clients behind Flower's Grid interface.

    Replies go through the client *mods*. *writable* replies may be written to by the strategy; read-only ones share the
    engine's memory. A *dry* run takes the time and the bytes of a run and computes nothing, so that no reply is handed over.
    With *observed* everything happens when it was observed to elsewhere; everybody is there, and nothing is asked what it takes.
    """

    def __init__(
        self, fleet: Fleet, engine: Engine, observer: Observer, *, mods: Sequence[Mod] = (), writable: bool = True, dry: bool = False,
        observed: Observed | None = None,
    ) -> None:  # fmt: skip
        from fedsim.sim.edges import Relay, behind
        from fedsim.sim.handover import Handover  # Only now, torch with them: other crews do without.
        from fedsim.sim.programs import Programs

        invariants = Invariants()
        if observed is not None:  # Whatever went wrong, it did so there.
            fleet = dataclasses.replace(fleet, failures=None, leaving="finish", overhead=None, pacing=None, aggregation=None)
        self._metered = None if fleet.energy is None or dry else Metered(observer, fleet.energy)
        observer = observer if self._metered is None else self._metered
        programs = Programs(fleet, engine, invariants)
        desk, mail = Handover(programs, observer, invariants, mods=mods, writable=writable, dry=dry), Mail(fleet)
        alone = laid(fleet.server) if fleet.cells is None else crossing(fleet.cells, fleet.server)
        crew = Crew(
            fleet.federation.count, fleet.availability, fleet.network, programs, mail, desk, fleet.transport,
            alone if fleet.edges is None else behind(fleet.edges, fleet.cells), fleet.leaving,
        )
        if observed is not None:
            crew = dataclasses.replace(crew, availability=Always(), transport=None)
        self._put(crew, observer, invariants, observed, fleet.pacing, fleet.aggregation)
        if fleet.edges is not None:
            self._relay = Relay(
                fleet.edges, self._world.env, fleet.server, self._inbox, invariants, observer, mail, desk, self._push_on, self._drop
            )

    @classmethod
    def of(cls, crew: Crew, observer: Observer, invariants: Invariants) -> VirtualGrid:
        """Return the grid of a *crew*, whoever its clients are; *invariants* are those that its desk watches too."""
        grid = cls.__new__(cls)
        grid._metered = None
        grid._put(crew, observer, invariants)
        return grid

    def _put(
        self, crew: Crew, observer: Observer, invariants: Invariants, observed: Observed | None = None, pacing: Pacing | None = None,
        aggregation: Aggregation | None = None,
    ) -> None:  # fmt: skip
        compat.set_identity()
        self._crew, self._observer, self.invariants, self._observed = crew, observer, invariants, observed
        self._relay: Relay | None = None  # What is between the server and its clients, where anything is.
        if observed is None:
            self._world = World(
                crew.clients, crew.network, self._arrived, crew.lay, crew.transport, self._lost,
                None if crew.leaving == "finish" else (crew.availability, crew.leaving == "pause"),
            )
        else:
            self._world = Repeating(crew.clients, observed, self._arrived)
        self._inbox = Inbox(self._world.env, self.invariants)
        self.paced, self._aggregation = Paced(pacing), aggregation
        self._clients = np.arange(crew.count)
        self._nodes: tuple[Seconds, list[int]] | None = None
        self._available = np.ones(0, dtype=np.bool_)
        self._ended = 0  # Clients below this number have come to the end of their streams.
        self._said: set[int] = set()  # Clients that said so, where what was observed is repeated: a real server goes by that.
        self.patience = Patience(len(self._clients))
        self.strangers: list[int] = []
        """Nodes that were sent messages, and that there are not."""
        self.exhausted = False
        """Whether every client has come to the end of its stream."""
        self.notes: list[str] = []
        """What a reader must know of how it went here: nothing that the rows do not say."""

    def open(self) -> Grid:
        """Return the grid that the strategy is given: itself."""
        return self

    def described(self) -> Mapping[str, Any]:
        """Return what a manifest says of the ground: nothing, where its times are its own, but for joules and edges if there are any."""
        where = {} if self._observed is None else {"ground": "observed", "promise": OBSERVED}
        joules = {} if self._metered is None else {"energy": self._metered.described()}
        return {**where, **joules, **({} if self._relay is None else {"edges": self._relay.described()})}

    @property
    def asked(self) -> int:
        """Return how many messages were sent so far."""
        return self._crew.post.sent

    @property
    def arrived(self) -> int:
        """Return how many replies a strategy was given so far."""
        return self._crew.desk.ledger.arrived

    # -- Flower's Grid ------------------------------------------------------------------------------------------

    def set_run(self, run: object) -> None:
        """Take the run that Flower would set; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return what ``set_run`` was given."""
        return getattr(self, "_run", None)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message; kept for strategies written before ``Message`` had a public constructor."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients available now, as node ids, ascending."""
        return list(self._nodes_now())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send *messages*, each as it is now, and return their ids."""
        sent = self._posted(messages)
        for delivery in sent:
            if delivery.reached:
                self._world.send(delivery)
        return [delivery.id for delivery in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies among *message_ids* that are there; with none there, those of the next arrival.

        Advancing to it is what lets a server that polls make progress on a clock that only events move.
        """
        return self.pull(message_ids, enough=1)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send *messages* and return the replies that arrive within *timeout* virtual seconds, sorted by client.

        A reply at the very deadline is in time. Those that come later are recorded as late, and never applied.
        """
        passed: list[Message] = []
        if self._relay is None:
            ready, row = self._exchange(messages, timeout)
        else:
            ready, passed, row = self._relay.exchange(messages, timeout)
            self._look_who_ended(ready, 0 if row is None else row.asked)
        if row is None:
            return []
        replies = self._answered(ready)
        if passed:
            replies = sorted([*replies, *passed], key=lambda reply: reply.metadata.src_node_id)
        failed = sum(reply.has_error() for reply in replies)
        self._observer.round(dataclasses.replace(row, arrived=row.arrived - failed, failed=failed))
        return replies

    # -- virtual time -------------------------------------------------------------------------------------------

    @property
    def now(self) -> Seconds:
        """Return the virtual time."""
        return float(self._world.env.now)

    def pull(self, message_ids: Iterable[str], timeout: Seconds | None = None, *, enough: int | None = None) -> list[Message]:
        """Wait until all of *message_ids* are answered, or *enough* of them, or *timeout* is over; return the replies, sorted by client.

        A reply at the very deadline is in time. Those that come later are not lost: they can be pulled then. Nothing is waited
        for that cannot come: what was pulled before, and what nobody sent.
        """
        if timeout is not None:
            _check(timeout, "a pull's timeout")
        wanted = list(message_ids)
        self._inbox.wait(wanted, timeout, enough=enough)
        ready = self._inbox.take(wanted)
        self._aggregate(ready)
        return self._answered(ready)

    def sleep(self, duration_s: Seconds) -> None:
        """Let *duration_s* of virtual time pass; what arrives in it is there to be pulled."""
        _check(duration_s, "a sleep")
        self._inbox.sleep(duration_s)

    def wait_for_others(self, duration_s: Seconds) -> None:
        """Wait at least *duration_s*, and until who is available changes; raise RunError when it never will.

        What Flower's own waiting for nodes comes to: it looks again each second, and would find the same.
        """
        change = self._crew.availability.next_change(self._clients, self.now)
        self.patience.looked(self.now, self._nodes_now(), change)
        self._world.env.run(until=max(change, self.now + duration_s))
        self.invariants.at(self.now, "a wait for others")

    def aggregated(self, *, made: bool) -> None:
        """Take that the strategy has aggregated what it was handed, and whether that *made* a model."""
        self._crew.desk.ledger.versions.aggregated(self.now, made=made)

    def finish(self, *, broken: bool = False) -> None:
        """Settle what has no fate yet, and check that no byte is missing, unless the run is *broken* anyway."""
        self.invariants.at(self.now, "the end of the run")
        self._crew.desk.finish(broken=broken)
        if self._relay is not None:
            self._relay.finish(broken=broken)
        self.notes += self.paced.notes
        if self._metered is not None:
            self._metered.finish(self.now)
        if not broken:
            self.invariants.finished()

    def close(self) -> None:
        """Let go of all that took part, once nothing more is going to happen: it goes in circles, with what is still under way."""
        self._world.close()
        if self._relay is not None:
            self._relay.close()
        del self._crew, self._inbox

    # -- inside -------------------------------------------------------------------------------------------------

    def _exchange(self, messages: Iterable[Message], timeout: float | None) -> tuple[list[Delivery], RoundRow | None]:
        """Send *messages*, wait, abandon what has not arrived; return what has, and the row of this round so far."""
        started, sent = self.now, self._posted(messages)
        if not sent:
            return [], None
        first, ids = sent[0], [delivery.id for delivery in sent]
        wait = self.paced.wait(first.kind, len(sent))
        limit = wait.until_s if timeout is None else min(timeout, wait.until_s)
        gone = self._world.send_all([each for each in sent if each.reached], started + limit, wait.enough)
        limit = None if math.isinf(limit) else limit
        if self._observed is None:
            apart, enough = {delivery.id for delivery in gone}, wait.enough
            others = [each for each in ids if each not in apart] if apart else ids
            self._inbox.wait(others, limit, usable=None if enough is None else enough - len(gone))
            self._there(gone)
            self._looked(started, limit)
            if enough is not None:
                self._inbox.sleep(0.0)  # Of replies of one instant those count that were sent for first, whichever event came first.
            counted = self.paced.over(wait, limit, sent, self._inbox.take(ids), self.now, self._due_s)
        else:
            started = first.sent_s
            self._sleep_until(self._observed.end_s(first))
            for delivery in sent:
                delivery.discarded = self._observed.of(delivery).discarded
            ready = self._inbox.take(ids)
            counted = Counted([each for each in ready if not each.discarded], [each for each in ready if each.discarded])
        self._look_who_ended(counted.taken, len(ids))
        missed = [delivery for delivery in sent if delivery.stage != "arrived"]
        for delivery in (*missed, *counted.beyond):
            delivery.discarded = delivery.discarded or counted.why
            self._crew.clients.abandon(delivery)
            if delivery.lost:
                self._lost(delivery)
        for delivery in counted.beyond:
            self._crew.desk.late(delivery)
        lost = len(missed) + len(counted.beyond)
        row = RoundRow(first.round, first.kind, started, self.now, len(ids), len(counted.taken), 0, lost, counted.abandoned)
        if self._crew.transport is not None and self._crew.transport.server_s:
            self._inbox.sleep(self._crew.transport.server_s)
        self._aggregate(counted.taken)
        return counted.taken, row

    def _aggregate(self, ready: Sequence[Delivery]) -> None:
        """Let pass what the server takes to aggregate what is *ready* of training: it does nothing else meanwhile."""
        if self._aggregation is None:
            return
        sizes = [delivery.up.payload for delivery in ready if delivery.kind == "train" and not delivery.failure]
        if took_s := self._aggregation.took_s(len(sizes), sum(sizes)):
            self._inbox.sleep(took_s)

    def _sleep_until(self, moment_s: Seconds) -> None:
        while self.now < moment_s:
            self._inbox.sleep(delay(self.now, moment_s))

    def _look_who_ended(self, ready: list[Delivery], asked: int) -> None:
        """Take who of those that are *ready* said that their stream had ended, and see whether everybody's has."""
        ended = [delivery.client for delivery in ready if delivery.failure == STREAM_ENDED]
        if self._observed is not None:
            self._said |= {*ended}
            self.exhausted = len(self._said) == len(self._clients)
        elif len(ended) == asked:
            # Those asked may be a sample: only now is it worth looking at everybody.
            while self._ended < len(self._clients) and self._crew.clients.ended(self._ended, self.now):
                self._ended += 1
            self.exhausted = self._ended == len(self._clients)

    def _looked(self, since: Seconds, timeout: Seconds | None) -> None:
        """Let the clock run until the server looks for replies, as it does every so often *since* it sent; not beyond the deadline."""
        if self._crew.transport is not None and self._crew.transport.server_poll_s:
            look = look_s(since, self._crew.transport.server_poll_s, self.now)
            self._inbox.sleep(max(0.0, (look if timeout is None else min(look, since + timeout)) - self.now))

    def _posted(self, messages: Iterable[Message]) -> list[Delivery]:
        """Return *messages* as deliveries that are about to be sent, and those to nobody that is there as lost."""
        read = Read(still=isinstance(messages, list))
        if self._observed is not None and (messages := list(messages)):
            self._sleep_until(self._observed.sent_s(self.asked + 1, self.now))
        return [self._opened(self._crew.post.delivery(message, self.now, read)) for message in messages]

    def _due_s(self, delivery: Delivery) -> Seconds:
        return self._world.due_s(delivery) if isinstance(self._world, World) else math.inf

    def _push_on(self, messages: Sequence[Message], read: Read) -> list[Delivery]:
        """Send *messages* now, for somebody on the way; *read* holds what was read of what they carry."""
        sent = [self._opened(self._crew.post.delivery(message, self.now, read)) for message in messages]
        for delivery in sent:
            if delivery.reached:
                self._world.send(delivery)
        return sent

    def _drop(self, delivery: Delivery) -> None:
        """Wait for *delivery* no more."""
        self._crew.clients.abandon(delivery)
        if delivery.stage == "arrived":
            self._crew.desk.late(delivery)
        elif delivery.lost:
            self._lost(delivery)

    def _opened(self, delivery: Delivery) -> Delivery:
        """Take that *delivery* was sent, or that nobody is there to have it."""
        self.patience.asked()
        self._crew.desk.ledger.opened(delivery, self._crew.post.newest)
        if self._reachable(delivery.client):
            self._inbox.expect(delivery)
            self.invariants.sent(down=delivery.parcel.down.total)
        else:
            delivery.lose()
            self._inbox.put(delivery)
        return delivery

    def _there(self, gone: list[Delivery]) -> None:
        """Take that deliveries which needed no event have arrived by now."""
        must(all(delivery.arrived_s <= self.now for delivery in gone), "what was foreseen to arrive in time did not")
        for delivery in gone:
            self.invariants.sent(up=delivery.up.total, down=delivery.up.back)
            del self._inbox.flying[delivery.id]
            self._inbox.put(delivery)

    def _arrived(self, delivery: Delivery) -> None:
        self.invariants.at(self.now, f"the arrival of {delivery.id}")
        if delivery.answered:
            self.invariants.sent(up=delivery.up.total, down=delivery.up.back)
        del self._inbox.flying[delivery.id]
        if delivery.abandoned:
            if delivery.kind == "train" and delivery.answered and not delivery.failure:
                self.paced.late(self._due_s(delivery))
            self._crew.desk.late(delivery)
        else:
            self._inbox.put(delivery)

    def _lost(self, delivery: Delivery) -> None:
        """Take that nothing will ever be heard of *delivery*: its fate is sealed once nobody waits for it any more."""
        self.invariants.at(self.now, f"the loss of {delivery.id}")
        if delivery.abandoned:
            del self._inbox.flying[delivery.id]
            self._crew.desk.late(delivery)

    def _answered(self, ready: list[Delivery]) -> list[Message]:
        return self._crew.desk.answered(ready, self._inbox.flying.values(), self.now)

    def _nodes_now(self) -> list[int]:
        """Return the node ids of who is available now: worked out once per instant, for everyone."""
        if self._nodes is None or self._nodes[0] != self.now:
            self._available = self._crew.availability.available(self._clients, self.now)
            self._nodes = (self.now, (self._clients[self._available] + records.NODE_OFFSET).tolist())
        return self._nodes[1]

    def _reachable(self, client: int) -> bool:
        if not 0 <= client < len(self._clients):
            self.strangers.append(records.node_of(client))
            return False
        self._nodes_now()
        return bool(self._available[client])


def _check(duration_s: Seconds, what: str) -> None:
    if not 0.0 <= duration_s < math.inf:
        raise RunError(f"{what} of {duration_s} s: must be >= 0 and finite.")
