"""Other threads draw from the global generators, too: what a step is compiled to, and so its bits, does not depend on when they do."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.learn.engine import step as steps
from fedsim.learn.engine import trace
from fedsim.learn.objectives import Classification

DRAWS: dict[str, Callable[[], Any]] = {"python": random.random, "numpy": lambda: np.random.uniform()}


def beside(monkeypatch: pytest.MonkeyPatch, name: str, draw: Callable[[], Any], hit: Callable[[int], bool]) -> list[int]:
    """Let another thread *draw* in the middle of those calls of the tracer's *name* that *hit* says; return the numbers of all calls."""
    calls, real = list[int](), getattr(trace, name)

    def during(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if hit(calls[-1]):
            thread = threading.Thread(target=draw)
            thread.start()
            thread.join()
        return real(*args, **kwargs)

    monkeypatch.setattr(trace, name, during)
    return calls


def compiled() -> steps.Step:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    x, y = torch.rand(10, 1, 8, 8), torch.arange(10)
    return steps.compile_step(model, Classification(), x, y, plain=True, whole_targets=True)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_what_another_thread_draws_while_a_step_is_traced_is_not_the_models(draw: Callable[[], Any], monkeypatch: Any) -> None:
    """A draw beside the trace, as Flower's heartbeat makes one, leaves the step that it would have been: stacked, the same graph."""
    alone = compiled()
    calls = beside(monkeypatch, "make_fx", draw, lambda call: call == 0)
    hit = compiled()

    assert alone.parts is not None
    assert hit.parts is not None
    assert [0, 1] == calls
    assert (alone.stacked, alone.rows, "") == (hit.stacked, hit.rows, hit.note)
    assert [part.code for part in alone.parts] == [part.code for part in hit.parts]


def test_runs_that_another_thread_hits_too_do_not_make_it_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the runs by which a model is told from another thread, one that nobody draws in is enough."""
    beside(monkeypatch, "make_fx", random.random, lambda call: call == 0)
    count, real = iter(range(10**6)), trace.gradient_of

    def hit(*args: Any, **kwargs: Any) -> Callable[..., list[Tensor]]:
        step = real(*args, **kwargs)

        def run(*flat: Tensor) -> list[Tensor]:
            if 0 < next(count) < trace.RUNS:  # The first is the trace's own; then all runs but one.
                random.random()
            return step(*flat)

        return run

    monkeypatch.setattr(trace, "gradient_of", hit)
    assert "" == compiled().note
    assert trace.RUNS < next(count)


def test_a_thread_that_never_stops_drawing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no trace is left alone, the model is left to torch, and its note blames the other thread."""
    calls = beside(monkeypatch, "make_fx", random.random, lambda call: True)

    assert "another thread draws" in compiled().note
    assert 0 == len(calls) % trace.TRACES
