"""What a sweep costs beside its runs: 100 of the quickstart (20 learning rates, 5 seeds) on two processes.

    python -m analysis.benchmarks.sweeping [--rates 20] [--seeds 5] [--jobs 2] [--alone 6]

The sweep is a process of its own, timed from its start to its end, imports, plan, table and page included. It is held against the sum of
its runs' own times (wall_s of their manifests, which begins when a run is built) over the number of processes; and against runs by
themselves, of which *alone* are made, each by ``fedsim run`` in a new process, spread over the sweep: their manifests' times, and what
a process takes in all. CPU times are of process and children: on a machine that others use, they waver less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def timed(*words: str) -> tuple[float, float]:
    """Return wall and CPU seconds of a fedsim command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "fedsim", *words], cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def own_s(folder: Path) -> float:
    """Return what the run in *folder* took, by its manifest."""
    return float(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["wall_s"])


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    for name, default in (("rates", 20), ("seeds", 5), ("jobs", 2), ("alone", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    rates = [round(0.05 * (n + 1), 2) for n in range(given.rates)]
    with tempfile.TemporaryDirectory() as scratch:
        file, folder = Path(scratch) / "rates.toml", Path(scratch) / "s"
        table: dict[str, Any] = {"scenario": str(ROOT / "scenarios" / "quickstart.toml"), "seeds": given.seeds}
        lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
        file.write_text("\n".join([*lines, "[keys]", f'"training.optimizer.lr" = {rates}']) + "\n", encoding="utf-8")
        wall_s, cpu_s = timed("sweep", str(file), "--jobs", str(given.jobs), "--out", str(folder), "--quiet")
        runs = [path.parent for path in folder.glob("*/manifest.json")]
        inside = [own_s(run) for run in runs]
        alone = list[tuple[float, float, float]]()
        for n in range(given.alone):
            rate, seed = rates[n * given.rates // given.alone], 7 + n % given.seeds
            out = Path(scratch) / f"alone-{n}"
            words = ("--set", f"training.optimizer.lr={rate}", "--seed", str(seed), "--out", str(out), "--quiet")
            spent = timed("run", table["scenario"], *words)
            alone.append((own_s(out), *spent))
    count = len(runs)
    mean = [sum(each) / max(1, len(alone)) for each in zip(*alone, strict=True)] or [0.0] * 3
    print(f"{count} runs, {given.jobs} processes: the sweep took {wall_s:.1f} s of wall time, {cpu_s:.1f} s of CPU time")
    held = {
        "runs' own times, in the sweep": (sum(inside), wall_s * given.jobs),
        "runs' own times, each alone": (mean[0] * count, wall_s * given.jobs),
        "whole commands, each alone": (mean[1] * count, wall_s * given.jobs), "their CPU times": (mean[2] * count, cpu_s),
    }  # fmt: skip
    for words, (total, took) in held.items():
        print(f"  {words:<30} {total:8.1f} s in all; the sweep took {took / total if total else 0.0:.2f} of that")


if __name__ == "__main__":
    main()
