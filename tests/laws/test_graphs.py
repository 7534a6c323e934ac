"""Steps as CUDA graphs, with a stand-in that runs again on the captured memory: what is stale, or elsewhere, gives other numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import test_engine as nets
import torch
from torch import Tensor

from fedsim.learn.arithmetic import Arithmetic
from fedsim.learn.engine import graphs, passes
from fedsim.learn.engine import step as steps
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.engine.graphs import Graphs
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.store import Store
from fedsim.learn.work import Result, Task

GRAPHED = Arithmetic(graphs=True)


class Again:
    """Does on a CPU what a graph does: nothing when captured, and then the same on the same memory, into the same tensors."""

    def __init__(self) -> None:
        self.captured = 0

    def capture(self, function: Callable[[], Sequence[Tensor]]) -> graphs.Replay:
        self.captured += 1
        out = [torch.full_like(each, float("nan")) for each in function()]  # A run to warm up, which writes.

        def replay() -> Sequence[Tensor]:
            for there, here in zip(out, function(), strict=True):
                there.copy_(here)
            return out

        return replay


nets.NETS.setdefault("drawing", nets.Noisy)


def work(name: str, job: Job, dtype: Any = np.float32) -> tuple[Callable[..., CohortEngine], list[Task]]:
    """Return what makes engines, and tasks of two rounds; learning rates fall from step to step."""
    fed = nets.federation("batch norm" if "batch norm" in name else "", dtype)
    model = nets.net(name, torch.float64 if dtype is np.float64 else torch.float32)
    tasks = [task for task in nets.tasks(model, job, fed) if len(task.positions) > 2]
    tasks = [replace(task, rates=0.1 / np.arange(1.0, task.steps + 1)) for task in tasks]

    def engine(arithmetic: Arithmetic = GRAPHED, **more: Any) -> CohortEngine:
        store = Store(fed, next(model.parameters()).dtype, torch.device("cpu"))
        return CohortEngine(model, Classification(), store, arithmetic=arithmetic, **more)

    return engine, tasks


def bits(results: list[Result]) -> list[tuple[Any, ...]]:
    return [(result.metrics, {name: array.tobytes() for name, array in result.params.items()}) for result in results]


JOBS = {
    "plain": Job(epochs=2, batch_size=8, lr=0.1),
    "heavy": Job(epochs=2, batch_size=8, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True, proximal_mu=0.3),
    "accumulated": Job(epochs=2, batch_size=4, accumulate=2, lr=0.1),
}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", ["mlp", "dropout", "batch norm", "conv strided", "attention", "tied", "crossed"])
def test_graphs_have_the_bits_of_steps(name: str, job: str) -> None:
    """Rounds of the same shapes are trained by graphs, all but the first, and give what the steps give by themselves; results that were
    taken stay as they were while later rounds go through the same memory."""
    engine, tasks = work(name, JOBS[job])
    plain = engine()
    capture = Again()
    graphed = engine(capture=capture)

    expected = bits(plain.run(tasks))
    rounds = [graphed.run(tasks) for _ in range(4)]
    assert all(expected == bits(results) for results in rounds)
    assert graphed.graphs is not None and capture.captured and graphed.graphs.replayed > capture.captured
    assert [] == [note for note in graphed.notes if "other numbers" in note or "captured" in note]


@pytest.mark.parametrize("name", ["mlp", "tied", "crossed", "low rank", "conv strided"])
def test_rates_in_tensors_give_the_same_numbers(name: str) -> None:
    """Steps for graphs do what the others do, to 1e-12 in float64: the learning rate is a tensor in them."""
    engine, tasks = work(name, JOBS["plain"], np.float64)

    for ours, theirs in zip(engine().run(tasks), engine(Arithmetic()).run(tasks), strict=True):
        assert all(np.abs(ours.params[n] - theirs.params[n]).max() < 1e-12 for n in ours.params)


def untaken(self: Graphs, params: Sequence[Tensor]) -> list[Tensor]:
    return list(params)


def test_teeth_rows_that_are_not_taken_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that lie where the next chunk will are written over by it."""
    engine, tasks = work("mlp", JOBS["plain"])
    expected = bits(engine().run(tasks))
    monkeypatch.setattr(Graphs, "taken", untaken)
    graphed = engine(capture=Again(), chunk=3)

    graphed.run(tasks)
    assert expected != bits(graphed.run(tasks))


@pytest.mark.parametrize("wrong", ["inputs", "rate"])
def test_teeth_stale_inputs_are_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is not copied in, or a learning rate that is frozen, gives other numbers than the steps."""
    engine, tasks = work("mlp", JOBS["plain"])
    expected = bits(engine().run(tasks))
    really = Graphs._captured

    def captured(self: Graphs, *given: Any) -> Any:
        graph = really(self, *given)
        if graph is None:
            return None
        other = {"inputs": [each.clone() for each in graph.inputs]} if wrong == "inputs" else {"rate": graph.rate.clone()}
        return replace(graph, **other)

    monkeypatch.setattr(Graphs, "_captured", captured)
    graphed = engine(capture=Again())
    rounds = [bits(graphed.run(tasks)) for _ in range(3)]
    assert expected != rounds[-1]


class Refusing(Again):
    """A wrong one, or none."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def capture(self, function: Callable[[], Sequence[Tensor]]) -> graphs.Replay:
        if self.how == "raises":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        replay = super().capture(function)
        return lambda: [each.mul_(1.001) for each in replay()]


@pytest.mark.parametrize(("how", "said"), [
    ("raises", "cannot be captured (RuntimeError: CUDA error: operation not permitted when stream is capturing"),
    ("differs", "gave other numbers as a graph"),
])  # fmt: skip
def test_what_is_no_graph_runs_as_it_does_and_is_told(how: str, said: str) -> None:
    """A step that cannot be captured, or whose graph gives other numbers, runs by itself, with its own bits, and a note says so."""
    engine, tasks = work("mlp", JOBS["plain"])
    expected = bits(engine().run(tasks))
    graphed = engine(capture=Refusing(how))

    assert all(expected == bits(graphed.run(tasks)) for _ in range(4))
    assert graphed.graphs is not None and 0 == graphed.graphs.replayed
    assert any(said in note and "slower" in note for note in graphed.notes), graphed.notes


@pytest.mark.parametrize(("name", "why"), [("drawing", "draw random numbers of their own"), ("deciding", "are left to torch")])
def test_what_goes_into_no_graph_is_told(name: str, why: str) -> None:
    """Steps that draw by themselves, and those of torch's own, are never captured, and the notes say so."""
    engine, tasks = work(name, JOBS["plain"])
    capture = Again()
    graphed = engine(capture=capture)
    for _ in range(3):
        graphed.run(tasks)

    assert 0 == capture.captured and any(why in note for note in graphed.notes), graphed.notes


class Full(Again):
    """Finds no room for its first graph."""

    def capture(self, function: Callable[[], Sequence[Tensor]]) -> graphs.Replay:
        if self.captured == 0:
            self.captured += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().capture(function)


def test_a_graph_that_finds_no_room_is_left_out() -> None:
    """Memory that is too short for a graph is not for its step: the chunk stays as wide as it was, and other steps have theirs."""
    engine, tasks = work("mlp", JOBS["plain"])
    expected = bits(engine().run(tasks))
    graphed = engine(capture=Full())

    assert all(expected == bits(graphed.run(tasks)) for _ in range(4))
    assert graphed.room.most is None and any("find no room to be captured" in note for note in graphed.notes), graphed.notes
    assert graphed.graphs is not None and 0 < graphed.graphs.replayed


def test_a_full_memory_lets_go_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept to be quick is let go when memory is short; where there is nothing to halve, for good."""
    engine, tasks = work("mlp", JOBS["plain"])
    tasks = tasks[:1]
    expected = bits(engine().run(tasks))
    graphed, full = engine(capture=Again()), iter([True])
    place = Graphs.place

    def placed(self: Graphs, rows: graphs.Laid) -> None:
        place(self, rows)
        if self._at is not None and next(full, False):  # As the memory that it would keep is laid out.
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Graphs, "place", placed)
    assert all(expected == bits(graphed.run(tasks)) for _ in range(4))
    assert graphed.graphs is not None and 0 == graphed.graphs.replayed  # One client alone: what is kept to be quick is what was too much.
    assert any("find no room beside one client" in note for note in graphed.notes), graphed.notes


def test_memory_is_kept_for_a_few_shapes() -> None:
    """Chunks of many numbers of rows keep memory for SPACES of them, and no more than MOST graphs."""
    engine, tasks = work("mlp", JOBS["plain"])
    expected = {count: bits(engine().run(tasks[:count])) for count in range(1, 7)}
    graphed = engine(capture=Again())
    for _ in range(3):
        for count in range(1, 7):
            assert expected[count] == bits(graphed.run(tasks[:count]))
    assert graphed.graphs is not None and graphs.SPACES >= len(graphed.graphs._spaces)


@pytest.mark.parametrize("name", ["cnn", "conv strided", "group norm", "conv batch norm"])
@pytest.mark.parametrize("laid", [True, False])
def test_convolutions_in_groups_are_torchs(name: str, laid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, clients' convolutions are stacked: one convolution in groups, with channels innermost or not, gives what one client
    alone gives, to 1e-12 in float64, by graphs too."""
    engine, tasks = work(name, JOBS["plain"], np.float64)
    expected = engine(Arithmetic()).run(tasks)
    monkeypatch.setattr(steps, "_convolves", lambda *_: False)
    monkeypatch.setattr(steps, "has_convolution", lambda _: False)
    monkeypatch.setattr(steps, "_placed", lambda step, *_: step)
    if not laid:
        monkeypatch.setattr(passes, "channels_last", lambda _: None)
    monkeypatch.setenv("FEDSIM_CACHE", "off")
    stacked = engine(capture=Again())

    for _ in range(3):
        found = stacked.run(tasks)
    compiled = [step for step in stacked.compiled.values() if step.parts is not None]
    assert compiled and all(step.stacked for step in compiled)
    layouts = [node.kwargs.get("memory_format") for step in compiled for node in step.parts[1].graph.nodes]  # type: ignore[index]
    assert laid == (torch.channels_last in layouts)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(np.abs(ours.params[n] - theirs.params[n]).max() < 1e-12 for n in ours.params)
