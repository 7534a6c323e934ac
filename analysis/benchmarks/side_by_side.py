"""What it costs that the SuperNodes of one machine work side by side: processes of one thread, all at once or one for each core.

    python -m analysis.benchmarks.side_by_side [--processes 8] [--pairs 3]

Flower starts a process for each message. Each here imports what that does, builds a small scenario and trains one task. CPU seconds of
a process, all and few at a time in turn, so that others' company tells on both; memory is the proportional share (Pss), at its peak.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fedsim.real.commands import ONE_THREAD

WORK = """
import fedsim.real.client
from fedsim.scenario.load import load
from fedsim.session import execute
import tempfile
with tempfile.TemporaryDirectory() as folder:
    settings = {"clients.count": 1, "server.rounds": 1, "server.strategy.min_train_nodes": 1, "server.strategy.min_available_nodes": 1}
    execute(load("scenarios/quickstart.toml", settings), folder)
"""


class Memory(threading.Thread):
    """Looks, until it is told to stop, at what the processes that live take together; *peak_bytes* is the most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.alive: set[int] = set()
        self.peak_bytes, self.over = 0, False

    def run(self) -> None:
        """Look ten times a second."""
        while not self.over:
            self.peak_bytes = max(self.peak_bytes, sum(map(_share, list(self.alive))))
            time.sleep(0.1)


def _share(pid: int) -> int:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0


def measured(processes: int, at_once: int) -> tuple[float, float, int]:
    """Return the CPU seconds of a process (the mean), the wall seconds of all, and their peak of memory."""
    memory, seconds = Memory(), list[float]()
    memory.start()

    def one(_number: int) -> None:
        child = subprocess.Popen([sys.executable, "-c", WORK], env={**os.environ, **ONE_THREAD})
        memory.alive.add(child.pid)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        memory.alive.discard(child.pid)
        if child.returncode:
            raise SystemExit(f"a process ended with code {child.returncode}")
        seconds.append(used.ru_utime + used.ru_stime)

    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, range(processes)))
    wall_s = time.monotonic() - began
    memory.over = True
    memory.join()
    return statistics.mean(seconds), wall_s, memory.peak_bytes


def main(words: Sequence[str] | None = None) -> None:
    """Print both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args(words)
    cores, ratios = os.cpu_count() or 1, list[float]()
    measured(1, 1)  # What is compiled once is not anybody's.
    for _ in range(given.pairs):
        (few, *few_more), (many, *many_more) = measured(given.processes, cores), measured(given.processes, given.processes)
        ratios.append(many / few)
        for at_once, cpu_s, (wall_s, peak) in ((cores, few, few_more), (given.processes, many, many_more)):
            print(f"{at_once:3} at once: {cpu_s:6.2f} CPU s each, {wall_s:6.1f} s in all, {peak / 1e9:5.2f} GB at most", flush=True)
    print(f"CPU, all at once over one for each core: {statistics.median(ratios):.2f} (median of {given.pairs} pairs; {min(ratios):.2f} to"
          f" {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
