"""The CIFAR-shaped benchmark of pfl-research, on a GPU or, shortened, on a CPU.

    python -m analysis.benchmarks.gpu [--rounds 1500] [--device cuda]

1000 users with 50 images of 32 x 32 x 3 each, a cohort of 50, 5 local steps of batch 10, SGD, two convolutions, and a
central evaluation of 10,000 images every 10 rounds. Prints rounds per second (start-up apart), the share of the
device's peak that training takes, and peak memory. Reference: Granqvist et al. 2024, arXiv:2404.06430.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsim.data.source import Examples, Pool
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load
from fedsim.session import Progress, execute


def random_images() -> Pool:
    """Return images of noise with a class-dependent mean: what is learned is beside the point here."""
    draw = np.random.default_rng(0)
    means = draw.normal(size=(10, 3, 32, 32)).astype(np.float32)

    def some(n: int) -> Examples:
        y = draw.integers(0, 10, n)
        return Examples(means[y] * 0.2 + draw.standard_normal((n, 3, 32, 32), dtype=np.float32), y)

    return Pool(some(50_000), 10, test=some(10_000))


def two_convolutions(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return the network of pfl-research's CIFAR10 benchmark: 32 and 64 channels, 3 x 3, pooling, 128 hidden units."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, outputs),
    )  # fmt: skip


def main() -> None:
    """Run, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--peak-tflops", type=float, default=67.0, help="of the device, float32 without tensor cores")
    asked = parser.parse_args()
    loaded = load({
        "name": "cifar-shaped",
        "data": {"source": {"kind": "analysis.benchmarks.gpu:random_images"}, "partition": {"kind": "iid"}},
        "clients": {"count": 1000},
        "model": {"kind": "analysis.benchmarks.gpu:two_convolutions"},
        "training": {"steps": 5, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
        "server": {"strategy": {"kind": "FedAvg", "clients_per_round": 50}, "rounds": asked.rounds},
        "evaluate": {"every": 10},
        "engine": {"device": asked.device},
    })  # fmt: skip
    parts: Parts = build(loaded)
    told: list[float] = []

    def watch(_: Progress) -> None:
        told.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        execute(loaded, Path(folder) / "run", watch)
    seconds = told[-1] - told[1]  # The first round compiles.
    rounds = len(told) - 2
    flops = rounds * 50 * 50 * parts.fleet.flops.training
    memory = torch.cuda.max_memory_allocated() if asked.device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{asked.device}: {rounds / seconds:.1f} rounds/s; 1500 rounds in {1500 * seconds / rounds:.0f} s")
    print(
        f"training: {flops / seconds / 1e12:.3f} TFLOP/s, {flops / seconds / 1e12 / asked.peak_tflops:.2%} of {asked.peak_tflops} TFLOP/s"
    )
    print(f"peak memory: {memory / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
