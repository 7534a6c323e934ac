"""Models and objectives with a domain, or a fault: in a module of their own, as a reader's would be."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEEN: set[torch.dtype] = set()
"""The types of the features that ``Tokens`` was given."""


class Tokens(nn.Module):
    """An embedding of whole numbers."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.e, self.l = nn.Embedding(12, 4), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.add(x.dtype)
        return self.l(self.e(x).mean(1))


class Cast(Tokens):
    """The same, of what it makes whole itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.e(x.long()).mean(1))


class Hot(nn.Module):
    """One-hot codes of whole numbers."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.l = nn.Linear(12 * math.prod(shape), outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.l((x[..., None].long() == torch.arange(12)).float().flatten(1))


class Linear(nn.Module):
    """A linear classifier, of what ``made`` makes of the features."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.l = nn.Linear(math.prod(shape), outputs)

    def made(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.l(self.made(x.flatten(1)))


class Log(Linear):
    """Takes positive numbers."""

    def made(self, x: Tensor) -> Tensor:
        return torch.log(x)


class Root(Linear):
    """Takes numbers that are not negative, and has a parameter that must be positive."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(shape, outputs)
        self.spread = nn.Parameter(torch.ones(1))

    def made(self, x: Tensor) -> Tensor:
        return torch.sqrt(x) / torch.sqrt(self.spread)


class Narrow(Linear):
    """Puts out two numbers, whatever the data."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, 2)


class Pair(Linear):
    """Puts out a pair."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Picky(Linear):
    """Raises what nobody expects."""

    def made(self, x: Tensor) -> Tensor:
        raise KeyError("features")


class Leaves(Linear):
    """Ends the process."""

    def made(self, x: Tensor) -> Tensor:
        raise SystemExit(3)


class Late(Linear):
    """Raises while training only."""

    def made(self, x: Tensor) -> Tensor:
        if self.training:
            raise OSError("only while training")
        return x


class Own:
    """Cross-entropy, from which objectives with a fault are made."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(outputs, targets, reduction="sum"), "examples": torch.tensor(len(targets))}

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["examples"]}


class Unscored(Own):
    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"loss": sums["lost"]}


class Lossless(Own):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise LookupError("no loss today")


class Recalls(Own):
    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        hit = outputs.argmax(-1) == targets
        of = {f"of{k}": (targets == k).sum() for k in range(3)}
        return {**super().sums(outputs, targets), **of, **{f"hit{k}": (hit & (targets == k)).sum() for k in range(3)}}

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {**super().scores(sums), **{f"recall_{k}": sums[f"hit{k}"] / sums[f"of{k}"] for k in range(3)}}


def unscored() -> Own:
    return Unscored()


def lossless() -> Own:
    return Lossless()


def recalls() -> Own:
    return Recalls()


class Lazy(nn.Module):
    """Takes its width from the first examples."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.l = nn.Sequential(nn.Flatten(), nn.LazyLinear(7), nn.LazyBatchNorm1d(), nn.LazyLinear(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x)
