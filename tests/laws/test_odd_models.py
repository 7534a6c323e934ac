"""Odd models: whoever computes, whatever lies in a model, the bits are the same, and torch's own numbers.

One client, full batches: what a run ends with is then what ``torch.optim.SGD`` gives from the same start.
"""

from typing import Any

import numpy as np
import pytest
import torch
from odd_models import ODD, STEADY, Complex, ComplexBuffer, Double, Draws, Half, Remembers, Scalar, SharedNorm

import fedsim
from conftest import tiny_table
from fedsim.core.errors import ScenarioError
from fedsim.scenario.build import build
from fedsim.scenario.load import load

STEPS, LR = 3, 0.05

ONE = {
    "clients.count": 1, "training": {"steps": STEPS, "batch_size": "full", "optimizer": {"kind": "sgd", "lr": LR}}, "server.rounds": 1,
    "server.strategy": {"kind": "FedAvg", "clients_per_round": 1}, "engine.dtype": "float64",
}  # fmt: skip


def kind(model: Any) -> dict[str, Any]:
    """Return *model* as a scenario's table."""
    return {"kind": f"{model.__module__}:{model.__name__}"}


def by_torch(model: Any) -> dict[str, np.ndarray]:
    """Return what torch.optim makes of *model*, from the parameters and the examples that the run has."""
    parts = build(load(tiny_table({**ONE, "model": kind(model)})))
    net, pool = parts.model, parts.federation.pooled
    assert pool is not None
    places = parts.federation.train(0)
    x, y = torch.tensor(pool.x[places]).double(), torch.tensor(pool.y[places])
    optimizer = torch.optim.SGD(net.train().parameters(), LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        parts.objective.loss(net(x), y).backward()
        optimizer.step()
    return {name: tensor.detach().numpy() for name, tensor in net.state_dict(keep_vars=False).items()}


def apart(run: fedsim.Run, theirs: dict[str, np.ndarray]) -> float:
    """Return how far the parameters of *run* lie from *theirs* at most."""
    return max(float(np.abs(array - theirs[name]).max(initial=0.0)) for name, array in run.params().items())


@pytest.mark.parametrize("model", ODD, ids=lambda model: model.__name__)
def test_an_odd_model_trains_as_torch_trains_it(model: Any, go: Any) -> None:
    """What a client sends is what torch.optim gives, to 1e-12 in float64."""
    run = go({**ONE, "model": kind(model)})

    assert apart(run, by_torch(model)) < 1e-12


def test_another_step_size_is_seen(go: Any) -> None:
    """The comparison with torch rejects a run that was trained a little differently."""
    run = go({**ONE, "model": kind(Scalar), "training.optimizer.lr": LR * 1.0001})

    assert apart(run, by_torch(Scalar)) > 1e-9


@pytest.mark.parametrize("model", ODD, ids=lambda model: model.__name__)
def test_executors_agree_on_an_odd_model(model: Any, go: Any) -> None:
    """The digest is the same one client at a time and stacked; what can be read back holds the parameters that the run ended with."""
    one, run = (go({"model": kind(model), "engine.chunk": chunk, "server.rounds": 1}) for chunk in (1, 4))

    assert one.digest == run.digest
    if model in STEADY:
        held = {name: tensor.detach().numpy() for name, tensor in run.model().named_parameters(remove_duplicate=False)}
        assert all(np.array_equal(array, held[name]) for name, array in run.params().items() if name in held)


@pytest.mark.parametrize("model", [Scalar, SharedNorm, Remembers, Draws], ids=lambda model: model.__name__)
def test_workers_agree_on_an_odd_model(model: Any, go: Any, hands: None) -> None:
    """The digest is the same with one worker and with two."""
    digests = {go({"model": kind(model), "engine.workers": workers, "server.rounds": 1}).digest for workers in (1, 2)}

    assert 1 == len(digests)


@pytest.mark.parametrize(
    ("model", "dtype"), [(Complex, "complex64"), (Half, "float16"), (Double, "float64"), (ComplexBuffer, "complex64")],
    ids=lambda item: getattr(item, "__name__", item),
)  # fmt: skip
def test_what_would_be_recast_is_refused(model: Any, dtype: str, go: Any) -> None:
    """A parameter or buffer that the run's precision would change is refused by name, with its type."""
    with pytest.raises(ScenarioError, match=rf"model.kind.*'w' .*{dtype}"):
        go({"model": kind(model)})


def test_double_is_kept_where_the_run_is_double(go: Any) -> None:
    """With engine.dtype = "float64" a float64 buffer is what it was."""
    run = go({"model": kind(Double), "engine.dtype": "float64", "server.rounds": 1})

    assert np.float64 == run.params()["w"].dtype
