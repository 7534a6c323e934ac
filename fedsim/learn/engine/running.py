"""How the three graphs of a compiled step are run: all rows in one go, or one row. Compiles nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Views = list[Tensor]
Placed = Literal["any", "many", "one"]
Graphed = Callable[..., Any]
"""A graph as a function."""
Open = Callable[[list[Tensor]], Views]
Run = Callable[[Views, Tensor, Tensor, Sequence[Tensor], Any], tuple[Tensor, list[Tensor]]]
"""The last of what it takes is minus the learning rate: a number, or a tensor where the step is for CUDA graphs."""
Close = Callable[[Tensor], Tensor]


def stacked_step(first: Graphed, body: Graphed, last: Graphed) -> tuple[Open, Run, Close]:
    """Return what opens, runs and closes a step of three graphs that take all rows in one go."""

    def run(views: Views, x: Tensor, y: Tensor, masks: Sequence[Tensor], rate: float | Tensor) -> tuple[Tensor, list[Tensor]]:
        *gradients, head = body(*views, x, y, *masks, rate)
        return head, gradients

    return lambda p: first(*p), run, lambda heads: last(heads)[0]


def single_step(first: Graphed, body: Graphed, last: Graphed) -> tuple[Open, Run, Close]:
    """Return the same of three graphs that take one row."""

    def run(views: Views, x: Tensor, y: Tensor, masks: Sequence[Tensor], rate: float | Tensor) -> tuple[Tensor, list[Tensor]]:
        *gradients, head = body(*views, x[0], y[0], *(mask[0] for mask in masks), rate)
        return head.unsqueeze(0), [gradient.unsqueeze(0) for gradient in gradients]

    def close(heads: Tensor) -> Tensor:
        return torch.stack([last(head)[0] for head in heads])

    return lambda p: first(*(param[0] for param in p)), run, close
