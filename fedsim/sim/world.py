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
from fedsim.cost.network import Network, pieces
from fedsim.cost.transport import Transport, look_s
from fedsim.sim import bulk
from fedsim.sim.crew import Clients
from fedsim.sim.host import Alone, Host, Shared
from fedsim.sim.links import Lay, Unshared
from fedsim.sim.mail import Delivery
from fedsim.sim.rows import STREAM_ENDED


class World:
    """Runs deliveries on the virtual clock. ``arrive`` is called, in virtual order, for each one that has ended; *lay* makes the links.

    With a *transport* a client comes for its messages, when it looks; else they are brought.
    """

    def __init__(
        self, clients: Clients, network: Network, arrive: Callable[[Delivery], None], lay: Lay = Unshared,
        transport: Transport | None = None,
    ) -> None:  # fmt: skip
        self.env = simpy.Environment()
        self._links, self._network = lay(self.env, network), network
        self._host: Host = Alone(self.env)
        if transport is not None and transport.cores is not None:
            self._host = Shared(self.env, transport.cores, transport.crowd_from, transport.crowd_factor)
        self._transport = transport
        still = isinstance(self._links, Unshared) and pieces(network) is None
        self._unshared = transport is None and still and isinstance(self._host, Alone)
        self._clients, self._arrive = clients, arrive
        self._busy: dict[int, deque[simpy.Event]] = {}
        self._free_s: dict[int, Seconds] = {}  # By client: when it last sent a reply, and so looked for the next message.
        self._under_way: dict[int, Generator[simpy.Event, None, None]] = {}  # By message.

    def send(self, delivery: Delivery) -> None:
        """Put *delivery* on its way."""
        self._clients.sent(delivery)
        self._under_way[delivery.number] = carried = self._carry(delivery)
        self.env.process(carried)

    def send_all(self, deliveries: Sequence[Delivery], until_s: Seconds) -> list[Delivery]:
        """Put *deliveries* on their way, all now; return those that have arrived as if they had, by *until_s*, without any event.

        Nobody may send anything before *until_s*, or before all have arrived.
        """
        foresight, gone = self._clients.foresight, list[Delivery]()
        if foresight is not None and self._unshared and len(deliveries) >= bulk.LEAST:
            free = [each for each in bulk.alone(deliveries) if each.client not in self._busy and foresight.sees(each)]
            if len(free) >= bulk.LEAST:
                gone = bulk.went(free, self._network, foresight, float(self.env.now), until_s)
        apart = {id(delivery) for delivery in gone}
        for delivery in deliveries:
            if id(delivery) not in apart:
                self.send(delivery)
        return gone

    def close(self) -> None:
        """Let go of deliveries that are still under way, and of who hears of arrivals: nothing more is going to happen."""
        self._links.close()
        for carried in self._under_way.values():
            carried.close()  # The clock, which is a circle of its own, would keep each, and with it the world.
        self._under_way.clear()
        self._busy.clear()
        del self._arrive

    def _carry(self, delivery: Delivery) -> Generator[simpy.Event, None, None]:
        env, client, transport, fetched_s = self.env, delivery.client, self._transport, 0.0
        if transport is None:
            yield self._links.down(client, delivery.parcel.down.total)
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
        delivery.start(env.now)
        if not delivery.failure:
            try:
                took = self._clients.begin(delivery, env.now)
            except Unable as error:
                delivery.fail(str(error))
            else:
                yield self._host.work(took)
                delivery.answer(env.now)
                if transport is not None:  # Its SuperNode looks whether it has answered, from when it had the message on.
                    yield self._until(look_s(fetched_s, transport.reply_poll_s, env.now))
                yield self._links.up(client, delivery.up.total)
        delivery.arrive(env.now)
        if transport is not None:
            self._free_s[client] = env.now
        if waiting := self._busy[client]:
            waiting.popleft().succeed()
        else:
            del self._busy[client]
        del self._under_way[delivery.number]
        self._arrive(delivery)

    def _turn(self, client: int) -> Generator[simpy.Event, None, None]:
        """Wait for *client*: it works on one message at a time, as on a real SuperNode."""
        if client in self._busy:
            turn = self.env.event()
            self._busy[client].append(turn)
            yield turn
        else:
            self._busy[client] = deque()

    def _until(self, moment_s: Seconds) -> simpy.Event:
        return self.env.timeout(max(0.0, moment_s - self.env.now))
