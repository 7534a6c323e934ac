"""Laws of objectives and of early stopping: what training goes by. Knows no kind of either."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from fedsim.laws.broken import Law, Make, alike, want
from fedsim.laws.kind import Kind
from fedsim.learn.models import load_params
from fedsim.learn.stopping import Stopping


def sums_add_up(make: Make) -> None:
    """Sums over a batch are those of its parts together, as are the losses of its examples, and the loss is one of the scores."""
    parts = cast(Kind, make).parts()
    x, y = (tensor[:24] for tensor in parts.test)
    load_params(parts.model, parts.first)
    with torch.no_grad():
        outputs = parts.model.eval()(x)
        whole = {name: float(value) for name, value in parts.objective.sums(outputs, y).items()}
        for cut in (1, 7, 23):
            two = [parts.objective.sums(outputs[part], y[part]) for part in (slice(0, cut), slice(cut, 24))]
            for name, value in whole.items():
                found = sum(float(each[name]) for each in two)
                words = f"24 examples, cut after {cut}: {name} adds up to {found}, and is {value}"
                want(np.isclose(value, found, rtol=1e-4, atol=1e-6), words)
        want("examples" in whole, f"sums are {sorted(whole)}, without examples")
        scores = parts.objective.scores({name: np.float64(value) for name, value in whole.items()})
        loss = float(parts.objective.loss(outputs, y))
        want(np.isclose(scores["loss"], loss, rtol=1e-4), f"24 examples: the score loss is {scores['loss']}, and the loss is {loss}")
        if hasattr(parts.objective, "each"):
            each = parts.objective.each(outputs, y)
            want(each.shape == (24,), f"24 examples: their losses have the shape {tuple(each.shape)}")
            mean = float(each.mean())
            want(np.isclose(mean, loss, rtol=1e-4), f"24 examples: the mean of their losses is {mean}, and the loss is {loss}")


def stopping_follows_from_losses(make: Make) -> None:
    """Whether to stop follows from the losses so far, whatever was asked before; these are not written to."""
    used: Stopping = make()
    rng = np.random.default_rng(2)
    for losses in ([1.0], [1.0, 1.1], [1.0, 0.5, 0.6, 0.7, 0.4], [float("inf")] * 4, [2.0] * 9, rng.exponential(size=20).tolist()):
        for epochs in range(1, len(losses) + 1):
            given = losses[:epochs]
            found = used.stops(given)
            alike(losses[:epochs], given, "the losses that went in")
            words = f"losses {[round(each, 3) for each in given]}, of one that was asked before: whether to stop"
            alike(make().stops(list(given)), found, words)


LAWS: dict[str, tuple[Law, ...]] = {"objective": (sums_add_up,), "stopping": (stopping_follows_from_losses,)}
