"""What watching costs: CPU time of rounds with [monitor] against rounds without, and of the engine alone.

    python -m analysis.benchmarks.monitor [W1 W2] [--turns 7]

Workloads as in ``workloads``: W1 is logistic regression with 100 clients a round, W2 McMahan's 2NN with 10. One intra-op thread. A round's
figure is the mean over 20 rounds in a row of ``fedsim.run``, so that the versions at which single examples are looked at count as often as
they come; with and without are run one right after the other, in an order that alternates, and the median of the ratios is told, with
the lowest and the highest. The engine's is the same of ``CohortEngine.run`` on the tasks of five versions. *steps* watches no gradients of
single examples, *each* all steps and no more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from analysis.benchmarks.workloads import WORKLOADS, Workload, scenario
from fedsim.client.kept import Kept
from fedsim.client.offline import Offline
from fedsim.client.program import Order
from fedsim.learn.monitor import Monitor
from fedsim.learn.work import Start
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.session import execute

WATCHED: Mapping[str, dict[str, Any]] = {"default": {}, "steps": {"noise": 0.0}, "each": {"noise": 0.0, "every": 1}}
FIRST, LAST = 5, 25
"""Rounds between which time is taken: the first ones fill caches."""


def round_s(work: Workload, monitor: dict[str, Any] | None) -> float:
    """Return the mean CPU seconds of a round."""
    stamps: list[float] = []
    table = scenario(work, LAST + 1, 1) | ({} if monitor is None else {"monitor": monitor})
    with tempfile.TemporaryDirectory() as folder:
        execute(load(table), Path(folder) / "run", lambda _: stamps.append(time.process_time()))
    return (stamps[LAST] - stamps[FIRST]) / (LAST - FIRST)


def engine_s(work: Workload) -> Callable[[dict[str, Any] | None], float]:
    """Return what gives the CPU seconds of the engine for the tasks of five versions."""
    parts = build(load(scenario(work, 5, 1)))
    order = Order(parts.job, Start(parts.first))
    plain = [Offline(c, parts.federation, parts.key).plan(order, Kept())[0] for c in range(work.sampled)]

    def spent(monitor: dict[str, Any] | None) -> float:
        total = 0.0
        for version in range(5):
            tasks = plain if monitor is None else [Monitor(**monitor).watched(task, version) for task in plain]
            start = time.process_time()
            parts.engine.run(tasks)
            total += time.process_time() - start
        return total

    spent({"noise": 1.0})  # The first call of each kind fills caches.
    return spent


def ratios(spent: Callable[[dict[str, Any] | None], float], monitor: dict[str, Any], turns: int) -> str:
    """Return the median of *turns* ratios, with and without, and their range."""
    found: list[float] = []
    for turn in range(turns):
        if turn % 2:
            off, on = spent(None), spent(monitor)
        else:
            on, off = spent(monitor), spent(None)
        found.append(on / off)
    return f"{statistics.median(found):.3f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    """Print how many times as long watching takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["W1", "W2"])
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        work = WORKLOADS[name]
        engine = engine_s(work)
        for kind, monitor in WATCHED.items():
            rounds, alone = ratios(partial(round_s, work), monitor, given.turns), ratios(engine, monitor, given.turns)
            print(f"{name} {kind:8} a round: {rounds}; the engine: {alone}", flush=True)


if __name__ == "__main__":
    main()
