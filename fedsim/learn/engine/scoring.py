"""Scoring: what a model's outputs over examples amount to, in batches of fixed size, so that the bits are always the same."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from fedsim.core.types import IntArray, Params
from fedsim.learn.engine import noise
from fedsim.learn.models import called
from fedsim.learn.objectives import Objective, scores_of
from fedsim.learn.seeded import seeded

EVALUATION_ROWS = 1024
"""Examples that one forward pass of an evaluation takes; fixed, so that a loss has the same bits everywhere."""


class Scorer:
    """Scores any parameters of one model; *names* are those of what travels, in order. *as_built* puts back what the model keeps.

    What draws random numbers even here begins every batch at one seed: whoever scores it, and however often, gets the same.
    """

    def __init__(self, model: nn.Module, objective: Objective, names: list[str], as_built: Callable[[], None] = lambda: None) -> None:
        self._model, self._objective, self._names, self._as_built = model, objective, names, as_built
        self._steady = noise.steady(model, objective)

    def scores(self, params: list[Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the scores over the examples (x, y)."""
        return scores_of(self._objective, total(self.sums(params, x, y)))

    def sums(self, params: list[Tensor], x: Tensor, y: Tensor) -> Iterator[dict[str, float]]:
        """Yield what each batch of the examples (x, y) adds to the sums that scores follow from."""
        named = dict(zip(self._names, params, strict=True))
        for first in range(0, len(x), EVALUATION_ROWS):
            batch = slice(first, first + EVALUATION_ROWS)
            self._as_built()
            with torch.no_grad(), evaluating(self._model), self._seeded():  # Cloned: how examples lie in memory may choose the kernel.
                outputs = called(self._model, named, x[batch].clone())
                sums = self._objective.sums(outputs, y[batch])
            yield {name: float(value) for name, value in sums.items()}

    def each(self, params: list[Tensor], x: Tensor, y: Tensor, positions: IntArray) -> Params:
        """Return target, prediction and loss of the examples at *positions* of (x, y). Shapes: each (n,)."""
        named = dict(zip(self._names, params, strict=True))
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for first in range(0, len(positions), EVALUATION_ROWS):
            self._as_built()
            # A copy: streams are read-only.
            places = torch.tensor(positions[first : first + EVALUATION_ROWS], device=x.device)
            with torch.no_grad(), evaluating(self._model), self._seeded():
                outputs, targets = called(self._model, named, x[places]), y[places]
                found.append((targets, outputs.argmax(-1), self._objective.each(outputs, targets).double()))
        columns = [torch.cat(column).cpu().numpy() for column in zip(*found, strict=True)]
        return dict(zip(("y", "prediction", "loss"), columns, strict=True))

    def _seeded(self) -> AbstractContextManager[None]:
        return nullcontext() if self._steady else seeded(0)


def total(batches: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums over *batches*, added in their order."""
    totals: dict[str, float] = {}
    for sums in batches:
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Put *model* into its evaluation mode, and back: who only looks draws no Dropout and moves no running mean."""
    model.eval()
    try:
        yield
    finally:
        model.train()


