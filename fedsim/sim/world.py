"""The clients' world: how one message travels to a device, waits there, is worked on, and travels back.

Knows durations and their order. Knows no strategy, computes no numbers, and not what a client does: its ``Clients`` say how long that
takes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence

import simpy

from fedsim.client.program import Unable
from fedsim.core.types import Seconds
from fedsim.cost.availability import Availability
from fedsim.cost.failures import HEARTBEATS_S, Fault
from fedsim.cost.network import Network, pieces, way_s
from fedsim.cost.transport import Transport, look_s
from fedsim.sim import bulk
from fedsim.sim.crew import Clients
from fedsim.sim.host import Alone, Host, Shared
from fedsim.sim.leaving import Absences, Gone, There
from fedsim.sim.links import Lay, Unshared
from fedsim.sim.mail import Delivery
from fedsim.sim.rows import STREAM_ENDED


class World:
    """Runs deliveries on the virtual clock. ``arrive`` is called, in virtual order, for each one that has ended; *lay* makes the links.

    With a *transport* a client comes for its messages, when it looks; else they are brought. *lost* is called for each one of which nothing
    will ever be heard. *leaving* says who is there when, and whether what a client is at *pauses* while it is away, or is over then; a
    client that is there when asked stays, unless that is given. It takes links and devices of clients' own.
    """

    def __init__(
        self, clients: Clients, network: Network, arrive: Callable[[Delivery], None], lay: Lay = Unshared,
        transport: Transport | None = None, lost: Callable[[Delivery], None] = lambda _: None,
        leaving: tuple[Availability, bool] | None = None,
    ) -> None:  # fmt: skip
        self.env = simpy.Environment()
        self._links, self._network = lay(self.env, network), network
        self._host: Host = Alone(self.env)
        if transport is not None and transport.cores is not None:
            self._host = Shared(self.env, transport.cores, transport.crowd_from, transport.crowd_factor)
        self._transport = transport
        still = isinstance(self._links, Unshared) and pieces(network) is None
        self._there, self._gone = None if leaving is None else There(self.env, leaving[0], pauses=leaving[1]), Gone()
        self._unshared = transport is None and still and isinstance(self._host, Alone) and leaving is None
        self._clients, self._arrive, self._lost = clients, arrive, lost
        self._busy: dict[int, deque[simpy.Event]] = {}
        self._free_s: dict[int, Seconds] = {}  # By client: when it last sent a reply, and so looked for the next message.
        self._under_way: dict[int, Generator[simpy.Event, None, None]] = {}  # By message.

    def send(self, delivery: Delivery) -> None:
        """Put *delivery* on its way."""
        self._clients.sent(delivery)
        delivery.absent = self._absent
        self._under_way[delivery.number] = carried = (
            self._carry(delivery) if self._there is None else self._carry_while(delivery, self._there)
        )
        self.env.process(carried)

    def send_all(self, deliveries: Sequence[Delivery], until_s: Seconds, first: int | None = None) -> list[Delivery]:
        """Put *deliveries* on their way, all now; return those that have arrived as if they had, by *until_s*, without any event.

        Nobody may send anything before *until_s*, or before all have arrived, or the *first* so many that are no errors.
        """
        foresight, gone = self._clients.foresight, list[Delivery]()
        if foresight is not None and self._unshared and len(deliveries) >= bulk.LEAST:
            free = [each for each in bulk.alone(deliveries) if each.client not in self._busy and foresight.sees(each)]
            if len(free) >= bulk.LEAST and (first is None or len(free) == len(deliveries)):  # One that is not foreseen may be a first one.
                which = () if first is None else (first,)
                gone = bulk.went(free, self._network, foresight, float(self.env.now), until_s, *which)
        apart = {id(delivery) for delivery in gone}
        for delivery in deliveries:
            if id(delivery) not in apart:
                self.send(delivery)
        return gone

    def due_s(self, delivery: Delivery) -> Seconds:
        """Return how long *delivery* takes from its sending to its reply, waits for its client apart; infinity where nobody knows yet.

        Where transfers share a link it may take longer.
        """
        if delivery.works_s < 0 or delivery.fault is not None:
            return math.inf
        up_s = way_s(self._network, "up", delivery.client, delivery.up.total, float(self.env.now))
        return delivery.received_s - delivery.sent_s + delivery.works_s + up_s

    def close(self) -> None:
        """Let go of deliveries that are still under way, and of who hears of arrivals: nothing more is going to happen."""
        self._links.close()
        for carried in self._under_way.values():
            carried.close()  # The clock, which is a circle of its own, would keep each, and with it the world.
        self._under_way.clear()
        self._busy.clear()
        del self._arrive, self._lost

    def _carry(self, delivery: Delivery) -> Generator[simpy.Event, None, None]:
        env, client, transport, fetched_s = self.env, delivery.client, self._transport, 0.0
        if transport is None:
            if client in self._gone:  # It takes nothing before it is back: the message waits for it at the server.
                yield self._until(self._gone.back_s(client))
            since_s = env.now
            yield self._links.down(client, delivery.parcel.down.total)
            if client in self._gone:
                yield from self._stood(client, since_s, None)
            delivery.receive(env.now)
            yield from self._turn(client)
        else:
            yield from self._turn(client)
            since = self._free_s.get(client)
            yield self._until(look_s(transport.began_s(client) if since is None else since, transport.node_poll_s, env.now))
            fetched_s = env.now
            yield self._links.down(client, delivery.parcel.down.total)
            delivery.receive(env.now)
        ready_s = self._clients.ready_s(delivery, env.now)  # A client's trigger may hold a message, or never will.
        if math.isinf(ready_s):
            delivery.fail(STREAM_ENDED)
        elif ready_s > env.now:
            yield self._until(ready_s)
        took = self._begin(delivery)
        if took is not None:
            fault = delivery.fault
            yield self._host.work(took if fault is None else fault.after_s)
            if fault is not None and fault.answer != "garbled":
                yield from self._failed(delivery, fault, took)
                return
            delivery.answer(env.now)
            if transport is not None:  # Its SuperNode looks whether it has answered, from when it had the message on.
                yield self._until(look_s(fetched_s, transport.reply_poll_s, env.now))
            yield self._links.up(client, delivery.up.total)
            if fault is not None:
                delivery.hear()
        delivery.arrive(env.now)
        self._over(delivery)
        self._arrive(delivery)

    def _carry_while(self, delivery: Delivery, there: There) -> Generator[simpy.Event, None, None]:
        """Carry *delivery* while its client is *there*: as ``_carry`` without a transport, but that it may leave."""
        env, client, left = self.env, delivery.client, False
        if client in self._gone:
            back_s = self._gone.back_s(client)
            yield self._until(back_s if there.pauses else min(back_s, there.leaves_s(client)))
        since_s, leaves_s = env.now, math.inf if there.pauses else there.leaves_s(client)
        left = yield from there.spend(client, way_s(self._network, "down", client, delivery.parcel.down.total, env.now))
        if not left and client in self._gone:
            yield from self._stood(client, since_s, there if there.pauses else None)
            left = env.now > leaves_s
        if left:
            self._drop(delivery, "left while downloading", its_turn=False)
            return
        delivery.receive(env.now)
        if not (yield from self._turn_while(client, there)):
            self._drop(delivery, "left while waiting", its_turn=False)
            return
        ready_s = self._clients.ready_s(delivery, env.now)
        if math.isinf(ready_s):
            delivery.fail(STREAM_ENDED)
        elif ready_s > env.now:
            yield self._until(ready_s if there.pauses else min(ready_s, there.leaves_s(client)))
        if not (yield from there.back(client)):
            self._drop(delivery, "left while waiting")
            return
        if not there.pauses:
            delivery.leaves_s = there.leaves_s(client)
        took = self._begin(delivery)
        if took is not None:
            fault = delivery.fault
            work_s = took if fault is None else fault.after_s
            if there.pauses:
                left_s = yield from there.spend(client, work_s)
                if left_s:
                    delivery.fault = fault = Fault("left while working", work_s - left_s, breaks=True)
            else:
                yield env.timeout(work_s)
            if fault is not None and fault.answer != "garbled":
                yield from self._failed(delivery, fault, took)
                return
            delivery.answer(env.now)
            if (yield from there.spend(client, way_s(self._network, "up", client, delivery.up.total, env.now))):
                self._drop(delivery, "left while uploading")
                return
            if fault is not None:
                delivery.hear()
        delivery.arrive(env.now)
        self._over(delivery)
        self._arrive(delivery)

    def _begin(self, delivery: Delivery) -> Seconds | None:
        """Let its client begin with *delivery*; return how long it takes, None where an error is the answer."""
        delivery.start(self.env.now)
        if delivery.failure:
            return None
        try:
            delivery.works_s = took = self._clients.begin(delivery, self.env.now)
        except Unable as error:
            delivery.fail(str(error))
            return None
        return took

    def _failed(self, delivery: Delivery, fault: Fault, took: Seconds) -> Generator[simpy.Event, None, None]:
        """Let the server hear of a *fault* what it does, and its client be away as long as it is."""
        began_s, client = self.env.now, delivery.client
        delivery.stop(began_s, took)
        if fault.away_s:
            self._gone.goes(client, began_s, began_s + fault.away_s)
        if fault.answer == "never":
            delivery.drop(began_s)
            self._lost(delivery)
        else:
            told = True
            if fault.answer == "crashed" and self._there is not None:
                told = yield from self._there.tells(client, HEARTBEATS_S)
            elif fault.answer != "raised":
                yield self.env.timeout(HEARTBEATS_S)
            if told:
                delivery.hear()
                delivery.arrive(self.env.now)
                self._arrive(delivery)
            else:
                delivery.drop(self.env.now)
                self._lost(delivery)
        if fault.away_s:
            yield self._until(began_s + fault.away_s)
        self._over(delivery)

    def _drop(self, delivery: Delivery, cause: str, *, its_turn: bool = True) -> None:
        delivery.drop(self.env.now, cause)
        self._over(delivery, its_turn=its_turn)
        self._lost(delivery)

    def _over(self, delivery: Delivery, *, its_turn: bool = True) -> None:
        """Take that *delivery* is under way no more, and that its client is free, where it was *its_turn*."""
        client = delivery.client
        del self._under_way[delivery.number]
        if not its_turn:
            return
        if self._transport is not None:
            self._free_s[client] = self.env.now
        if waiting := self._busy[client]:
            waiting.popleft().succeed()
        else:
            del self._busy[client]

    def _stood(self, client: int, since_s: Seconds, there: There | None) -> Generator[simpy.Event, None, None]:
        """Let pass what a transfer, begun at *since_s* and over by now, stood still while the device of *client* was away."""
        while gone := self._gone.between(client, since_s, self.env.now):
            left, since_s = self.env.now - gone[0][0], gone[0][1]
            if there is None:
                yield self._until(since_s + left)
            else:
                yield self._until(since_s)
                yield from there.spend(client, left)

    def _absent(self, client: int, begin_s: Seconds, end_s: Seconds) -> Absences:
        """Return when *client* was away between two moments: for what befell it, or by its availability, where that matters."""
        gone = self._gone.between(client, begin_s, end_s) if client in self._gone else ()
        return gone if self._there is None or not self._there.pauses else [*gone, *self._there.between(client, begin_s, end_s)]

    def _turn(self, client: int) -> Generator[simpy.Event, None, None]:
        """Wait for *client*: it works on one message at a time, as on a real SuperNode."""
        if client in self._busy:
            turn = self.env.event()
            self._busy[client].append(turn)
            yield turn
        else:
            self._busy[client] = deque()

    def _turn_while(self, client: int, there: There) -> Generator[simpy.Event, None, bool]:
        """Wait for *client* while it is *there*; return whether it is its turn."""
        if there.pauses or client not in self._busy:
            yield from self._turn(client)
            return True
        turn, gone_s = self.env.event(), there.leaves_s(client)
        self._busy[client].append(turn)
        yield turn if math.isinf(gone_s) else self.env.any_of([turn, self._until(gone_s)])
        if not turn.triggered:
            self._busy[client].remove(turn)
        return turn.triggered

    def _until(self, moment_s: Seconds) -> simpy.Event:
        return self.env.timeout(max(0.0, moment_s - self.env.now))
