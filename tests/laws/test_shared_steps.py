"""Steps that a session's runs share are the steps that each would have compiled, and are made anew where the compiler is another."""

from __future__ import annotations

from typing import Any

import pytest
import shared_steps
import torch
from torch import nn

from fedsim.learn import models
from fedsim.learn.engine import passes
from fedsim.learn.engine.step import compile_step
from fedsim.learn.objectives import Classification

BATCH = torch.rand(5, 1, 8, 8), torch.arange(5)
USUAL: dict[str, Any] = {"plain": True, "whole_targets": True}


def small(scale: float = 1.0) -> nn.Module:
    """Return the same small model each time, but for *scale*."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.logreg((1, 8, 8), 5)
    for parameter in model.parameters():
        parameter.data *= scale
    return model


class Own(nn.Sequential):
    """A class that a test wrote: what it does is not told by its name."""


def test_only_the_same_step_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, batch and settings by value, and every function that compiles: where one differs, another step is made."""
    x, y = BATCH
    step = shared_steps.remembering(compile_step)
    first = step(small(), Classification(), x, y, **USUAL)

    assert first is step(small(), Classification(), x.clone(), y.clone(), **USUAL)
    others = [
        step(small(2.0), Classification(), x, y, **USUAL),
        step(small(), Classification(), x + 1, y, **USUAL),
        step(small(), Classification(), x, y.flip(0), **USUAL),
        step(small(), Classification(), x[:4], y[:4], **USUAL),
        step(small(), Classification(), x, y, **{**USUAL, "plain": False}),
        step(small(), Classification(), x, y, **USUAL, more=[x]),
        step(Own(*small()), Classification(), x, y, **USUAL),  # pyright: ignore
    ]
    with monkeypatch.context() as patch:
        patch.setattr(passes, "clean", lambda *_, **__: None)
        others.append(step(small(), Classification(), x, y, **USUAL))
    assert len(others) == len({id(found) for found in [first, *others]}) - 1
    assert first is step(small(), Classification(), x, y, **USUAL)
    own = [step(Own(*small()), Classification(), x, y, **USUAL) for _ in range(2)]  # pyright: ignore
    assert own[0] is not own[1]


def test_a_run_does_not_know(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is that of a run that compiles all for itself."""
    shared = [go(seed=11).digest for _ in range(2)]
    monkeypatch.setattr("fedsim.learn.engine.steps.compile_step", compile_step)

    assert {go(seed=11).digest} == set(shared)
