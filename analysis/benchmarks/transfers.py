"""Transfers that share one link: how many end in a second of processor time.

    python -m analysis.benchmarks.transfers [--at-once 10000] [--in-all 40000]

So many clients send over and over, each no faster than a link of its own, to a server whose link all of them together fill a fraction of.
In turn with links of their own, which is the comparison to read: a process per client on the same clock, and nothing to share.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Generator

import simpy

from fedsim.core.keys import Key
from fedsim.cost.network import lognormal
from fedsim.sim.links import Links, Shared, Unshared

EACH = 12_500.0
"""Bytes per second of the server's link for each client at once: a twentieth of what a median client's own link takes."""


def per_s(links: Callable[[simpy.Environment], Links], at_once: int, in_all: int) -> float:
    """Return how many transfers end per second of processor time."""
    env = simpy.Environment()
    of = links(env)

    def client(number: int) -> Generator[simpy.Event, None, None]:
        for _ in range(in_all // at_once):
            yield of.up(number, 200_000 + number)

    for number in range(at_once):
        env.process(client(number))
    began = time.process_time()
    env.run()
    return in_all / (time.process_time() - began)


def main() -> None:
    """Measure in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=10_000)
    parser.add_argument("--in-all", type=int, default=40_000)
    asked = parser.parse_args()
    network = lognormal(Key(3), down_mbps=6.0, up_mbps=2.0, latency_s=0.06)
    own, shared = list[float](), list[float]()
    for _ in range(5):
        own.append(per_s(lambda env: Unshared(env, network), asked.at_once, asked.in_all))
        shared.append(per_s(lambda env: Shared(env, network, None, EACH * asked.at_once), asked.at_once, asked.in_all))
    one, other = statistics.median(own), statistics.median(shared)
    print(f"{asked.at_once:,} at once: {other:,.0f} transfers/s on a shared link, {one:,.0f} on links of their own: {other / one:.2f}")


if __name__ == "__main__":
    main()
