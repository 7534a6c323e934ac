"""All of the engine on a GPU: what is there, whether its laws hold, and what it takes, in under five minutes.

    python -m analysis.benchmarks.gpu [--device cuda] [--rounds 100] [--only environment,laws,timings]

Prints one table for RESULTS.md. A law that does not hold is a line that begins with WRONG, and the exit status is 1. With ``--device cpu
--rounds 2`` it is the same, shortened, where there is no card. The shape of images is that of pfl-research's CIFAR10 benchmark (Granqvist
et al. 2024, arXiv:2404.06430): 1000 users of 50 images, 50 a round, 5 steps of 10, two convolutions, 10,000 images every ten rounds.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fedsim
from fedsim.data.source import Examples, Pool
from fedsim.learn.engine import devices, fingerprints, passes, room, sums
from fedsim.learn.engine.stack import Stack
from fedsim.learn.work import Result, Row
from fedsim.scenario.load import load
from fedsim.session import execute

Table = dict[str, Any]
PFL_ROUNDS = 1500
SCENARIOS = Path(__file__).parents[2] / "scenarios"


def random_images() -> Pool:
    """Return images of noise with a class-dependent mean: what is learned is beside the point here."""
    draw = np.random.default_rng(0)
    means = draw.normal(size=(10, 3, 32, 32)).astype(np.float32)

    def some(n: int) -> Examples:
        y = draw.integers(0, 10, n)
        return Examples(means[y] * 0.2 + draw.standard_normal((n, 3, 32, 32), dtype=np.float32), y)

    return Pool(some(50_000), 10, test=some(10_000))


def few_images() -> Pool:
    """Return a hundredth of them."""
    draw = np.random.default_rng(0)

    def some(n: int) -> Examples:
        return Examples(draw.standard_normal((n, 3, 32, 32), dtype=np.float32), draw.integers(0, 10, n))

    return Pool(some(500), 10, test=some(100))


def random_digits() -> Pool:
    """Return 100 clients' worth of images like MNIST's: 600 each."""
    draw = np.random.default_rng(0)

    def some(n: int) -> Examples:
        return Examples(draw.standard_normal((n, 1, 28, 28), dtype=np.float32), draw.integers(0, 10, n))

    return Pool(some(60_000), 10, test=some(1000))


def two_convolutions(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return the network of pfl-research's CIFAR10 benchmark: 32 and 64 channels, 3 x 3, pooling, 128 hidden units."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, outputs),
    )  # fmt: skip


def cifar(rounds: int, **engine: Any) -> Table:
    """Return pfl-research's shape; on a CPU with a hundredth of the images and of the clients."""
    small = engine["device"] == "cpu"
    return {
        "name": "cifar-shaped",
        "data": {"source": {"kind": f"{__spec__.name}:{'few' if small else 'random'}_images"}, "partition": {"kind": "iid"}},
        "clients": {"count": 10 if small else 1000},
        "model": {"kind": f"{__spec__.name}:two_convolutions"},
        "training": {"steps": 5, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
        "server": {"strategy": {"kind": "FedAvg", "clients_per_round": 5 if small else 50}, "rounds": rounds},
        "evaluate": {"every": 10}, "engine": engine,
    }  # fmt: skip


def dense(rounds: int, **engine: Any) -> Table:
    """Return 100 2NN clients, all of them in each round, 60 steps each."""
    return {
        "name": "2nn", "data": {"source": {"kind": f"{__spec__.name}:random_digits"}, "partition": {"kind": "iid"}},
        "clients": {"count": 10 if engine["device"] == "cpu" else 100}, "model": {"kind": "mlp", "hidden": [200, 200]},
        "training": {"steps": 60, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.05}},
        "server": {"strategy": {"kind": "FedAvg"}, "rounds": rounds}, "evaluate": {"every": rounds}, "engine": engine,
    }  # fmt: skip


def digits(**more: Any) -> Table:
    """Return a small scenario over the bundled digits, for laws."""
    return {
        "name": "digits", "data": {"source": {"kind": "digits"}, "partition": {"kind": "iid"}}, "clients": {"count": 12},
        "model": {"kind": "mlp", "hidden": [32]}, "training": {"epochs": 1, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
        "server": {"strategy": {"kind": "FedAvg"}, "rounds": 4}, **more,
    }  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """A run: its manifest, and seconds a round, the first ones apart."""

    manifest: Mapping[str, Any]
    loss: float
    round_s: float


def ran(scenario: Table | Path, device: str, **changes: Any) -> Ran:
    """Run *scenario*, with *changes* by dotted key."""
    told = [time.perf_counter()]

    def watch(_: object) -> None:
        told.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        execute(load(scenario, overrides=changes) if changes else load(scenario), Path(folder) / "run", watch)
        run = fedsim.Run(Path(folder) / "run")
        manifest = dict(run.manifest)
    if device == "cuda":
        torch.cuda.synchronize()
    warm = told[min(4, len(told) - 2) :]  # Compiled, and captured.
    return Ran(manifest, float(manifest["final"].get("loss", float("nan"))), (warm[-1] - warm[0]) / max(1, len(warm) - 1))


class Bench:
    """Gathers rows of the table and what is wrong; *rounds* are those of the longest timing."""

    def __init__(self, device: str, rounds: int) -> None:
        self.device, self.rounds, self.begun = device, rounds, time.perf_counter()
        self.rows: list[tuple[str, str, str]] = []
        self.wrong: list[str] = []

    def say(self, what: str, figure: str, more: str = "") -> None:
        """Add a row, and print it."""
        self.rows.append((what, figure, more))
        print(f"{time.perf_counter() - self.begun:6.1f} s  {what}: {figure}{f' ({more})' if more else ''}", flush=True)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Within, an error is a line that says what was wrong, and the rest goes on."""
        try:
            yield
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.wrong.append(f"{what}: {type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})")
            print(f"WRONG  {self.wrong[-1]}", flush=True)

    def law(self, what: str, holds: bool, figure: str) -> None:
        """Add a law as a row; where it does not hold, as something wrong."""
        self.say(what, "holds" if holds else "DOES NOT HOLD", figure)
        if not holds:
            self.wrong.append(f"{what}: {figure}")

    def clock(self, function: Callable[[], object], times: int = 5) -> float:
        """Return the median of seconds that *function* takes."""
        found: list[float] = []
        for _ in range(times + 1):
            begun = time.perf_counter()
            function()
            if self.device == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - begun)
        return float(np.median(found[1:]))


def environment(bench: Bench) -> None:
    """What is there."""
    if bench.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        size = f"{about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}"
        card = f"{about.name}, {size}, {torch.cuda.device_count()} of them"
        bench.law("the GPU computes", not devices.broken("cuda"), devices.broken("cuda") or card)
        bench.say("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    bench.say("versions", f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}", platform.processor())


def laws(bench: Bench) -> None:
    """What must hold, on the device and in this process."""
    device, cnn = bench.device, {"model": {"kind": "cnn"}}
    with bench.part("digest twice"):
        for name, more in (("mlp", {}), ("cnn", cnn)):
            runs = [ran(digits(engine={"device": device}, **more), device) for _ in range(2)]
            bench.law(
                f"{name}: one digest twice", runs[0].manifest["digest"] == runs[1].manifest["digest"], runs[0].manifest["digest"][:12]
            )
            other = ran(digits(engine={"device": device, "chunk": 5}, **more), device)
            apart, same = abs(other.loss / runs[0].loss - 1), other.manifest["digest"] == runs[0].manifest["digest"]
            bench.law(
                f"{name}: another chunk",
                apart < 1e-3 if device == "cuda" else same,
                f"{'the same' if same else 'another'} digest, loss {apart:.1e} apart",
            )
            host = ran(digits(engine={"device": "cpu"}, **more), "cpu")
            bench.law(
                f"{name}: loss within 1 % of a CPU's", abs(host.loss / runs[0].loss - 1) < 0.01, f"{abs(host.loss / runs[0].loss - 1):.1e}"
            )
            off = ran(digits(engine={"device": device, "cuda_graphs": False}, **more), device)
            bench.law(
                f"{name}: graphs and steps", abs(off.loss / runs[0].loss - 1) < 1e-3, f"loss {abs(off.loss / runs[0].loss - 1):.1e} apart"
            )
            left = [note for note in runs[0].manifest["notes"] if "CUDA graphs" in note]
            bench.say(f"{name}: steps without a graph", "; ".join(left) or "none")
    with bench.part("fingerprints"):
        tensors = [torch.randn(50, 4096, 128), torch.randn(50, 10)]
        there = [tensor.to(device) for tensor in tensors]
        same = torch.equal(fingerprints.fingerprints(there).cpu(), fingerprints.fingerprints(tensors))
        bench.law("fingerprints are the host's", same, f"{len(tensors[0])} rows")
        order, factors = list(range(49, -1, -1)), np.random.default_rng(0).dirichlet(np.ones(50)).tolist()
        mine, theirs = (sums.summed([(each, list(range(50)), order)], factors) for each in (there, tensors))
        bench.law("sums have the host's bits", all(torch.equal(a.cpu(), b) for a, b in zip(mine, theirs, strict=True)), "50 rows, in order")
        digests = [Result({"loss": 1.0}, Row(Stack(["a", "b"], each, away=True), 3)).digest for each in (there, tensors)]
        bench.law("digests of rows are the host's", digests[0] == digests[1], digests[0][:12])
    with bench.part("a full memory"):
        full_memory(bench)


def full_memory(bench: Bench) -> None:
    """Let memory be too little for a chunk: on a GPU for real, by its allocator's bound."""
    if bench.device != "cuda":
        bench.say("a full memory", "not tried", "a CPU's is not bounded here: tests/laws/test_memory.py")
        return
    wide = digits(model={"kind": "mlp", "hidden": [4000, 4000]}, engine={"device": "cuda", "chunk": 12})
    try:
        ran(wide, "cuda")
        most = torch.cuda.max_memory_allocated()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, 0.6 * most / torch.cuda.get_device_properties(0).total_memory))
        try:
            short = ran(wide, "cuda")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        told = [note for note in short.manifest["notes"] if "did not fit" in note or "no room" in note]
        bench.law(
            "a chunk is halved when memory is full", bool(told), "; ".join(told) or "nothing was said, though memory was bounded at 60 %"
        )
    except fedsim.RunError as error:
        bench.law("a chunk is halved when memory is full", not room.is_full(error), str(error)[:200])


def timings(bench: Bench) -> None:
    """What it takes."""
    device, rounds = bench.device, bench.rounds
    kinds: Sequence[Table] = [{}, {"precision": "tf32"}, {"precision": "bfloat16"}, {"cuda_graphs": False}] if device == "cuda" else [{}]
    for kind in kinds:
        with bench.part(f"pfl's shape {kind}"):
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found = ran(cifar(rounds, device=device, **kind), device)
            memory = f", peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB" if device == "cuda" else ", a hundredth of it"
            name = " ".join(f"{key} {value}" for key, value in kind.items()) or "float32"
            bench.say(
                f"pfl's shape, {name}", f"{found.round_s * 1e3:.1f} ms a round", f"{PFL_ROUNDS * found.round_s:.0f} s for 1500{memory}"
            )
    for kind in kinds[:: max(1, len(kinds) - 1)]:
        with bench.part("2NN"):
            found = ran(dense(max(2, rounds // 5), device=device, **kind), device)
            clients = f"{'100' if device == 'cuda' else '10'} 2NN clients x 60 steps{' without graphs' if kind else ''}"
            bench.say(clients, f"{found.round_s * 1e3:.1f} ms a round")
    for name in ("drift-staggered", "leaf-synthetic"):
        with bench.part(name):
            fewer = {"server.rounds": max(2, min(20, rounds // 5))}
            each = {
                where: ran(SCENARIOS / f"{name}.toml", where, **fewer, **{"engine.device": where})
                for where in dict.fromkeys((device, "cpu"))
            }
            auto = ran(SCENARIOS / f"{name}.toml", device, **{"server.rounds": 2, "engine.device": "auto"}).manifest["executor"]["device"]
            bench.say(
                name, " ".join(f"{where} {found.round_s * 1e3:.1f} ms" for where, found in each.items()), f"a round; 'auto' picks {auto}"
            )
    if device == "cuda":
        with bench.part("layout"):
            before, passes.channels_last = passes.channels_last, lambda _: None
            try:
                found = ran(cifar(rounds, device=device), device)
            finally:
                passes.channels_last = before
            bench.say("pfl's shape, channels as vmap lays them", f"{found.round_s * 1e3:.1f} ms a round")
    with bench.part("phases"):
        rows = 50 if device == "cuda" else 5
        stack = [torch.randn(rows, 545_098, device=device)]
        fingerprints.fingerprints(stack)
        bench.say(
            "fingerprints of a round", f"{bench.clock(lambda: fingerprints.fingerprints(stack)) * 1e3:.2f} ms", f"{rows} rows of 2.2 MB"
        )
        factors = [1 / rows] * rows
        took = bench.clock(lambda: sums.summed([(stack, list(range(rows)), list(range(rows)))], factors))
        bench.say("their mean, in order", f"{took * 1e3:.2f} ms")
        bench.say("their copy to the host", f"{bench.clock(lambda: Stack(['a'], stack, away=False).arrays) * 1e3:.2f} ms")


PARTS = {"environment": environment, "laws": laws, "timings": timings}


def main() -> None:
    """Run, print the table, and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="of pfl's shape; the others take fewer")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("WRONG  torch finds no CUDA device here. --device cpu --rounds 2 goes through the same, shortened.")
    bench = Bench(asked.device, asked.rounds)
    for name in asked.only.split(","):
        with bench.part(name):
            PARTS[name](bench)
    print("\n| what | figure | |\n|---|---|---|")
    for row in bench.rows:
        print(f"| {' | '.join(row)} |")
    print(f"\n{time.perf_counter() - bench.begun:.0f} s in all.")
    for line in bench.wrong:
        print(f"WRONG  {line}")
    sys.exit(1 if bench.wrong else 0)


if __name__ == "__main__":
    main()
