"""A run ends with its parts: nothing of it waits for the collector, so that a loop over runs takes the memory of one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg, Result

import fedsim
from fedsim import preview, session
from fedsim.core.errors import RunError
from fedsim.scenario.build import Parts
from fedsim.scenario.load import load

Alive = Callable[[], list[str]]


class Raises(FedAvg):
    """Aggregates nothing."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Raise."""
        raise ValueError(f"{len(list(replies))} replies, and none is good enough")


class Polls(FedAvg):
    """Takes replies one at a time, and ends with others on their way."""

    def start(self, grid: Any, initial_arrays: Any, *args: Any, evaluate_fn: Any = None, **kwargs: Any) -> Result:
        """Pull five times."""
        arrays = initial_arrays
        for number in range(1, 6):
            sent = list(grid.push_messages(self.configure_train(number, arrays, ConfigRecord(), grid)))
            arrays = self.aggregate_train(number, grid.pull_messages(sent))[0] or arrays
            evaluate_fn(number, arrays)
        return Result()


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alive]:
    """Return what tells which parts of the latest run are there yet. There is no collector within."""
    seen: dict[str, weakref.ref[Any]] = {}
    build, Grid = session.build, session.VirtualGrid

    def built(loaded: Any) -> Parts:
        parts = build(loaded)
        store = parts.engine.site.store
        seen.update({
            name: weakref.ref(part)
            for name, part in {"engine": parts.engine, "model": parts.model, "store": store, "strategy": parts.strategy.strategy}.items()
        })  # fmt: skip
        return parts

    def grid(*args: Any, **kwargs: Any) -> Any:
        made = Grid(*args, **kwargs)
        seen["grid"] = weakref.ref(made)
        return made

    monkeypatch.setattr(session, "build", built)
    monkeypatch.setattr(preview, "build", built)
    monkeypatch.setattr(session, "VirtualGrid", grid)
    with uncollected():
        yield lambda: [name for name, part in seen.items() if part() is not None]


@contextmanager
def uncollected() -> Iterator[None]:
    """Within, circles stay where they are."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("settings", [
    {},
    {"server.round_timeout_s": 1.2, "server.rounds": 3},
    {"training.algorithm": {"kind": "scaffold"}, "model": {"kind": "mlp", "hidden": [4], "norm": "batch"}},
    {"server.statistics": "keep_local", "model": {"kind": "mlp", "hidden": [4], "norm": "batch"}},
    {"server.strategy": {
        "kind": "DifferentialPrivacyServerSideFixedClipping", "noise_multiplier": 0.1, "clipping_norm": 1.0, "num_sampled_clients": 6,
        "strategy": {"kind": "FedAvgM"},
    }, "monitor": {}},
    {"server.strategy.kind": f"{__name__}:Raises"},
    {"server.strategy.kind": f"{__name__}:Polls"},
], ids=["plain", "late", "algorithm", "own statistics", "private", "broken", "polling"])  # fmt: skip
def test_a_run_ends_with_its_parts(settings: dict[str, Any], tiny: Any, tmp_path: Path, alive: Alive) -> None:
    """Engine, model, examples, strategy and world are gone once a run is over, however it ended."""
    for turn in ("the first trace of a process leaves a circle of torch's own", "and no other"):
        with suppress(RunError):
            fedsim.run(tiny(settings), out=tmp_path / turn)

    assert [] == alive()


def test_a_look_ahead_ends_with_its_parts(tiny: Any, alive: Alive) -> None:
    """So are those of what is only checked, once nobody has it."""
    table = tiny({"model": {"kind": "mlp", "hidden": [4], "norm": "batch"}, "server.statistics": "keep_local"})
    assert preview.preview(load(table)).parts.engine and preview.preview(load(table)).foretold

    assert [] == alive()


def test_a_circle_is_noticed(tiny: Any, tmp_path: Path, alive: Alive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were one circle left closed, all that it reaches would be there yet."""
    monkeypatch.setattr(session, "bared", lambda strategy: None)
    fedsim.run(tiny(), out=tmp_path / "run")

    assert {"engine", "model", "store", "strategy"} <= set(alive())
