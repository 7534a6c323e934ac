"""Laws of normalisation: ghost batches are BatchNorms of their own, and who else is in a batch matters where it must, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import ScenarioError
from fedsim.learn import norms
from fedsim.learn.models import cnn, mlp
from fedsim.learn.norms import FrozenNorm, GhostNorm, Spelled
from fedsim.scenario.build import build
from fedsim.scenario.load import load

Go = Callable[..., fedsim.Run]
NORMS: dict[str, dict[str, Any]] = {
    "batch": {}, "group": {"groups": 4}, "layer": {}, "ghost": {"ghost_size": 4}, "frozen": {},
}  # fmt: skip
SHAPES = {"dense": (12, 6), "images": (12, 6, 5, 5)}
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": lambda **more: mlp((1, 8, 8), 3, hidden=[16, 8], **more), "cnn": lambda **more: cnn((1, 8, 8), 3, **more),
}  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def torchs(channels: int, images: bool) -> Any:
    return (nn.BatchNorm2d(channels) if images else nn.BatchNorm1d(channels)).double()


def state(layer: nn.Module) -> list[Tensor]:
    return [layer.running_mean, layer.running_var]  # type: ignore[list-item]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "parts"), [(12, [12]), (64, [12]), (4, [4, 4, 4]), (5, [5, 5, 2]), (11, [12])])
def test_ghost_batches_are_batch_norms_of_their_own(shape: str, size: int, parts: list[int]) -> None:
    """Outputs, gradients and running statistics are those of torch's BatchNorm on one sub-batch after the other, to 1e-12 in float64.

    With one sub-batch that is BatchNorm; a single example that is left over goes with the sub-batch before.
    """
    x, reference = drawn(*SHAPES[shape]), torchs(6, shape == "images")
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    ghost = GhostNorm(6, size).double()
    for _ in range(3):
        out, expected = ghost(ours), torch.cat([reference(part) for part in theirs.split(parts)])
        assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    weights = drawn(*SHAPES[shape], seed=1)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()

    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-12)  # type: ignore[arg-type]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(state(ghost), state(reference), strict=True))
    assert torch.allclose(ghost.eval()(x), reference.eval()(x), rtol=0, atol=1e-12)
    whole = torchs(6, shape == "images")(x)
    assert torch.allclose(out, whole, rtol=0, atol=1e-12) == (len(parts) == 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frozen_norm_is_batch_norm_that_evaluates(shape: str) -> None:
    """In training it is what BatchNorm is in evaluation, and its statistics stay."""
    x, reference, frozen = drawn(*SHAPES[shape]), torchs(6, shape == "images"), FrozenNorm(6).double()
    reference(x)
    for mine, theirs in zip(state(frozen), state(reference), strict=True):
        mine.copy_(theirs)

    assert torch.allclose(frozen(x), reference.eval()(x), rtol=0, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(state(frozen), state(reference), strict=True))


@pytest.mark.parametrize("size", [16, 4])
def test_the_noise_of_batch_means(size: int) -> None:
    """The mean of a (sub-)batch of B examples has the standard deviation sigma / sqrt(B), to 3 %, over 20,000 channels."""
    ghost, sigma = GhostNorm(20_000, size).double(), 3.0
    ghost(sigma * drawn(size, 20_000))

    assert ghost.running_mean.std().item() / 0.1 == pytest.approx(sigma / math.sqrt(size), rel=0.03)


def gradient(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the gradient of the first example's loss, its batch being *x*."""
    model.zero_grad()
    nn.functional.cross_entropy(model(x)[:1], torch.tensor([1])).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("norm", NORMS)
def test_who_else_is_in_a_batch(norm: str, kind: str) -> None:
    """An example's gradient is the same whoever is in its batch by groups, layer and frozen statistics; by batch and ghost it is not."""
    torch.manual_seed(0)
    model, x = MODELS[kind](norm=norm, **NORMS[norm]).double(), drawn(8, 1, 8, 8)
    others = torch.cat([x[:1], 2 + 3 * drawn(7, 1, 8, 8, seed=1)])
    same = all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(gradient(model, x), gradient(model, others), strict=True))

    assert same == (norm not in ("batch", "ghost"))


@pytest.mark.parametrize("norm", NORMS)
def test_one_digest(norm: str, go: Go, hands: None) -> None:
    """One at a time and in cohorts, with short last batches, a run has one digest; by two workers too, whatever is not torch's."""
    table = {
        "model": {"kind": "mlp", "hidden": [8], "norm": norm, **NORMS[norm]}, "training.batch_size": 12, "training.optimizer.momentum": 0.5,
    }  # fmt: skip
    ways = ((1, 1), (6, 1), (3, 2))[: 3 if norm in ("ghost", "frozen") else 2]
    runs = [go({**table, "engine.chunk": chunk, "engine.workers": workers}) for chunk, workers in ways]

    assert 1 == len({run.digest for run in runs})


def test_what_is_stacked(tiny: Any) -> None:
    """Clients of a dense model are stacked whatever normalises, BatchNorm too."""
    for norm, more in NORMS.items():
        parts = build(load(tiny({"model": {"kind": "mlp", "hidden": [8], "norm": norm, **more}})))

        assert "one" != next(iter(parts.engine.compiled.values())).rows, norm


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"momentum": 0.3, "eps": 0.1}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (2, 5, 4, 4)], ids=str)
def test_batch_norm_as_plain_sums_is_torchs(settings: Any, shape: tuple[int, ...]) -> None:
    """What goes through, gradients and running statistics (momentum, unbiased variance) are torch's to 1e-12; in evaluation, its own."""
    found: list[list[torch.Tensor]] = []
    for spelled in (False, True):
        layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(5, **settings).double()
        x = (2 + 3 * drawn(*shape)).double().requires_grad_()
        with Spelled() if spelled else nullcontext():
            out = layer(layer(x) * 2)
            (out * drawn(*shape, seed=4)).sum().backward()
            seen = layer.eval()(x)
        found.append([out, seen, *(p.grad for p in (x, *layer.parameters())), *layer.buffers()])

    assert all((a - b).abs().max() < 1e-12 for a, b in zip(*found, strict=True))


def test_statistics_that_move_too_little_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of torch's momentum is told apart by the law above."""
    rightly = norms._batch_norm  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(norms, "_batch_norm", lambda *, momentum, **given: rightly(momentum=momentum / 2, **given))

    with pytest.raises(AssertionError):
        test_batch_norm_as_plain_sums_is_torchs({}, (6, 5))


def test_batch_norm_of_one_value_is_refused_in_torchs_words() -> None:
    """One example has no variance: torch says so, spelled or not."""
    with Spelled(), pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm1d(5)(drawn(1, 5))


def test_without_a_norm_the_model_is_what_it_was() -> None:
    """Where nothing normalises there are the layers of before, and the same numbers drawn for them in the others."""
    made: list[nn.Module] = []
    for norm in ("none", "layer"):
        torch.manual_seed(3)
        made.append(mlp((4,), 2, hidden=[6], norm=norm))
    plain, normed = ({n: p for n, p in m.named_parameters() if p.dim() == 2} for m in made)

    assert "Flatten Linear ReLU Linear" == " ".join(type(layer).__name__ for layer in made[0])
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), normed.values(), strict=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm": "group"}, "model.groups: missing. norm = 'group' needs it, like groups = 4."),
        ({"norm": "ghost"}, "model.ghost_size: missing."),
        ({"norm": "batch", "groups": 2}, "model.groups = 2: applies to norm = 'group', and model.norm = 'batch'."),
        ({"ghost_size": 8}, "model.ghost_size = 8: applies to norm = 'ghost', and model.norm = 'none'."),
        ({"norm": "group", "groups": 3}, "model.groups = 3: must divide the width of every layer, and one has 8."),
        ({"norm": "group", "groups": 8}, "model.groups = 8: a layer of width 8 has one value to a group"),
        ({"norm": "ghost", "ghost_size": 1}, "model.ghost_size = 1: must be >= 2"),
        ({"norm": "bacth"}, "model.norm = 'bacth'"),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, Any], said: str, tiny: Any) -> None:
    """A setting that is missing, of another norm, or does not fit the width is refused by its key."""
    with pytest.raises(ScenarioError) as refused:
        build(load(tiny({"model": {"kind": "mlp", "hidden": [8], **settings}})))

    assert str(refused.value).startswith(said), str(refused.value)


@pytest.mark.parametrize("norm", ["batch", "ghost"])
def test_a_batch_of_one_is_refused_as_batch_norms_is(norm: str, tiny: Any) -> None:
    """Where a client would have a batch of one example, the scenario is refused before the run, and told what to try."""
    model = {"kind": "mlp", "hidden": [8], "norm": norm, **NORMS[norm]}
    with pytest.raises(ScenarioError, match=r"training.batch_size = 1: gives client 0 .*more than 1 value.*GroupNorm"):
        build(load(tiny({"model": model, "training.batch_size": 1})))


@pytest.mark.slow
def test_group_norm_bears_label_skew_better_than_batch_norm(go: Go) -> None:
    """With two shards of labels a client, GroupNorm ends above BatchNorm; alike data turn that round, or nearly.

    Direction of Hsieh et al. 2020, arXiv:1910.00189, section 5.
    """
    found: dict[tuple[str, str], float] = {}
    for how, partition in {"iid": {"kind": "iid"}, "shards": {"kind": "shards", "per_client": 2}}.items():
        for norm in ("batch", "group"):
            ends = [
                go({
                    "data.partition": partition, "data.test_fraction": 0.3, "clients.count": 10, "server.rounds": 40, "training.epochs": 3,
                    "model": {"kind": "mlp", "hidden": [64, 32], "norm": norm, **NORMS[norm]}, "training.optimizer.lr": 0.05,
                }, seed=seed).series("accuracy").value.iloc[-1]
                for seed in range(3)
            ]  # fmt: skip
            found[how, norm] = float(np.mean(ends))

    assert found["shards", "group"] > found["shards", "batch"] + 0.05, found
    assert found["iid", "group"] - found["iid", "batch"] < 0.02, found
