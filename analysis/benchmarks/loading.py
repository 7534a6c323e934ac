"""What reading mini-batches out of a client's examples costs our own engine, as a share of its steps.

    python -m analysis.benchmarks.loading [W1 W2 W3] [--turns 5]

In a step the rows of the batch are gathered from the pool (``index_select``, of features and of targets), and the compiled
graph runs on them. One round's tasks of each workload are trained by ``CohortEngine.run``, and again with a second batch gathered
beside each, from elsewhere in the pool, so that no cache has it; what that adds is what one costs. In turn, medians, one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from analysis.benchmarks.workloads import WORKLOADS, scenario
from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.learn.engine.updates import Updates
from fedsim.learn.work import Start
from fedsim.scenario.build import build
from fedsim.scenario.load import load


def twice(updates: type[Updates]) -> Any:
    """Return a pass that gathers another batch of the same size before it runs."""
    once = updates._pass

    def run(self: Updates, compiled: Any, kind: Any, mine: Any, read: Any, rate: float) -> Any:
        x, y = self.pool
        index = torch.from_numpy((read.reshape(-1) + len(y) // 2) % len(y)).to(x.device)
        gathered: list[Tensor] = [each.index_select(0, index).view(len(read), kind[0], *each.shape[1:]) for each in (x, y)]
        found = once(self, compiled, kind, mine, read, rate)
        del gathered
        return found

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["W1", "W2", "W3"])
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    once, more = Updates._pass, twice(Updates)
    for name in asked.workloads:
        work = WORKLOADS[name]
        parts = build(load(scenario(work, 1, 1)))
        start = Start(parts.first)
        tasks = [parts.fleet.client(c).plan(Order(parts.job, start), Kept())[0] for c in range(work.sampled)]
        parts.engine.run(tasks[:2])
        spent: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(asked.turns):
            for double in (False, True):
                Updates._pass = more if double else once
                began = time.process_time()
                parts.engine.run(tasks)
                spent[double].append(time.process_time() - began)
        Updates._pass = once
        base = statistics.median(spent[False])
        added = statistics.median(b - a for a, b in zip(spent[False], spent[True], strict=True))
        each = 1e6 * added / sum(task.steps for task in tasks)
        print(f"{name}: {base * 1e3:.1f} ms a round, gathering {added * 1e3:.1f} ms of it, {added / base:.1%}; {each:.2f} us a client-step")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
