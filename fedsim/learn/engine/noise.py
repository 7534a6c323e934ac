"""Random layers, made a function of (client, task, step, layer): Dropout becomes a mask that is handed in.

A mask drawn outside the graph is stacked like any other input, so a network with Dropout trains in cohorts. Whatever
else draws random numbers is left as it is, and its clients train one at a time under a seed of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedsim.core.types import Array, IntArray
from fedsim.learn.seeded import seeded
from fedsim.learn.work import Task

_WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ALWAYS_DRAWING = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


@dataclass(frozen=True, slots=True)
class Mask:
    """One use of a Dropout layer: the shape of its mask for one client's batch, and the share that is kept."""

    shape: tuple[int, ...]
    keep: float


def masks_of(model: nn.Module, x: Tensor) -> list[Mask]:
    """Return the masks that a training pass of *model* over a batch shaped like *x* uses, in order of use."""
    found: list[Mask] = []

    def note(layer: nn.Module, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], *(1 for _ in x.shape[2:])) if isinstance(layer, _WHOLE_CHANNELS) else tuple(x.shape)
        found.append(Mask(shape, 1.0 - float(layer.p)))  # pyright: ignore[reportArgumentType]
        return x

    if any(True for _ in _layers(model)):
        with FakeTensorMode(allow_non_fake_inputs=True), _replaced(model, note), torch.no_grad():
            model(torch.empty(x.shape, dtype=x.dtype, device=x.device))
    return found


@contextmanager
def given(model: nn.Module, masks: Sequence[Tensor]) -> Generator[None]:
    """Let every Dropout of *model* multiply by the next of *masks* instead of drawing one."""
    rest = iter(masks)
    with _replaced(model, lambda _layer, x: x * next(rest)):
        yield


class Luck:
    """What the tasks of one chunk draw while they train, each from generators of its own, step after step.

    A row goes through its steps in order, so what it draws depends on its task alone.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._generators: dict[tuple[str, int], np.random.Generator] = {}

    def masks(self, masks: Sequence[Mask], rows: slice | IntArray) -> list[Tensor]:
        """Return the masks of the next step of *rows*, scaled so that they keep the mean. Shapes: (rows, ...)."""
        if not masks:
            return []
        each = range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()
        drawn: dict[int, list[Tensor]] = {}
        for row in each:  # A row that stands twice, beside itself, draws once.
            if row not in drawn:
                numbers = self._generator("dropout", row)
                drawn[row] = [_mask(numbers.random(mask.shape, dtype=np.float32), mask.keep) for mask in masks]
        return [torch.stack(stack) for stack in zip(*(drawn[row] for row in each), strict=True)]

    def seeded(self, step: _Random, rows: slice | IntArray) -> AbstractContextManager[None]:
        """Return the context in which a *step* that draws by itself runs the next step of its one row."""
        if not step.random:
            return nullcontext()
        row = rows.start if isinstance(rows, slice) else int(rows[0])
        return seeded(int(self._generator("random", row).integers(2**63)))

    def _generator(self, name: str, row: int) -> np.random.Generator:
        if (name, row) not in self._generators:
            self._generators[name, row] = self._tasks[row].key.fold(name).numpy()
        return self._generators[name, row]


class _Random(Protocol):
    @property
    def random(self) -> bool: ...


def _mask(uniform: Array, keep: float) -> Tensor:
    return torch.from_numpy((uniform < keep) * np.float32(1.0 / keep if keep else 0.0))


def steady(model: nn.Module, objective: object) -> bool:
    """Return whether nothing here can draw random numbers while it is evaluated: all of it is torch's and ours."""
    parts = (*model.modules(), objective)
    ours = all(type(part).__module__.partition(".")[0] in ("torch", "fedsim") for part in parts)
    return ours and not any(isinstance(part, _ALWAYS_DRAWING) for part in parts)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, (nn.Dropout, *_WHOLE_CHANNELS)) and module.p > 0:
            yield module


@contextmanager
def _replaced(model: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> Generator[None]:
    layers = list(_layers(model))
    for layer in layers:
        layer.forward = lambda x, layer=layer: forward(layer, x)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # The class's own shows again.
