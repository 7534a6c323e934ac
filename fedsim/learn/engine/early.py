"""A task that may end early: its loss after each epoch, and the best parameters so far. Knows no batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fedsim.learn.engine.rows import Rows
from fedsim.learn.stopping import Stopping


@dataclass
class Early:
    """Watches one task, in the first of rows: *score* gives the loss of parameters, *epoch* is how many steps make one."""

    stopping: Stopping
    score: Callable[[list[Tensor]], float]
    epoch: int
    losses: list[float] = field(default_factory=list[float])
    best: list[Tensor] = field(default_factory=list[Tensor])

    def ends(self, step: int, rows: Rows) -> bool:
        """Return whether the task ends with its step number *step*."""
        if (step + 1) % self.epoch:
            return False
        params = [param[0] for param in rows.params]
        loss = self.score(params)
        loss = loss if math.isfinite(loss) else math.inf
        if self.stopping.restores and loss < min(self.losses, default=math.inf):
            self.best = [param.clone() for param in params]
        self.losses.append(loss)
        return self.stopping.stops(self.losses)

    @property
    def sent(self) -> int:
        """Return how many steps are behind the parameters that are sent: fewer than were taken, where the best are restored."""
        epochs = self.losses.index(min(self.losses)) + 1 if self.best else len(self.losses)
        return epochs * self.epoch

    def settle(self, rows: Rows) -> None:
        """Put the best parameters back, where these are to be sent."""
        for param, best in zip(rows.params, self.best, strict=False):
            param[0] = best
