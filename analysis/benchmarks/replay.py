"""Replay memories: what a thousand of them weigh, and what an add and a draw cost, for every policy.

    python -m analysis.benchmarks.replay

CPU time; 10 new and 10 replayed examples per mini-batch, 10 classes that come mixed. ``schedule`` walks a whole pass at
once; ``add`` and ``draw`` are single calls on a full memory. Vectors told to a policy have 16 numbers.
"""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.state import State, pack
from fedsim.core.types import Array
from fedsim.data.replay import Arrivals, Replay, losses, replays, vectors  # noqa: F401  # Importing registers.
from fedsim.data.replay.memory import schedule

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


def main() -> None:
    """Print the figures, as rows of a table."""
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
