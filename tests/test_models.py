"""Models with layers that other simulators trip over, each through a whole run: what travels, what is noted, what repeats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

MODELS = '''
import torch
from torch import nn

def flat(outputs, *middle): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), *middle, nn.Linear(16, outputs))
def dropout(shape, outputs): return flat(outputs, nn.ReLU(), nn.Dropout(0.5))
def norm(shape, outputs): return flat(outputs, nn.BatchNorm1d(16), nn.ReLU())
def conv(shape, outputs):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(144, outputs))

class Deciding(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.layer = flat(outputs, nn.ReLU())
    def forward(self, x): return self.layer(x) if float(x.sum()) > 0 else -self.layer(x)
'''


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models_of_tests.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)


def settings(name: str) -> dict[str, Any]:
    return {"model.kind": f"models_of_tests:{name}", "training.batch_size": 6}  # 30 examples a client: no batch of one.


@pytest.mark.parametrize("name", ["dropout", "norm", "conv", "Deciding"])
def test_a_run_repeats_in_any_chunk(name: str, go: Callable[..., Any]) -> None:
    """Networks with Dropout, BatchNorm or a decision by value give one digest, alone and in cohorts."""
    runs = [go({**settings(name), "engine.chunk": chunk}) for chunk in (1, 6)]

    assert runs[0].digest == runs[1].digest


def test_running_statistics_are_averaged_and_saved(go: Callable[..., Any]) -> None:
    """BatchNorm's running mean and variance go to the server, which averages them, and into the saved model."""
    run = go(settings("norm"))
    saved = run.params()

    assert saved["2.running_mean"].any()
    assert (saved["2.running_var"] != 1).all()
    assert torch.equal(run.model().state_dict()["2.running_var"], torch.tensor(saved["2.running_var"]))


def test_what_is_left_to_torch_is_noted(scenario_file: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path) -> None:
    """A model that decides by values runs, and the summary says once why it is slow."""
    answer = cli("run", scenario_file({"model.kind": "models_of_tests:Deciding"}), "--out", tmp_path / "run")

    assert 0 == answer.code, answer.err
    assert 1 == " ".join(answer.out.split()).count("model Deciding cannot be traced")


def test_a_full_memory_says_what_to_try(go: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory runs out for one client alone, the error names it and what to try."""
    from fedsim.core.errors import RunError
    from fedsim.learn.engine.cohort import CohortEngine

    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 GB")

    monkeypatch.setattr(CohortEngine, "_train", full)
    with pytest.raises(RunError, match=r"client \d, task 0: .*can't allocate memory.*does not fit. Try smaller batches"):
        go()


POLLING = """
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower

class Below(flower.FedAvg):
    def start(self, grid, initial_arrays, num_rounds=3, timeout=3600, train_config=None, evaluate_config=None, evaluate_fn=None):
        arrays = ArrayRecord({name: Array(array.numpy() - 2) for name, array in initial_arrays.items()})
        return super().start(grid, arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)
"""


def test_a_variance_moved_below_zero_is_named(go: Callable[..., Any], tmp_path: Path) -> None:
    """A server of its own that sends a negative variance, as if it were a weight, is stopped, and told so."""
    from fedsim.core.errors import RunError

    (tmp_path / "polling_of_tests.py").write_text(POLLING)
    with pytest.raises(RunError, match=r"2.running_var became negative: .*FedAvg"):
        go({**settings("norm"), "server.strategy": {"kind": "polling_of_tests:Below"}})
