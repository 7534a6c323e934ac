"""Plays the golden scenarios with ``engine.reproducible = "everywhere"``, and prints their digests: ``python play.py [NAME ...]``.

They are played one after the other in one process that began with its arithmetic pinned, which saves starts; where it did not begin so,
each run would start one of its own, and come to the same.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]  # This checkout, whichever is installed.

from fedsim.core import pinned  # noqa: E402

SCENARIOS: dict[str, dict[str, Any]] = {
    "dirichlet-mlp": {
        "data.partition": {"kind": "dirichlet", "alpha": 0.3}, "model": {"kind": "mlp", "hidden": [16]},
        "server.strategy": {"kind": "FedAvg", "fraction_train": 0.5}, "server.rounds": 4,
    },
    "late-cnn": {
        "model": {"kind": "cnn"}, "server.round_timeout_s": 8.0, "server.rounds": 2, "clients.count": 4,
        "training.optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
    },
    "private-leaf": {
        "data": {"source": {"kind": "leaf_synthetic", "alpha": 1.0, "beta": 1.0}}, "training": {
            "steps": 7, "batch_size": 8, "optimizer": {"kind": "sgd", "lr": 0.02, "weight_decay": 0.01}},
        "clients.availability": {"kind": "onoff", "mean_on_s": 30.0, "mean_off_s": 5.0}, "evaluate.federated_fraction": 0.5,
        "server.strategy": {
            "kind": "DifferentialPrivacyServerSideFixedClipping", "noise_multiplier": 0.1, "clipping_norm": 1.0,
            "num_sampled_clients": 3, "strategy": {"kind": "FedAvg", "clients_per_round": 3}},
    },
    "er-reservoir": {
        "stream": {"arrivals": {"kind": "poisson", "per_s": 2.0}, "trigger": {"kind": "count", "examples": 8}}, "server.rounds": 4,
        "clients.replay": {"kind": "reservoir", "capacity": 12}, "model": {"kind": "mlp", "hidden": [16], "dropout": 0.2},
    },
    "der-late": {
        "stream": {"arrivals": {"kind": "constant", "per_s": 2.0}, "trigger": {"kind": "count", "examples": 6},
                   "labels": {"kind": "exponential", "delay_s": 1.0}},
        "clients.replay": {"kind": "fifo", "capacity": 10}, "training.rehearsal": {"kind": "der++"}, "server.rounds": 6,
        "clients.detector": {"kind": "ddm"}, "clients.reaction": {"kind": "adapt", "buffer": "shrink", "lr_factor": 2.0},
        "server.round_timeout_s": 4.3,
    },
    "drift-local": {
        "stream": {"arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 5}, "predict": "local",
                   "drift": {"change": {"kind": "rotate", "degrees": 90.0}, "schedule": {"kind": "abrupt", "at_s": [8.0]}}},
        "server.rounds": 4, "model.standardise": True,
    },
    "mods": {
        "server.strategy": {
            "kind": "DifferentialPrivacyClientSideFixedClipping", "noise_multiplier": 0.1, "clipping_norm": 1.0,
            "num_sampled_clients": 6, "strategy": {"kind": "FedAdam"}},
        "engine.dtype": "float64",
    },
    "scaffold-adam-coded": {
        "training.algorithm": {"kind": "scaffold"}, "training.optimizer": {"kind": "adam", "lr": 0.02, "state": "keep"},
        "codec": {"down": {"kind": "bfloat16"}, "up": {"kind": "bfloat16"}}, "server.rounds": 3, "server.round_timeout_s": 1.18,
    },
    "feddyn-momentum": {
        "training.algorithm": {"kind": "feddyn", "alpha": 0.1}, "model": {"kind": "mlp", "hidden": [16], "dropout": 0.2},
        "training.optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "state": "keep"}, "server.rounds": 3,
    },
    "fednova-early": {
        "data.partition": {"kind": "dirichlet", "alpha": 0.3}, "training": {"epochs": 6, "batch_size": 5, "optimizer": {"kind": "sgd",
        "lr": 0.5}, "algorithm": {"kind": "fednova"}, "stopping": {"kind": "patience", "epochs": 1}}, "server.rounds": 3,
    },
}  # fmt: skip


def played(*names: str) -> dict[str, list[str]]:
    """Return digest and metrics digest of each of the scenarios *names*, all by default, played in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, *(names or SCENARIOS)]
    done = subprocess.run(command, env=pinned.pinned(os.environ), check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Play the scenarios named on the command line, here and now."""
    import fedsim
    from conftest import tiny_table

    digests: dict[str, list[str]] = {}
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            run = fedsim.run(tiny_table(), overrides={**SCENARIOS[name], "engine.reproducible": "everywhere"}, out=f"{folder}/run")
            digests[name] = [run.digest, run.metrics_digest]
            print(name, run.final, run.tasks.outcome.value_counts().to_dict(), file=sys.stderr)
    print(json.dumps(digests))


if __name__ == "__main__":
    main()
