"""Laws of objectives, of clipping and of early stopping: what training goes by. Knows no kind of any."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from fedsim.laws.broken import Law, Make, alike, want
from fedsim.laws.kind import Kind
from fedsim.learn.clipping import Clipping
from fedsim.learn.models import load_params
from fedsim.learn.objectives import Classification, Objective
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
        loss = float(_plain(parts.objective).loss(outputs, y))
        want(np.isclose(scores["loss"], loss, rtol=1e-4), f"24 examples: the score loss is {scores['loss']}, and the loss is {loss}")
        if hasattr(parts.objective, "each"):
            each = parts.objective.each(outputs, y)
            want(each.shape == (24,), f"24 examples: their losses have the shape {tuple(each.shape)}")
            mean = float(each.mean())
            want(np.isclose(mean, loss, rtol=1e-4), f"24 examples: the mean of their losses is {mean}, and the loss is {loss}")


def mass_weighs_means(make: Make) -> None:
    """The loss of a batch is the sum of those of its parts, each by its mass, over its own: as when gradients are accumulated.

    The mass is the number of targets where an objective says no other, and of what each example adds the sum is loss times mass.
    """
    parts = cast(Kind, make).parts()
    objective, (x, y) = parts.objective, (tensor[:24] for tensor in parts.test)
    load_params(parts.model, parts.first)
    mass = getattr(objective, "mass", len)
    with torch.no_grad():
        outputs = parts.model.eval()(x)
        whole = float(objective.loss(outputs, y)) * float(mass(y))
        for cut in (1, 7, 23):
            cuts = (slice(0, cut), slice(cut, 24))
            two = [(float(objective.loss(outputs[part], y[part])), float(mass(y[part]))) for part in cuts]
            found = sum(loss * share for loss, share in two)
            words = f"24 examples, cut after {cut}: losses by mass add up to {found}, and the whole is {whole}"
            want(np.isclose(whole, found, rtol=1e-4, atol=1e-6), words)
            want(all(share > 0 for _, share in two), f"24 examples, cut after {cut}: their masses are {[share for _, share in two]}")
        if (adds := getattr(objective, "parts", None)) is not None:
            each = adds(outputs, y)
            want(each.shape == (24,), f"24 examples: what they add to the loss has the shape {tuple(each.shape)}")
            found = float(each.sum())
            want(np.isclose(whole, found, rtol=1e-4), f"24 examples: what they add to the loss is {found}, and loss times mass is {whole}")


def _plain(objective: Objective) -> Objective:
    """Return what *objective* scores by: plain cross-entropy where it only trains otherwise."""
    return Classification() if isinstance(objective, Classification) and type(objective).loss is Classification.loss else objective


FORMS = ((3, 5), (2, 3, 3, 3), (7,), ())
"""Parameters of a model, so that sizes fill vector registers in part only."""
ROWS = 37


def a_row_is_clipped_by_itself(make: Make) -> None:
    """A client's gradient has the bits alone that it has among many, and clipping it writes to nothing; a second time gives the same."""
    gradients = _gradients(3.0)
    was = [each.clone() for each in gradients]
    clipping: Clipping = make()
    whole = clipping.clipped(gradients)
    alike(was, gradients, "the gradients that went in")
    alike(whole, clipping.clipped(gradients), "the same gradients a second time")
    for chosen in ([0], [4], [36], [1, 2], [5, 17, 30, 31, 8]):
        few = make().clipped([each[chosen].clone() for each in gradients])
        alike([each[chosen] for each in whole], few, f"rows {chosen} by themselves and not among {ROWS}")


def clipping_lengthens_nothing(make: Make) -> None:
    """No number grows or changes its sign, small gradients stay as they are, forms are kept, and operations are counted."""
    for scale in (1e-9, 1e-3, 1.0, 1e3):
        gradients = _gradients(scale)
        for gradient, found in zip(gradients, make().clipped(gradients), strict=True):
            words = f"gradients of about {scale:g}"
            alike((gradient.shape, gradient.dtype), (found.shape, found.dtype), f"{words}: the form of what comes out")
            want(((found.abs() <= gradient.abs()) & (found * gradient >= 0)).all(), f"{words}: a number grew, or changed its sign")
            if scale == 1e-9:
                alike(gradient, found, words)
    flops = [float(make().flops(size)) for size in (0, 1, 1000, 10**9)]
    want(all(0 <= each < np.inf for each in flops) and sorted(flops) == flops, f"flops of more and more parameters are {flops}")


def _gradients(scale: float) -> list[torch.Tensor]:
    luck = torch.Generator().manual_seed(5)
    return [torch.randn((ROWS, *form), generator=luck) * scale for form in FORMS]


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


LAWS: dict[str, tuple[Law, ...]] = {
    "objective": (sums_add_up, mass_weighs_means), "clipping": (a_row_is_clipped_by_itself, clipping_lengthens_nothing),
    "stopping": (stopping_follows_from_losses,),
}  # fmt: skip
