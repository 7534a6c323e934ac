"""Devices: which of them is the faster for a scenario, by a rule of sizes; and whether one that is there works. Times nothing.

What the rule rests on was measured (analysis/benchmarks/RESULTS.md, On a GPU), on an H200 beside the cores of its own machine. A step
of a chunk takes a GPU about 3 ms however little there is to do, since each of its 20 to 60 operations is begun by itself (a CUDA graph
brings that to a tenth, where one can be had); one core computes some 20 GFLOP in a second. Hence WORTH.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from fedsim.learn.engine.room import line_of, meant_by

Module = nn.Module
"""A model, for whoever knows no torch."""

WORTH = 5e7
"""FLOP in a step of a chunk from which on a GPU is the faster: what a core does in the time that a GPU takes to begin a step."""
PASSES = 6
"""FLOP per parameter and example of a dense layer: two each for the output, the gradient of the input and that of the weights."""
PLACES = 64
"""In how many places of an image a convolution's weights are used at least, counted as so many uses of them."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step has to do: *parameters* of the model, examples in a *batch*, *clients* that train at once; *convolves* or not.

    With *alone* clients train one after the other, or each with batches of its own: on streams, and where what is rehearsed depends on
    numbers.
    """

    parameters: int
    batch: int
    clients: int
    convolves: bool = False
    alone: bool = False

    @property
    def flop(self) -> float:
        """Return about how many operations the step of one chunk takes."""
        return PASSES * self.parameters * self.batch * (1 if self.alone else self.clients) * (PLACES if self.convolves else 1)


@dataclass(frozen=True, slots=True)
class Picked:
    """The device that was picked, and *why* in a sentence; empty where a scenario names it."""

    device: str
    why: str = ""


def faster(work: Work) -> Picked:
    """Return whether a GPU or the CPU is the faster for *work*: a GPU where a step of a chunk has WORTH operations and more.

    The CIFAR shape of pfl-research (182 ms a round on a GPU, 2.9 s on a CPU); 100 2NN clients; and what was slower on a GPU than on a CPU:
    drift-staggered (7.0 and 4.6 s), leaf-synthetic (7.7 and 4.7 s).

    >>> shapes = Work(545_098, 10, 50, convolves=True), Work(199_210, 10, 100), Work(97, 10, 10, alone=True), Work(610, 10, 10)
    >>> [faster(work).device for work in shapes]
    ['cuda', 'cuda', 'cpu', 'cpu']
    """
    device = "cuda" if work.flop >= WORTH else "cpu"
    each = "one client" if work.alone or work.clients == 1 else f"{work.clients} clients"
    what = f"{'a convolution' if work.convolves else 'no convolution'}, {work.parameters:,} parameters, batches of {work.batch}, {each}"
    than = "at least" if device == "cuda" else "less than"
    return Picked(device, f"a step of {what} takes about {work.flop / 1e6:.3g} MFLOP, {than} the {WORTH / 1e6:g} that pay on a GPU")


def there() -> bool:
    """Return whether torch finds a GPU."""
    return torch.cuda.is_available()


def lowers() -> bool:
    """Return whether the GPU has products of bfloat16."""
    return torch.cuda.is_bf16_supported()


def convolves(model: nn.Module) -> bool:
    """Return whether *model* has convolutions."""
    return any(isinstance(layer, _ConvNd) for layer in model.modules())


def broken(device: str) -> str:
    """Return what is wrong with a *device* that torch says is there, in a line; empty where it computes."""
    try:
        torch.ones(2, device=device).mul_(2).sum().item()
    except (RuntimeError, AssertionError) as error:  # Torch without CUDA raises the latter.
        works = "device = 'cpu' works without."
        return f"{line_of(error)}: {meant_by(error) or works}"
    return ""


def mine(device: str, worker: int, count: int) -> str:
    """Return the device of *worker*, from 1, where there are *count* of the kind: GPUs are dealt out, one each.

    >>> [mine("cuda", worker, 2) for worker in (1, 2, 3)], mine("cpu", 2, 0)
    (['cuda:0', 'cuda:1', 'cuda:0'], 'cpu')
    """
    return device if device == "cpu" or not count else f"{device}:{(worker - 1) % count}"
