"""Links are a seam: the world's messages take the time that they say, and those of ours say what the network does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import simpy
from flwr.app import Message, RecordDict

from fedsim.core.keys import Key
from fedsim.cost.network import Network, networks, way_s
from fedsim.flower import compat, records
from fedsim.laws.kind import filled
from fedsim.learn.engine.queue import here
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.sim.invariants import Invariants
from fedsim.sim.links import Lay, Links, Unshared
from fedsim.sim.mail import Delivery, Mail, Read
from fedsim.sim.programs import Programs
from fedsim.sim.world import World

KINDS: dict[str, dict[str, Any]] = {
    "constant": {"down_mbps": 8.0, "up_mbps": 2.0, "latency_s": 0.25}, "lognormal": {"down_mbps": 6.0, "up_mbps": 2.0}, "ideal": {},
    "trace": {"path": str(Path(__file__).parents[1] / "traces" / "links.csv"), "latency_s": 0.25},
}  # fmt: skip
SENT = [(client, size) for client in range(5) for size in (0, 1_000, 2_000_000)]


def network(kind: str) -> Network:
    return networks.call(networks.get(kind, at=""), KINDS[kind], key=Key(3), **filled("network"))


def came(lay: Lay, of: Network, way: str) -> list[float]:
    """Return when each of SENT has come, all sent at once at 10 s."""
    env = simpy.Environment(10.0)
    links, found = lay(env, of), [-1.0] * len(SENT)

    def carried(place: int, client: int, size: int) -> Any:
        yield getattr(links, way)(client, size)
        found[place] = env.now

    for place, (client, size) in enumerate(SENT):
        env.process(carried(place, client, size))
    env.run()
    return found


def alone(of: Network, way: str) -> list[float]:
    """Return when each would have come with nobody else on the wire."""
    one: Any = way
    return [10.0 + way_s(of, one, client, size, 10.0) for client, size in SENT]


class OneWire:
    """Links that are one wire: a message waits for those before it. Not unshared."""

    def __init__(self, env: simpy.Environment, of: Network) -> None:
        self._env, self._of, self._free_s = env, of, 0.0

    def down(self, client: int, size_bytes: int) -> simpy.Event:
        return self._after(self._of.down_s(client, size_bytes))

    def up(self, client: int, size_bytes: int) -> simpy.Event:
        return self._after(self._of.up_s(client, size_bytes))

    def _after(self, takes_s: float) -> simpy.Event:
        self._free_s = max(self._free_s, self._env.now) + takes_s
        return self._env.timeout(self._free_s - self._env.now)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("kind", networks.names())
def test_unshared_links_take_what_the_network_says(kind: str, way: str) -> None:
    """Fifteen messages at once come when each would have come alone, to the last bit; on one wire they would not."""
    of = network(kind)

    assert alone(of, way) == came(Unshared, of, way)
    assert kind == "ideal" or alone(of, way) != came(OneWire, of, way)


class Fixed:
    """Links on which everything takes 7 s down, and 11 s up."""

    def __init__(self, env: simpy.Environment, of: Network) -> None:
        self._env = env

    def down(self, client: int, size_bytes: int) -> simpy.Event:
        return self._env.timeout(7.0)

    def up(self, client: int, size_bytes: int) -> simpy.Event:
        return self._env.timeout(11.0)

    def close(self) -> None:
        pass


def test_a_world_uses_the_links_that_it_is_given(tiny: Any) -> None:
    """With links of a stranger's messages are received and come back when those say."""
    compat.set_identity()
    parts, there = build(load(tiny())), list[Delivery]()
    lay: type[Links] = Fixed
    programs, mail = Programs(parts.fleet, here(parts.engine), Invariants()), Mail(parts.fleet)
    world = World(programs, parts.fleet.network, there.append, lay)
    content = RecordDict({"arrays": compat.array_record(parts.first), "config": records.job_config(parts.job)})
    for client in (0, 4):
        world.send(mail.delivery(Message(content, records.node_of(client), "train"), 0.0, Read()))
    world.env.run()

    assert [(7.0, 11.0)] * 2 == [(one.received_s, one.arrived_s - one.computed_s) for one in there]
