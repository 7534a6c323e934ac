"""What an update rule costs: the engine's time for a round's tasks, as a multiple of plain SGD's, which is fused into the graph.

    OMP_NUM_THREADS=1 python -m analysis.benchmarks.optimizers [W1 W2] [--rules sgd momentum adam] [--turns 9]

The workloads are those of ``workloads``; ``CohortEngine.run`` on the tasks of one round, all rules in turn in one process and one
intra-op thread. Medians of turns; the ratio is the median of the turns' ratios, each of a rule and plain SGD side by side.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from analysis.benchmarks import workloads
from analysis.benchmarks.workloads import WORKLOADS, numeric_round, scenario
from fedsim.scenario.build import build
from fedsim.scenario.load import load

RULES: dict[str, dict[str, Any]] = {
    "sgd": {"training.optimizer": {"kind": "sgd", "lr": 0.05}},
    "momentum": {"training.optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9}},
    "adam": {"training.optimizer": {"kind": "adam", "lr": 0.001}},
    "adamw": {"training.optimizer": {"kind": "adamw", "lr": 0.001}},
    "rmsprop": {"training.optimizer": {"kind": "rmsprop", "lr": 0.001}},
    "adagrad": {"training.optimizer": {"kind": "adagrad", "lr": 0.01}},
    "lars": {"training.optimizer": {"kind": "lars", "lr": 1.0}},
    "lamb": {"training.optimizer": {"kind": "lamb", "lr": 0.001}},
    "clipped sgd": {"training.optimizer": {"kind": "sgd", "lr": 0.05}, "training.clipping": {"kind": "norm", "bound": 1.0}},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["W1", "W2"])
    parser.add_argument("--rules", nargs="*", default=["momentum", "adam"], choices=sorted(RULES))
    parser.add_argument("--turns", type=int, default=9)
    given = parser.parse_args()
    workloads.__spec__.name = "analysis.benchmarks.workloads"  # type: ignore[union-attr]
    torch.set_num_threads(1)
    for name in given.workloads:
        work, rules = WORKLOADS[name], ["sgd", *(rule for rule in given.rules if rule != "sgd")]
        parts = {rule: build(load(scenario(work, 2, 1), RULES[rule])) for rule in rules}
        steps = work.each // 10
        for rule in rules:
            numeric_round(work, parts[rule])  # Traces.
        turns = [
            {rule: min(numeric_round(work, parts[rule]) for _ in range(3)) / steps for rule in rules} for _ in range(given.turns)
        ]
        for rule in rules:
            seconds = statistics.median(turn[rule] for turn in turns)
            ratios = sorted(turn[rule] / turn["sgd"] for turn in turns)
            spread = f"{ratios[len(ratios) // 4]:.2f} to {ratios[-1 - len(ratios) // 4]:.2f}"
            print(f"{name:4} {rule:12} {seconds * 1e6:9.0f} us a step {statistics.median(ratios):6.2f} of plain SGD ({spread})", flush=True)


if __name__ == "__main__":
    main()
