"""One client at a task that rehearses: what its method may ask (a lesson), and what its policy remembers and is told.

Knows neither how a step is made nor who else takes one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import RunError, must
from fedsim.core.state import State
from fedsim.core.types import Array, IntArray
from fedsim.data.replay import Drawn
from fedsim.learn.engine.aims import Mixes
from fedsim.learn.engine.persample import of_each
from fedsim.learn.engine.scoring import evaluating
from fedsim.learn.models import called, hooked, hooks, travelling
from fedsim.learn.objectives import Objective
from fedsim.learn.rehearsal import Live, Taught
from fedsim.learn.rehearsal.lesson import Turn
from fedsim.learn.store import Store
from fedsim.learn.work import Task

GRADIENT_NUMBERS = 4096
"""How many numbers of an example's gradient a policy compares, counted from the model's last layer backwards."""

Numbers = Callable[[IntArray, slice], Array]
"""What a policy is told of items, which are these rows of a mini-batch. Shapes: (k,) -> (k, ...)."""
Chosen = Callable[[Drawn, int], Drawn]
"""As many of the candidates as are said: those that a step would harm most."""


class Pupil:
    """The client of *task*, from *start*. *params* gives parameters and buffers as they are now; the first *trained* are trained."""

    def __init__(
        self, model: nn.Module, objective: Objective, store: Store, task: Task, start: list[Tensor], params: Callable[[], list[Tensor]],
        trained: int,
    ) -> None:  # fmt: skip
        live = task.rehearsing
        must(isinstance(live, Live), "a task that is laid out as it trains says how")
        self.task, self.live = task, cast(Live, live)
        self._model, self._objective, self._params = model, objective, params
        self._all, self._trained, self._hooks = list(travelling(model)), trained, hooks(model)
        self._x, self._y, _ = store.pool([task])
        self._memory = task.parts.get("replay", {})
        rehearsal = self.live.rehearsal
        self.method = cast(Taught, rehearsal) if rehearsal.way.numeric else Mixes(rehearsal)
        self.start, self.names, self.new = start, self._all[:trained], self.live.new.items

    # -- its task ------------------------------------------------------------------------------------------------------

    def begun(self) -> Any:
        """Return what the method works with during the task."""
        return self.method.begin(self.task.parts.get("rehearsal", {}), self)

    def turn(self, step: int, drawn: Sequence[Drawn]) -> Turn:
        """Return a *step* by number, which replays what was *drawn*."""
        return Turn(step, self.fresh(step), int(self.live.layout.inserted[step]), drawn)

    def ended(self, work: Any) -> dict[str, State]:
        """Return what the client keeps of the task."""
        parts: dict[str, State] = {}
        with evaluating(self._model):
            if (memory := self.remembered()) is not None:
                parts["replay"] = memory
            if kept := self.method.end(self, work):
                parts["rehearsal"] = kept
        return parts

    # -- what a method may ask -----------------------------------------------------------------------------------------

    @property
    def held(self) -> IntArray:
        """Return the items remembered, as they are when the task ends."""
        return self.live.replay.held(self._memory) if self.live.held is None else self.live.held

    @property
    def params(self) -> list[Tensor]:
        """Return the parameters and buffers as they are now, without gradients."""
        return self._params()

    def examples(self, items: IntArray) -> tuple[Tensor, Tensor]:
        """Return the examples *items* and their targets. Shapes: (k,) -> (k, ...), (k, ...)."""
        places = torch.tensor(self.live.places[items], device=self._x.device)
        return self._x[places], self._y[places]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the objective's mean loss."""
        return self._objective.loss(outputs, targets)

    def evaluated(self, params: list[Tensor], x: Tensor) -> Tensor:
        """Return the outputs for *x* of the model with *params*, evaluating and without gradient."""
        with torch.no_grad(), evaluating(self._model):
            return self.forward(params, x).to(params[0].dtype)  # Where products are of bfloat16, so is what they give.

    def gradients(self, loss: Tensor, leaves: list[Tensor], *, again: bool = False) -> list[Tensor]:
        """Return the gradients of *loss*; *again* if its graph is needed once more. Raises RunError for a loss that is not finite."""
        finite(float(loss.detach()))
        return hooked(self._hooks, torch.autograd.grad(loss, leaves, retain_graph=again, materialize_grads=True))

    def of_each(self, items: IntArray) -> list[Tensor]:
        """Return the gradient of each example's loss by each trained parameter, at ``params``. Shapes: (k,) -> (k, *parameter) each."""
        return self._of_each(items, range(self._trained))

    def tensor(self, array: Array) -> Tensor:
        """Return *array* in the type of the parameters, where they are."""
        return torch.from_numpy(np.array(array)).to(self.start[0])

    # -- the memory ----------------------------------------------------------------------------------------------------

    def fresh(self, step: int) -> IntArray:
        """Return the new items of a *step*."""
        layout = self.live.layout
        begin = int(layout.begins[step])
        return self.new[begin : begin + int(layout.fresh[step])]

    def draw(self, step: int, chosen: Chosen | None = None) -> list[Drawn]:
        """Return what each draw of a *step* replays: of a policy's candidates those *chosen*.

        Raises RunError where that is not as much as was foretold.
        """
        live = self.live
        if live.planned is not None:
            none = np.zeros(0, dtype=np.int64)
            return [Drawn(none, items, np.ones(len(items))) for items in live.planned[step]]
        size, fresh = int(live.sizes[step]), int(live.layout.fresh[step])
        count = (size - fresh) // max(1, live.rehearsal.way.draws)
        found: list[Drawn] = []
        for draw in range(live.rehearsal.way.draws if count else 0):
            key = live.key.fold("draw", live.first_step + step, draw)
            drawn = live.replay.draw(self._memory, count, key, live.now)
            found.append(chosen(drawn, count) if chosen and len(drawn.items) > count else drawn)
        replayed = sum(len(drawn.items) for drawn in found)
        if fresh + replayed != size:
            raise RunError(
                f"clients.replay: {replayed} examples are replayed beside {fresh} new ones, where {size - fresh} were"
                f" foretold. A policy that is told numbers draws as many as are asked for, or all that it holds."
            )
        return found

    def tell(self, turn: Turn, numbers: Numbers) -> None:
        """Tell the policy, where it needs any, the *numbers* of what a *turn* replayed, and of what it takes in after it."""
        live, at = self.live, len(turn.items)
        if not live.replay.needs:
            return
        for each in turn.drawn:
            end = at + len(each.items)
            if at < end:
                self._memory = live.replay.update(self._memory, each.slots, numbers(each.items, slice(at, end)))
            at = end
        if turn.inserted:
            begin = int(live.layout.begins[turn.number])
            self._add(begin, begin + turn.inserted, numbers(turn.items[: turn.inserted], slice(turn.inserted)))

    def remembered(self) -> State | None:
        """Return the memory at the end of the task; None where it was known before."""
        live = self.live
        if not live.replay.needs:
            return None
        rest = int(live.layout.inserted.sum())
        if rest < len(self.new):  # Steps were fewer than an epoch's: the rest is remembered too.
            items = self.new[rest:]
            x, y = self.examples(items)
            self._add(rest, len(self.new), self.numbers(items, self.evaluated(self.params, x), y))
        return dict(self._memory)

    def numbers(self, items: IntArray, outputs: Tensor, y: Tensor) -> Array:
        """Return what the policy is to be told of *items*, which have these *outputs*."""
        makers: dict[str, Callable[[], Tensor]] = {
            "losses": lambda: self._objective.each(outputs, y),
            "gradients": lambda: self._each_gradient(items),
            "features": lambda: self._features(items),
        }
        with torch.no_grad():
            return makers[next(iter(self.live.replay.needs))]().double().cpu().numpy()

    def forward(self, params: list[Tensor], x: Tensor) -> Tensor:
        """Return the outputs for *x* of the model with *params*."""
        return called(self._model, dict(zip(self._all, params, strict=True)), x)

    def _add(self, begin: int, end: int, numbers: Array) -> None:
        told = dict.fromkeys(self.live.replay.needs, numbers)
        self._memory = self.live.replay.add(self._memory, self.live.new[begin:end], self.live.key, told)

    def _each_gradient(self, items: IntArray) -> Tensor:
        """Return the gradient of each example's loss, from the last parameters backwards. Shapes: (k,) -> (k, d)."""
        params, chosen, numbers = self.params, list[int](), 0
        for i in reversed(range(self._trained)):
            if numbers and numbers + params[i].numel() > GRADIENT_NUMBERS:
                break
            chosen.append(i)
            numbers += params[i].numel()
        return torch.cat([gradient.flatten(1) for gradient in self._of_each(items, chosen)], dim=1)

    def _of_each(self, items: IntArray, chosen: Sequence[int]) -> list[Tensor]:
        params = self.params

        def loss(some: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            whole = list(params)
            for i, param in zip(chosen, some, strict=True):
                whole[i] = param
            return self._objective.loss(self.forward(whole, x.unsqueeze(0)), y.unsqueeze(0))

        return of_each(loss, [params[i] for i in chosen], *self.examples(items))

    def _features(self, items: IntArray) -> Tensor:
        """Return what goes into the model's last dense layer; its outputs, where it has none. Shapes: (k,) -> (k, d)."""
        dense = [layer for layer in self._model.modules() if isinstance(layer, nn.Linear)]
        seen: list[Tensor] = []
        hook = dense[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) if dense else None
        try:
            outputs = self.evaluated(self.params, self.examples(items)[0])
        finally:
            if hook:
                hook.remove()
        return (seen[-1] if seen else outputs).flatten(1)


def finite(loss: float) -> float:
    """Return *loss*. Raises RunError where it is no finite number."""
    if not np.isfinite(loss):
        raise RunError(f"the loss became {loss} while a client rehearsed; try a smaller training.optimizer.lr.")
    return loss
