"""Templates: the graph that follows from two others is the one that tracing gives, for every model and size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd_models import STEADY
from torch import Tensor, nn

from fedsim.learn.engine import templates as module
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.engine.noise import masks_of
from fedsim.learn.engine.step import compile_step
from fedsim.learn.engine.templates import SIZES, Templates, alike
from fedsim.learn.engine.trace import ROWS, trace
from fedsim.learn.objectives import Classification, Objective

OUTPUTS = 4


class Decides(nn.Module):
    """Doubles what it puts out for large batches: no template of small ones says so."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1)) * (2 if len(x) > 40 else 1)


class Compares(nn.Module):
    """Compares all examples of a batch with all others: its graph has numbers that grow with the square of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.last(x.flatten(1))
        return flat + (flat @ flat.T).reshape(-1).mean()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, OUTPUTS)),
    "as wide as a template": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, SIZES[0]), nn.Tanh(), nn.Linear(SIZES[0], OUTPUTS)),
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, OUTPUTS)),
    "batch norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, OUTPUTS)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, OUTPUTS)),
    "layer norm": lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, OUTPUTS), nn.Softplus()),
}


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Return a batch of *size* drawn examples."""
    draw = torch.Generator().manual_seed(size)
    return torch.randn((size, 1, 8, 8), generator=draw), torch.arange(size) % OUTPUTS


def holds(model: nn.Module, sizes: tuple[int, ...] = (2, 16, 100), objective: Objective = Classification()) -> bool:  # noqa: B008  # Never written to.
    """Return whether templates of *model* give what tracing gives, for one row and for many."""
    known = Templates(model, objective)
    for rows in (None, ROWS):
        for size in sizes:
            x, y = batch(size)
            masks = masks_of(model, x)
            if not alike(known.trace(x, y, masks, rows), trace(model, objective, x, y, masks, rows)):
                return False
    assert known.known
    return True


@pytest.mark.parametrize("name", MODELS)
def test_a_template_is_the_trace(name: str) -> None:
    """Operations, arguments, shapes and strides are those of the size's own trace."""
    assert holds(MODELS[name]())


@pytest.mark.parametrize("objective", [Classification(0.1), Classification(0.0, (1.0, 2.0, 3.0, 4.0))])
def test_a_template_of_another_objective_is_the_trace(objective: Classification) -> None:
    """Smoothed labels and weighed classes are in it too."""
    assert holds(MODELS["dense"](), (2, 100), objective)


@pytest.mark.parametrize("model", STEADY, ids=lambda model: model.__name__)
def test_a_template_of_an_odd_model_is_the_trace(model: Any) -> None:
    """What is odd in a model is in its template too."""
    assert holds(model((1, 8, 8), OUTPUTS), (2, 100))


def test_a_wrong_template_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that keeps its first size, or whose means forget the size, is not the trace."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "_number", lambda a, b, size: a)
        assert not Templates(MODELS["dense"](), Classification())._learned(*batch(5), None)  # The third trace tells.
        patched.setattr(module, "alike", lambda *_: True)
        assert not holds(MODELS["dense"]())


def test_what_no_template_says_is_traced() -> None:
    """A model with other operations at other sizes, or numbers that grow otherwise, gives the step of its own trace."""
    assert Templates(Compares(), Classification())._learned(*batch(5), None) is None
    model = Decides()
    x, y = batch(50)
    steps = [
        compile_step(model, Classification(), x, y, plain=True, whole_targets=True, templates=t)
        for t in (None, Templates(model, Classification()))
    ]
    after = []
    for step in steps:
        carried = [p.detach().clone().unsqueeze(0) for p in model.parameters()]
        head, _ = step.run(step.open(carried), x.unsqueeze(0), y.unsqueeze(0), (), -0.1)
        after.append([*carried, step.close(head)])

    assert "" == steps[1].note and all(map(torch.equal, *after))


def test_digests_do_not_know_templates(go: Any, hands: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with many sizes has one digest with templates, without, and in two workers."""
    many = {
        "data.partition": {"kind": "quantity", "sizes": "lognormal", "sigma": 1.0},
        "clients.count": 14,
        "data.test_fraction": 0.8,
        "training.batch_size": "full",
        "server.rounds": 1,
    }
    shared, workers = go(many), go({**many, "engine.workers": 2})
    engines: list[bool] = []
    plain = CohortEngine.__init__

    def without(self: CohortEngine, *given: Any, **settings: Any) -> None:
        engines.append(settings.pop("many_sizes"))
        plain(self, *given, **settings)

    monkeypatch.setattr(CohortEngine, "__init__", without)

    assert 1 == len({shared.digest, workers.digest, go(many).digest}) and [True] == engines
