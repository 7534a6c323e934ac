"""What watching costs: CPU seconds a round with [monitor] at its defaults and without, in turn in one process.

    python -m analysis.benchmarks.monitor [W1 W2] [--rounds 20] [--turns 5]

Workloads as in ``workloads``: W1 is logistic regression with 100 clients a round, W2 McMahan's 2NN with 10. One intra-op thread; the
figure is the whole of ``fedsim.run`` between two rounds, medians over all rounds of all turns, and the ratio of the two; "engine" is
the median of such ratios of ``CohortEngine.run`` alone, on one round's tasks, one right after the other. *steps* watches no gradients of
single examples, *each* all steps and no more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from analysis.benchmarks.workloads import WORKLOADS, Workload, scenario
from fedsim.client.kept import Kept
from fedsim.client.offline import Offline
from fedsim.client.program import Order
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.monitor import Monitor
from fedsim.learn.work import Start, Task
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.session import Progress, execute

WATCHED: Mapping[str, dict[str, Any] | None] = {
    "off": None, "default": {}, "steps": {"noise": 0.0}, "each": {"noise": 0.0, "every": 1},
}  # fmt: skip


def rounds_of(work: Workload, rounds: int, monitor: dict[str, Any] | None) -> list[float]:
    """Return the CPU seconds between rounds of a whole run, the first left out."""
    stamps: list[float] = []

    def watch(_: Progress) -> None:
        stamps.append(time.perf_counter())

    table = scenario(work, rounds + 1, 1) | ({} if monitor is None else {"monitor": monitor})
    with tempfile.TemporaryDirectory() as folder:
        execute(load(table), Path(folder) / "run", watch)
    return [b - a for a, b in zip(stamps[1:-1], stamps[2:], strict=True)]


def engine_ratios(work: Workload, turns: int) -> dict[str, float]:
    """Return how much longer the engine takes for the tasks of five rounds, by what is watched."""
    parts = build(load(scenario(work, 5, 1)))
    order = Order(parts.job, Start(parts.first))
    plain = [Offline(c, parts.federation, parts.key).plan(order, Kept())[0] for c in range(work.sampled)]
    ratios: dict[str, list[float]] = {kind: [] for kind in WATCHED}
    for _ in range(turns):
        for kind, settings in WATCHED.items():
            seen = 0.0
            for version in range(5):  # Of which one has single examples in it.
                watched = plain if settings is None else [Monitor(**settings).watched(task, version) for task in plain]
                seen += _spent(parts.engine, watched)
            ratios[kind].append(seen / sum(_spent(parts.engine, plain) for _ in range(5)))
    return {kind: statistics.median(found) for kind, found in ratios.items()}


def _spent(engine: CohortEngine, tasks: list[Task]) -> float:
    start = time.process_time()
    engine.run(tasks)
    return time.process_time() - start


def main() -> None:
    """Print seconds a round, and how much more watching takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["W1", "W2"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        spent: dict[str, list[float]] = {kind: [] for kind in WATCHED}
        for _ in range(given.turns):
            for kind, monitor in WATCHED.items():
                spent[kind] += rounds_of(WORKLOADS[name], given.rounds, monitor)
        off, engine = statistics.median(spent["off"]), engine_ratios(WORKLOADS[name], 2 * given.turns + 1)
        print(f"{name}: {1e3 * off:.1f} ms a round (engine: {engine['off']:.3f})")
        for kind in ("default", "steps", "each"):
            median = statistics.median(spent[kind])
            mean = statistics.fmean(spent[kind]) / statistics.fmean(spent["off"])
            print(f"  {kind:8} {1e3 * median:8.1f} ms  {median / off:.3f} times as long (means: {mean:.3f}; engine: {engine[kind]:.3f})")


if __name__ == "__main__":
    main()
