"""The gradient noise scale against planted ones (METHODS A10): by the estimators alone, and through the engine."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.data.source import Examples, Pool
from fedsim.learn.engine import persample
from fedsim.learn.engine.persample import noise
from fedsim.learn.models import travelling
from fedsim.learn.objectives import Classification
from fedsim.learn.signal import of_updates, two_batches
from fedsim.score.noise import scale_of
from tests.laws.test_accumulate import network

D, TRUE = 50, 29.43


def planted(draw: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a mean G and standard deviations in R^50 such that tr(Sigma) / |G|^2 is TRUE."""
    mean, spread = draw.normal(size=D), np.exp(draw.normal(size=D))
    return mean, spread * np.sqrt(TRUE * (mean @ mean) / (spread @ spread))


def test_two_batches_find_the_planted_scale() -> None:
    """From batches of 8 and 64 the scale is within 3 %; the mean of the single ratios is far off, which is why none is taken."""
    draw = np.random.default_rng(0)
    mean, spread = planted(draw)
    found: list[tuple[float, float]] = []
    for _ in range(4000):
        few, many = (mean + spread * draw.normal(size=D) / np.sqrt(b) for b in (8, 64))
        found.append(two_batches(few @ few, many @ many, 8, 64))
    signal, trace = np.array(found).T
    scale = scale_of(signal.tolist(), trace.tolist())

    assert abs(scale.value / TRUE - 1) < 0.03
    assert scale.low < TRUE < scale.high and scale.high / scale.low < 1.15
    assert abs(np.mean(trace / signal) / TRUE - 1) > 0.03


@pytest.mark.parametrize("count", [6, 30])
@pytest.mark.parametrize(("shape", "spread"), [(2.0, 0.5), (2.0, 1.0), (8.0, 0.2), (8.0, 2.0)])
def test_the_interval_holds_the_true_scale_as_often_as_it_says(count: int, shape: float, spread: float) -> None:
    """Of 2,000 planted runs 93 to 97 % of the intervals of 95 % hold the true scale: normal signals, traces from a gamma, few and many.

    Where the spread is such that six estimates leave it open whether there is a signal, intervals are open above, and right.
    """
    draw, held, wide = np.random.default_rng(5), 0, 0
    for _ in range(2000):
        scale = scale_of(draw.normal(1.0, spread, count).tolist(), draw.gamma(shape, 3.0, count).tolist())
        held += scale.low <= shape * 3.0 <= scale.high
        wide += np.isinf(scale.high)
        assert scale.low <= scale.value <= scale.high
    assert 0.93 <= held / 2000 <= 0.97
    assert (wide > 200) == (spread == 2.0 or (spread == 1.0 and count == 6))


def test_the_ends_of_the_interval() -> None:
    """Equal pairs leave no width; a signal that may be none leaves no upper end; one that is surely below 0, no number at all."""
    ends = [(s.value, s.low, s.high) for s in (
        scale_of([2.0, 2.0, 2.0], [6.0, 6.0, 6.0]), scale_of([1.0, -0.9, 0.2], [6.0, 7.0, 6.5]), scale_of([-1.0, -1.1], [6.0, 6.1]),
        scale_of([0.0, 0.0], [6.0, 6.0]), scale_of([1.0, 1.1, 0.9], [0.0, 0.0, 0.0]),
    )]  # fmt: skip

    assert ends[0] == pytest.approx((3.0, 3.0, 3.0))
    assert ends[1][0] == pytest.approx(65.0) and 0 < ends[1][1] < 65 and ends[1][2] == np.inf
    assert ends[2] == ends[3] == (np.inf, np.inf, np.inf)
    assert ends[4] == (0.0, 0.0, 0.0)


def test_clients_of_unequal_weight() -> None:
    """Weighted updates give signal and trace without bias; taken for as many equal ones as there are, the signal is too large."""
    draw = np.random.default_rng(1)
    mean, spread = planted(draw)
    weights = np.array([1.0, 1.0, 2.0, 4.0, 12.0])
    start = {"w": np.ones((5, 10))}
    found, naive = list[tuple[float, float]](), list[float]()
    for _ in range(3000):
        updates = mean + spread * draw.normal(size=(5, D))
        ends = [{"w": start["w"] + update.reshape(5, 10), "buffer": np.ones(3) * 1e6} for update in updates]
        signal, trace, counted = of_updates(start, ends, weights.tolist(), ["w"])
        found.append((signal, trace))
        together = weights / weights.sum() @ updates
        naive.append(two_batches(float(weights / weights.sum() @ (updates**2).sum(axis=1)), float(together @ together), 1, 5)[0])
    (signal, trace), (s_error, t_error) = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(3000)

    assert counted == pytest.approx(400 / 166)
    assert abs(signal - mean @ mean) < 4 * s_error and abs(trace - spread @ spread) < 4 * t_error
    assert np.mean(naive) - mean @ mean > 4 * s_error


def test_single_gradients_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and signal are those of gradients taken one by one in torch, to 1e-9, in pieces of one, of three and at once."""
    for name in ("mlp", "cnn", "batch norm", "recurrent"):
        model = network(name)
        draw = torch.Generator().manual_seed(0)
        x, y = torch.randn(8, 1, 8, 8, generator=draw, dtype=torch.float64), torch.arange(8) % 5
        each: list[Tensor] = []
        model.eval()
        for i in range(8):
            loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            each.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        model.train()
        gradients = torch.stack(each)
        trace = float(((gradients - gradients.mean(0)) ** 2).sum() / 7)
        signal = float((gradients.mean(0) ** 2).sum() - trace / 8)
        carried = [t.detach() for t in travelling(model).values()]
        for piece in (1, 3 * 8 * sum(p.numel() for p in model.parameters()), 2**25):
            monkeypatch.setattr(persample, "PIECE_BYTES", piece)

            assert noise(model, Classification(), carried, x, y) == pytest.approx((trace, signal), rel=1e-9), (name, piece)


FEATURES, NOISE = 10, 3.0


def regression(*, examples: int) -> Pool:
    """Return examples of a linear rule with noise: x normal, y = x w + e, w of ones."""
    draw = np.random.default_rng(3)
    x = draw.normal(size=(examples, FEATURES))
    y = x.sum(axis=1) + NOISE * draw.normal(size=examples)
    return Pool(Examples(x, y), 1, Examples(x[:50], y[:50]))


class LeastSquares:
    """Half the mean squared error."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).mean() / 2

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": ((outputs - targets) ** 2).sum() / 2, "examples": torch.tensor(len(targets))}

    def scores(self, sums: Any) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["examples"]}


class Linear(nn.Module):
    """A linear rule without a constant, at 0 first."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def linear(*, shape: tuple[int, ...], outputs: int) -> nn.Module:
    return Linear()


def least_squares() -> LeastSquares:
    return LeastSquares()


def test_the_engine_finds_what_least_squares_have(go: Any) -> None:
    """At w = 0 a gradient is x (x d - e) with d = -w: |G|^2 = |d|^2 and tr(Sigma) = (n + 1) |d|^2 + n s^2. Both scales come to that.

    Within clients in examples; between them, each doing one step on 40 examples, a fortieth of it, in clients.
    """
    run = go({
        "data.source": {"kind": f"{__name__}:regression", "examples": 12_050}, "data.partition": {"kind": "iid"},
        "data.test_fraction": None,
        "clients.count": 300, "model": {"kind": f"{__name__}:linear"}, "training.objective": {"kind": f"{__name__}:least_squares"},
        "training.epochs": 1, "training.batch_size": "full", "training.optimizer.lr": 1e-6, "server.rounds": 8, "engine.dtype": "float64",
        "server.strategy": {"kind": "FedAvg", "clients_per_round": 60},
        "monitor": {"noise": 1.0, "noise_every": 1, "examples": 32},
    })  # fmt: skip
    signal, trace = FEATURES, (FEATURES + 1) * FEATURES + FEATURES * NOISE**2
    scales, noise = run.noise_scale(), run.noise()

    assert abs(noise.within_signal.mean() / signal - 1) < 0.05 and abs(noise.within_trace.mean() / trace - 1) < 0.05
    assert abs(scales.within.value / (trace / signal) - 1) < 0.06
    assert scales.within.low < trace / signal < scales.within.high and scales.within.suggested in range(19, 22)
    assert abs(scales.between.value / (trace / signal / 40) - 1) < 0.06
    assert noise.within_snr.mean() == pytest.approx(signal / (trace / 40), rel=0.1)
    assert noise.snr.mean() == pytest.approx(signal / (trace / 40 / 60), rel=0.1)
