"""CPU time of this checkout against another one's, in turn: is a change slower?

    python -m analysis.benchmarks.pairs OTHER [W1 W4 W2] [--pairs 15] [--rounds 10]

OTHER is a checkout of the version before (git worktree add). Each version has one process, which imports, builds and warms up once and
then runs the workload when it is asked, in turn; CPU seconds of ``execute``, which nobody else on the machine can take, per
message. The ratio of each pair, its median and a 95 % interval of the mean of their logarithms; peak memory at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).parents[2]


def serve(name: str, rounds: int) -> None:
    """Answer each line of standard input by [CPU s per message, peak MiB] of one run."""
    from analysis.benchmarks import workloads
    from fedsim.scenario.load import load
    from fedsim.session import execute

    workloads.__spec__.name = "analysis.benchmarks.workloads"  # type: ignore[union-attr]
    work = workloads.WORKLOADS[name]
    loaded = load(workloads.scenario(work, rounds, 1))
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            run = execute(loaded, Path(folder) / "run")
            spent = time.process_time() - start
            print(json.dumps([spent / len(run.tasks), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), flush=True)


def asked(child: subprocess.Popen[str]) -> list[float]:
    """Return what *child* measures."""
    assert child.stdin and child.stdout
    child.stdin.write("\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def started(folder: Path, name: str, rounds: int) -> subprocess.Popen[str]:
    """Return the process of the version in *folder*."""
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", name, "--rounds", str(rounds)]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def main() -> None:
    """Compare, or serve one side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("other", nargs="?")
    parser.add_argument("names", nargs="*", default=["W1", "W4", "W2"])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--serve")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.rounds)
        return
    print("workload  CPU us per message before, now | ratio: median, 95 % interval | peak MiB before, now")
    for name in given.names or ["W1", "W4", "W2"]:
        sides = [started(Path(given.other).resolve(), name, given.rounds), started(ROOT, name, given.rounds)]
        for side in sides:
            asked(side)  # Compiles, and fills caches.
        found = []
        for pair in range(given.pairs):
            both = {i: asked(sides[i]) for i in ((0, 1) if pair % 2 else (1, 0))}
            found.append((both[0], both[1]))
        for side in sides:
            side.kill()
        logs = [math.log(now[0] / before[0]) for before, now in found]
        half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        low, high = (math.exp(statistics.mean(logs) + sign * half) for sign in (-1, 1))
        before, now = (statistics.median(pair[i][0] for pair in found) * 1e6 for i in (0, 1))
        print(
            f"{name:<8}  {before:8.1f} {now:8.1f} | {math.exp(statistics.median(logs)):.3f}  {low:.3f} to {high:.3f} |"
            f" {found[-1][0][1]:.0f} {found[-1][1][1]:.0f}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
