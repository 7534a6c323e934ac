"""Where a task's numbers broke: its steps once more, each looked at, and only when a result is no number. Knows no engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedsim.learn.engine.chunks import Chunk, Rate
from fedsim.learn.engine.rows import Rows
from fedsim.learn.engine.updates import Updates
from fedsim.learn.job import Job


@dataclass
class Guarded:
    """Rows whose gradients and parameters, called *names*, are looked at in each step: *found* is the first that is no number."""

    rows: Rows
    names: Sequence[str]
    found: str = ""

    @property
    def params(self) -> list[Tensor]:
        """Return those of the rows."""
        return self.rows.params

    def step(self, rows: slice | Tensor, gradients: list[Tensor], at: int, rate: Rate, ours: Sequence[bool] = ()) -> None:
        """Update as the rows do, looking before and after."""
        self.found = self.found or _broken("the gradient of ", self.names, gradients)
        self.rows.step(rows, gradients, at, rate, ours)
        self.found = self.found or _broken("the parameter ", self.names, self.rows.params)


def broken(job: Job, chunk: Chunk, guarded: Guarded, rates: Sequence[float], updates: Callable[[], Updates]) -> str:
    """Return which step of the task in *chunk* broke first, and what of it; empty where none did. ``updates()`` trains *guarded*."""
    before = _broken("the parameter ", guarded.names, guarded.params)
    if before:
        return f"{before} was none when it came"
    for step, kind, which, places in chunk.batches():
        each = updates()
        if job.cut:
            each.several(job.micro(kind[0]), which, places, step, rates[step], kind[1])
        else:
            each.once(kind, which, places, step, rates[step])
        loss = float(each.losses(chunk.sizes.shape)[0, step])
        if not math.isfinite(loss) or guarded.found:
            what = guarded.found if math.isfinite(loss) else "the loss"
            return f"{what} was the first to break, in local step {step + 1} of {chunk.sizes.shape[1]}"
    return ""


def _broken(what: str, names: Sequence[str], tensors: Sequence[Tensor]) -> str:
    return next((f"{what}{name}" for name, tensor in zip(names, tensors, strict=False) if not tensor.isfinite().all()), "")

