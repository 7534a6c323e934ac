"""Rehearsal against the papers' formulas, written out in float64; each check rejects a wrong version of its method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.client.stream import AGAIN
from fedsim.core.keys import Key
from fedsim.core.types import Params
from fedsim.data.replay import Arrivals
from fedsim.learn.engine import persample
from fedsim.learn.work import Start
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load

RESERVOIR = {"kind": "reservoir", "capacity": 12}
BATCH, REPLAYED, LR, EPOCHS = 4, 4, 0.2, 2

# name: (training.rehearsal, clients.replay, a wrong version that must not pass)
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "er concat": ({"kind": "er"}, RESERVOIR, "the sum of two means"),
    "er sum": ({"kind": "er", "mix": "sum"}, RESERVOIR, "one mean"),
    "er ace": ({"kind": "er_ace"}, RESERVOIR, "compared among all classes"),
    "der": ({"kind": "der", "alpha": 0.5}, RESERVOIR, "outputs after the update"),
    "der++": ({"kind": "der++", "alpha": 0.5, "beta": 0.7}, RESERVOIR, "one draw for both terms"),
    "der++, outputs": ({"kind": "der++", "alpha": 0.5, "beta": 0.7}, RESERVOIR, "outputs after the update"),
    "a_gem": ({"kind": "a_gem"}, RESERVOIR, "no projection"),
    "lwf": ({"kind": "lwf", "alpha": 2.0, "temperature": 2.0}, {"kind": "none"}, "no square of the temperature"),
    "lwf, teacher": ({"kind": "lwf", "alpha": 2.0}, {"kind": "none"}, "taught by itself"),
    "ewc": ({"kind": "ewc", "strength": 5.0, "decay": 0.5}, {"kind": "none"}, "the square of the mean gradient"),
    "ewc, online": ({"kind": "ewc", "strength": 5.0, "decay": 0.5}, {"kind": "none"}, "only the last task"),
    "prioritised": ({"kind": "er"}, {"kind": "prioritised", "capacity": 12}, "no weights"),
    "prioritised sum": ({"kind": "er", "mix": "sum"}, {"kind": "prioritised", "capacity": 12}, "no weights"),
    "prioritised, told": ({"kind": "er"}, {"kind": "prioritised", "capacity": 12}, "never told a loss"),
    "loss_aware": ({"kind": "er"}, {"kind": "loss_aware", "capacity": 12, "strength": 3.0}, "told losses of 1"),
    "mir": ({"kind": "er"}, {"kind": "mir", "capacity": 12, "candidates": 10}, "the least harmed"),
    "gss": ({"kind": "er"}, {"kind": "gss", "capacity": 6, "compared": 1}, "gradients of the other sign now and then"),
    "herding": ({"kind": "er"}, {"kind": "herding", "capacity": 12}, "features are inputs"),
    "der with prioritised": ({"kind": "der"}, {"kind": "prioritised", "capacity": 12}, "outputs after the update"),
}  # fmt: skip


def parts_of(tiny: Any, rehearsal: Mapping[str, Any], replay: Mapping[str, Any]) -> Parts:
    return build(
        load(
            tiny(
                {
                    "clients.count": 2, "engine.dtype": "float64", "model": {"kind": "mlp", "hidden": [6]},
                    "training": {
                        "epochs": EPOCHS, "batch_size": BATCH, "optimizer": {"kind": "sgd", "lr": LR},
                        "rehearsal": dict(rehearsal),
                    },
                    "clients.replay": dict(replay), "stream": {"arrivals": {"kind": "poisson", "per_s": 1.0}},
                }
            )
        )
    )  # fmt: skip


def forward(params: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and features of the network 64 -> 6 -> 10."""
    features = F.relu(x.flatten(1) @ params[0].T + params[1])
    return features @ params[2].T + params[3], features


class ByHand:
    """One client's rehearsal, task after task, as the papers say; *wrong* names a mistake to make."""

    def __init__(self, parts: Parts, rehearsal: Mapping[str, Any], wrong: str = "") -> None:
        online, streams = parts.fleet.online, parts.federation.streams
        assert online is not None and streams is not None and parts.federation.pooled is not None
        self.kind, self.settings, self.wrong = str(rehearsal["kind"]), rehearsal, wrong
        self.replay, self.stream = online.replay, streams.of(0)
        self.key = Key(parts.scenario.seed).fold("client", 0, "replay")
        places = self.stream.positions.copy()
        self.x = torch.from_numpy(parts.federation.pooled.x.copy()).double()[places]
        self.y = torch.from_numpy(parts.federation.pooled.y.copy())[places]
        self.memory, self.logits, self.step = self.replay.empty(), dict[int, Tensor](), 0
        self.fisher: list[Tensor] | None = None
        self.anchor: list[Tensor] = []
        self.done = 0

    def task(self, start: list[Tensor], now: float) -> tuple[list[Tensor], float]:
        """Return the parameters and the mean loss after training on what has come by *now*."""
        params = [p.clone() for p in start]
        items = np.arange(self.done, self.stream.arrived(now))
        self.done = self.stream.arrived(now)
        losses: list[float] = []
        for epoch in range(EPOCHS):
            for first in range(0, len(items), BATCH):
                new = items[first : first + BATCH]
                draws = self._draws(params, new, now)
                leaves = [p.clone().requires_grad_() for p in params]
                loss, gradients = self._gradients(leaves, start, new, draws)
                losses.append(loss)
                after = [p - LR * g for p, g in zip(params, gradients, strict=True)]
                self._remember(params, after, new if epoch == 0 else new[:0], draws)
                params, self.step = after, self.step + 1
        self._end(params, items)
        return params, float(np.mean(losses))

    def _loss(self, params: list[Tensor], items: Any) -> Tensor:
        return F.cross_entropy(forward(params, self.x[items])[0], self.y[items])

    def _each(self, params: list[Tensor], items: Any) -> Tensor:
        return F.cross_entropy(forward(params, self.x[items])[0], self.y[items], reduction="none")

    def _draws(self, params: list[Tensor], new: Any, now: float) -> list[Any]:
        count = {"lwf": 0, "ewc": 0, "der++": 2}.get(self.kind, 1)
        found: list[Any] = []
        for draw in range(count):
            if self.replay.needs:
                key = self.key.fold("draw", self.step, draw)
            else:
                key = self.key.fold("draw", self.step + draw * AGAIN)
            drawn = self.replay.draw(self.memory, REPLAYED, key, now)
            slots, items, weights = drawn.slots, drawn.items, drawn.weights
            if self.replay.candidates and len(items) > REPLAYED:  # MIR: theta_v = theta - lr grad of the new ones' loss.
                leaves = [p.clone().requires_grad_() for p in params]
                ahead = [p - LR * g for p, g in zip(params, torch.autograd.grad(self._loss(leaves, new), leaves), strict=True)]
                harm = (self._each(ahead, items) - self._each(params, items)).numpy()
                sign = 1 if self.wrong == "the least harmed" else -1
                worst = np.argsort(sign * harm, kind="stable")[:REPLAYED]
                slots, items, weights = slots[worst], items[worst], weights[worst]
            found.append((slots, items, weights))
        if self.wrong == "one draw for both terms":
            found[1] = found[0]
        return found

    def _gradients(self, leaves: list[Tensor], start: list[Tensor], new: Any, draws: list[Any]) -> tuple[float, list[Tensor]]:
        kind, wrong, settings = self.kind, self.wrong, self.settings
        loss = self._loss(leaves, new)
        _, old, weights = draws[0] if draws else (None, new[:0], None)
        if kind in ("er", "er_ace"):
            both = {"er_ace": "sum"}.get(kind, settings.get("mix", "concat"))
            both = {"the sum of two means": "sum", "one mean": "concat"}.get(wrong, both)
            w = torch.from_numpy(np.ones(len(old)) if wrong == "no weights" else weights)
            news, olds = self._each(leaves, new), w * self._each(leaves, old)
            if kind == "er_ace" and wrong != "compared among all classes":
                classes = torch.unique(self.y[new])
                outputs = forward(leaves, self.x[new])[0][:, classes]
                news = torch.logsumexp(outputs, 1) - outputs[torch.arange(len(new)), torch.searchsorted(classes, self.y[new])]
            loss = torch.cat([news, olds]).mean() if both == "concat" else news.mean() + (olds.mean() if len(old) else 0)
        elif kind in ("der", "der++") and len(old):
            was = torch.stack([self.logits[item] for item in old.tolist()])
            loss = loss + settings.get("alpha", 0.3) * ((forward(leaves, self.x[old])[0] - was) ** 2).mean()
            if kind == "der++":
                loss = loss + settings["beta"] * self._loss(leaves, draws[1][1])
        elif kind == "a_gem" and len(old):
            g = torch.cat([v.flatten() for v in torch.autograd.grad(loss, leaves)])
            r = torch.cat([v.flatten() for v in torch.autograd.grad(self._loss(leaves, old), leaves)])
            if g @ r < 0 and wrong != "no projection":
                g = g - (g @ r) / (r @ r) * r
            parts = g.split([leaf.numel() for leaf in leaves])
            return float(loss.detach()), [part.view_as(leaf) for part, leaf in zip(parts, leaves, strict=True)]
        elif kind == "lwf":
            t = settings.get("temperature", 2.0)
            teacher = [leaf.detach() for leaf in leaves] if wrong == "taught by itself" else start
            p = (forward(teacher, self.x[new])[0] / t).softmax(1)
            q = (forward(leaves, self.x[new])[0] / t).softmax(1)
            scale = 1.0 if wrong == "no square of the temperature" else t * t
            loss = loss + settings["alpha"] * scale * (p * (p / q).log()).sum(1).mean()
        elif kind == "ewc" and self.fisher is not None:
            pulls = [(f * (leaf - a) ** 2).sum() for f, leaf, a in zip(self.fisher, leaves, self.anchor, strict=True)]
            loss = loss + settings["strength"] / 2 * torch.stack(pulls).sum()
        return float(loss.detach()), list(torch.autograd.grad(loss, leaves))

    def _remember(self, before: list[Tensor], after: list[Tensor], new: Any, draws: list[Any]) -> None:
        seen = after if self.wrong == "outputs after the update" else before
        for item, output in zip(new.tolist(), forward(seen, self.x[new])[0], strict=True):
            self.logits[item] = output
        needs, told = self.replay.needs, self.wrong != "never told a loss"
        for slots, items, _ in draws if needs and told else ():
            self.memory = self.replay.update(self.memory, slots, self._numbers(before, items)[next(iter(needs))])
        if len(new):
            arrivals = Arrivals(new, self.y[new].numpy(), self.stream.arrived_s[new])
            self.memory = self.replay.add(self.memory, arrivals, self.key, self._numbers(before, new) if needs else None)

    def _numbers(self, params: list[Tensor], items: Any) -> dict[str, Any]:
        need = next(iter(self.replay.needs))
        if need == "losses":
            losses = self._each(params, items).numpy()
            return {need: np.ones_like(losses) if self.wrong == "told losses of 1" else losses}
        if need == "features":
            return {need: (self.x[items].flatten(1) if self.wrong == "features are inputs" else forward(params, self.x[items])[1]).numpy()}
        rows: list[Any] = []
        for item in items.tolist():
            leaves = [p.clone().requires_grad_() for p in params]
            gradient = torch.autograd.grad(self._loss(leaves, [item]), leaves)
            sign = -1 if self.wrong.startswith("gradients") and item % 2 else 1
            rows.append(sign * torch.cat([g.flatten() for g in reversed(gradient)]).numpy())
        return {need: np.array(rows).reshape(len(items), sum(p.numel() for p in params))}

    def _end(self, params: list[Tensor], items: Any) -> None:
        if self.kind != "ewc":
            return
        leaves = [p.clone().requires_grad_() for p in params]
        each = [torch.autograd.grad(self._loss(leaves, [item]), leaves) for item in items.tolist()]
        fisher = [torch.stack(gs).square().mean(0) for gs in zip(*each, strict=True)]
        if self.wrong == "the square of the mean gradient":
            fisher = [torch.stack(gs).mean(0).square() for gs in zip(*each, strict=True)]
        if self.fisher is not None and self.wrong != "only the last task":
            fisher = [f + self.settings["decay"] * b for f, b in zip(fisher, self.fisher, strict=True)]
        self.fisher, self.anchor = fisher, params


def gap(parts: Parts, rehearsal: Mapping[str, Any], wrong: str = "") -> float:
    """Return how far the engine's parameters and losses are at most from those by hand, over three tasks."""
    program, hand = parts.fleet.client(0), ByHand(parts, rehearsal, wrong)
    memory, named, found = Kept(), parts.first, 0.0
    for now in (14.0, 33.0, 60.0):
        task, memory = program.plan(Order(parts.job, Start(named)), memory, now)
        result = parts.engine.run([task])[0]
        memory = memory.having(program.finish(task, result, memory).parts)
        params, loss = hand.task([torch.from_numpy(a).clone() for a in named.values()], now)
        found = max(found, abs(loss - result.metrics["train_loss"]))
        for ours, theirs in zip(result.params.values(), params, strict=True):
            found = max(found, float(np.abs(ours - theirs.numpy()).max()))
        named = averaged(result.params, parts.first)
    return found


def averaged(one: Params, two: Params) -> Params:
    """Return what a server would send next: not what the client had."""
    return {name: 0.7 * one[name] + 0.3 * two[name] for name in one}


@pytest.mark.parametrize("name", METHODS)
def test_the_engine_does_what_the_paper_says(name: str, tiny: Any) -> None:
    """Parameters and losses after three tasks of two epochs are those by hand to 1e-9; a wrong version is not."""
    rehearsal, replay, wrong = METHODS[name]
    parts = parts_of(tiny, rehearsal, replay)

    assert gap(parts, rehearsal) < 1e-9
    assert gap(parts, rehearsal, wrong) > 1e-6


def test_gradients_of_each_example_are_had_without_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that vmap has no rule for gets the same gradients, one example after the other."""
    draw = torch.Generator().manual_seed(0)
    params, x, y = [torch.randn(3, 5, generator=draw).double()], torch.randn(7, 5, generator=draw).double(), torch.arange(7) % 3

    def loss(some: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy((some[0] @ x).unsqueeze(0), y.unsqueeze(0))

    together = persample.of_each(loss, params, x, y)[0]

    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("no rule")

    monkeypatch.setattr(persample, "vmap", refuses)
    alone = persample.of_each(loss, params, x, y)[0]

    assert (7, 3, 5) == tuple(alone.shape)
    assert float((together - alone).abs().max()) < 1e-15
