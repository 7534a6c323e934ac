"""Updates: what the rows of a chunk make of one batch each, in one pass or in several whose gradients are averaged. Knows no task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.core.types import FloatArray, IntArray
from fedsim.learn.engine.aims import Form
from fedsim.learn.engine.chunks import Rate, groups, paced
from fedsim.learn.engine.graphs import Graphs
from fedsim.learn.engine.noise import Luck
from fedsim.learn.engine.step import Step

Which = slice | IntArray
"""Rows of a chunk: side by side, or their numbers."""
Kind = tuple[int, int, *tuple[Form, ...]]
"""The batch size of a step, and how many of the batch are new; 0 where that makes no difference. Then the shapes of what is recalled."""
Mass = Tensor | float
"""What the mean over a batch is divided by: for each row, or for all."""
Head = tuple[int, Which, Tensor, FloatArray | float]
"""Of a pass: the step that it was for, its rows, what stands for its loss, and its share in that of the step."""


class Trained(Protocol):
    """Rows of a chunk, as ``Rows`` has them."""

    @property
    def params(self) -> list[Tensor]:
        """Return parameters and buffers. Shapes: (rows, ...) each."""
        ...

    def step(self, rows: slice | Tensor, gradients: list[Tensor], at: int, rate: Rate, ours: Sequence[bool] = ()) -> None:
        """Update *rows* by their *gradients* at *rate*, one or one for each, in their step number *at*; *ours* may be written over."""
        ...


@dataclass(slots=True)
class Updates:
    """Trains *rows* on examples of the *pool* (x, y), by the compiled steps that *step* gives, and *spread* for rows of several
    rates. Call it within ``torch.no_grad``.

    *plain* says that these do the whole update, *trained* how many of the rows' tensors are parameters; *alone*, that there is one row.
    *mass* gives what the objective's mean over targets is divided by; None: how many there are. *told* is shown the gradients of rows,
    where there are any, before the update rule takes them. *recalled* gives what steps of an ``Aim`` want besides, and *shown* is shown
    what these return besides. Where it *cuts*, the second number of a kind is how many steps of its sequences are read; 0 for all.
    With *graphs* steps of rows side by side run by these, where they can.
    """

    pool: tuple[Tensor, Tensor]
    rows: Trained
    luck: Luck
    step: Callable[[Kind], Step]
    trained: int
    plain: bool
    alone: bool
    mass: Callable[[Tensor], Tensor] | None = None
    told: Callable[[Which, Sequence[Tensor]], None] | None = None
    cuts: bool = False
    recalled: Callable[[Which], list[Tensor]] | None = None
    shown: Callable[[Which, Sequence[Tensor]], None] | None = None
    spread: Callable[[Kind], Step] | None = None
    graphs: Graphs | None = None
    _heads: dict[Kind, list[Head]] = field(default_factory=dict[Kind, list[Head]])
    _views: dict[tuple[Kind, int, int], list[Tensor]] = field(default_factory=dict[tuple[Kind, int, int], list[Tensor]])

    def once(self, kind: Kind, which: Which, places: IntArray, at: int, rate: Rate) -> None:
        """Make step number *at* of the rows *which* from one pass over their examples, at *rate*, one or one for each row of the chunk.

        Shapes: places (rows, size).
        """
        compiled = self.step(kind)
        if self.plain and isinstance(rate, np.ndarray):
            spread = compiled if compiled.rows == "one" or self.spread is None else self.spread(kind)
            for rows, read, own in paced(spread, which, places, rate):
                self._once(spread if isinstance(own, np.ndarray) else compiled, kind, rows, read, at, own)
        else:
            self._once(compiled, kind, which, places, at, rate)

    def _once(self, compiled: Step, kind: Kind, which: Which, places: IntArray, at: int, rate: Rate) -> None:
        for mine, read in groups(compiled, which, places, alone=self.alone):
            head, rest = self._pass(compiled, kind, mine, read, rate if self.plain else 0.0)
            gradients = [] if self.plain else rest[: self.trained]
            if self.shown is not None:
                self.shown(mine, rest[len(gradients) :])
            if not self.plain:
                if self.told is not None:
                    self.told(mine, gradients)
                own = rate[mine] if isinstance(rate, np.ndarray) else rate
                self.rows.step(mine if isinstance(mine, slice) else torch.from_numpy(mine), gradients, at, own, compiled.ours)
            self._heads.setdefault(kind, []).append((at, mine, head, 1.0))

    def several(self, sizes: Sequence[int], which: Which, places: IntArray, at: int, rate: Rate, width: int = 0) -> None:
        """Make the same step from a pass over each of micro-batches of *sizes*, one after the other: gradient accumulation.

        The gradient is the mean over all examples, to which each pass adds its own mean times what that was divided by, and the loss
        is so too. Only the parameters' gradients are averaged: what a layer computes of the examples that it sees together is not.
        """
        count = len(places)
        parts = np.split(places, np.cumsum(sizes)[:-1], axis=1)
        masses = [self._mass(part) for part in parts]
        whole = sum(masses[1:], masses[0])
        sums = [param.new_zeros(count, *param.shape[1:]) for param in self.rows.params[: self.trained]]
        for size, part, mass in zip(sizes, parts, masses, strict=True):
            kind, share = (size, width), mass / whole
            compiled = self.step(kind)
            for local, read in groups(compiled, slice(0, count), part, alone=self.alone):
                mine = _of(which, local)
                head, gradients = self._pass(compiled, kind, mine, read, 0.0)
                _add(sums, gradients, local if isinstance(local, slice) else slice(int(local[0]), int(local[0]) + 1), mass)
                of = share[local].double().cpu().numpy() if isinstance(share, Tensor) else share
                self._heads.setdefault(kind, []).append((at, mine, head, of))
        for total in sums:
            total.div_(_along(whole, total) if isinstance(whole, Tensor) else whole)
        if self.told is not None:
            self.told(which, sums)
        ours, own = [True] * len(sums), rate[which] if isinstance(rate, np.ndarray) else rate
        self.rows.step(which if isinstance(which, slice) else torch.from_numpy(which), sums, at, own, ours)

    def losses(self, shape: tuple[int, ...]) -> FloatArray:
        """Return the loss of each row in each step; 0 where it took none. Shapes: -> (rows, steps)."""
        losses = np.zeros(shape)
        for kind, found in self._heads.items():
            values, begin = self.step(kind).close(torch.cat([head for _, _, head, _ in found])).double().cpu().numpy(), 0
            for at, mine, head, share in found:
                value = values[begin : begin + len(head)]
                losses[mine, at] += value if isinstance(share, float) and share == 1.0 else np.where(share > 0, value * share, 0.0)
                begin += len(head)
        return losses

    def _pass(self, compiled: Step, kind: Kind, mine: Which, read: IntArray, rate: Rate) -> tuple[Tensor, list[Tensor]]:
        """Run the step *compiled* for *kind*, for the rows *mine* over the examples at *read*: what stands for the loss, and gradients.

        *rate* is of all of them, or of each.
        """
        size, (x, y) = kind[0], self.pool
        index = _sent(torch.from_numpy(np.ascontiguousarray(read).reshape(-1)), x.device)
        bx = x.index_select(0, index).view(len(read), size, *x.shape[1:])
        if self.cuts and kind[1]:
            bx = bx[:, :, : kind[1]].contiguous()
        by = y.index_select(0, index).view(len(read), size, *y.shape[1:])
        params = self.rows.params
        down = torch.from_numpy(-rate).to(params[0]) if isinstance(rate, np.ndarray) else -rate
        masks = [_sent(m, x.device).to(params[0].dtype) for m in self.luck.masks(compiled.masks, mine)]
        if self.recalled is not None:
            masks += self.recalled(mine)
        if isinstance(mine, slice):
            ran = None
            if self.graphs is not None and not isinstance(rate, np.ndarray):
                ran = self.graphs.run(compiled, params, mine, (bx, by), masks, -rate)
            if ran is not None:
                return ran
            mark = (kind, mine.start, mine.stop)
            if mark not in self._views:
                self._views[mark] = compiled.open([param[mine] for param in params])
            with self.luck.seeded(compiled, mine):
                return compiled.run(self._views[mark], bx, by, masks, down)
        if self.graphs is not None:
            self.graphs.apart()
        at = torch.from_numpy(mine)  # Rows apart, or one that needs memory of its own: gathered, and written back.
        copies = [param[at] for param in params]
        with self.luck.seeded(compiled, mine):
            ran = compiled.run(compiled.open(copies), bx, by, masks, down)
        kept = 0 if self.plain else self.trained  # Buffers have changed either way.
        for param, changed in zip(params[kept:], copies[kept:], strict=True):
            param[at] = changed
        return ran

    def _mass(self, places: IntArray) -> Mass:
        if self.mass is None:
            return float(places.shape[1])
        y = self.pool[1]
        targets = y[torch.from_numpy(np.ascontiguousarray(places)).to(y.device)]
        return torch.stack([self.mass(each) for each in targets]).to(self.rows.params[0])


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return *tensor* on *device*; a GPU is not waited for: it takes it from memory that it can read by itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _add(sums: list[Tensor], gradients: list[Tensor], rows: slice, mass: Mass) -> None:
    """Add to each sum's *rows* the gradient times its *mass*; the first alone, where a row stands beside itself."""
    for total, gradient in zip(sums, gradients, strict=True):
        mine = total[rows]
        gradient = gradient[: len(mine)]
        if isinstance(mass, Tensor):  # A mean over nothing is no number, and adds nothing.
            weight = _along(mass[rows], mine)
            mine.add_(torch.where(weight > 0, gradient * weight, 0.0))
        else:
            mine.add_(gradient * mass)


def _along(mass: Tensor, like: Tensor) -> Tensor:
    """Return *mass*, a number for each row, so shaped that it multiplies *like*."""
    return mass.view(-1, *[1] * (like.ndim - 1))


def _of(which: Which, local: Which) -> Which:
    """Return the rows *which* at *local*, which is a slice for all of them."""
    if isinstance(local, slice):
        return which
    return local + which.start if isinstance(which, slice) else which[local]
