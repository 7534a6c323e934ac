"""Odd models, in a module of their own: workers load it by name."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Base(nn.Module):
    """A linear classifier, to which each odd model adds one oddity."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.n = math.prod(shape)
        self.l = nn.Linear(self.n, outputs)
        self.odd(outputs)

    def odd(self, outputs: int) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x.flatten(1))


class Scalar(Base):
    """A parameter without dimensions."""

    def odd(self, outputs: int) -> None:
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class ScalarBuffer(Base):
    """A buffer without dimensions that training moves."""

    def odd(self, outputs: int) -> None:
        self.register_buffer("mean", torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean())
        return super().forward(x - self.mean)


class Empty(Base):
    """A parameter without elements."""

    def odd(self, outputs: int) -> None:
        self.none = nn.Parameter(torch.zeros(0, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.none.sum(0)


class Transposed(Base):
    """A parameter that lies in memory column by column."""

    def odd(self, outputs: int) -> None:
        self.t = nn.Parameter(torch.randn(outputs, self.n).t() * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.flatten(1) @ self.t


class Strided(Base):
    """A parameter and a buffer that are every second element of something larger."""

    def odd(self, outputs: int) -> None:
        self.s = nn.Parameter(torch.randn(2 * outputs)[::2])
        self.register_buffer("b", torch.arange(2.0 * outputs)[::2])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.s + 0.01 * self.b


class ExpandedBuffer(Base):
    """A buffer whose elements are all one place in memory."""

    def odd(self, outputs: int) -> None:
        self.register_buffer("b", torch.tensor([0.5]).expand(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.b


class Tied(Base):
    """One parameter under two names."""

    def odd(self, outputs: int) -> None:
        self.second = nn.Linear(self.n, outputs)
        self.second.weight = self.l.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.second(x.flatten(1) ** 2)


class TwoNames(Base):
    """One module under two names."""

    def odd(self, outputs: int) -> None:
        self.head = self.l

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class SharedNorm(Base):
    """One module with buffers, under two names, used twice."""

    def odd(self, outputs: int) -> None:
        self.first = nn.BatchNorm1d(self.n)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.again(torch.tanh(self.first(x.flatten(1)))))


class Frozen(Base):
    """A parameter that is not trained."""

    def odd(self, outputs: int) -> None:
        self.fixed = nn.Parameter(torch.randn(outputs), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.fixed


class Counts(Base):
    """A buffer of whole numbers, and one of truths."""

    def odd(self, outputs: int) -> None:
        self.register_buffer("order", torch.arange(self.n).flip(0))
        self.register_buffer("use", torch.arange(self.n) % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, self.order]
        return super().forward(torch.where(self.use, flat, 0.5 * flat))


class Unsaved(Base):
    """A buffer that a state_dict does not hold."""

    def odd(self, outputs: int) -> None:
        self.register_buffer("c", torch.full((outputs,), 0.3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.c


class Unused(Base):
    """A parameter that no output depends on."""

    def odd(self, outputs: int) -> None:
        self.idle = nn.Parameter(torch.randn(3, 2))


class Listed(Base):
    """Parameters in a list and in a dict, one of them without dimensions."""

    def odd(self, outputs: int) -> None:
        self.some = nn.ParameterList([torch.randn(outputs), torch.tensor(0.5)])
        self.more = nn.ParameterDict({"a.b".replace(".", "_"): torch.randn(outputs)})

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.some[1] + self.some[0] + self.more["a_b"]


class Lone(nn.Module):
    """A module that is itself one layer: its parameters have no prefix."""

    def __new__(cls, shape: tuple[int, ...], outputs: int) -> Any:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs, bias=False))


class CountsOn(Base):
    """A buffer of whole numbers that counts batches, and that outputs depend on."""

    def odd(self, outputs: int) -> None:
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        return super().forward(x) / (1 + self.count)


class CountsUnsaved(CountsOn):
    """The same, in a buffer that no state_dict holds."""

    def odd(self, outputs: int) -> None:
        self.register_buffer("count", torch.zeros(()), persistent=False)


class CountsInside(CountsOn):
    """The same, in a plain attribute."""

    def odd(self, outputs: int) -> None:
        self.count = 0


class Remembers(Base):
    """A list of what was seen, which did not exist when the model was built."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            vars(self).setdefault("seen", []).append(x.detach().mean())
        return super().forward(x - sum(vars(self).get("seen", [])))


class Draws(Base):
    """Noise from a generator of its own."""

    def odd(self, outputs: int) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype) if self.training else x)


class Assigned(Base):
    """A buffer that is not written into but assigned anew."""

    def odd(self, outputs: int) -> None:
        self.register_buffer("mean", torch.zeros(self.n))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.flatten(1).mean(0)
        return super().forward(x.flatten(1) - self.mean)


class Exchanged(Assigned):
    """A buffer whose data are exchanged."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.data = 0.9 * self.mean + 0.1 * x.flatten(1).mean(0)
        return Base.forward(self, x.flatten(1) - self.mean)


class Again(Base):
    """A layer that is computed again in the backward pass."""

    def odd(self, outputs: int) -> None:
        self.first = nn.Linear(self.n, self.n)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(checkpoint(lambda t: torch.tanh(self.first(t)), x.flatten(1), use_reentrant=False))


class Holds(Base):
    """A function that holds the model, as an attribute."""

    def odd(self, outputs: int) -> None:
        self.scale = nn.Parameter(torch.ones(outputs))
        self.n_calls = 0
        self.scaled = lambda out: out * self.scale

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += self.training
        return self.scaled(super().forward(x)) / (1 + self.n_calls)


class Pruned(Base):
    """A gradient that a hook masks: half of the weights are never moved."""

    def odd(self, outputs: int) -> None:
        mask = (torch.arange(outputs * self.n) % 2).reshape(outputs, self.n)
        self.l.weight.register_hook(lambda gradient: gradient * mask)


STEADY: list[Callable[..., nn.Module]] = [
    Scalar, ScalarBuffer, Empty, Transposed, Strided, ExpandedBuffer, Tied, TwoNames, SharedNorm, Frozen, Counts, Unsaved, Unused,
    Listed, Lone, Assigned,
]  # fmt: skip
"""Those that give the same whenever they are called alike, and can be traced."""

ODD = [*STEADY, CountsOn, CountsUnsaved, CountsInside, Remembers, Draws, Exchanged, Again, Holds, Pruned]


class Complex(Base):
    """A parameter of complex numbers."""

    def odd(self, outputs: int) -> None:
        self.w = nn.Parameter(torch.randn(outputs, dtype=torch.cfloat))


class Half(Base):
    """A parameter in half precision."""

    def odd(self, outputs: int) -> None:
        self.w = nn.Parameter(torch.randn(outputs).half())


class Double(Base):
    """A buffer in double precision."""

    def odd(self, outputs: int) -> None:
        self.register_buffer("w", torch.randn(outputs).double())


class ComplexBuffer(Base):
    """A buffer of complex numbers that no state_dict holds."""

    def odd(self, outputs: int) -> None:
        self.register_buffer("w", torch.randn(outputs, dtype=torch.cfloat), persistent=False)
