"""Golden digests: three small scenarios. When one changes, the commit message says why.

A digest is promised on one machine type; on another these are skipped, and only repeatability is tested elsewhere.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim.record.manifest import machine, versions

GOLDEN = Path(__file__).with_name("golden.json")
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
}  # fmt: skip


def here() -> dict[str, str]:
    """Return what a digest is promised for: processor, and the versions that do arithmetic."""
    found = versions()
    return {**machine(), "torch": found["torch"], "numpy": found["numpy"], "flwr": found["flwr"]}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_golden_digest_stays(name: str, go: Any) -> None:
    """The digest is the one that was recorded for this machine type."""
    golden = json.loads(GOLDEN.read_text())
    if golden["machine"] != here():
        pytest.skip(f"recorded on another machine type: {golden['machine']}")
    run = go(SCENARIOS[name])

    assert golden["digests"][name] == [run.digest, run.metrics_digest]
