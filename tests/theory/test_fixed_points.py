"""Algorithms and local optimisers against theory: where each stands still on quadratics, and torch's own arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.state import State
from fedsim.core.types import Params
from fedsim.data.source import Examples, Pool
from fedsim.learn.algorithms import Update, way
from fedsim.learn.algorithms.scaffold import Scaffold, _Server  # pyright: ignore[reportPrivateUsage]
from fedsim.learn.engine.rows import STEPS, Rows
from fedsim.learn.job import Job
from fedsim.learn.terms import Momentum
from tests.theory.test_fedavg import CLIENTS, SIZE, curvatures, optimum

COPIES = (1, 2, 5, 9)


def quadratics(copies: Sequence[int] = (1,) * CLIENTS) -> Pool:
    """Each client's A_i and b_i, side by side, as often as *copies* says: one local step each, with batches of one."""
    a, b = curvatures()
    x = np.repeat(np.concatenate([a.reshape(CLIENTS, -1), b], axis=1), copies, axis=0)
    part = Examples(x, np.zeros(len(x), dtype=np.int64))
    return Pool(part, 1, part, np.repeat(np.arange(CLIENTS), copies))


def uneven() -> Pool:
    """Clients of 1, 2, 5 and 9 examples."""
    return quadratics(COPIES)


@dataclass(frozen=True)
class _Frozen(_Server):
    def after(self, start: Params, average: Params, updates: Sequence[Update], state: State) -> tuple[Params, State]:
        return average, state


class Frozen(Scaffold):
    """SCAFFOLD whose control variates stay zero."""

    def finish(self, *given: Any) -> Any:
        ended = super().finish(*given)
        return replace(ended, kept={name: np.zeros_like(array) for name, array in ended.kept.items()})

    def server(self, clients: int) -> Any:
        return _Frozen(clients)


class Forgetful(Scaffold):
    """Deliberately wrong: the server's variate stays zero, the clients' do not."""

    def server(self, clients: int) -> Any:
        return _Frozen(clients)


@pytest.fixture
def reach(tmp_path: Any) -> Callable[..., np.ndarray]:
    """Return a function that runs the quadratics and returns where the server ends."""

    def run(algorithm: Any, rounds: int, *, source: str = "quadratics", optimizer: Any = None, **training: Any) -> np.ndarray:
        table = {
            "name": "quadratics",
            "data": {"source": {"kind": f"{__name__}:{source}"}, "partition": {"kind": "natural"}},
            "clients": {"count": CLIENTS},
            "model": {"kind": "tests.theory.test_fedavg:Point"},
            "training": {
                "batch_size": "full", "optimizer": optimizer or {"kind": "sgd", "lr": 0.05},
                "objective": {"kind": "tests.theory.test_fedavg:Mean"},
                **({"algorithm": {"kind": algorithm} if isinstance(algorithm, str) else algorithm} if algorithm else {}), **training,
            },
            "server": {"strategy": {"kind": "FedAvg"}, "rounds": rounds},
            "evaluate": {"every": rounds},
            "engine": {"dtype": "float64"},
        }  # fmt: skip
        number = len(list(tmp_path.iterdir()))
        return fedsim.run(table, out=tmp_path / f"run-{number}").params()["w"]

    return run


def test_scaffold_reaches_the_optimum(reach: Callable[..., np.ndarray]) -> None:
    """With 10 local steps, where FedAvg stops short, SCAFFOLD ends at the optimum (METHODS B.0.3); forgetting c it does not."""
    assert np.abs(reach("scaffold", 400, steps=10) - optimum()).max() < 1e-8
    assert np.abs(reach(f"{__name__}:Forgetful", 400, steps=10) - optimum()).max() > 1e-3


def test_scaffold_with_momentum_reaches_the_optimum(reach: Callable[..., np.ndarray]) -> None:
    """Where K eta alone would make its variates ten times too large, and the run diverge."""
    optimizer = {"kind": "sgd", "lr": 0.01, "momentum": 0.9}

    assert np.abs(reach("scaffold", 400, steps=10, optimizer=optimizer) - optimum()).max() < 1e-8


def test_scaffold_with_frozen_variates_is_fedavg(reach: Callable[..., np.ndarray]) -> None:
    """With c = 0 for good SCAFFOLD is FedAvg that weighs clients alike, to 1e-12; with variates it is not."""
    alike = reach(None, 5, steps=10)

    assert np.abs(reach(f"{__name__}:Frozen", 5, steps=10) - alike).max() < 1e-12
    assert np.abs(reach("scaffold", 5, steps=10) - alike).max() > 1e-4


def nova_point(lr: float, power: int) -> np.ndarray:
    """Return where sum_i p_i K_i^-power P_i (b_i - x) is 0, p_i ~ K_i: FedNova for power 1, FedAvg for 0."""
    a, b = curvatures()
    steps = np.array(COPIES)
    p = np.stack([np.eye(SIZE) - np.linalg.matrix_power(np.eye(SIZE) - lr * a_i, k) for a_i, k in zip(a, COPIES, strict=True)])
    p = p * (steps / steps.astype(float) ** power)[:, None, None]
    return np.linalg.solve(p.sum(0), np.einsum("kij,kj->i", p, b))


def test_fednova_stands_still_at_its_own_point(reach: Callable[..., np.ndarray]) -> None:
    """Clients that take 1, 2, 5 and 9 steps: FedNova's fixed point, which is neither FedAvg's nor the optimum (METHODS B.0.5)."""
    settings = {"source": "uneven", "epochs": 1, "batch_size": 1, "optimizer": {"kind": "sgd", "lr": 0.2}}
    nova = reach("fednova", 200, **settings)

    assert np.abs(nova - nova_point(0.2, 1)).max() < 1e-10
    assert np.abs(nova - nova_point(0.2, 0)).max() > 1e-2
    assert np.abs(reach(None, 200, **settings) - nova_point(0.2, 0)).max() < 1e-10


@pytest.mark.parametrize(
    ("momentum", "mu", "nesterov"), [(0.0, 0.0, False), (0.9, 0.0, True), (0.0, 0.5, False), (0.9, 0.5, False), (0.8, 0.7, True)]
)
def test_how_far_steps_go_is_what_torch_does(momentum: float, mu: float, nesterov: bool) -> None:
    """How far torch's own steps go along a gradient of 1, FedProx's pull included: FedNova's normaliser, SCAFFOLD's K eta."""
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], 0.05, momentum, nesterov=nesterov)
    for _ in range(9):
        optimizer.zero_grad()
        (w.sum() + mu / 2 * (w**2).sum()).backward()
        optimizer.step()
    job = Job(lr=0.05, momentum=momentum, nesterov=nesterov, proximal_mu=mu)

    assert abs(way(job, np.full(9, 0.05)) + float(w)) < 1e-12


@pytest.mark.parametrize("kept", [[{}, {}], [{}, {STEPS: np.array([3]), "momentum/w": np.zeros(1, np.float32)}]])
def test_a_zero_is_kept_without_its_sign(kept: list[Any]) -> None:
    """A first step beside a row that has taken steps takes its gradient; the sign of a zero, which kernels choose, is not kept."""
    rows = Rows([Momentum(0.9)], ["w"], [torch.zeros(2, 1)], 1, kept=kept)
    rows.step(slice(0, 2), [torch.tensor([[-0.0], [1.0]])], 0, 0.1)

    assert not np.signbit(rows.kept(0, ["momentum"], 1)["momentum/w"]).any()


def test_feddyn_reaches_the_optimum(reach: Callable[..., np.ndarray]) -> None:
    """With local solves that are as good as exact FedDyn ends at the optimum (METHODS B.0.3), where FedAvg and FedProx do not."""
    settings = {"steps": 100, "optimizer": {"kind": "sgd", "lr": 0.4}}

    assert np.abs(reach({"kind": "feddyn", "alpha": 0.5}, 120, **settings) - optimum()).max() < 1e-8
    assert np.abs(reach(None, 120, **settings) - optimum()).max() > 1e-2


def test_fedavgm_steps_from_the_model_that_is_sent(tmp_path: Any) -> None:
    """Around FedAvgM without momentum FedDyn is FedDyn around FedAvg: its step is from what the server's half made of the last."""
    found = [
        fedsim.run("scenarios/quickstart.toml", out=tmp_path / kind, overrides={
            "server.rounds": 3, "engine.dtype": "float64", "training.algorithm": {"kind": "feddyn", "alpha": 0.1},
            "server.strategy": {"kind": kind, "fraction_train": 0.2},
        }).params()
        for kind in ("FedAvg", "FedAvgM")
    ]  # fmt: skip

    assert all(np.abs(found[0][name] - array).max() < 1e-12 for name, array in found[1].items())


def torch_alone(make: Callable[[Any], torch.optim.Optimizer], keep: bool, rounds: int, steps: int) -> np.ndarray:
    """Return where the first client's quadratic is after *rounds* of *steps* of torch's own optimiser."""
    a, b = (torch.from_numpy(array[0]) for array in curvatures())
    w = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    optimizer = make([w])
    for _ in range(rounds):
        optimizer = optimizer if keep else make([w])
        for _ in range(steps):
            optimizer.zero_grad()
            (0.5 * (w - b) @ a @ (w - b)).backward()
            optimizer.step()
    return w.detach().numpy()


def alone() -> Pool:
    """The first client's quadratic, for every client."""
    a, b = curvatures()
    x = np.repeat(np.concatenate([a[0].reshape(1, -1), b[:1]], axis=1), CLIENTS, axis=0)
    return Pool(Examples(x, np.zeros(CLIENTS, dtype=np.int64)), 1, Examples(x, np.zeros(CLIENTS, dtype=np.int64)), np.arange(CLIENTS))


RULES: dict[str, tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "adam": ({"kind": "adam", "lr": 0.02, "beta2": 0.99, "weight_decay": 0.1},
             lambda w: torch.optim.Adam(w, 0.02, (0.9, 0.99), weight_decay=0.1)),
    "momentum": ({"kind": "sgd", "lr": 0.05, "momentum": 0.9}, lambda w: torch.optim.SGD(w, 0.05, 0.9)),
    "nesterov": ({"kind": "sgd", "lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
                 lambda w: torch.optim.SGD(w, 0.05, 0.8, nesterov=True, weight_decay=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", sorted(RULES))
def test_an_optimiser_is_torchs(name: str, keep: bool, reach: Callable[..., np.ndarray]) -> None:
    """Three rounds of seven steps: torch's own numbers to 1e-12, its state kept by the client or begun anew, and the two differ."""
    table, make = RULES[name]
    found = reach(None, 3, source="alone", steps=7, optimizer={**table, "state": "keep" if keep else "reset"})

    assert np.abs(found - torch_alone(make, keep, 3, 7)).max() < 1e-12
    assert np.abs(found - torch_alone(make, not keep, 3, 7)).max() > 1e-4
