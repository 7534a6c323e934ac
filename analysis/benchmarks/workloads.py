"""Seconds a round on four workloads: fedsim.run, a plain sequential PyTorch loop, and hand-derived stacked code.

    python -m analysis.benchmarks.workloads [W1 W4 W2 W2b W3] [--rounds 10] [--turns 3] [--workers 2]

With --workers: seconds a round in one process and with that many workers, in turn, instead of the other loops.

W1   logistic regression 60-10, 1000 clients, 100 a round, 10 steps of 10
W4   logistic regression 60-10, 10,000 clients, 1000 a round, 5 steps of 10
W2   McMahan's 2NN, 100 clients x 600 examples, 10 a round, one epoch of batch 10; W2b the same with all 100
W3   McMahan's CNN, likewise, 10 a round

All in one process and one intra-op thread, in turn. fedsim's figure is the whole of ``fedsim.run`` between two rounds
(stock Flower FedAvg, virtual time, journal), medians; "numeric" is ``CohortEngine.run`` alone on one round's tasks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.client.kept import Kept
from fedsim.client.offline import Offline
from fedsim.client.program import Order
from fedsim.data.source import Examples, Pool
from fedsim.learn.work import Start
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load
from fedsim.session import Progress, execute


@dataclass(frozen=True)
class Workload:
    model: str
    shape: tuple[int, ...]
    clients: int
    each: int
    sampled: int
    hidden: tuple[int, ...] = ()


WORKLOADS = {
    "W1": Workload("logreg", (60,), 1000, 100, 100),
    "W4": Workload("logreg", (60,), 10_000, 50, 1000),
    "W2": Workload("mlp", (1, 28, 28), 100, 600, 10, (200, 200)),
    "W2b": Workload("mlp", (1, 28, 28), 100, 600, 100, (200, 200)),
    "W3": Workload("cnn", (1, 28, 28), 100, 600, 10),
}


def random_pool(shape: list[int], examples: int) -> Pool:
    """Return examples of the wanted shape, labelled by a random linear rule."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(examples, *shape)).astype(np.float32)
    rule = draw.normal(size=(int(np.prod(shape)), 10)).astype(np.float32)
    y = (x.reshape(examples, -1) @ rule).argmax(1)
    return Pool(Examples(x, y), 10, Examples(x[:100], y[:100]))


def scenario(work: Workload, rounds: int, workers: int) -> dict[str, Any]:
    source = {"kind": f"{__spec__.name}:random_pool", "shape": list(work.shape), "examples": work.clients * work.each}  # pyright: ignore
    return {
        "name": "workload",
        "data": {"source": source, "partition": {"kind": "iid"}},
        "clients": {
            "count": work.clients,
            "compute": {"kind": "lognormal", "gflops": 5.0, "overhead_s": 1.0},
            "network": {"kind": "lognormal", "down_mbps": 6.0, "up_mbps": 2.0},
        },
        "model": {"kind": work.model, **({"hidden": list(work.hidden)} if work.hidden else {})},
        "training": {"epochs": 1, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.05}},
        "server": {"strategy": {"kind": "FedAvg", "clients_per_round": work.sampled}, "rounds": rounds},
        "evaluate": {"every": 10_000},
        "engine": {"workers": workers},
    }


def fedsim_rounds(work: Workload, rounds: int, workers: int) -> list[float]:
    """Return the wall seconds between rounds of a whole run, the first left out."""
    stamps: list[float] = []

    def watch(_: Progress) -> None:
        stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        execute(load(scenario(work, rounds + 1, workers)), Path(folder) / "run", watch)
    return [b - a for a, b in zip(stamps[1:-1], stamps[2:], strict=True)]


def rounds_with(work: Workload, rounds: int, workers: int) -> tuple[list[float], float, float]:
    """Return the wall seconds of each round; and per round the CPU seconds of this process, and of the busiest worker.

    The second is what no worker can take off: events, messages, aggregation, journal.
    """
    stamps: list[tuple[float, float, list[float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(scenario(work, rounds + 1, workers))
        execute(loaded, Path(folder) / "run", lambda _: stamps.append((time.perf_counter(), time.process_time(), _children_s())))
    first, last = stamps[1], stamps[-1]
    walls = [b[0] - a[0] for a, b in zip(stamps[1:-1], stamps[2:], strict=True)]
    theirs = max([b - a for a, b in zip(first[2], last[2], strict=True)], default=0.0)
    return walls, (last[1] - first[1]) / rounds, theirs / rounds


def _children_s() -> list[float]:
    """Return the CPU seconds that each child process has used, by process id (Linux)."""
    found: dict[int, float] = {}
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            found[int(child)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return [found[child] for child in sorted(found)]


def plain_round(work: Workload, parts: Parts, x: Tensor, y: Tensor) -> float:
    """Return the wall seconds of one round of the loop anyone would write."""
    model, draw = parts.model, np.random.default_rng(1)
    start = time.perf_counter()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    total = {name: torch.zeros_like(value) for name, value in first.items()}
    for client in draw.choice(work.clients, work.sampled, replace=False).tolist():
        model.load_state_dict(first)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        order = torch.from_numpy(draw.permutation(parts.federation.train(client)))
        for batch in order.split(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        for name, value in model.state_dict().items():
            total[name] += value / work.sampled
    model.load_state_dict(first)
    return time.perf_counter() - start


def numeric_round(work: Workload, parts: Parts) -> float:
    """Return the wall seconds of the engine alone on one round's tasks."""
    order = Order(parts.job, Start(parts.first))
    _ = order.start.content
    engine = parts.engine
    tasks = [Offline(c, parts.federation, parts.key).plan(order, Kept())[0] for c in range(work.sampled)]
    start = time.perf_counter()
    engine.run(tasks)
    return time.perf_counter() - start


def hand_round(work: Workload, parts: Parts, x: Tensor, y: Tensor, chunk: int) -> float:
    """Return the wall seconds of hand-derived stacked SGD on one round's clients (dense layers only)."""
    widths = [int(np.prod(work.shape)), *work.hidden, 10]
    arrays = [torch.tensor(a) for a in parts.first.values()]
    draw = np.random.default_rng(1)
    start = time.perf_counter()
    flat = x.reshape(len(x), -1)
    with torch.no_grad():
        for begin in range(0, work.sampled, chunk):
            rows = range(begin, min(begin + chunk, work.sampled))
            params = [a.expand(len(rows), *a.shape).clone() for a in arrays]
            layers = list(zip(params[::2], params[1::2], strict=True))
            order = np.stack([draw.permutation(parts.federation.train(c)) for c in rows])
            for step in range(0, order.shape[1], 10):
                places = torch.from_numpy(np.ascontiguousarray(order[:, step : step + 10]).reshape(-1))
                _hand_step(layers, flat[places].view(len(rows), 10, widths[0]), y[places].view(len(rows), 10), 0.05)
    return time.perf_counter() - start


def _hand_step(layers: list[tuple[Tensor, Tensor]], x: Tensor, y: Tensor, lr: float) -> None:
    acts = [x]
    for i, (weight, bias) in enumerate(layers):
        z = torch.baddbmm(bias[:, None], acts[-1], weight.transpose(1, 2))
        acts.append(z.relu_() if i < len(layers) - 1 else z)
    rows, batch = y.shape
    delta = acts[-1].softmax(-1)
    delta.scatter_add_(2, y[..., None], torch.full((rows, batch, 1), -1.0))
    delta /= batch
    for i in reversed(range(len(layers))):
        weight, bias = layers[i]
        back = torch.bmm(delta, weight) if i else None
        torch.baddbmm(weight, delta.transpose(1, 2), acts[i], alpha=-lr, out=weight)
        bias.sub_(delta.sum(1), alpha=lr)
        if back is not None:
            delta = back.mul_(acts[i] > 0)


def compare(names: list[str], rounds: int, turns: int, workers: int) -> None:
    """Print seconds a round with one worker and with *workers*, in turn.

    Wall seconds: medians of turns' medians, and the quickest round of each, which other work on the machine disturbs
    least. CPU seconds, which nobody else can take, though a crowded cache stretches them.
    """
    print(f"workload  s/round 1, {workers}: median, times faster | quickest, times faster | CPU s 1; parent + busiest, ratio | turns")
    for name in names:
        found = [[rounds_with(WORKLOADS[name], rounds, n) for n in (1, workers)] for _ in range(turns)]
        medians = [[statistics.median(walls) for walls, _, _ in turn] for turn in found]
        one, many = (statistics.median(column) for column in zip(*medians, strict=True))
        best, bests = (min(second for turn in found for second in turn[i][0]) for i in (0, 1))
        cpu = statistics.median(turn[0][1] for turn in found)
        own, theirs = (statistics.median(turn[1][i] for turn in found) for i in (1, 2))
        print(
            f"{name:8}  {one:.3f}, {many:.3f}: {statistics.median(a / b for a, b in medians):.2f} | {best:.3f}, {bests:.3f}:"
            f" {best / bests:.2f} | {cpu:.3f}; {own:.3f} + {theirs:.3f}: {cpu / (own + theirs):.2f} |"
            f" {', '.join(f'{a / b:.2f}' for a, b in medians)}",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["W1", "W4", "W2"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.workers > 1:
        compare(given.workloads, given.rounds, given.turns, given.workers)
        return
    print("workload  fedsim s/round  plain s/round  times faster | numeric s  hand s  numeric/hand")
    for name in given.workloads:
        work = WORKLOADS[name]
        parts = build(load(scenario(work, 2, 1)))
        pooled: Any = parts.federation.pooled
        x, y = torch.from_numpy(pooled.x), torch.from_numpy(pooled.y)
        rows: list[tuple[float, float, float, float]] = []
        numeric_round(work, parts)  # Traces.
        for _ in range(given.turns):
            ours = statistics.median(fedsim_rounds(work, given.rounds, 1))
            plain = statistics.median(plain_round(work, parts, x, y) for _ in range(3))
            numeric = statistics.median(numeric_round(work, parts) for _ in range(5))
            hand = float("nan")
            if work.model != "cnn":
                hand = statistics.median(hand_round(work, parts, x, y, parts.engine.chunk) for _ in range(5))
            rows.append((ours, plain, numeric, hand))
        ours, plain, numeric, hand = (statistics.median(row[i] for row in rows) for i in range(4))
        speedup = statistics.median(row[1] / row[0] for row in rows)
        ratio = statistics.median(row[2] / row[3] for row in rows)
        print(f"{name:8}  {ours:14.4f}  {plain:13.4f}  {speedup:12.2f} | {numeric:9.4f}  {hand:6.4f}  {ratio:12.2f}")


if __name__ == "__main__":
    main()
