"""FedAvg against what can be computed on paper: centralised descent, fixed points on quadratics, order statistics."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.data.source import Examples, Pool
from fedsim.learn.work import Start

CLIENTS, SIZE = 4, 5


def curvatures() -> tuple[np.ndarray, np.ndarray]:
    """Return A_i, symmetric with eigenvalues in (0.3, 2.3), and b_i, of four quadratic clients."""
    draw = np.random.default_rng(3)
    roots = draw.normal(size=(CLIENTS, SIZE, SIZE))
    bases = np.linalg.qr(roots)[0]
    values = draw.uniform(0.3, 2.3, size=(CLIENTS, SIZE))
    return np.einsum("kij,kj,klj->kil", bases, values, bases), draw.normal(size=(CLIENTS, SIZE))


def quadratics() -> Pool:
    """One example a client: its A_i and b_i, side by side."""
    a, b = curvatures()
    x = np.concatenate([a.reshape(CLIENTS, -1), b], axis=1)
    return Pool(
        Examples(x, np.zeros(CLIENTS, dtype=np.int64)), 1, Examples(x, np.zeros(CLIENTS, dtype=np.int64)), np.arange(CLIENTS)
    )


class Point(nn.Module):
    """A point w; its output for an example is 1/2 (w - b)' A (w - b)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, : SIZE * SIZE].reshape(-1, SIZE, SIZE), x[:, SIZE * SIZE :]
        gap = (self.w - b).unsqueeze(2)
        return 0.5 * (gap.transpose(1, 2) @ a @ gap).reshape(-1)


class Mean:
    """The outputs are the losses."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": outputs.sum(), "examples": torch.tensor(len(outputs))}

    def scores(self, sums: Any) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["examples"]}


def quadratic_run(tmp_path: Any, lr: float, steps: int, rounds: int, **strategy: Any) -> np.ndarray:
    """Return where FedAvg's server ends on the four quadratics."""
    table = {
        "name": "quadratics",
        "data": {"source": {"kind": f"{__name__}:quadratics"}, "partition": {"kind": "natural"}},
        "clients": {"count": CLIENTS},
        "model": {"kind": f"{__name__}:Point"},
        "training": {
            "steps": steps, "batch_size": "full", "optimizer": {"kind": "sgd", "lr": lr},
            "objective": {"kind": f"{__name__}:Mean"},
        },
        "server": {"strategy": {"kind": "FedAvg", **strategy}, "rounds": rounds},
        "evaluate": {"every": rounds},
        "engine": {"dtype": "float64"},
    }  # fmt: skip
    return fedsim.run(table, out=tmp_path / f"{lr}-{steps}-{rounds}").params()["w"]


def fixed_point(lr: float, steps: int) -> np.ndarray:
    """Return where FedAvg stands still: [sum P_i]^-1 sum P_i b_i, P_i = I - (I - lr A_i)^K."""
    a, b = curvatures()
    p = np.stack([np.eye(SIZE) - np.linalg.matrix_power(np.eye(SIZE) - lr * a_i, steps) for a_i in a])
    return np.linalg.solve(p.sum(0), np.einsum("kij,kj->i", p, b))


def optimum() -> np.ndarray:
    """Return the minimiser of the sum of the quadratics."""
    a, b = curvatures()
    return np.linalg.solve(a.sum(0), np.einsum("kij,kj->i", a, b))


def test_fedavg_stands_still_where_theory_says(tmp_path: Any) -> None:
    """With 10 local steps FedAvg ends at its own fixed point, not at the optimum (METHODS B.0.1)."""
    reached = quadratic_run(tmp_path, lr=0.05, steps=10, rounds=200)

    assert np.abs(reached - fixed_point(0.05, 10)).max() < 1e-10
    assert np.abs(reached - optimum()).max() > 1e-2


def test_one_local_step_reaches_the_optimum(tmp_path: Any) -> None:
    """With one full local step FedAvg is gradient descent, and its fixed point the optimum."""
    reached = quadratic_run(tmp_path, lr=0.4, steps=1, rounds=400)

    assert np.abs(reached - optimum()).max() < 1e-10


def test_the_wrong_fixed_point_is_told_apart(tmp_path: Any) -> None:
    """The formula with one step more is another point: the test above can fail."""
    assert np.abs(fixed_point(0.05, 10) - fixed_point(0.05, 11)).max() > 1e-4


def test_full_batch_on_everybody_is_centralised_descent(tmp_path: Any) -> None:
    """FedAvg with one full-batch step on every client follows centralised gradient descent to 1e-12 in float64."""
    rounds, lr = 5, 0.3
    run = fedsim.run(
        {
            "name": "central",
            "data": {"source": {"kind": "digits"}, "partition": {"kind": "dirichlet", "alpha": 0.3}},
            "clients": {"count": 7},
            "model": {"kind": "mlp", "hidden": [16]},
            "training": {"steps": 1, "batch_size": "full", "optimizer": {"kind": "sgd", "lr": lr}},
            "server": {"strategy": {"kind": "FedAvg"}, "rounds": rounds},
            "engine": {"dtype": "float64"},
        },
        out=tmp_path / "run",
    )

    from fedsim.learn.models import load_params
    from fedsim.scenario.build import build
    from fedsim.scenario.load import load

    parts = build(load(run.manifest["scenario"]))
    model = load_params(parts.model, parts.first)
    pooled = parts.federation.pooled
    assert pooled is not None
    x, y = torch.from_numpy(pooled.x).double(), torch.from_numpy(pooled.y)
    for _ in range(rounds):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
    gap = max(np.abs(run.params()[n] - p.detach().numpy()).max() for n, p in model.named_parameters())

    assert gap < 1e-12


@pytest.mark.parametrize("clients", [10, 100])
def test_round_time_follows_the_harmonic_number(tmp_path: Any, clients: int) -> None:
    """A round of n clients with Exp(1) task times lasts H_n on average (METHODS X7), |z| < 4 over 300 rounds."""
    from fedsim.preview import preview
    from fedsim.scenario.load import load

    rounds = 300
    table = {
        "name": "order",
        "seed": 5,
        "data": {"source": {"kind": "digits"}, "partition": {"kind": "iid"}, "test_fraction": 0.5},
        "clients": {"count": clients, "compute": {"kind": "exponential", "gflops": 1.0}},
        "model": {"kind": "logreg"},
        "training": {"steps": 1, "batch_size": 1, "optimizer": {"kind": "sgd", "lr": 0.1}},
        "server": {"strategy": {"kind": "FedAvg"}, "rounds": rounds},
    }
    found = preview(load(table), rounds)
    task, _ = found.parts.fleet.client(0).plan(Order(found.parts.job, Start(found.parts.first)), Kept())
    mean_s = found.parts.fleet.flops.of(task) / 1e9
    harmonic = sum(1 / i for i in range(1, clients + 1))
    spread = math.sqrt(sum(1 / i**2 for i in range(1, clients + 1)) / rounds)
    z = (found.round_s / mean_s - harmonic) / spread

    assert abs(z) < 4
    assert abs((harmonic - 1) - harmonic) / spread > 4  # Leaving the slowest client out would be noticed.
