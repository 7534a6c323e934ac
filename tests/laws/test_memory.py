"""A chunk that memory does not hold is trained in halves, bit for bit the same; and a GPU's failures are one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.core.errors import RunError
from fedsim.core.keys import Key
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn import models
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.engine.room import Room, failed_device, is_full
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.store import Store
from fedsim.learn.work import Result, Start, Task

CLIENTS = 11


def tasks() -> tuple[CohortEngine, list[Task]]:
    """Return an engine for a small network, and tasks of clients with examples of different numbers."""
    draw, counts = np.random.default_rng(0), [20 + 3 * (c % 4) for c in range(CLIENTS)]
    data = Examples(draw.normal(size=(sum(counts), 6)).astype(np.float32), draw.integers(0, 3, sum(counts)))
    partition = Partition(np.arange(sum(counts)), np.concatenate([[0], np.cumsum(counts)]))
    federation = Federation(CLIENTS, 3, (6,), data, {}, Key(0), pooled=data, partition=partition)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = models.mlp((6,), 3, hidden=[5])
    start, job = Start(models.params_of(model)), Job(epochs=2, batch_size=8, lr=0.1, momentum=0.9)
    engine = CohortEngine(model, Classification(), Store(federation, torch.float32, torch.device("cpu")), chunk=CLIENTS)
    return engine, [Task(c, 0, job, start, federation.train(c), Key(5).fold("client", c)) for c in range(CLIENTS)]


def bounded(engine: CohortEngine, most: int, error: Callable[[], BaseException]) -> list[int]:
    """Let *engine* hold *most* clients at once, and raise *error* for more, in the middle of training; return the chunks it tried."""
    tried, really = list[int](), engine._updates

    def updates(chunk: list[Task], *given: Any, **more: Any) -> Any:
        made = really(chunk, *given, **more)
        tried.append(len(chunk))
        once, calls = made.once, [0]

        def step(*args: Any) -> None:
            once(*args)
            calls[0] += 1
            if len(chunk) > most and calls[0] == 3:  # Two steps are done already.
                raise error()

        return Stepping(made, step)

    engine.__dict__["_updates"] = updates
    return tried


class Stepping:
    """What makes updates, with a step of its own."""

    def __init__(self, made: Any, step: Callable[..., None]) -> None:
        self._made, self.once = made, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


def digests(results: list[Result]) -> list[str]:
    return [result.digest for result in results]


FULL = [
    lambda: MemoryError(),
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 GB"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("most", [1, 3])
def test_halves_have_the_same_bits(error: Callable[[], BaseException], most: int) -> None:
    """Whatever says that memory is full in the middle of a chunk, results are those of memory without end; what fits is kept and told."""
    engine, work = tasks()
    whole = digests(engine.run(work))
    assert [] == engine.notes

    engine, work = tasks()
    tried = bounded(engine, most, error)
    assert whole == digests(engine.run(work))
    fits = {1: 1, 3: 2}[most]
    assert [11, 5] + [2] * (most == 1) == tried[: 2 + (most == 1)] and max(tried[3:]) == fits
    assert fits == engine.room.most and f"engine.chunk = {fits} begins so" in engine.notes[-1]

    tried.clear()
    assert whole == digests(engine.run(work)) and fits == max(tried)  # It has learned.


def test_a_run_that_does_not_start_anew_is_seen() -> None:
    """Teeth: rows that go on from where the chunk broke have other bits."""
    engine, work = tasks()
    whole = digests(engine.run(work))
    engine, work = tasks()
    rows = engine._starts.rows
    known: dict[int, Any] = {}
    engine._starts.rows = lambda job, chunk: known.setdefault(chunk[0].client, rows(job, chunk))  # type: ignore[method-assign]
    bounded(engine, 8, FULL[0])

    with pytest.raises((RunError, AssertionError, IndexError)):
        assert whole == digests(engine.run(work))


def test_one_client_alone_that_does_not_fit_is_a_line() -> None:
    """There is nothing to halve: the line names the client and what to try."""
    engine, work = tasks()
    bounded(engine, 0, FULL[1])

    with pytest.raises(RunError, match=r"training broke in client 2, task 0: CUDA out of memory.*One client alone does not fit.*smaller b"):
        engine.run(work)


@pytest.mark.parametrize(("said", "told"), [
    ("CUDA error: no kernel image is available for execution on the device\nCompile with TORCH_USE_CUDA_DSA", "older than the kernels"),
    ("CUDA error: unspecified launch failure", "the GPU failed, or is gone"),
    ("CUDA error: an illegal memory access was encountered", "the GPU failed, or is gone"),
    ("CUDA error: device-side assert triggered", "a class lies beyond"),
    ("CUDA error: all CUDA-capable devices are busy or unavailable", "the GPU failed, or is gone"),
])  # fmt: skip
def test_a_gpu_that_fails_is_a_line(said: str, told: str) -> None:
    """One that is gone, or too old, is not taken for a full memory: nothing is halved, and the line names engine.device and what works."""
    engine, work = tasks()
    tried = bounded(engine, 2, lambda: RuntimeError(said))

    with pytest.raises(RunError, match=rf"client 2, task 0; .*{said.splitlines()[0]}\. engine.device = 'cuda': .*{told}") as raised:
        engine.run(work)
    assert 1 == len(tried) and "\n" not in str(raised.value) and not is_full(RuntimeError(said))
    assert "cpu" in failed_device(RuntimeError(said))


def test_what_is_neither_is_as_it_was() -> None:
    """An error of shapes speaks of memory too, and is no full one; no GPU is blamed for it."""
    said = "some elements of the input tensor and the written-to tensor refer to a single memory location"

    assert not is_full(RuntimeError(said)) and not failed_device(RuntimeError(said)) and Room("cpu").notes == []
