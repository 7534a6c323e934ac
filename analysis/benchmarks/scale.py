"""Start-up: imports, the command line's help, and a fleet of 100,000 clients of which 100 train in a round.

    python -m analysis.benchmarks.scale

Each figure is a process of its own, median of five; the fleet's is start-up beyond imports, and peak memory.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

_FLEET = """
import resource, tempfile, time
import sklearn.datasets, torch, torch._dynamo, flwr.serverapp.strategy
from torch.fx.experimental.proxy_tensor import make_fx
import fedsim
from fedsim.scenario.build import build
from fedsim.scenario.load import load
table = {
    "name": "fleet",
    "data": {"source": {"kind": "leaf_synthetic", "alpha": 1.0, "beta": 1.0}},
    "clients": {
        "count": 100_000,
        "compute": {"kind": "lognormal", "gflops": 5.0, "overhead_s": 1.0},
        "network": {"kind": "lognormal", "down_mbps": 6.0, "up_mbps": 2.0},
        "availability": {"kind": "%s"%s},
    },
    "model": {"kind": "logreg"},
    "training": {"steps": 5, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
    "server": {"strategy": {"kind": "FedAvg", "clients_per_round": 100}, "rounds": 3},
}
start = time.perf_counter()
build(load(table))
built = time.perf_counter() - start
with tempfile.TemporaryDirectory() as folder:
    run = fedsim.run(table, out=folder + "/run")
    wall = run.manifest["wall_s"]
print(built, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def median_wall(*command: str) -> float:
    """Return the median wall seconds of a command over five runs."""
    import time

    spent: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def main() -> None:
    """Print the figures."""
    python = sys.executable
    loaded = "import fedsim, sys; assert 'torch' not in sys.modules"
    print(f"import fedsim        {median_wall(python, '-c', loaded):.2f} s, without torch")
    print(f"fedsim --help        {median_wall(python, '-c', 'from fedsim.cli import main; main()', '--help'):.2f} s")
    for kind, settings in (("always", ""), ("onoff", ', "mean_on_s": 600.0, "mean_off_s": 600.0')):
        rows = [
            [float(word) for word in subprocess.check_output([python, "-c", _FLEET % (kind, settings)], text=True).split()]
            for _ in range(5)
        ]
        built, wall, memory = (statistics.median(row[i] for row in rows) for i in range(3))
        print(
            f"100,000 clients ({kind}): start-up beyond imports {built:.2f} s, three rounds of 100 {wall:.2f} s,"
            f" peak memory {memory:.2f} GiB"
        )


if __name__ == "__main__":
    main()
