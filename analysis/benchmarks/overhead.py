"""What a client message costs beyond training: fedsim against bare Flower objects and the stock aggregation.

    python -m analysis.benchmarks.overhead [--clients 1000] [--rounds 10] [--profile]

Both sides do the same rounds with the same tiny model in one process, in turn; the engine is replaced by one that
hands out ready results, so that what is left is events, journal and messages. CPU seconds, medians, one thread.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsim.flower import compat, compat_lazy, compat_steps, records
from fedsim.learn.engine.stack import Stack
from fedsim.learn.work import Result, Row, Task
from fedsim.record.journal import Journal
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load
from fedsim.sim.grid import VirtualGrid


class Ready:
    """An engine whose results lie ready: the start, as it came, stacked as an engine's results are."""

    def __init__(self, parts: Parts) -> None:
        self._tasks, self._given = dict[int, Task](), 0
        self._first, self._chunk = parts.first, parts.engine.chunk

    def submit(self, task: Task) -> int:
        self._given += 1
        self._tasks[self._given] = task
        return self._given

    def collect(self, tickets: Sequence[int], others: Iterable[int] = ()) -> list[Result]:
        found: list[Result] = []
        for begin in range(0, len(tickets), self._chunk):
            starts = [self._tasks.pop(ticket).start.params for ticket in tickets[begin : begin + self._chunk]]
            stack = Stack(list(self._first), [torch.from_numpy(np.stack([start[name] for start in starts])) for name in self._first])
            found += [Result({"train_loss": 1.0}, Row(stack, at)) for at in range(len(starts))]
        return found

    def discard(self, ticket: int) -> None:
        del self._tasks[ticket]


def scenario(clients: int) -> dict[str, object]:
    """Return a scenario with W4's model: logistic regression 60-10, every client in every round."""
    return {
        "name": "overhead",
        "data": {"source": {"kind": "leaf_synthetic", "alpha": 1.0, "beta": 1.0}},
        "clients": {
            "count": clients,
            "compute": {"kind": "lognormal", "gflops": 5.0, "overhead_s": 1.0},
            "network": {"kind": "lognormal", "down_mbps": 6.0, "up_mbps": 2.0},
        },
        "model": {"kind": "logreg"},
        "training": {"steps": 5, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
        "server": {"strategy": {"kind": "FedAvg"}, "rounds": 1000},
    }


def ours(parts: Parts, rounds: int, folder: Path) -> list[float]:
    """Return the CPU seconds of each round through the virtual grid and the journal."""
    journal = Journal(folder)
    grid = VirtualGrid(parts.fleet, Ready(parts), journal, writable=False)
    strategy = compat_steps.name_draws(FedAvg(fraction_evaluate=0.0), parts.key)
    arrays, config = compat.array_record(parts.first), records.job_config(parts.job)
    spent: list[float] = []
    with compat.log_to(None), compat_lazy.lazily(strategy):
        for number in range(1, rounds + 1):
            start = time.process_time()
            replies = grid.send_and_receive(strategy.configure_train(number, arrays, config, grid), timeout=1e6)
            new, _ = strategy.aggregate_train(number, replies)
            spent.append(time.process_time() - start)
            arrays = new
    journal.close()
    return spent


def bare(parts: Parts, rounds: int) -> list[float]:
    """Return the CPU seconds of each round made of Flower's own objects: messages, replies, stock aggregation."""
    strategy = FedAvg(fraction_evaluate=0.0)
    arrays, config = ArrayRecord({n: Array(a) for n, a in parts.first.items()}), records.job_config(parts.job)
    spent: list[float] = []
    with compat.log_to(None):
        for number in range(1, rounds + 1):
            start = time.process_time()
            config["server-round"] = number
            content = RecordDict({"arrays": arrays, "config": ConfigRecord(dict(config))})
            messages = [Message(content, node + 1000, "train") for node in range(parts.federation.count)]
            replies = [
                Message(
                    RecordDict({
                        "arrays": ArrayRecord({n: Array(a) for n, a in parts.first.items()}),
                        "metrics": MetricRecord({"num-examples": 50, "train_loss": 1.0}),
                    }),
                    reply_to=message,
                )
                for message in messages
            ]  # fmt: skip
            new, _ = strategy.aggregate_train(number, replies)
            spent.append(time.process_time() - start)
            arrays = new or arrays
    return spent


def main() -> None:
    """Print both costs per message, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    with compat.log_to(None):
        parts = build(load(scenario(given.clients)))
    compat.set_identity()
    us = 1e6 / given.clients
    with tempfile.TemporaryDirectory() as folder:
        if given.profile:
            profile = cProfile.Profile()
            profile.runcall(ours, parts, given.rounds, Path(folder))
            pstats.Stats(profile).sort_stats("tottime").print_stats(35)
            return
        pairs: list[tuple[float, float]] = []
        for turn in range(3):
            (path := Path(folder) / str(turn)).mkdir()
            a, b = ours(parts, given.rounds, path), bare(parts, given.rounds)
            pairs += list(zip(a[1:], b[1:], strict=True))  # The first round fills caches.
    ours_us = statistics.median(a for a, _ in pairs) * us
    bare_us = statistics.median(b for _, b in pairs) * us
    extra = statistics.median(a - b for a, b in pairs) * us
    print(f"{given.clients} messages a round, {len(pairs)} paired rounds, CPU us per message, medians:")
    print(f"  fedsim (events, journal, messages, stock aggregation)  {ours_us:7.1f}")
    print(f"  bare Flower objects and stock aggregation              {bare_us:7.1f}")
    print(f"  beyond bare Flower                                     {extra:7.1f}")
    print(f"  seed arrays: {np.sum([a.size for a in parts.first.values()])} parameters")


if __name__ == "__main__":
    main()
