"""Rehearsal that depends on numbers: one client, step by step, by torch.nn and autograd.

What is replayed, or what a step follows, comes of losses, gradients or outputs that only training gives. Knows no method by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import RunError, must
from fedsim.core.state import State
from fedsim.core.types import Array, FloatArray, IntArray
from fedsim.data.replay import Drawn
from fedsim.data.replay.losses import most_interfered
from fedsim.learn.engine.persample import of_each
from fedsim.learn.engine.rows import Rows
from fedsim.learn.engine.scoring import evaluating
from fedsim.learn.engine.watching import Watcher
from fedsim.learn.kept import worn
from fedsim.learn.models import called, hooked, hooks, travelling
from fedsim.learn.objectives import Mixed, Objective
from fedsim.learn.rehearsal import Live, Numeric
from fedsim.learn.rehearsal.lesson import Step
from fedsim.learn.seeded import seeded
from fedsim.learn.store import Store
from fedsim.learn.work import Task

GRADIENT_NUMBERS = 4096
"""How many numbers of an example's gradient a policy compares, counted from the model's last layer backwards."""


class Learner:
    """Trains one task in the first of *rows*, and is the lesson that a numeric method sees of it.

    ``run()`` returns (parts for the client's next task, the loss of each step). *watcher* looks on.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, store: Store, task: Task, start: list[Tensor], rows: Rows, trained: int,
        watcher: Watcher | None = None,
    ) -> None:  # fmt: skip
        live = task.rehearsing
        must(isinstance(live, Live), "a task that is laid out as it trains says how")
        self._model, self._objective, self._task, self._live = model, objective, task, cast(Live, live)
        self._all, self._trained, self._hooks = list(travelling(model)), trained, hooks(model)
        self._watcher = watcher
        self._rows, self._rates = rows, task.step_rates.tolist()
        self._x, self._y, _ = store.pool([task])
        self._memory = task.parts.get("replay", {})
        self.start, self.names, self.new = start, self._all[:trained], self._live.new.items

    def run(self) -> tuple[dict[str, State], FloatArray]:
        """Train, and return what came of it."""
        live, losses = self._live, list[float]()
        method = cast(Numeric, live.rehearsal) if live.rehearsal.way.numeric else None
        work = method.begin(self._task.parts.get("rehearsal", {}), self) if method else None
        luck = self._task.key.fold("random").numpy()
        for number in range(len(live.sizes)):
            with seeded(int(luck.integers(2**63))):  # Dropout and its like.
                losses.append(self._step(number, method, work))
        rest = int(live.layout.inserted.sum())
        parts: dict[str, State] = {}
        with evaluating(self._model):
            if live.replay.needs:
                if rest < len(self.new):  # Steps were fewer than an epoch's: the rest is remembered too.
                    self._remember(rest, len(self.new), self.evaluated(self.params, self.examples(self.new[rest:])[0]))
                parts["replay"] = dict(self._memory)
            if method and (kept := method.end(self, work)):
                parts["rehearsal"] = kept
        return parts, np.array(losses)

    def _step(self, number: int, method: Numeric | None, work: Any) -> float:
        live, layout = self._live, self._live.layout
        begin, size, inserted = int(layout.begins[number]), int(layout.fresh[number]), int(layout.inserted[number])
        new = self.new[begin : begin + size]
        x, y = self.examples(new)
        with evaluating(self._model):
            drawn = self._draw(number, x, y)
        replayed = np.concatenate([d.items for d in drawn]) if drawn else new[:0]
        if size + len(replayed) != layout.sizes[number]:
            raise RunError(
                f"clients.replay: {len(replayed)} examples are replayed beside {size} new ones, where {layout.sizes[number] - size} were"
                f" foretold. A policy that is told numbers draws as many as are asked for, or all that it holds."
            )
        params = self.params
        leaves = [param.requires_grad_() for param in params[: self._trained]]
        rx, ry = self.examples(replayed)
        with torch.enable_grad(), self._worn(params):
            # One forward pass for all: half the dispatch of a pass each.
            step = Step(self, new, inserted, drawn, x, self._model(torch.cat([x, rx])), torch.cat([y, ry]), leaves)
            if method is None:
                loss = self._mixed(step)
                gradients = step.gradients(loss)
            else:
                loss, gradients = method.gradients(step, work)
        told = step.outputs.detach()
        if live.replay.needs:
            with evaluating(self._model):
                self._tell(drawn, told[size:], ry)
                self._remember(begin, begin + inserted, told[:inserted])
        stacked = [gradient.detach().unsqueeze(0) for gradient in gradients]
        if self._watcher:
            self._watcher.begin(number, slice(0, 1))
            self._watcher.gradients(slice(0, 1), stacked)
        self._rows.step(slice(0, 1), stacked, number, self._rates[number])
        if self._watcher:
            self._watcher.end(self._rates[number])
        return _finite(loss)

    def _mixed(self, step: Step) -> Tensor:
        """Return the loss of new and replayed examples as the method mixes them, each replayed one weighed as its policy says."""
        outputs, y, size, mix = step.outputs, step.y, step.fresh, self._live.rehearsal.way.mix
        weights = np.concatenate([d.weights for d in step.drawn]) if step.drawn else np.ones(0)
        if (weights == 1).all():
            return Mixed(self._objective, size, mix).loss(outputs, y) if mix != "concat" else step.loss()
        each = getattr(self._objective, "parts", self._objective.each)(outputs, y)
        replayed = each[size:] * self.tensor(weights)
        if mix == "concat":
            return (each[:size].sum() + replayed.sum()) / self._mass(y)
        return Mixed(self._objective, size, mix).loss(outputs[:size], y[:size]) + replayed.sum() / self._mass(y[size:])

    def _mass(self, targets: Tensor) -> float:
        """Return what the mean loss over *targets* is divided by."""
        mass = getattr(self._objective, "mass", len)
        return float(mass(targets))

    # -- what a method may ask -----------------------------------------------------------------------------------------

    @property
    def held(self) -> IntArray:
        """Return the items remembered, as they are when the task ends."""
        return self._live.replay.held(self._memory) if self._live.held is None else self._live.held

    @property
    def params(self) -> list[Tensor]:
        """Return the parameters and buffers as they are now, without gradients."""
        return [param[0].detach() for param in self._rows.params]

    def examples(self, items: IntArray) -> tuple[Tensor, Tensor]:
        """Return the examples *items* and their targets. Shapes: (k,) -> (k, ...), (k, ...)."""
        places = torch.tensor(self._live.places[items], device=self._x.device)
        return self._x[places], self._y[places]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the objective's mean loss."""
        return self._objective.loss(outputs, targets)

    def evaluated(self, params: list[Tensor], x: Tensor) -> Tensor:
        """Return the outputs for *x* of the model with *params*, evaluating and without gradient."""
        with torch.no_grad(), evaluating(self._model):
            return self._forward(params, x)

    def gradients(self, loss: Tensor, leaves: list[Tensor], *, again: bool = False) -> list[Tensor]:
        """Return the gradients of *loss*; *again* if its graph is needed once more. Raises RunError for a loss that is not finite."""
        _finite(loss)
        return hooked(self._hooks, torch.autograd.grad(loss, leaves, retain_graph=again, materialize_grads=True))

    def of_each(self, items: IntArray) -> list[Tensor]:
        """Return the gradient of each example's loss by each trained parameter, at ``params``. Shapes: (k,) -> (k, *parameter) each."""
        return self._of_each(items, range(self._trained))

    def tensor(self, array: Array) -> Tensor:
        """Return *array* in the type of the parameters, where they are."""
        return torch.from_numpy(np.array(array)).to(self.start[0])

    # -- the memory ----------------------------------------------------------------------------------------------------

    def _draw(self, step: int, x: Tensor, y: Tensor) -> list[Drawn]:
        live = self._live
        if live.planned is not None:
            none = np.zeros(0, dtype=np.int64)
            return [Drawn(none, items, np.ones(len(items))) for items in live.planned[step]]
        count = int(live.sizes[step] - live.layout.fresh[step]) // max(1, live.rehearsal.way.draws)
        found: list[Drawn] = []
        for draw in range(live.rehearsal.way.draws if count else 0):
            key = live.key.fold("draw", live.first_step + step, draw)
            drawn = live.replay.draw(self._memory, count, key, live.now)
            found.append(self._interfered(drawn, count, x, y, self._rates[step]) if len(drawn.items) > count else drawn)
        return found

    def _interfered(self, drawn: Drawn, count: int, x: Tensor, y: Tensor, rate: float) -> Drawn:
        """Return the *count* candidates that a step on the new examples alone would harm most (MIR)."""
        params = self.params
        leaves = [param.requires_grad_() for param in params[: self._trained]]
        with torch.enable_grad(), self._worn(params):
            gradients = self.gradients(self._objective.loss(self._model(x), y), leaves)
        ahead = [p.detach() - rate * g for p, g in zip(leaves, gradients, strict=True)]
        cx, cy = self.examples(drawn.items)
        with torch.no_grad():
            before = self._objective.each(self._forward(self.params, cx), cy)
            after = self._objective.each(self._forward([*ahead, *self.params[self._trained :]], cx), cy)
        worst = most_interfered(before.double().cpu().numpy(), after.double().cpu().numpy(), count)
        return Drawn(drawn.slots[worst], drawn.items[worst], drawn.weights[worst])

    def _tell(self, drawn: list[Drawn], outputs: Tensor, y: Tensor) -> None:
        """Tell the policy the numbers of what was replayed."""
        at = 0
        for each in drawn:
            end = at + len(each.items)
            if at < end:
                numbers = self._numbers(each.items, outputs[at:end], y[at:end])
                self._memory = self._live.replay.update(self._memory, each.slots, next(iter(numbers.values())))
            at = end

    def _remember(self, begin: int, end: int, outputs: Tensor) -> None:
        if begin < end:
            new = self._live.new[begin:end]
            _, y = self.examples(new.items)
            self._memory = self._live.replay.add(self._memory, new, self._live.key, self._numbers(new.items, outputs, y))

    def _numbers(self, items: IntArray, outputs: Tensor, y: Tensor) -> dict[str, Array]:
        """Return what the policy is to be told of *items*."""
        makers: dict[str, Callable[[], Tensor]] = {
            "losses": lambda: self._objective.each(outputs, y),
            "gradients": lambda: self._each_gradient(items),
            "features": lambda: self._features(items),
        }
        with torch.no_grad():
            return {name: makers[name]().double().cpu().numpy() for name in sorted(self._live.replay.needs)}

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
            return self._objective.loss(self._forward(whole, x.unsqueeze(0)), y.unsqueeze(0))

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

    # -- small things --------------------------------------------------------------------------------------------------

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

    def _forward(self, params: list[Tensor], x: Tensor) -> Tensor:
        return called(self._model, dict(zip(self._all, params, strict=True)), x)


def _finite(loss: Tensor) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise RunError(f"the loss became {value} while a client rehearsed; try a smaller training.optimizer.lr.")
    return value
