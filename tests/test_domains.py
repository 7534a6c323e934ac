"""What a model may be fed: whole numbers stay whole, and whatever is tried on a model is real data."""

import math
import re
from pathlib import Path
from typing import Any

import domains
import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import ScenarioError


def archive(folder: Path, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return the overrides that put (x, y) in the place of the digits."""
    np.savez(folder / "a.npz", x=x, y=y)
    return {"data": {"source": {"kind": "npz", "path": str(folder / "a.npz")}, "partition": {"kind": "iid"}, "test_fraction": 0.25}}


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, Any]:
    """Sixty rows of five tokens, 0 to 11, in three classes."""
    draw = np.random.default_rng(1)
    return archive(tmp_path, draw.integers(0, 12, (60, 5)), np.arange(60) % 3)


@pytest.fixture
def positive(tmp_path: Path) -> dict[str, Any]:
    """Sixty rows of five positive numbers, in three classes."""
    draw = np.random.default_rng(1)
    return archive(tmp_path, draw.uniform(0.5, 2.0, (60, 5)).astype("float32"), np.arange(60) % 3)


@pytest.mark.parametrize("model", ["Tokens", "Cast", "Hot"])
def test_tokens_are_looked_up(model: str, tokens: dict[str, Any], go: Any) -> None:
    """A model that looks whole numbers up trains on an archive of them, compiled, in chunks of any size."""
    runs = [go({**tokens, "model": {"kind": f"domains:{model}"}, "engine.chunk": chunk}) for chunk in (1, 4)]

    assert [] == runs[0].manifest["notes"]
    assert runs[0].digest == runs[1].digest


def test_whole_features_reach_a_model_that_takes_them(tokens: dict[str, Any], go: Any) -> None:
    """Whole numbers beyond float32's reach are not rounded on their way to a model that takes whole numbers."""
    domains.SEEN.clear()
    go({**tokens, "model": {"kind": "domains:Tokens"}, "server.rounds": 1})

    assert {torch.int64} == domains.SEEN


@pytest.mark.parametrize("standardise", [False, True])
def test_whole_features_are_numbers_for_a_model_that_takes_numbers(standardise: bool, tokens: dict[str, Any], go: Any) -> None:
    """A linear model takes the same archive as float32, with the digest that float32 gives; scaled by what was seen too."""
    scaled = {"model.standardise": standardise}
    whole = go({**tokens, **scaled})
    draw = np.random.default_rng(1)
    floats = archive(whole.path.parent, draw.integers(0, 12, (60, 5)).astype("float32"), np.arange(60) % 3)

    assert whole.digest == go({**floats, **scaled}).digest


@pytest.mark.parametrize("model", ["Log", "Root"])
def test_a_model_with_a_domain_is_tried_on_data(model: str, positive: dict[str, Any], go: Any) -> None:
    """A logarithm or a root of features is compiled, without a note, and any chunk gives its bits."""
    runs = [go({**positive, "model": {"kind": f"domains:{model}"}, "engine.chunk": chunk}) for chunk in (1, 4)]

    assert [] == runs[0].manifest["notes"]
    assert math.isfinite(runs[0].final["loss"]) and runs[0].digest == runs[1].digest


def test_er_ace_is_compiled(go: Any) -> None:
    """Rehearsal by ER-ACE runs compiled: nothing in it is for torch alone, and no note blames the model."""
    run = go({"stream": {}, "clients.replay": {"kind": "reservoir", "capacity": 20}, "training.rehearsal": {"kind": "er_ace"}})

    assert [] == run.manifest["notes"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model": {"kind": "domains:Narrow"}}, ["Narrow", r"\(2, 2\)", "10 classes"]),
        ({"model": {"kind": "domains:Pair"}}, ["Pair", "tuple"]),
        ({"model": {"kind": "domains:Picky"}}, ["Picky", "does not take", "KeyError"]),
        ({"model": {"kind": "domains:Leaves"}}, ["Leaves", "SystemExit"]),
        ({"model": {"kind": "domains:Late"}}, ["Late", "OSError: only while training"]),
        ({"training.objective": {"kind": "domains:unscored"}}, ["training.objective", "KeyError"]),
        (
            {"training.objective": {"kind": "domains:lossless"}},
            ["training.objective.kind = 'domains:lossless': its loss()", "no loss today"],
        ),
    ],
)
def test_whatever_a_model_or_an_objective_raises_is_one_line(overrides: dict[str, Any], words: list[str], go: Any) -> None:
    """Errors of a reader's own code while building and trying name the kind and the reason."""
    with pytest.raises(ScenarioError) as caught:
        go(overrides)

    assert "\n" not in str(caught.value)
    assert all(re.search(word, str(caught.value)) for word in words), str(caught.value)


def test_a_score_may_be_undefined(go: Any) -> None:
    """A share of a class that no example of a group has is NaN, and the run goes on."""
    run = go({"training.objective": {"kind": "domains:recalls"}, "evaluate.by_classes": [[0, 1]]})
    metrics = run.metrics

    assert "done" == run.status
    assert metrics[(metrics.scope == "classes 0,1") & (metrics.name == "recall_2")].value.isna().all()


def test_a_loss_that_is_no_number_still_ends_a_run(go: Any) -> None:
    """Only the loss has to be finite: where it is not, training diverged."""
    with pytest.raises(fedsim.RunError, match="diverged"):
        go({"training.optimizer.lr": 1e30, "model": {"kind": "mlp", "hidden": [8]}, "training.epochs": 3})




def test_a_lazy_model_is_made_before_it_travels(go: Any) -> None:
    """Layers that take their size from the first examples train, from parameters that the seed alone decides."""
    first, second = (go({"model": {"kind": "domains:Lazy"}, "server.rounds": 1}) for _ in range(2))

    assert first.digest == second.digest and 64 == first.params()["l.1.weight"].shape[1]
