"""What a reader's model and objective are tried for before a run: on a few examples, so that a fault shows at the door.

Knows no strategy but by what it measures, and no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from fedsim.core.errors import RunError, ScenarioError, door, reason
from fedsim.core.types import Array
from fedsim.data.federation import Federation
from fedsim.learn import flops
from fedsim.learn.engine import stored
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job
from fedsim.learn.kept import Kept
from fedsim.learn.models import buffers, called, params_of, travelling
from fedsim.learn.norms import GhostNorm
from fedsim.learn.objectives import Classification, Objective, mass_of
from fedsim.learn.seeded import seeded
from fedsim.learn.standardise import Standardise
from fedsim.learn.store import Store
from fedsim.strategy.stock import Built


def probe(
    model: nn.Module, objective: Objective, engine: CohortEngine, store: Store, federation: Federation, job: Job, at: str, cuts: str,
    changes: str = "",
) -> tuple[flops.Flops, tuple[str, ...]]:
    """Try the model on two examples: what it costs, what its objective reports, and whether it can be trained.

    *at* is the reader's word for the objective, *cuts* that for what makes an update from several passes, *changes* that for
    what changes the size of batches; empty where nothing does.
    """
    x, y = store.sample(2)
    name = type(model).__name__
    had = [own for own, _ in model.named_parameters()]
    with door("model.kind", f"{name} does not take examples of shape {federation.shape}:"), torch.no_grad():
        put_out: Any = model.eval()(x)
    model.train()
    if grown := [own for own, _ in model.named_parameters() if own not in had]:
        raise ScenarioError(
            f"model.kind: {name} makes the parameter {grown[0]!r} in its forward(), too late to be sent to anybody. Make it in __init__, or"
            f" use torch's lazy layers, which are tried on an example when a model is built."
        )
    if isinstance(objective, Classification):
        _check_outputs(f"model.kind: {name}", put_out, len(y), federation.outputs)
        _check_weights(objective, name, put_out.shape[1])
    if type(objective) is not Classification:  # A subclass too is a reader's own.
        _check_objective(objective, put_out, y, at, each=federation.streams is not None)
    _check_batches(model, federation, job, x[:1], changes)
    if cuts:
        _check_accumulate(model, objective, cuts, *store.sample(SEVERAL, seed=0))
    with door("model.kind", f"{name} cannot be trained:"):
        engine.prepare(job)
    try:
        with door("model.kind", f"{name} cannot be scored:"):
            scores = tuple(engine.evaluate(params_of(model), x, y))
    except RunError as error:  # Here it is the scenario that is at fault.
        raise ScenarioError(str(error)) from error
    with door("model.kind", f"{name} cannot be counted:"):
        counted = stored.flops(model, objective, x, y)
    engine.as_built()
    return counted, scores


def _check_outputs(about: str, put_out: Any, rows: int, classes: int) -> None:
    """Refuse what is no row of numbers per example, one for each class: torch does, in the middle of a run."""
    if not isinstance(put_out, Tensor):
        raise ScenarioError(
            f"{about} puts out a {type(put_out).__name__}, and 'classification' wants a tensor of shape (batch, {classes})."
        )
    if put_out.ndim != 2 or len(put_out) != rows or put_out.shape[1] < classes:
        raise ScenarioError(
            f"{about} puts out shape {tuple(put_out.shape)} for {rows} examples, and 'classification' wants ({rows}, {classes}): a"
            f" number for each of the {classes} classes of the data. A model may take their number as 'outputs'."
        )


def _check_weights(objective: Classification, name: str, outputs: int) -> None:
    """Refuse weights that are not one for each of the *outputs* of the model called *name*: torch does, when it trains."""
    given = list(objective.class_weights)
    if given and len(given) != outputs:
        shown = str(given) if len(given) <= 4 else f"{str(given[:4])[:-1]}, ...]"
        raise ScenarioError(
            f"training.objective.class_weights = {shown}: has {len(given)} weight{'s' * (len(given) != 1)}, and {name} puts out"
            f" {outputs} numbers, one for each class. Give {outputs} weights, in the order of the classes; 1.0 is plain."
        )


def _check_objective(objective: Objective, put_out: Any, y: Tensor, at: str, *, each: bool) -> None:
    """Refuse an objective of a reader's own that does not give what it is asked for, of what the model puts out for a few examples.

    *each* says that the loss of each example is wanted too. How it is differentiated shows when a step is compiled.
    """

    def tried(name: str, call: Callable[[], Any]) -> Any:
        with door(at, f"its {name}() raised"), torch.no_grad(), seeded(0):
            return call()

    def refused(name: str, given: Any, wanted: str) -> ScenarioError:
        what = (
            f"{str(given.dtype).removeprefix('torch.')} of shape {tuple(given.shape)}"
            if isinstance(given, Tensor)
            else f"a {type(given).__name__}"
        )
        return ScenarioError(f"{at}: its {name}() gives {what}, expected {wanted}.")

    loss = tried("loss", lambda: objective.loss(put_out, y))
    if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
        raise refused("loss", loss, "a floating tensor without dimensions, the batch's mean")
    if isinstance(put_out, Tensor) and put_out.isfinite().all() and not loss.isfinite():
        raise ScenarioError(f"{at}: its loss() gives {loss.item()} for finite outputs, before anything was trained.")
    sums = tried("sums", lambda: objective.sums(put_out, y))
    if not isinstance(sums, dict):
        raise refused("sums", sums, "a dict of tensors without dimensions, by name")
    for name, value in sums.items():
        if not isinstance(name, str):
            raise ScenarioError(f"{at}: its sums() names one {name!r}, expected text.")
        if not isinstance(value, Tensor | float | int) or (isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex())):
            raise refused("sums", value, f"a number for {name!r}")
    if each and hasattr(objective, "each"):
        losses = tried("each", lambda: objective.each(put_out, y))
        if not isinstance(losses, Tensor) or losses.shape != (len(y),) or losses.is_complex():
            raise refused("each", losses, f"real numbers of shape ({len(y)},), the loss of each of {len(y)} examples")


def _check_batches(model: nn.Module, federation: Federation, job: Job, x: Tensor, changes: str) -> None:
    """Refuse batches of one example, as *x* is, where the model cannot train on these: torch would, in the middle of a run."""
    # How many examples meet in a mini-batch is a matter of when they come, or of a clock.
    streams, held = federation.streams is not None or job.curriculum is not None, federation.sizes(np.arange(federation.count))
    size, rest = job.passes(held)
    short = np.flatnonzero((size == 1) | (rest == 1))
    filled = (job.drop_last and job.batch_size != 1 and job.accumulate == 1) if streams else not len(short)
    if filled and not changes:
        return
    try:
        with torch.no_grad(), seeded(0):
            called(
                model, {name: tensor.detach().clone() for name, tensor in {**travelling(model), **dict(model.named_buffers())}.items()}, x
            )
        return
    except Exception as error:  # Whatever a stranger's forward() may raise; BatchNorm wants more values than one.
        why = f"{type(model).__name__} cannot train on one example ({reason(error)})"
    if changes and (filled or not len(short)):
        raise ScenarioError(f"{changes}: may come to a batch of one example, and {why}. Leave it out, or take GroupNorm.")
    if streams:
        hint = f"training.drop_last = true{', with a larger batch_size' if job.batch_size == 1 else ''}"
        when = "with training.curriculum" if job.curriculum else "on a [stream]"
        raise ScenarioError(f"model.kind: {why}, and {when} a batch may hold one. Try {hint}, or GroupNorm in place of BatchNorm.")
    client, count = int(short[0]), int(held[short[0]])
    hint = "a larger size" if job.batch_size == 1 else "training.drop_last = true, another size"
    raise ScenarioError(
        f"training.batch_size = {job.batch_size or repr('full')}: gives client {client} ({count} example{'s' * (count > 1)}) a batch of one"
        f" example, and {why}. Try {hint if count > 1 else 'more examples for each client'}, or GroupNorm in place of BatchNorm."
    )


SEVERAL = 8
"""Examples on which it is tried whether a batch may be cut."""
APART = 1e-3
"""How far what should be equal may lie apart, relative to the largest, on account of rounding."""


def _check_accumulate(model: nn.Module, objective: Objective, at: str, x: Tensor, y: Tensor) -> None:
    """Refuse to make one update from several passes where what an example comes to depends on the others in its pass.

    A layer that does so gives the first example another output beside others; an objective's loss is no mean over the parts.
    """
    kept = Kept(model, objective)
    beside = x[:1].expand_as(x).contiguous()
    outputs: list[Any] = []
    try:
        for batch in (x, beside):
            kept.back()
            with door("model.kind", f"{type(model).__name__} cannot be trained:"), torch.no_grad(), seeded(0):  # Dropout draws alike.
                outputs.append(model.train()(batch))
    finally:
        kept.back()
    first, second = outputs
    if not isinstance(first, Tensor) or first.ndim < 1 or len(first) != len(x):
        return
    if not _alike(first[0], second[0], first):
        layers = [type(layer).__name__ for layer in model.modules() if isinstance(layer, _BatchNorm | GhostNorm | Standardise)]
        what = f"its {layers[0]}" if layers else type(model).__name__
        raise ScenarioError(
            f"{at}: an update from several passes would not be that of one batch: {what} makes of an example something else by which"
            f" others pass with it. Leave it out, with another batch_size, or take GroupNorm or LayerNorm in its place."
        )
    with door(at, "the objective's loss() or mass() raised"), torch.no_grad(), seeded(0):
        means = _is_mean(objective, first, y)
        if first.is_floating_point():  # Parts of one loss tell nothing, and before training all are about that.
            with suppress(Exception):  # An objective may want a range.
                means = _is_mean(objective, first + torch.randn(first.shape).to(first) * first.std().clamp(min=1.0), y) and means
    if not means:
        raise ScenarioError(
            f"{at}: the loss of training.objective over a batch is not the mean of what it is over parts of it, so that an update from"
            f" several would be another. An objective whose mean is divided by another number than that of the examples says so by a"
            f" mass(targets); else leave that out."
        )


def _is_mean(objective: Objective, outputs: Tensor, y: Tensor) -> bool:
    """Return whether the loss of *objective* over all is the mean of what it is over parts, each weighed by its mass."""
    mass = mass_of(objective, whole_targets=False) or (lambda targets: torch.tensor(float(len(targets))))
    parts = [slice(0, SEVERAL // 4), slice(SEVERAL // 4, SEVERAL)]
    masses = torch.stack([torch.as_tensor(mass(y[part])).to(outputs) for part in parts])
    losses = torch.stack([objective.loss(outputs[part], y[part]) for part in parts])
    return _alike((masses * losses).sum() / masses.sum(), objective.loss(outputs, y), losses)


def _alike(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    """Return whether *a* and *b* are one but for rounding; numbers that are not finite tell nothing."""
    return not bool(((a - b).abs() > APART * scale[scale.isfinite()].abs().max()).any()) if scale.isfinite().any() else True


def takes_whole(model: nn.Module, x: Array) -> bool:
    """Return whether *model* takes the whole numbers *x* as they are, in evaluation and in training: a mean, say, wants floats."""
    kept = Kept(model)
    try:
        with suppress(Exception), torch.no_grad(), seeded(0):
            for training in (False, True):
                model.train(training)(torch.from_numpy(x))
            return True
        return False
    finally:
        kept.back()
        model.train()


def measured(strategy: Built, model: nn.Module) -> Built:
    """Return *strategy* with a note where its norms are of more than parameters. Raises ScenarioError where they are of a count."""
    beside = list(buffers(model))
    if not strategy.measuring or not beside:
        return strategy
    if any(isinstance(module, Standardise) for module in model.modules()):
        raise ScenarioError(
            f"model.standardise = true: {strategy.measuring} takes the norm of everything that travels, and the number of examples seen"
            f" so far is part of that, beside which no parameter counts. Leave standardise out, or take a strategy that averages."
        )
    few = ", ".join(beside[:3]) + (", ..." if len(beside) > 3 else "")
    note = (
        f"{strategy.measuring}: takes the norm of everything that travels, and {len(beside)} of the model's arrays are buffers"
        f" ({few}), which the papers' norms leave out. GroupNorm or LayerNorm have none."
    )
    return replace(strategy, notes=(*strategy.notes, note))
