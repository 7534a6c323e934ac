"""Tracing: an ordinary module and loss become one flat graph that trains any number of clients at once.

The graph is traced once per batch shape, on tensors without storage, for a number of rows so large and prime that
every size in the graph which depends on it can be told by division; those sizes are then computed from the input.
So one graph serves every chunk, and a row's bits cannot depend on which graph it ran through.
"""

from __future__ import annotations

import inspect
import operator
import os
import textwrap
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vjp, vmap  # pyright: ignore[reportUnknownVariableType]
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.core.errors import ScenarioError, reason
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.engine import lent, noise
from fedsim.learn.engine.aims import Aim, aimed, forms_of
from fedsim.learn.engine.noise import Mask
from fedsim.learn.kept import worn
from fedsim.learn.models import buffers, trainable, travelling
from fedsim.learn.norms import Spelled
from fedsim.learn.objectives import Objective
from fedsim.learn.seeded import seeded, watched

ROWS = 1_000_003
"""The stand-in for "number of rows" while tracing: prime, and larger than any real size in a graph."""

TRACES = 20
"""How often a model is traced, until no other thread draws from a global generator meanwhile."""
RUNS = 5
"""How often a step is run to see whether it draws from one itself."""

_aten = torch.ops.aten
_CONVOLUTIONS = {_aten.convolution.default, _aten.convolution_backward.default}


def has_convolution(graph: GraphModule) -> bool:
    """Return whether a traced graph convolves."""
    return any(node.target in _CONVOLUTIONS for node in graph.graph.nodes)


def normalises_batches(graph: GraphModule) -> bool:
    """Return whether batch normalisation by torch's own kernel is in *graph*."""
    return any(node.op == "call_function" and "batch_norm" in str(node.target) for node in graph.graph.nodes)


def draws_random_numbers(graph: GraphModule) -> bool:
    """Return whether a traced graph draws from torch's own generator."""
    return any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph.graph.nodes)


def trace(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, masks: Sequence[Mask], rows: int | None, arithmetic: Arithmetic = PLAIN,
    spelled: bool = False,
) -> GraphModule:  # fmt: skip
    """Return the graph (*parameters, *buffers, x, y, *masks, *recalled) -> [*gradients, *buffers, *shown, loss].

    For batches like *x* (b, ...) and *y* (b, ...); only an ``Aim`` has something recalled, or to be shown. With *rows* every input has
    that many rows in front; without, it is one client's own graph. *spelled* writes batch normalisation as plain sums.
    Raises ScenarioError when the model cannot be trained or its loss is not one number, Untraceable when torch can
    run it but not trace it.
    """
    made = partial(_trace, model, objective, x, y, masks, rows, arithmetic, spelled)
    return lent.graph(model, objective, (x, y), ([(mask.shape, mask.keep) for mask in masks], rows, arithmetic, spelled), made)


def _trace(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, masks: Sequence[Mask], rows: int | None, arithmetic: Arithmetic,
    spelled: bool,
) -> GraphModule:  # fmt: skip
    step = gradient_of(model, objective, arithmetic, spelled=spelled)
    forms = [*(mask.shape for mask in masks), *forms_of(objective)]
    given = [torch.ones(form, dtype=_precision(model), device=x.device) for form in forms]
    lead = () if rows is None else (rows,)
    flat = [*travelling(model).values(), x, y, *given]
    try:
        for _ in range(TRACES):
            graph, quiet = _traced(vmap(step, randomness="different") if rows else step, [(*lead, *t.shape) for t in flat], flat)
            if quiet:
                return graph
            if _draws(step, flat):  # The trace would repeat what was drawn this once for ever.
                raise Untraceable("it draws from Python's or numpy's random numbers")
        raise Untraceable("another thread draws from Python's or numpy's random numbers all the while, as the model may not")
    except (ScenarioError, Untraceable):
        raise
    except Exception as error:  # Anything a stranger's forward() may raise.
        raise Untraceable(reason(error)) from error


def _traced(step: Callable[..., Any], shapes: Sequence[tuple[int, ...]], like: Sequence[Tensor]) -> tuple[GraphModule, bool]:
    """Return the graph of *step*, and whether nobody drew from Python's or numpy's global generator meanwhile."""
    with FakeTensorMode(allow_non_fake_inputs=True), _no_loops(), watched() as drawn:
        fake = [torch.empty(shape, dtype=t.dtype, device=t.device) for shape, t in zip(shapes, like, strict=True)]
        return make_fx(step)(*fake), not drawn()


def _draws(step: Callable[..., Any], flat: Sequence[Tensor]) -> bool:
    """Return whether it is *step* that draws from Python's or numpy's global generator, and not another thread: these share them.

    Flower's heartbeat is such a thread. It would have to hit each of a few short runs, while the step draws in all of them.
    """
    for _ in range(RUNS):
        with seeded(0), watched() as drawn:
            step(*(t.detach().clone() for t in flat))
            if not drawn():
                return False
    return True


@contextmanager
def _no_loops() -> Generator[None]:
    """Let vmap refuse what it has no rule for: else it loops over the rows, a million of them here, for hours."""
    functorch: Any = getattr(torch, "_C")._functorch  # Private, and the only switch there is.
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)


def complete_vmap() -> None:
    """Register the rules of vmap that torch leaves out under ``python -O`` and ``PYTORCH_JIT=0``.

    It skips cross-entropy's and others' there (torch._functorch.predispatch, seen on 2.13), so that nothing could be stacked and
    bits would differ. Where a future torch does this otherwise, the step's note says that it could not be stacked.
    """
    if __debug__ and os.environ.get("PYTORCH_JIT", "1") == "1":
        return
    from torch._functorch import predispatch

    scope: dict[str, Any] = predispatch.__dict__
    if scope.get("VMAP_DECOMPOSITIONS_LIB") is not None:
        return
    source = textwrap.dedent(inspect.getsource(predispatch.lazy_load_decompositions))
    skip = 'if not (os.environ.get("PYTORCH_JIT", "1") == "1" and __debug__):'
    scope["DECOMPOSITIONS_LOADED"] = False
    exec(compile(source.replace(skip, "if False:"), "<vmap's rules>", "exec"), scope)
    scope["lazy_load_decompositions"]()


complete_vmap()


class Untraceable(Exception):
    """torch cannot trace the model; it may still be able to run it."""


def gradient_of(
    model: nn.Module, objective: Objective, arithmetic: Arithmetic = PLAIN, *, spelled: bool = False
) -> Callable[..., list[Tensor]]:
    """Return the function (*parameters, *buffers, x, y, *masks, *recalled) -> [*gradients, *buffers, *shown, loss] of one client.

    *spelled* writes batch normalisation as plain sums.
    """
    names, kept = list(trainable(model)), list(buffers(model))
    others = {name: buffer for name, buffer in model.named_buffers() if name not in kept}
    recalls = len(forms_of(objective))

    def one(
        params: list[Tensor], before: list[Tensor], x: Tensor, y: Tensor, given: Sequence[Tensor]
    ) -> tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]]:
        # Layers write into buffers as they go: into copies, so that the gradient is a function.
        after = {name: buffer.clone() for name, buffer in zip(kept, before, strict=True)}
        whole = {**dict(zip(names, params, strict=True)), **after, **{name: b.clone() for name, b in others.items()}}
        masks, recalled = given[: len(given) - recalls], given[len(given) - recalls :]
        plain = Spelled() if spelled else nullcontext()
        with noise.given(model, masks), worn(model, whole), plain, arithmetic.training(x.device.type):
            losses, shown = aimed(objective, model(x), y, params, recalled)
        if losses[0].dim():
            raise ScenarioError(
                f"training.objective: the loss has shape {tuple(losses[0].shape)}; it must be one number, the batch's mean."
            )
        return losses, (losses, [*(whole[name] for name in kept), *shown])

    def first(*args: Any) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
        losses, more = one(*args)
        return losses[0], more

    def followed(params: list[Tensor], *rest: Any) -> tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]]:
        """Return what steps follow, where an aim may have several losses, each with gradients of its own."""
        found, pull, (losses, after) = cast(Any, vjp(lambda params: one(params, *rest), params, has_aux=True))
        each = [pull([torch.ones_like(b) if a == i else torch.zeros_like(b) for a, b in enumerate(found)])[0] for i in range(len(found))]
        return list(cast(Aim, objective).method.followed(each)), (losses, after)

    def step(*flat: Tensor) -> list[Tensor]:
        end = len(names) + len(kept)
        params, before, (x, y) = list(flat[: len(names)]), list(flat[len(names) : end]), flat[end : end + 2]
        gradient = followed if isinstance(objective, Aim) else grad(first, has_aux=True)
        gradients, (losses, after) = gradient(params, before, x, y, flat[end + 2 :])
        return [*gradients, *after, losses[0]]

    return step


def _precision(model: nn.Module) -> torch.dtype:
    return next(iter(trainable(model).values())).dtype


def free_rows(module: GraphModule) -> None:
    """Replace every size that is a multiple of ROWS by that multiple of the rows at hand."""
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if not inputs:
        return
    with graph.inserting_after(inputs[-1]):
        rows = graph.call_function(_aten.sym_size.int, (inputs[0], 0))
    sizes: dict[int, Node] = {1: rows}

    def free(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            items = cast(list[Any], list(value))  # pyright: ignore[reportUnknownArgumentType]
            return [free(item) for item in items]
        if isinstance(value, bool) or not isinstance(value, int) or value < ROWS or value % ROWS:
            return value
        multiple = value // ROWS
        if multiple not in sizes:
            with graph.inserting_after(rows):
                sizes[multiple] = graph.call_function(operator.mul, (rows, multiple))
        return sizes[multiple]

    for node in list(graph.nodes):
        if node.op == "call_function" and node is not rows and node.target is not operator.mul:
            node.args = tuple(free(argument) for argument in node.args)
            node.kwargs = {name: free(argument) for name, argument in node.kwargs.items()}
    if not rows.users:
        graph.erase_node(rows)
    module.recompile()
