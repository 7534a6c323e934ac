"""A million client tasks on the virtual clock, nothing trained: processor seconds, and whether memory grows with their number.

    python -m analysis.benchmarks.dry [--tasks 1000000] [--each 1000]

A fleet of 100,000 devices and links of which so many are asked in a round. Two ways: as it is where messages are independent of each other,
which are worked out a push at a time; and behind a link of the server's, where each is a process of its own on the clock.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

from fedsim.preview import preview
from fedsim.scenario.load import load

SCENARIO: dict[str, Any] = {
    "name": "dry",
    "data": {"source": {"kind": "leaf_synthetic", "alpha": 1.0, "beta": 1.0}},
    "clients": {
        "count": 100_000,
        "compute": {"kind": "lognormal", "gflops": 5.0, "overhead_s": 1.0},
        "network": {"kind": "lognormal", "down_mbps": 6.0, "up_mbps": 2.0, "latency_s": 0.05},
    },
    "model": {"kind": "logreg"},
    "training": {"steps": 5, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
    "server": {"strategy": {"kind": "FedAvg", "clients_per_round": 1000}, "rounds": 1000},
}  # fmt: skip
LINK: dict[str, Any] = {"server.link": {"egress_mbps": 100.0, "ingress_mbps": 100.0}}


def one(tasks: int, each: int, *, shared: bool) -> None:
    """Time one dry run in this process; print processor seconds, and MiB at the most when a tenth of it was over and at the end."""
    given = {"server.strategy.clients_per_round": each, "server.rounds": tasks // each, **(LINK if shared else {})}
    loaded, marks = load(SCENARIO, given), list[float]()

    def watch(done: int, of: int) -> None:
        if not marks and done >= of // 10:
            marks.append(_mib())

    began = time.process_time()
    found = preview(loaded, wall_s=1e9, watch=watch)
    spent = time.process_time() - began
    assert found.foretold.whole
    print(f"{'shared' if shared else 'own'} links: {spent:.1f} s, {tasks / spent:,.0f} tasks/s, {marks[0]:.0f} MiB and {_mib():.0f} MiB")


def _mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure both, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--each", type=int, default=1000)
    parser.add_argument("--only", choices=["own", "shared"])
    asked = parser.parse_args()
    if asked.only:
        one(asked.tasks, asked.each, shared=asked.only == "shared")
        return
    for way in ("own", "shared"):
        command = [sys.executable, "-m", "analysis.benchmarks.dry", "--tasks", str(asked.tasks), "--each", str(asked.each), "--only", way]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
