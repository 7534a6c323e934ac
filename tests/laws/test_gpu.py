"""The laws of the engine on a GPU, where there is one: the benchmark's, and steps of odd networks beside a CPU's. ``make test-gpu``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import test_engine as nets
import torch

from analysis.benchmarks import gpu
from fedsim.learn.arithmetic import Arithmetic
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.engine.graphs import Cuda
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.store import Store

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
NAMES = ["logreg", "mlp", "cnn", "dropout", "batch norm", "conv batch norm", "group norm", "attention", "embedding", "deciding"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_training_is_a_cpus(name: str, graphs: bool) -> None:
    """In float64 every client's parameters are a CPU's to 1e-9, by graphs and without; a second engine has the same bits."""
    fed, job = nets.federation(name), Job(epochs=2, batch_size=8, lr=0.1)

    def rounds(device: str) -> list[Any]:
        model = nets.net(name, torch.float64).to(device)
        tasks = nets.tasks(model, job, fed)
        store, arithmetic = Store(fed, torch.float64, torch.device(device)), Arithmetic(graphs=graphs and device != "cpu")
        engine = CohortEngine(model, Classification(), store, arithmetic=arithmetic)
        return [engine.run(tasks) for _ in range(4)][-1]

    here, there, again = rounds("cpu"), rounds("cuda"), rounds("cuda")
    for ours, theirs, second in zip(there, here, again, strict=True):
        assert ours.digest == second.digest
        assert all(np.abs(ours.params[n] - theirs.params[n]).max() < 1e-9 for n in ours.params)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_graphs_run_all_of_what_they_can_in_float32(name: str) -> None:
    """In float32, with five numbers of rows in turn so that memory that stays is let go: no note, and what steps come to without graphs."""
    fed, job = nets.federation(name), Job(epochs=2, batch_size=8, lr=0.1)

    def trained(graphs: bool) -> tuple[list[Any], CohortEngine]:
        model = nets.net(name, torch.float32).to("cuda")
        store = Store(fed, torch.float32, torch.device("cuda"))
        engine = CohortEngine(model, Classification(), store, arithmetic=Arithmetic(graphs=graphs))
        tasks = nets.tasks(model, job, fed)
        return [result for _ in range(4) for rows in range(1, 6) for result in engine.run(tasks[:rows])], engine

    (by_graphs, engine), (by_steps, _) = trained(True), trained(False)
    assert engine.graphs is not None and engine.graphs.replayed > 0 and [] == engine.notes
    for ours, theirs in zip(by_graphs, by_steps, strict=True):
        assert all(np.allclose(ours.params[n], theirs.params[n], rtol=1e-4, atol=1e-6) for n in ours.params)


@pytest.mark.gpu
@needs_gpu
def test_a_capture_that_raises_leaves_the_device_as_it_was() -> None:
    """What cannot go into a graph (a number that the host wants to see) is told, and the stream captures the next one all the same."""
    graphs, x = Cuda(), torch.arange(4.0, device="cuda")
    with pytest.raises(RuntimeError):
        graphs.capture(lambda: [x * float(x.sum().item())])
    replay = graphs.capture(lambda: [x * 2.0])
    x.fill_(3.0)

    assert [6.0] * 4 == replay()[0].tolist()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.gpu
@needs_gpu
def test_what_the_benchmark_holds_true_on_a_gpu() -> None:
    """Digests twice, chunks, losses beside a CPU's, graphs beside steps, fingerprints, a full memory: nothing is wrong."""
    bench = gpu.Bench("cuda", 10)
    gpu.environment(bench)
    gpu.laws(bench)

    assert [] == bench.wrong


def test_the_benchmark_says_what_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it checks on a device it checks on a CPU too; a law that does not hold, or breaks, is a line, and the status is 1."""
    def wrong(bench: gpu.Bench) -> None:
        bench.law("one is two", 1 == 2, "1 and 2")
        raise KeyError("gone")

    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--only", "environment,laws"])
    monkeypatch.setitem(gpu.PARTS, "laws", wrong)
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    said = capsys.readouterr().out
    assert "WRONG  one is two: 1 and 2" in said and "WRONG  laws: KeyError: 'gone'" in said and "| versions |" in said
