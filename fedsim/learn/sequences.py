"""Models of sequences of whole numbers, padded at their ends: what is padded moves nothing. Knows no batch."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from fedsim.core.errors import ScenarioError
from fedsim.core.types import Count, Range
from fedsim.learn.models import models

Reads = Literal["last", "mean"]
Pad = Annotated[int, Range(ge=0, why="the number that fills sequences up")]


class Recurrent(nn.Module):
    """Embedding, one recurrent layer, and a dense layer on what it puts out at the last real step, or on the mean over real steps.

    A sequence ends where nothing but *pad* follows. What comes after lies behind every real step, is never read, and so has no
    gradient: neither outputs nor gradients of real steps change by a bit. Shapes: (b, steps) -> (b, outputs).
    """

    def __init__(
        self, cell: type[nn.GRU] | type[nn.LSTM], vocabulary: int, outputs: int, embedding: int, hidden: int, pad: int, reads: Reads
    ) -> None:
        super().__init__()
        self.vocabulary, self.pad, self.reads = vocabulary, pad, reads
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=pad)
        self.cell = cell(embedding, hidden, batch_first=True)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(1, x.shape[1] + 1, device=x.device)
        length = ((x != self.pad) * at).amax(1).clamp(min=1).unsqueeze(1)
        put_out: Tensor = self.cell(self.embedding(x))[0]
        wanted = at == length if self.reads == "last" else at <= length
        summed = torch.where(wanted.unsqueeze(2), put_out, 0.0).sum(1)
        return self.out(summed if self.reads == "last" else summed / length)


def _recurrent(
    cell: type[nn.GRU] | type[nn.LSTM], shape: tuple[int, ...], outputs: int, vocabulary: int, embedding: int, hidden: int, pad: int,
    reads: Reads,
) -> nn.Module:  # fmt: skip
    name = cell.__name__.lower()
    if len(shape) != 1:
        raise ScenarioError(f"model.kind = {name!r}: wants sequences, one row of whole numbers each; these examples have shape {shape}.")
    if pad >= vocabulary:
        raise ScenarioError(f"model.pad = {pad}: must be < model.vocabulary = {vocabulary}, which counts it.")
    return Recurrent(cell, vocabulary, outputs, embedding, hidden, pad, reads)


@models.register("gru")
def gru(
    shape: tuple[int, ...], outputs: int, *, vocabulary: Count, embedding: Count = 16, hidden: Count = 64, pad: Pad = 0,
    reads: Reads = "last",
) -> nn.Module:  # fmt: skip
    """A gated recurrent network over sequences of whole numbers, 0 to vocabulary - 1, padded at their ends.

    Reference: Cho et al. 2014, arXiv:1406.1078.
    """
    return _recurrent(nn.GRU, shape, outputs, vocabulary, embedding, hidden, pad, reads)


@models.register("lstm")
def lstm(
    shape: tuple[int, ...], outputs: int, *, vocabulary: Count, embedding: Count = 8, hidden: Count = 256, pad: Pad = 0,
    reads: Reads = "last",
) -> nn.Module:  # fmt: skip
    """A recurrent network with long short-term memory over sequences of whole numbers, 0 to vocabulary - 1, padded at their ends.

    McMahan's for Shakespeare has two such layers (arXiv:1602.05629); this one has one. Reference: Hochreiter & Schmidhuber 1997.
    """
    return _recurrent(nn.LSTM, shape, outputs, vocabulary, embedding, hidden, pad, reads)
