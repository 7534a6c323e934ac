"""A Flower app by fedsim and by Flower's own simulation engine: wall time per round, start-up, peak memory, and whether two runs agree.

    python -m venv flower-env && flower-env/bin/pip install 'flwr[simulation]==1.41.0'
    python -m analysis.benchmarks.flower --flower flower-env/bin/python [--clients 100 1000] [--rounds 10] [--turns 2]

The same unmodified app (``apps/tiny``: FedAvg, ten float64 numbers, half of the clients train and half evaluate in each round), the same
machine, one after the other in turn; each run is a process of its own. A round is from one ``configure_train`` to the next, medians;
start-up is from the start of the process to the first. Peak memory is the sum of what all processes of a run hold (PSS), sampled; CPU
per round is the time of all of them together, between samples after start-up: it says what the wall time would be on an idle machine,
where others' load makes that waver.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

APP = Path(__file__).parent / "apps" / "tiny"
MARK = "FEDSIM_BENCHMARK"

DRIVER = """
import hashlib, json, os, sys, time
real, began = time.time, float(sys.argv[1])
side, app, clients, rounds, seed, out = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]), sys.argv[7]
from flwr.serverapp.strategy import FedAvg
moments, final = [], []
plain, aggregate = FedAvg.configure_train, FedAvg.aggregate_train
def configure_train(self, *args, **kwargs):
    moments.append(real())
    return plain(self, *args, **kwargs)
def aggregate_train(self, *args, **kwargs):
    found = aggregate(self, *args, **kwargs)
    final[:] = [found[0]["w"].numpy()]
    return found
FedAvg.configure_train, FedAvg.aggregate_train = configure_train, aggregate_train
if side == "fedsim":
    import fedsim
    fleet = {"name": "bench", "seed": seed, "clients": {"count": clients},
             "compute": {"train": {"seconds_per_example": 0.01}, "evaluate": {"seconds_per_example": 0.003}}}
    fedsim.run_app(app, fleet, out=out, run_config={"num-server-rounds": rounds, "seed": seed})
else:
    sys.path.insert(0, app)
    os.environ["PYTHONPATH"] = app
    import flwr.app
    from flwr.simulation import run_simulation
    from tinyapp.client_app import app as client
    from tinyapp.server_app import app as server
    inner = server._main
    def main(grid, context):
        context.run_config = {"num-server-rounds": rounds, "seed": seed, "parameters": 10}
        inner(grid, context)
    server._main = main
    run_simulation(server_app=server, client_app=client, num_supernodes=clients,
                   backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
print("RESULT" + json.dumps({
    "startup": moments[0] - began, "moments": moments,
    "hash": hashlib.sha256(final[0].tobytes()).hexdigest()}))
"""


def held(mark: str) -> tuple[float, float]:
    """Return what all processes that carry *mark* in their environment hold, in MiB, and the CPU seconds that they took."""
    total, ticks = 0, 0
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes():
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                ticks += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13]))
        except OSError:
            continue
    return total / 1024, ticks / os.sysconf("SC_CLK_TCK")


def run(python: str, side: str, clients: int, rounds: int, seed: int) -> dict[str, Any]:
    """Return the figures of one run of the app by *side*, in a process of its own."""
    mark, over = f"{MARK}={uuid.uuid4().hex}", threading.Event()
    samples: list[tuple[float, float, float]] = []

    def watch() -> None:
        while not over.wait(0.2):
            samples.append((time.time(), *held(mark)))

    environment = {
        **os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0", **dict([mark.split("=")]),
    }  # fmt: skip
    if side != "fedsim":
        environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as scratch:
        watcher = threading.Thread(target=watch)
        watcher.start()
        words = [python, "-c", DRIVER, str(time.time()), side, str(APP), str(clients), str(rounds), str(seed), f"{scratch}/run"]
        try:
            done = subprocess.run(words, env=environment, cwd=scratch, capture_output=True, text=True, timeout=3600, check=False)
        finally:
            over.set()
            watcher.join()
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(f"{side} with {clients} clients failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found = json.loads(lines[0].removeprefix("RESULT"))
    moments = found["moments"]
    inside = [(at, cpu) for at, _, cpu in samples if moments[1] <= at <= moments[-1]]
    cpu = float("nan")
    if len(inside) > 1:
        (first, before), (last, after) = inside[0], inside[-1]
        cpu = (after - before) / (last - first) * (moments[-1] - moments[1]) / (len(moments) - 2)
    rounds = [b - a for a, b in zip(moments[1:], moments[2:], strict=False)]
    return {**found, "round": statistics.median(rounds), "cpu": cpu, "peak": max(mib for _, mib, _ in samples)}


def main() -> None:
    """Print a table, a line per number of clients and side."""
    words = argparse.ArgumentParser()
    words.add_argument("--flower", required=True, help="the Python of an environment with flwr[simulation]")
    words.add_argument("--clients", type=int, nargs="+", default=[100, 1000])
    words.add_argument("--rounds", type=int, default=10)
    words.add_argument("--turns", type=int, default=2)
    asked = words.parse_args()
    print("| clients | by | s per round | CPU s per round | start-up s | peak MiB | seeded runs agree |")
    print("|---|---|---|---|---|---|---|")
    for clients in asked.clients:
        both: dict[str, float] = {}
        runs: dict[str, list[dict[str, Any]]] = {"Flower": [], "fedsim": []}
        for _ in range(asked.turns):
            for side, python in (("Flower", asked.flower), ("fedsim", sys.executable)):
                runs[side].append(run(python, side, clients, asked.rounds, seed=3))
        for side, found in runs.items():
            both[side] = statistics.median(one["round"] for one in found)
            startup, peak, cpu = (statistics.median(one[name] for one in found) for name in ("startup", "peak", "cpu"))
            agree = "yes" if len({one["hash"] for one in found}) == 1 else "no"
            print(f"| {clients:,} | {side} | {both[side]:.3f} | {cpu:.3f} | {startup:.1f} | {peak:.0f} | {agree} |", flush=True)
        print(f"| {clients:,} | ratio | {both['Flower'] / both['fedsim']:.1f} | | | | |", flush=True)


if __name__ == "__main__":
    main()
