"""Rehearsal that depends on numbers: one client, step by step, by torch.nn and autograd.

For what cannot be stacked: a method that makes its gradients itself, and a policy that is told more than losses, or chooses by a step
ahead (see ``together``). Knows no method by its name.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.state import State
from fedsim.core.types import FloatArray
from fedsim.data.replay import Drawn
from fedsim.data.replay.losses import most_interfered
from fedsim.learn.engine.pupil import Pupil, finite
from fedsim.learn.engine.rows import Rows
from fedsim.learn.engine.scoring import evaluating
from fedsim.learn.engine.watching import Watcher
from fedsim.learn.kept import worn
from fedsim.learn.models import travelling
from fedsim.learn.objectives import Objective
from fedsim.learn.rehearsal import Numeric, stacks
from fedsim.learn.rehearsal.lesson import Seen, Step, Turn
from fedsim.learn.seeded import seeded
from fedsim.learn.store import Store
from fedsim.learn.work import Task


class Learner:
    """Trains one task in the first of *rows*.

    ``run()`` returns (parts for the client's next task, the loss of each step). *watcher* looks on.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, store: Store, task: Task, start: list[Tensor], rows: Rows, trained: int,
        watcher: Watcher | None = None,
    ) -> None:  # fmt: skip
        self._pupil = Pupil(model, objective, store, task, start, self._now, trained)
        self._model, self._objective, self._live = model, objective, self._pupil.live
        self._all, self._trained, self._watcher = list(travelling(model)), trained, watcher
        self._rows, self._rates = rows, task.step_rates.tolist()

    def run(self) -> tuple[dict[str, State], FloatArray]:
        """Train, and return what came of it."""
        pupil, live, losses = self._pupil, self._live, list[float]()
        work = pupil.begun()
        luck = pupil.task.key.fold("random").numpy()
        for number in range(len(live.sizes)):
            with seeded(int(luck.integers(2**63))):  # Dropout and its like.
                losses.append(self._step(number, work))
        return pupil.ended(work), np.array(losses)

    def _step(self, number: int, work: Any) -> float:
        pupil, new = self._pupil, self._pupil.fresh(number)
        x, y = pupil.examples(new)
        with evaluating(self._model):
            drawn = pupil.draw(number, lambda drawn, count: self._interfered(drawn, count, x, y, self._rates[number]))
        replayed = np.concatenate([d.items for d in drawn]) if drawn else new[:0]
        params = pupil.params
        leaves = [param.requires_grad_() for param in params[: self._trained]]
        rx, ry = pupil.examples(replayed)
        with torch.enable_grad(), self._worn(params):
            # One forward pass for all: half the dispatch of a pass each.
            outputs, targets = self._model(torch.cat([x, rx])), torch.cat([y, ry])
            turn = pupil.turn(number, drawn)
            loss, gradients = self._followed(turn, x, outputs, targets, leaves, work)
        told = outputs.detach()
        with evaluating(self._model):
            pupil.tell(turn, lambda items, rows: pupil.numbers(items, told[rows], targets[rows]))
        stacked = [gradient.detach().unsqueeze(0) for gradient in gradients]
        if self._watcher:
            self._watcher.begin(number, slice(0, 1))
            self._watcher.gradients(slice(0, 1), stacked)
        self._rows.step(slice(0, 1), stacked, number, self._rates[number])
        if self._watcher:
            self._watcher.end(self._rates[number])
        return finite(float(loss.detach()))

    def _followed(
        self, turn: Turn, x: Tensor, outputs: Tensor, y: Tensor, leaves: list[Tensor], work: Any
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the loss of a mini-batch, and what the step follows."""
        pupil, method = self._pupil, self._pupil.method
        if not stacks(method):
            step = Step(pupil, turn.items, turn.inserted, turn.drawn, x, outputs, y, leaves)
            return cast(Numeric, method).gradients(step, work)
        recalled = [pupil.tensor(array) for array in method.recalled(turn, work)]
        losses = method.losses(Seen(self._objective, outputs, y, len(turn.items), method.way.draws, leaves, recalled))
        each = [pupil.gradients(loss, leaves, again=loss is not losses[-1]) for loss in losses]
        method.noted(turn, outputs.detach().to(leaves[0].dtype).cpu().numpy(), work)
        return losses[0], method.followed(each)

    def _interfered(self, drawn: Drawn, count: int, x: Tensor, y: Tensor, rate: float) -> Drawn:
        """Return the *count* candidates that a step on the new examples alone would harm most (MIR)."""
        pupil = self._pupil
        params = pupil.params
        leaves = [param.requires_grad_() for param in params[: self._trained]]
        with torch.enable_grad(), self._worn(params):
            gradients = pupil.gradients(self._objective.loss(self._model(x), y), leaves)
        ahead = [p.detach() - rate * g for p, g in zip(leaves, gradients, strict=True)]
        cx, cy = pupil.examples(drawn.items)
        with torch.no_grad():
            before = self._objective.each(pupil.forward(pupil.params, cx), cy)
            after = self._objective.each(pupil.forward([*ahead, *pupil.params[self._trained :]], cx), cy)
        worst = most_interfered(before.double().cpu().numpy(), after.double().cpu().numpy(), count)
        return Drawn(drawn.slots[worst], drawn.items[worst], drawn.weights[worst])

    def _now(self) -> list[Tensor]:
        return [param[0].detach() for param in self._rows.params]

    @contextmanager
    def _worn(self, params: list[Tensor]) -> Generator[None]:
        """Let the model have *params*, and buffers that it assigns anew be written into them."""
        tensors = dict(zip(self._all, params, strict=True))
        with worn(self._model, tensors):
            yield
        with torch.no_grad():
            for name, buffer in list(zip(self._all, params, strict=True))[self._trained :]:
                if tensors[name].data_ptr() != buffer.data_ptr():
                    buffer.copy_(tensors[name])
