"""A quadratic whose gradients are noisy by a known amount: a reader's own kinds, of which a study can be worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.types import FloatArray
from fedsim.data.source import Examples, Pool

WIDE, HELD = 1000, 2048
PLANTED: dict[str, Any] = {
    "name": "planted", "seed": 3,
    "data": {"source": {"kind": "planted_quadratic:noise"}, "partition": {"kind": "iid"}},
    "clients": {"count": 1},
    "model": {"kind": "planted_quadratic:Point"},
    "training": {
        "epochs": 8 / HELD, "batch_size": 32, "sampling": "replacement", "optimizer": {"kind": "sgd", "lr": 0.3},
        "objective": {"kind": "planted_quadratic:Mean"},
    },
    "server": {"strategy": {"kind": "FedAvg", "clients_per_round": 1}, "rounds": 36},
    "stop": {"metric": "loss", "at_most": 0.01375},
    "engine": {"dtype": "float64"},
}  # fmt: skip


def curvatures() -> FloatArray:
    """Return the eigenvalues of the quadratic: half of them 1, the others 0.1. The loss is a mean over them."""
    return np.where(np.arange(WIDE) < WIDE // 2, 1.0, 0.1)


def noise() -> Pool:
    """Return examples of mean 0 and variance 1 in each coordinate: what a gradient is off by. The test is a single one without."""
    x = np.random.default_rng(5).normal(size=(HELD, WIDE))
    x = (x - x.mean(0)) / x.std(0)
    return Pool(Examples(x, np.zeros(HELD, dtype=np.int64)), 1, Examples(np.zeros((1, WIDE)), np.zeros(1, dtype=np.int64)))


class Point(nn.Module):
    """A point w, at first all ones; its output for an example x is (1/2 sum h w^2 - x w), of gradient h w - x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(WIDE))
        self.register_buffer("h", torch.from_numpy(curvatures()).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.h * self.w * self.w).sum() - x @ self.w


class Mean:
    """The outputs are the losses; the score is one per coordinate."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": outputs.sum() / WIDE, "examples": torch.tensor(len(outputs))}

    def scores(self, sums: Any) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["examples"]}


def quadratic(size: float, rate: float, target: float, most: int = 400) -> int | None:
    """Return after how many steps the expected loss is at *target*: E[w^2] goes by (1 - rate h)^2 E[w^2] + rate^2 / size."""
    h = curvatures()
    square = np.ones(WIDE)  # Of what diverges too: it is never at the target again.
    for step in range(1, most + 1):
        square = (1 - rate * h) ** 2 * square + rate**2 / size
        if (loss := 0.5 * float((h * square).mean())) <= target:
            return step
        if loss > 1e6:
            return None
    return None
