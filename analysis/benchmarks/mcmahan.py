"""CPU time of mcmahan-2nn-iid against a plain sequential PyTorch loop that takes the same steps.

    FEDSIM_DATA=... python -m analysis.benchmarks.mcmahan [--rounds 20] [--turns 3]

Both run in one process, in turn, on one intra-op thread: *rounds* rounds of 10 clients, 60 batches of 10 each, and
a central evaluation of 10,000 images per round. The loop has no clock, no journal and no Flower.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from fedsim.scenario.build import build
from fedsim.scenario.load import Loaded, load
from fedsim.session import execute

SCENARIO = Path(__file__).parents[2] / "scenarios" / "mcmahan-2nn-iid.toml"


def plain_loop(x: torch.Tensor, y: torch.Tensor, test: tuple[torch.Tensor, torch.Tensor], rounds: int) -> float:
    """Return the accuracy of FedAvg as anyone would write it: one client after the other, torch.nn and torch.optim."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )
    shares = torch.randperm(len(y)).chunk(100)
    accuracy = 0.0
    for _ in range(rounds):
        start = {name: value.clone() for name, value in model.state_dict().items()}
        total = {name: torch.zeros_like(value) for name, value in start.items()}
        for client in torch.randperm(100)[:10].tolist():
            model.load_state_dict(start)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            order = shares[client][torch.randperm(len(shares[client]))]
            for batch in order.split(10):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
            for name, value in model.state_dict().items():
                total[name] += value / 10
        model.load_state_dict(total)
        with torch.no_grad():
            accuracy = (model(test[0]).argmax(1) == test[1]).float().mean().item()
    return accuracy


def main() -> None:
    """Print CPU seconds of both, and their ratio, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded: Loaded = load(SCENARIO, {"server.rounds": given.rounds, "stop": None})
    parts = build(loaded)
    assert parts.federation.pooled is not None
    x, y = torch.from_numpy(parts.federation.pooled.x), torch.from_numpy(parts.federation.pooled.y)
    ratios: list[float] = []
    for turn in range(given.turns):
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            run = execute(loaded, Path(folder) / "run")
            # The whole run: reading the files, building, tracing, and writing the folder count.
            fedsim_s = time.process_time() - start
            reached = run.final["accuracy"]
        start = time.process_time()
        accuracy = plain_loop(x, y, parts.test, given.rounds)
        loop_s = time.process_time() - start
        ratios.append(fedsim_s / loop_s)
        print(
            f"turn {turn + 1}: fedsim {fedsim_s:.2f} CPU s (accuracy {reached:.4f}), plain loop"
            f" {loop_s:.2f} CPU s ({accuracy:.4f}), ratio {ratios[-1]:.2f}"
        )
    print(f"median ratio over {given.turns} turns of {given.rounds} rounds: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
