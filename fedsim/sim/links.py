"""Links: how long a message is on its way, as events on the virtual clock. Rates and latencies are the network's (``cost/network``).

Knows bytes and clients; knows no message. Whether links share a capacity is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, cast

import simpy
from simpy.events import URGENT

from fedsim.core.types import Seconds
from fedsim.cost.cells import Cells
from fedsim.cost.network import MBIT_PER_BYTE, Network, Piece, ServerLink, pieces, way_s
from fedsim.sim.mesh import Mesh
from fedsim.sim.shares import Line

Direction = Literal["down", "up"]


class Links(Protocol):
    """The links between the server and its clients."""

    def down(self, client: int, size_bytes: int) -> simpy.Event:
        """Return what happens when *size_bytes*, sent now, have come from the server to *client*."""
        ...

    def up(self, client: int, size_bytes: int) -> simpy.Event:
        """Return what happens when *size_bytes*, sent now, have come from *client* to the server."""
        ...

    def close(self) -> None:
        """Let go of whatever is still on its way: nothing more is going to happen."""
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
        return self.env.timeout(way_s(self.network, "down", client, size_bytes, self.env.now))

    def up(self, client: int, size_bytes: int) -> simpy.Event:
        """Return the end of the time that the network says, up."""
        return self.env.timeout(way_s(self.network, "up", client, size_bytes, self.env.now))

    def close(self) -> None:
        """Let go of nothing: all of it is the clock's."""


class Shared:
    """Links whose other end is one server's, of *down* and *up* bytes per second, which transfers in progress share max-min fairly.

    None goes faster than its client's own link lets it. A transfer that nobody ever slows down takes what the network says, to the last
    bit; one that is slowed down takes the latency after its bytes. None stands for a capacity that never binds.
    """

    def __init__(self, env: simpy.Environment, network: Network, down: float | None, up: float | None) -> None:
        self._env, self._network = env, network
        self._piece = pieces(network)
        self._down, self._up = (None if rate is None else _Way(env, Line(rate)) for rate in (down, up))

    def down(self, client: int, size_bytes: int) -> simpy.Event:
        """Return the arrival of *size_bytes* at *client*."""
        return self._carry(self._down, "down", client, size_bytes)

    def up(self, client: int, size_bytes: int) -> simpy.Event:
        """Return the arrival of *size_bytes* at the server."""
        return self._carry(self._up, "up", client, size_bytes)

    def close(self) -> None:
        """Let go of whatever is still on its way."""
        for way in (self._down, self._up):
            if way is not None:
                way.close()

    def _carry(self, way: _Way | None, direction: Literal["down", "up"], client: int, size_bytes: int) -> simpy.Event:
        network = self._network
        takes_s = way_s(network, direction, client, size_bytes, self._env.now)
        if way is None:
            return self._env.timeout(takes_s)
        latency_s = way.latencies_s.get(client)
        if latency_s is None:
            latency_s = way.latencies_s[client] = (network.down_s if direction == "down" else network.up_s)(client, 0)
        if self._piece is None:
            return way.carry(size_bytes, takes_s, latency_s)
        return way.carry(size_bytes, takes_s, latency_s, partial(self._piece[direction], client))


class Crossing:
    """Links of clients whose transfers cross two shared ones at once: their cell's, and one of the *beyonds* beyond.

    *shared* says what each of either carries, in bytes per second, None for more than is ever asked. As ``Shared``, for more than one.
    """

    def __init__(
        self, env: simpy.Environment, network: Network, shared: Mapping[Direction, tuple[float | None, float | None]], beyonds: int,
        cells: Cells, beyond_of: Callable[[int], int],
    ) -> None:  # fmt: skip
        self._env, self._network, self._cells, self._beyond_of = env, network, cells, beyond_of
        self._piece, self._beyonds = pieces(network), beyonds
        self._ways: dict[Direction, list[_Way]] = {}
        for direction, (beyond, cell) in shared.items():
            if beyond is not None and cell is not None:
                self._ways[direction] = [_Way(env, Mesh([beyond] * beyonds + [cell] * cells.count))]
            else:  # One at most is ever full: each is a link by itself.
                many, rate = (beyonds, beyond) if cell is None else (cells.count, cell)
                self._ways[direction] = [] if rate is None else [_Way(env, Line(rate)) for _ in range(many)]
        self._by_cell = {direction: cell is not None for direction, (_, cell) in shared.items()}

    def down(self, client: int, size_bytes: int) -> simpy.Event:
        """Return the arrival of *size_bytes* at *client*."""
        return self._carry("down", client, size_bytes)

    def up(self, client: int, size_bytes: int) -> simpy.Event:
        """Return the arrival of *size_bytes* from *client*."""
        return self._carry("up", client, size_bytes)

    def close(self) -> None:
        """Let go of whatever is still on its way."""
        for ways in self._ways.values():
            for way in ways:
                way.close()

    def _carry(self, direction: Direction, client: int, size_bytes: int) -> simpy.Event:
        network, ways = self._network, self._ways[direction]
        takes_s = way_s(network, direction, client, size_bytes, self._env.now)
        if not ways:
            return self._env.timeout(takes_s)
        beyond, cell = self._beyond_of(client), int(self._cells.of[client])
        way = ways[0] if len(ways) == 1 else ways[cell if self._by_cell[direction] else beyond]
        latency_s = way.latencies_s.get(client)
        if latency_s is None:
            latency_s = way.latencies_s[client] = (network.down_s if direction == "down" else network.up_s)(client, 0)
        piece = None if self._piece is None else partial(self._piece[direction], client)
        return way.carry(size_bytes, takes_s, latency_s, piece, (beyond, self._beyonds + cell))


def crossing(cells: Cells, beyond: ServerLink | None, beyond_of: Callable[[int], int] = lambda _: 0, beyonds: int = 1) -> Lay:
    """Return what lays links that cross what the clients of a cell share, and one of *beyonds* links beyond at once, if there are any.

    *beyond_of* (client) says which. None for either way of a link stands for a capacity that never binds.
    """
    ends = ServerLink() if beyond is None else beyond
    shared: dict[Direction, tuple[float | None, float | None]] = {"down": (ends.egress, cells.down), "up": (ends.ingress, cells.up)}
    return lambda env, network: Crossing(env, network, shared, beyonds, cells, beyond_of)


def laid(server: ServerLink | None) -> Lay:
    """Return what lays links that end at *server*; each client's are its own alone where that is None."""
    if server is None or (server.egress is None and server.ingress is None):
        return Unshared
    return partial(Shared, down=server.egress, up=server.ingress)


class _Arrival(simpy.Event):
    """An event that happens before whatever else is still to happen at its moment: who waits until then sees it."""

    def happen(self, _: simpy.Event | None = None) -> None:
        """Happen now."""
        self._ok, self._value = True, None
        self.env.schedule(self, priority=URGENT)


class _Way:
    """One direction of links that are shared: transfers numbered as they begin, and a look at it when the next one ends."""

    def __init__(self, env: simpy.Environment, line: Line | Mesh) -> None:
        self._env, self._line = env, line
        self._coming: dict[int, tuple[_Arrival, Seconds]] = {}  # By number: what happens at the end, and the latency.
        self._begun, self._look_s = 0, math.inf
        self.latencies_s: dict[int, Seconds] = {}
        """What no bytes take, by client, of those that were asked."""

    def carry(
        self, size_bytes: int, takes_s: Seconds, latency_s: Seconds, piece: Piece | None = None, route: Sequence[int] | None = None
    ) -> simpy.Event:
        """Return the arrival of *size_bytes* that take *takes_s* alone, *latency_s* of it however few they are.

        *piece* says the rate of their own link where that goes with time; over a mesh they take *route*.
        """
        number, self._begun = self._begun, self._begun + 1
        arrival, alone_s = _Arrival(self._env), takes_s - latency_s
        self._coming[number] = arrival, latency_s
        cap, now = size_bytes / alone_s if alone_s > 0 else math.inf, float(self._env.now)
        if piece is not None:
            cap, until = _bytes(piece(now))
            self._later(number, piece, until)
        if isinstance(self._line, Mesh):
            self._line.begin(number, float(size_bytes), cap, now, route or ())
        else:
            self._line.begin(number, float(size_bytes), cap, now)
        if not self._line.slowed(number):
            _then(self._env.timeout(takes_s), partial(self._undisturbed, number))
        self._plan()
        return arrival

    def close(self) -> None:
        """Let go of all that is on its way."""
        self._coming.clear()

    def _undisturbed(self, number: int, _: simpy.Event) -> None:
        """Take that transfer *number* would have come by now, alone; so it has, where nobody slowed it down."""
        if number in self._coming and not self._line.slowed(number):
            self._coming.pop(number)[0].happen()

    def _later(self, number: int, piece: Piece, until: Seconds) -> None:
        """See to it that transfer *number* goes at another rate from *until* on, where it is still there."""
        if until < math.inf:
            _then(self._env.timeout(max(0.0, until - self._env.now)), partial(self._change, number, piece, until))

    def _change(self, number: int, piece: Piece, moment_s: Seconds, _: simpy.Event) -> None:
        if number not in self._line:
            return
        now = max(moment_s, float(self._env.now))
        cap, until = _bytes(piece(now))
        self._line.change(number, cap, now)
        self._later(number, piece, until)
        self._plan()

    def _plan(self) -> None:
        due = self._line.next_s()
        if due < self._look_s:
            self._look_s = due
            _then(self._env.timeout(max(0.0, due - self._env.now)), partial(self._look, due))

    def _look(self, due: Seconds, _: simpy.Event) -> None:
        if due != self._look_s:
            return  # An earlier end was found since.
        self._look_s, now = math.inf, max(due, float(self._env.now))
        for number, slowed in self._line.end(now):  # None, where somebody has begun since.
            if slowed and number in self._coming:
                arrival, latency_s = self._coming.pop(number)
                if latency_s > 0:
                    _then(self._env.timeout(latency_s), arrival.happen)
                else:
                    arrival.happen()
        self._plan()


def _bytes(piece: tuple[float, Seconds]) -> tuple[float, Seconds]:
    """Return a rate in bytes per second for one in Mbit/s."""
    return piece[0] / MBIT_PER_BYTE, piece[1]


def _then(event: simpy.Event, do: Callable[[simpy.Event], None]) -> None:
    """Let *do* be done when *event*, which is still to happen, does."""
    cast("list[Callable[[simpy.Event], None]]", event.callbacks).append(do)
