"""Rehearsal that depends on numbers: one client, step by step, by torch.nn and autograd.

What is replayed, or what the loss compares with, follows from losses, gradients or outputs that only training gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap  # pyright: ignore[reportUnknownVariableType]

from fedsim.core.errors import RunError, must
from fedsim.core.state import State
from fedsim.core.types import Array, IntArray, Params
from fedsim.data.replay import Drawn
from fedsim.data.replay.losses import most_interfered
from fedsim.learn.engine.rows import Rows
from fedsim.learn.engine.scoring import evaluating
from fedsim.learn.kept import worn
from fedsim.learn.models import called, hooked, hooks, travelling
from fedsim.learn.objectives import Mixed, Objective
from fedsim.learn.rehearsal import Live
from fedsim.learn.seeded import seeded
from fedsim.learn.store import Store
from fedsim.learn.work import Task

GRADIENT_NUMBERS = 4096
"""How many numbers of an example's gradient a policy compares, counted from the model's last layer backwards."""


class Learner:
    """Trains one task in the first of *rows*. ``run()`` returns (parts for the client's next task, mean loss)."""

    def __init__(
        self, model: nn.Module, objective: Objective, store: Store, task: Task, start: list[Tensor], rows: Rows, trained: int
    ) -> None:
        assert isinstance(task.rehearsing, Live)
        self._model, self._objective, self._task, self._live = model, objective, task, task.rehearsing
        self._names, self._trained, self._hooks = list(travelling(model)), trained, hooks(model)
        self._rows, self._start, self._rates = rows, start, task.step_rates.tolist()
        self._x, self._y, _ = store.pool([task])
        state = task.parts.get("rehearsal", {})
        self._memory = task.parts.get("replay", {})
        self._logits = dict(zip(state.get("logits/items", np.zeros(0)).tolist(), state.get("logits/values", ()), strict=True))
        self._anchor = {name.removeprefix("anchor/"): self._tensor(a) for name, a in state.items() if name.startswith("anchor/")}
        self._fisher = {name.removeprefix("fisher/"): self._tensor(a) for name, a in state.items() if name.startswith("fisher/")}

    def run(self) -> tuple[dict[str, State], float]:
        """Train, and return what came of it."""
        live, losses = self._live, list[float]()
        luck = self._task.key.fold("random").numpy()
        for step in range(len(live.fresh)):
            with seeded(int(luck.integers(2**63))):  # Dropout and its like.
                losses.append(self._step(step))
        rest = int(live.inserted.sum())
        params = [param[0] for param in self._rows.params]
        with evaluating(self._model):
            if live.replay.needs and rest < len(live.new.items):  # Steps were fewer than an epoch's: the rest is remembered too.
                self._remember(rest, len(live.new.items), self._outputs(live.new.items[rest:]))
            return self._parts(params), float(np.mean(losses))

    def _step(self, step: int) -> float:
        live, method = self._live, self._live.rehearsal
        begin, size, inserted = int(live.begins[step]), int(live.fresh[step]), int(live.inserted[step])
        new = live.new.items[begin : begin + size]
        x, y = self._examples(new)
        with evaluating(self._model):
            drawn = self._draw(step, x, y)
        replayed = np.concatenate([d.items for d in drawn]) if drawn else new[:0]
        must(size + len(replayed) == live.sizes[step], "the size of a mini-batch follows from counts")
        params = self._params()
        leaves = [param.requires_grad_() for param in params[: self._trained]]
        rx, ry = self._examples(replayed)
        with torch.enable_grad(), self._worn(params):
            # One forward pass for all: half the dispatch of a pass each.
            outputs = self._model(torch.cat([x, rx]))
            loss, gradients = self._loss_and_gradients(outputs, torch.cat([y, ry]), size, drawn, leaves, x)
        told = outputs.detach()
        if method.method in ("der", "der++"):
            self._logits.update(zip(new[:inserted].tolist(), told[:inserted].cpu().numpy(), strict=True))
        if live.replay.needs:
            with evaluating(self._model):
                self._tell(drawn, told[size:], ry)
                self._remember(begin, begin + inserted, told[:inserted])
        self._rows.step(slice(0, 1), [gradient.unsqueeze(0) for gradient in gradients], step, self._rates[step])
        return float(loss)

    # -- the methods ---------------------------------------------------------------------------------------------------

    def _loss_and_gradients(
        self, outputs: Tensor, y: Tensor, size: int, drawn: list[Drawn], leaves: list[Tensor], x: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of the new examples and what is added to it, and its gradients."""
        method, base = self._live.rehearsal, self._objective
        replays = len(y) > size
        if method.method == "a_gem":
            loss = base.loss(outputs[:size], y[:size])
            if not replays:
                return loss.detach(), self._gradients(loss, leaves)
            gradients = self._gradients(loss, leaves, again=True)
            reference = self._gradients(base.loss(outputs[size:], y[size:]), leaves)
            return loss.detach(), _projected(gradients, reference)
        match method.method:
            case "er" | "er_ace":
                loss = self._weighed(outputs, y, size, drawn)
            case "der" | "der++":
                loss = base.loss(outputs[:size], y[:size])
                if replays:
                    first = len(drawn[0].items)
                    kept = self._tensor(np.stack([self._logits[item] for item in drawn[0].items.tolist()]))
                    loss = loss + method.alpha * F.mse_loss(outputs[size : size + first], kept)
                    if len(drawn) > 1:
                        loss = loss + method.beta * base.loss(outputs[size + first :], y[size + first :])
            case "lwf":
                with torch.no_grad(), evaluating(self._model):
                    teacher = self._forward(self._start, x)
                t = method.temperature
                away = F.kl_div((outputs / t).log_softmax(-1), (teacher / t).log_softmax(-1), reduction="batchmean", log_target=True)
                loss = base.loss(outputs, y) + method.alpha * t * t * away
            case _:
                loss = base.loss(outputs, y) + self._pull(leaves)
        return loss.detach(), self._gradients(loss, leaves)

    def _weighed(self, outputs: Tensor, y: Tensor, size: int, drawn: list[Drawn]) -> Tensor:
        """Return the loss of experience replay, each replayed example weighed as its policy says."""
        mix = self._live.rehearsal.mix
        weights = np.concatenate([d.weights for d in drawn]) if drawn else np.ones(0)
        if (weights == 1).all():
            return Mixed(self._objective, size, mix).loss(outputs, y) if mix != "concat" else self._objective.loss(outputs, y)
        each = self._objective.each(outputs, y)
        replayed = each[size:] * self._tensor(weights)
        if mix == "concat":
            return (each[:size].sum() + replayed.sum()) / len(y)
        return Mixed(self._objective, size, mix).loss(outputs[:size], y[:size]) + replayed.mean()

    def _pull(self, leaves: list[Tensor]) -> Tensor:
        terms = [
            (self._fisher[name] * (leaf - self._anchor[name]) ** 2).sum()
            for name, leaf in zip(self._names, leaves, strict=False) if name in self._fisher
        ]  # fmt: skip
        return self._live.rehearsal.alpha / 2 * (torch.stack(terms).sum() if terms else leaves[0].sum() * 0)

    # -- the memory ----------------------------------------------------------------------------------------------------

    def _draw(self, step: int, x: Tensor, y: Tensor) -> list[Drawn]:
        live = self._live
        if live.planned is not None:
            none = np.zeros(0, dtype=np.int64)
            return [Drawn(none, items, np.ones(len(items))) for items in live.planned[step]]
        count = int(live.sizes[step] - live.fresh[step]) // max(1, live.rehearsal.draws)
        found: list[Drawn] = []
        for draw in range(live.rehearsal.draws if count else 0):
            key = live.key.fold("draw", live.first_step + step, draw)
            drawn = live.replay.draw(self._memory, count, key, live.now)
            found.append(self._interfered(drawn, count, x, y, self._rates[step]) if len(drawn.items) > count else drawn)
        return found

    def _interfered(self, drawn: Drawn, count: int, x: Tensor, y: Tensor, rate: float) -> Drawn:
        """Return the *count* candidates that a step on the new examples alone would harm most (MIR)."""
        params = self._params()
        leaves = [param.requires_grad_() for param in params[: self._trained]]
        with torch.enable_grad(), self._worn(params):
            gradients = self._gradients(self._objective.loss(self._model(x), y), leaves)
        ahead = [p.detach() - rate * g for p, g in zip(leaves, gradients, strict=True)]
        cx, cy = self._examples(drawn.items)
        with torch.no_grad():
            before = self._objective.each(self._forward(self._params(), cx), cy)
            after = self._objective.each(self._forward([*ahead, *self._params()[self._trained :]], cx), cy)
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
            _, y = self._examples(new.items)
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
        params, chosen, numbers = self._params(), list[int](), 0
        for i in reversed(range(self._trained)):
            if numbers and numbers + params[i].numel() > GRADIENT_NUMBERS:
                break
            chosen.append(i)
            numbers += params[i].numel()

        def loss(some: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            whole = list(params)
            for i, param in zip(chosen, some, strict=True):
                whole[i] = param
            return self._objective.loss(self._forward(whole, x.unsqueeze(0)), y.unsqueeze(0))

        found = _of_each(loss, [params[i] for i in chosen], *self._examples(items))
        return torch.cat([gradient.flatten(1) for gradient in found], dim=1)

    def _features(self, items: IntArray) -> Tensor:
        """Return what goes into the model's last dense layer; its outputs, where it has none. Shapes: (k,) -> (k, d)."""
        dense = [layer for layer in self._model.modules() if isinstance(layer, nn.Linear)]
        seen: list[Tensor] = []
        hook = dense[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) if dense else None
        try:
            outputs = self._outputs(items)
        finally:
            if hook:
                hook.remove()
        return (seen[-1] if seen else outputs).flatten(1)

    # -- small things --------------------------------------------------------------------------------------------------

    def _gradients(self, loss: Tensor, leaves: list[Tensor], *, again: bool = False) -> list[Tensor]:
        if not math.isfinite(float(loss.detach())):
            raise RunError(f"the loss became {float(loss.detach())} while a client rehearsed; try a smaller training.optimizer.lr.")
        return hooked(self._hooks, torch.autograd.grad(loss, leaves, retain_graph=again, materialize_grads=True))

    def _params(self) -> list[Tensor]:
        return [param[0].detach() for param in self._rows.params]

    @contextmanager
    def _worn(self, params: list[Tensor]) -> Generator[None]:
        """Let the model have *params*, and buffers that it assigns anew be written into them."""
        tensors = dict(zip(self._names, params, strict=True))
        with worn(self._model, tensors):
            yield
        with torch.no_grad():
            for name, buffer in list(zip(self._names, params, strict=True))[self._trained :]:
                if tensors[name].data_ptr() != buffer.data_ptr():
                    buffer.copy_(tensors[name])

    def _forward(self, params: list[Tensor], x: Tensor) -> Tensor:
        return called(self._model, dict(zip(self._names, params, strict=True)), x)

    def _outputs(self, items: IntArray) -> Tensor:
        with torch.no_grad():
            return self._forward(self._params(), self._examples(items)[0])

    def _examples(self, items: IntArray) -> tuple[Tensor, Tensor]:
        places = torch.tensor(self._live.places[items], device=self._x.device)
        return self._x[places], self._y[places]

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self._start[0])

    def _parts(self, params: list[Tensor]) -> dict[str, State]:
        """Return what the client's next task needs of this one's numbers."""
        live, state = self._live, dict[str, Array]()
        parts = {"replay": dict(self._memory)} if live.replay.needs else {}
        if live.rehearsal.method in ("der", "der++"):
            items = np.sort(live.replay.held(self._memory) if live.kept is None else live.kept)
            missing = np.array([item for item in items.tolist() if item not in self._logits], dtype=np.int64)
            if len(missing):  # Remembered without a step of their own, where steps are fewer than an epoch's.
                self._logits.update(zip(missing.tolist(), self._outputs(missing).cpu().numpy(), strict=True))
            values = [self._logits[item] for item in items.tolist()]
            state |= {"logits/items": items, "logits/values": np.stack(values) if values else np.zeros((0, 1), np.float32)}
        if live.rehearsal.method == "ewc":
            state |= self._importance(params)
        return {**parts, "rehearsal": state} if state else parts

    def _importance(self, params: list[Tensor]) -> Params:
        """Return the Fisher information of this task, added to what is left of that before, and where it was taken."""

        def loss(some: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            return self._objective.loss(self._forward([*some, *params[self._trained :]], x.unsqueeze(0)), y.unsqueeze(0))

        items = self._live.new.items
        total = [torch.zeros_like(param) for param in params[: self._trained]]
        for first in range(0, len(items), 64):
            x, y = self._examples(items[first : first + 64])
            each = _of_each(loss, params[: self._trained], x, y)
            for sums, gradient in zip(total, each, strict=True):
                sums += (gradient * gradient).sum(0)
        state: Params = {}
        for name, param, sums in zip(self._names, params, total, strict=False):
            before = self._fisher.get(name, torch.zeros_like(param))
            state[f"fisher/{name}"] = (sums / max(1, len(items)) + self._live.rehearsal.beta * before).cpu().numpy()
            state[f"anchor/{name}"] = param.cpu().numpy()
        return state


def _of_each(loss: Callable[[list[Tensor], Tensor, Tensor], Tensor], params: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Return the gradient of *loss* for each example by itself. Shapes: (k, ...), (k, ...) -> (k, *parameter) each."""
    try:
        return list(vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(params, x, y))
    except RuntimeError:  # What vmap has no rule for, as a GRU: one after the other, whatever the number of examples.
        each: list[Sequence[Tensor]] = []
        for i in range(len(x)):
            leaves = [param.detach().requires_grad_() for param in params]
            with torch.enable_grad():
                each.append(torch.autograd.grad(loss(leaves, x[i], y[i]), leaves, materialize_grads=True))
        return [torch.stack(gradients) for gradients in zip(*each, strict=True)]


def _projected(gradients: list[Tensor], reference: list[Tensor]) -> list[Tensor]:
    """Return *gradients* without what would raise the reference loss: g - (g.r / r.r) r where g.r < 0."""
    dot = sum(float((g.double() * r.double()).sum()) for g, r in zip(gradients, reference, strict=True))
    norm = sum(float((r.double() ** 2).sum()) for r in reference)
    if dot >= 0 or norm == 0:
        return gradients
    return [g - (dot / norm) * r for g, r in zip(gradients, reference, strict=True)]
