"""Replay memories: what a thousand of them weigh, and what an add and a draw cost, for every policy; what training on them costs.

    python -m analysis.benchmarks.replay
    python -m analysis.benchmarks.replay --train [CLIENTS]    # only rehearsal that depends on numbers: together, and one at a time

CPU time; 10 new and 10 replayed examples per mini-batch, 10 classes that come mixed. ``schedule`` walks a whole pass at
once; ``add`` and ``draw`` are single calls on a full memory. Vectors told to a policy have 16 numbers.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from dataclasses import replace
from unittest.mock import patch

import numpy as np

from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.keys import Key
from fedsim.core.state import State, pack
from fedsim.core.types import Array
from fedsim.data.replay import Arrivals, Replay, losses, replays, vectors  # noqa: F401  # Importing registers.
from fedsim.data.replay.memory import schedule
from fedsim.learn.engine import cohort
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.work import Start, Task
from fedsim.scenario.build import build
from fedsim.scenario.load import load

_BATCH = 10


def made(name: str, capacity: int) -> Replay:
    """Return the policy called *name*."""
    settings = {} if name == "none" else {"capacity": capacity}
    return replays.call(replays.get(name, at=name), settings, outputs=10, example_bytes=784)


def stream(n: int) -> tuple[Arrivals, dict[str, Array]]:
    """Return *n* items, and all the numbers that a policy may be told of them."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((n, 16))
    told = {"losses": rng.exponential(1.0, n), "gradients": drawn, "features": drawn}
    return Arrivals(np.arange(n), rng.integers(10, size=n), np.arange(n, dtype=np.float64)), told


def thousand(name: str) -> tuple[float, float, float]:
    """Return what 1000 full memories of 500 weigh, in MB: their arrays, all that Python allocates, as bytes.

    For policies over vectors 50 are made, and counted twenty times: filling one takes long.
    """
    new, told = stream(1000)
    clients = 50 if made(name, 500).needs & {"gradients", "features"} else 1000
    tracemalloc.start()
    replay = made(name, 500)
    states = [replay.add(replay.empty(), new, Key(client), told) for client in range(clients)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    arrays = sum(array.nbytes for state in states for array in state.values())
    scale = 1000 / clients / 1e6
    return arrays * scale, held * scale, sum(len(pack(state)) for state in states) * scale


def single(name: str, capacity: int, steps: int = 100) -> tuple[float, float]:
    """Return microseconds per add and per draw on a full memory, halfway through a stream of twice its size or more."""
    n = 2 * capacity + steps * _BATCH
    new, told = stream(n)
    replay, key = made(name, capacity), Key(0)
    begin = n - steps * _BATCH
    state: State = replay.add(replay.empty(), new[:begin], key, {k: v[:begin] for k, v in told.items()})
    adding = drawing = 0.0
    for step in range(steps):
        cut = slice(begin + step * _BATCH, begin + (step + 1) * _BATCH)
        batch, numbers = new[cut], {k: v[cut] for k, v in told.items()}
        one = time.process_time()
        replay.draw(state, _BATCH, key.fold("draw", step), 0.0)
        two = time.process_time()
        state = replay.add(state, batch, key, numbers)
        adding, drawing = adding + time.process_time() - two, drawing + two - one
    return adding / steps * 1e6, drawing / steps * 1e6


def whole(name: str, capacity: int, steps: int = 12_000) -> float:
    """Return seconds for *steps* mini-batches at once: what each replays, and the memory in the end."""
    new, _ = stream(steps * _BATCH)
    replay = made(name, capacity)
    began = time.process_time()
    schedule(replay, replay.empty(), new, [_BATCH] * steps, _BATCH, Key(0), 0, 0.0)
    return time.process_time() - began


METHODS = {
    "`der++`, reservoir": ("der++", "reservoir"), "`der`, reservoir": ("der", "reservoir"), "`a_gem`, reservoir": ("a_gem", "reservoir"),
    "`lwf`": ("lwf", "none"), "`ewc`": ("ewc", "none"), "`er`, `prioritised`": ("er", "prioritised"),
    "`er`, `loss_aware`": ("er", "loss_aware"), "`er`, `mir`": ("er", "mir"),
}  # fmt: skip
"""What depends on numbers: training.rehearsal and clients.replay."""


def rehearsing(method: str, policy: str, clients: int) -> tuple[CohortEngine, list[Task]]:
    """Return an engine, and the third task of each of *clients*: eight steps of 10 new and 10 replayed digits by an MLP of 64-32-10."""
    replay = {"kind": policy} if policy == "none" else {"kind": policy, "capacity": 20}
    parts = build(load({
        "name": "rehearsing", "seed": 1, "data": {"source": {"kind": "digits"}, "partition": {"kind": "iid"}, "test_fraction": 0.1},
        "clients": {"count": clients, "replay": replay}, "model": {"kind": "mlp", "hidden": [32]},
        "server": {"rounds": 3, "strategy": {"kind": "FedAvg"}},
        "training": {"epochs": 8, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.05}, "rehearsal": {"kind": method}},
        "stream": {"arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 10}},
    }))  # fmt: skip
    kept, tasks = [Kept()] * clients, list[Task]()
    for now in (10.5, 20.5, 30.5):
        programs = [parts.fleet.client(client) for client in range(clients)]
        planned = [program.plan(Order(parts.job, Start(parts.first)), before, now) for program, before in zip(programs, kept, strict=True)]
        tasks = [replace(task, test=None) for task, _ in planned]  # Predictions are another matter.
        found = zip(programs, tasks, parts.engine.run(tasks), [after for _, after in planned], strict=True)
        kept = [after.having(program.finish(task, result, after).parts) for program, task, result, after in found]
    return parts.engine, tasks


def trained(method: str, policy: str, clients: int, turns: int = 5) -> tuple[float, float]:
    """Return microseconds of one client's step, together and one at a time: medians of runs in turn."""
    engine, tasks = rehearsing(method, policy, clients)
    steps, seconds = sum(task.steps for task in tasks), dict[bool, list[float]]({True: [], False: []})
    for _ in range(turns):
        for together, found in seconds.items():
            with patch.object(cohort, "goes_together", cohort.goes_together if together else lambda _: False):
                began = time.process_time()
                engine.run(tasks)
                found.append(time.process_time() - began)
    one, two = (float(np.median(found)) / steps * 1e6 for found in seconds.values())
    return one, two


def train(clients: int) -> None:
    """Print what training costs, as rows of a table."""
    print(f"| {clients} clients | together, µs a client's step | one at a time | times |\n|---|---|---|---|")
    for name, (method, policy) in METHODS.items():
        together, alone = trained(method, policy, clients)
        print(f"| {name} | {together:.0f} | {alone:.0f} | {alone / together:.1f} |")


def main() -> None:
    """Print the figures, as rows of a table."""
    if "--train" in sys.argv:
        return train(int((sys.argv[sys.argv.index("--train") + 1 :] or ["50"])[0]))
    print("| policy | 1000 x 500: arrays MB | allocated MB | as bytes MB | add µs (500, 5120) | draw µs (500, 5120) |"
          " 12,000 mini-batches s (500, 5120) |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for name in replays:
        arrays, held, packed = thousand(name)
        (add, draw), (add_large, draw_large) = single(name, 500), single(name, 5120)
        passes = [f"{whole(name, capacity):.2f}" for capacity in (500, 5120)] if not made(name, 500).needs else ["", ""]
        print(
            f"| `{name}` | {arrays:.1f} | {held:.1f} | {packed:.1f} | {add:.0f}, {add_large:.0f} |"
            f" {draw:.0f}, {draw_large:.0f} | {', '.join(passes).strip(', ')} |"
        )


if __name__ == "__main__":
    main()
