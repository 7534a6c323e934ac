"""Our logistic regression, trained by torch as the clients of a run are, against river's own on river's own stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.learn.standardise import Standardise

river = pytest.importorskip("river", reason="needs river, the oracle of these tests")
from river import datasets, linear_model, optim, preprocessing  # noqa: E402

RIVERS_LR = 0.005
# Two outputs under softmax answer to their difference, and a step moves both, one up and one down: learning rate lr
# there is 2 lr for the one output under a sigmoid that river has.
OURS = {
    "name": "phishing",
    "data": {"source": {"kind": "river", "name": "Phishing"}, "partition": {"kind": "blocks"}, "test_fraction": 0},
    "stream": {"arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 1}},
    "clients": {"count": 1, "compute": {"kind": "constant", "gflops": 5.0, "overhead_s": 0.0}},
    "model": {"kind": "logreg", "standardise": True, "zeros": True},
    "training": {"epochs": 1, "batch_size": 1, "optimizer": {"kind": "sgd", "lr": RIVERS_LR / 2}},
    "server": {"strategy": {"kind": "FedAvg", "min_available_nodes": 1, "min_train_nodes": 1}, "rounds": 1250},
    "evaluate": {"every": 1250},
}
FEW = 400
"""Answers that are enough to tell two learning rates apart; all 1,250 give an accuracy of 0.8896."""
# river moves the intercept by a rate of its own, 0.01 by default. Here it counts sqrt(2) times, and so moves at twice the rate.
QUICK_INTERCEPT = """
from torch import nn
from fedsim.learn.models import logreg
class Quick(nn.Linear):
    def forward(self, x): return nn.functional.linear(x, self.weight, self.bias * 2**0.5)
def model(shape, outputs):
    made = logreg(shape, outputs, standardise=True, zeros=True)
    linear = Quick(made[-1].in_features, outputs)
    linear.load_state_dict(made[-1].state_dict())
    return nn.Sequential(*made[:-1], linear)
"""


def rivers(intercept_lr: float) -> np.ndarray:
    """What river's scaled logistic regression answers along Phishing, tested first and trained after."""
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(RIVERS_LR), intercept_lr=intercept_lr)
    found: list[bool] = []
    for x, y in datasets.Phishing():
        found.append(bool(model.predict_one(x)))
        model.learn_one(x, y)
    return np.array(found)


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "quick_intercept.py").write_text(QUICK_INTERCEPT)
    monkeypatch.syspath_prepend(tmp_path)

    def go(**overrides: Any) -> Any:
        return fedsim.run(OURS, overrides=overrides, out=tmp_path / "run").tested

    return go


def test_it_answers_as_rivers_does(answered: Any) -> None:
    """At river's learning rates every one of the 1,250 answers is river's, and the accuracy its published 0.8872."""
    tested = answered(model={"kind": "quick_intercept:model"})

    assert rivers(0.01).astype(int).tolist() == tested.prediction.tolist()
    assert 0.8872 == (tested.prediction == tested.y).mean()


def test_with_one_rate_for_all(answered: Any) -> None:
    """As it is, with the intercept learning as the weights do, it answers as river's with intercept_lr = lr, and not as above."""
    tested = answered(**{"server.rounds": FEW, "evaluate.every": FEW})

    assert rivers(RIVERS_LR)[:FEW].astype(int).tolist() == tested.prediction.tolist()
    assert (tested.prediction != rivers(0.01)[:FEW]).sum() > 0


@pytest.mark.parametrize("size", [1, 7])
def test_running_scale_is_the_streams(size: int) -> None:
    """After any mini-batches mean and variance are those of all seen, and each batch was scaled by what it had joined."""
    x = torch.tensor(np.random.default_rng(1).normal([3.0, -50.0, 0.0, 5.0], [2.0, 0.1, 1.0, 0.0], (70, 4)), dtype=torch.float32)
    layer = Standardise(4)
    for begin in range(0, 70, size):
        scaled = layer(x[begin : begin + size])
        seen = x[: begin + size].double()
        expected = (x[begin : begin + size].double() - seen.mean(0)) / seen.var(0, unbiased=False).sqrt()
        np.testing.assert_allclose(scaled[:, :3], expected[:, :3].nan_to_num(0.0), atol=2e-3)
        assert (scaled[:, 3] == 0).all()  # It never moved.
    kept = layer.running_var.clone()
    layer.eval()(x + 9.0)

    assert 70 == layer.running_count
    assert torch.equal(kept, layer.running_var)
