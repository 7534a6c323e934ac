"""Normalisation: which layer a model's ``norm`` names, and the two that torch has not. Knows no client and no server.

Ghost batches normalise by parts of a batch; a frozen BatchNorm by no batch at all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode

from fedsim.core.errors import ScenarioError

Norm: TypeAlias = Literal["none", "batch", "group", "layer", "ghost", "frozen"]
EPS, MOMENTUM = 1e-5, 0.1  # torch's own.


class GhostNorm(nn.Module):
    """Batch normalisation by sub-batches of *size* examples, in the order of the batch. Shapes: (b, channels, ...) -> the same.

    What does not fill a sub-batch is one of its own; a single example, which has no variance, goes with the sub-batch before it.
    Running statistics take in one sub-batch after the other, and evaluation goes by them. With *size* >= b this is BatchNorm.
    Written as plain sums, so that clients are stacked; behind a convolution they are not.
    Reference: Hoffer, Hubara & Soudry 2017, arXiv:1705.08741, algorithm 1.

    >>> GhostNorm(3, 4)(torch.randn(10, 3)).shape
    torch.Size([10, 3])
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size, self.measuring = size, False
        _prepare(self, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return *x*, each sub-batch less its own mean and by its own standard deviation. Raises ValueError for a single value."""
        if not self.training:
            return _affine(self, _scaled(x, self.running_mean, self.running_var))
        found: list[Tensor] = []
        at, places = 0, x[0, 0].numel()
        for groups, each in _cuts(len(x), len(x) if self.measuring else self.size):
            many = each * places
            if many == 1:
                raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
            part = x[at : at + groups * each].reshape(groups, each, *x.shape[1:])
            mean, var, centred = _moments(part, (1, *range(3, part.dim())))
            found.append((centred * (var + EPS).rsqrt()).reshape(groups * each, *x.shape[1:]))
            self._take_in(mean.detach().reshape(groups, -1), var.detach().reshape(groups, -1) * (many / (many - 1)))
            at += groups * each
        return _affine(self, found[0] if len(found) == 1 else torch.cat(found))

    def _take_in(self, means: Tensor, variances: Tensor) -> None:
        """Let the running statistics take in those of sub-batches, one after the other. Shapes: (groups, channels)."""
        momentum = 1.0 if self.measuring else MOMENTUM
        left = 1.0 - momentum
        for running, news in ((self.running_mean, means), (self.running_var, variances)):
            if len(news) == 1:
                total = news[0] * momentum
            else:
                shares = left ** torch.arange(len(news) - 1, -1, -1, dtype=news.dtype, device=news.device)
                total = (news * (shares * momentum).unsqueeze(1)).sum(0)
            running.copy_(running * left ** len(news) + total)

    def extra_repr(self) -> str:
        """Return its settings."""
        return f"{len(self.running_mean)}, size={self.size}"


class Spelled(TorchFunctionMode):
    """Lets torch's batch normalisation in training be computed as the plain sums that it stands for, in the order of GhostNorm's.

    torch's own kernel takes the channels of stacked clients as one long run, and cuts rows differently as they are more; sums are
    stacked as any others. They are torch's but for rounding, running statistics too.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        names = _BATCH_NORM.get(func, ())
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        x = given.get("input")
        if x is None or not given.get("training") or x.dim() < 2 or x.numel() == x.shape[1]:  # Of one value torch says that it is one.
            return func(*args, **(kwargs or {}))
        return _batch_norm(**{name: value for name, value in given.items() if name not in ("training", "cudnn_enabled")})


_BATCH_NORM: dict[Any, tuple[str, ...]] = {
    functional.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: (
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled",
    ),
}  # fmt: skip
"""What the two functions call what they are given, in order."""


def _batch_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, momentum: float = MOMENTUM, eps: float = EPS,
) -> Tensor:  # fmt: skip
    many = input.numel() // input.shape[1]
    mean, var, centred = _moments(input, (0, *range(2, input.dim())))
    for running, news in ((running_mean, mean), (running_var, var * (many / (many - 1)))):
        if running is not None:
            running.copy_(running * (1.0 - momentum) + news.detach().flatten() * momentum)
    x = centred * (var + eps).rsqrt()
    x = x if weight is None else x * _across(weight, x)
    return x if bias is None else x + _across(bias, x)


class FrozenNorm(nn.Module):
    """BatchNorm whose statistics are never of the batch, in training either. Shapes: (b, channels, ...) -> the same.

    They are what the model was built with, 0 and 1, or what the server measured (``server.statistics = "recalibrate"``); weight and
    bias train. An example's gradient does not depend on who else is in its batch, and clients are stacked as without it.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.measuring = False
        _prepare(self, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return *x* less the mean and by the standard deviation that are kept."""
        if self.measuring:
            mean, var, _ = _moments(x, (0, *range(2, x.dim())))
            many = x.numel() // x.shape[1]
            self.running_mean.copy_(mean.flatten())
            self.running_var.copy_(var.flatten() * (many / (many - 1)))
            return _affine(self, _scaled(x, mean.flatten(), var.flatten()))
        return _affine(self, _scaled(x, self.running_mean, self.running_var))

    def extra_repr(self) -> str:
        """Return its settings."""
        return f"{len(self.running_mean)}"


def _prepare(layer: nn.Module, channels: int) -> None:
    layer.register_parameter("weight", nn.Parameter(torch.ones(channels)))
    layer.register_parameter("bias", nn.Parameter(torch.zeros(channels)))
    layer.register_buffer("running_mean", torch.zeros(channels))
    layer.register_buffer("running_var", torch.ones(channels))


def _cuts(examples: int, size: int) -> list[tuple[int, int]]:
    """Return (how many, of how many examples) for the sub-batches of a batch, in order.

    >>> _cuts(10, 4), _cuts(9, 4), _cuts(3, 4)
    ([(2, 4), (1, 2)], [(1, 4), (1, 5)], [(1, 3)])
    """
    whole, rest = divmod(examples, size)
    if not whole:
        return [(1, rest)]
    if rest == 1:
        whole, rest = whole - 1, size + 1
    return [*([(whole, size)] if whole else []), *([(1, rest)] if rest else [])]


def _moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and (biased) variance over *dims*, which stay with size 1, and *x* less the mean."""
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    return mean, (centred * centred).mean(dims, keepdim=True), centred


def _scaled(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return (x - _across(mean, x)) * _across((var + EPS).rsqrt(), x)


def _affine(layer: Any, x: Tensor) -> Tensor:
    return x * _across(layer.weight, x) + _across(layer.bias, x)


def _across(values: Tensor, x: Tensor) -> Tensor:
    """Return *values*, one for each channel of *x*, to be broadcast. Shapes: (channels,) -> (channels, 1, ...)."""
    return values.reshape(-1, *([1] * (x.dim() - 2)))


def layers(norm: Norm, channels: int, groups: int | None, ghost_size: int | None, *, images: bool = False) -> list[nn.Module]:
    """Return the layer that *norm* names for *channels* of (b, channels), or (b, channels, h, w) of *images*; none for "none".

    "layer" is GroupNorm with one group where there are images: over channels and places, a weight for each channel.
    Raises ScenarioError for a setting that is missing, applies to another norm, or does not fit the width.
    """
    _check("groups", groups, norm, "group", 4)
    _check("ghost_size", ghost_size, norm, "ghost", 16)
    if groups is not None and channels % groups:
        raise ScenarioError(f"model.groups = {groups}: must divide the width of every layer, and one has {channels}.")
    if norm in ("group", "layer") and not images and channels < 2 * (groups or 1):
        what = f"model.groups = {groups}" if groups else "model.norm = 'layer'"
        raise ScenarioError(
            f"{what}: a layer of width {channels} has one value to a group, which normalised is always 0. Take fewer or wider ones."
        )
    if norm == "batch":
        return [nn.BatchNorm2d(channels) if images else nn.BatchNorm1d(channels)]
    if norm == "group" or (norm == "layer" and images):
        return [nn.GroupNorm(groups or 1, channels)]
    if norm == "layer":
        return [nn.LayerNorm(channels)]
    if norm == "ghost":
        return [GhostNorm(channels, ghost_size or 2)]
    return [FrozenNorm(channels)] if norm == "frozen" else []


def _check(name: str, value: int | None, norm: str, wanted: str, like: int) -> None:
    if value is None and norm == wanted:
        raise ScenarioError(f"model.{name}: missing. norm = {norm!r} needs it, like {name} = {like}.")
    if value is not None and norm != wanted:
        raise ScenarioError(f"model.{name} = {value}: applies to norm = {wanted!r}, and model.norm = {norm!r}. Leave one of them out.")


def is_variance(name: str) -> bool:
    """Return whether the buffer called *name* is a running variance, which is never negative.

    >>> is_variance("2.running_var"), is_variance("2.running_mean")
    (True, False)
    """
    return name.rpartition(".")[2] == "running_var"


def tracking(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of *model* that have running statistics of what passes through them, by name: ours, and torch's own."""
    known = (GhostNorm, FrozenNorm, _NormBase)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, known) and layer.running_mean is not None}


@contextmanager
def measuring(model: nn.Module) -> Generator[None]:
    """Let a batch that passes through *model* become its running statistics, layer by layer; all else evaluates. Training mode after."""
    found: list[Any] = list(tracking(model).values())
    names = ["momentum" if isinstance(layer, _NormBase) else "measuring" for layer in found]
    before = [getattr(layer, name) for layer, name in zip(found, names, strict=True)]
    model.eval()
    for layer, name in zip(found, names, strict=True):
        layer.train()
        setattr(layer, name, 1.0 if name == "momentum" else True)
    try:
        yield
    finally:
        for layer, name, value in zip(found, names, before, strict=True):
            setattr(layer, name, value)
        model.train()
