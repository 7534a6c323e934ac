"""Tracing: an ordinary module and loss become one flat graph that trains any number of clients at once.

The graph is traced once per batch shape, on tensors without storage, for a number of rows so large and prime that
every size in the graph which depends on it can be told by division; those sizes are then computed from the input.
So one graph serves every chunk, and a row's bits cannot depend on which graph it ran through.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad_and_value, vmap  # pyright: ignore[reportUnknownVariableType]
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.core.errors import ScenarioError
from fedsim.learn.models import trainable
from fedsim.learn.objectives import Objective

ROWS = 1_000_003
"""The stand-in for "number of rows" while tracing: prime, and larger than any real size in a graph."""

_aten = torch.ops.aten
_CONVOLUTIONS = {_aten.convolution.default, _aten.convolution_backward.default}


def has_convolution(graph: GraphModule) -> bool:
    """Return whether a traced graph convolves."""
    return any(node.target in _CONVOLUTIONS for node in graph.graph.nodes)


def trace(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, rows: int | None) -> GraphModule:
    """Return the graph (*parameters, x, y) -> [*gradients, loss] for batches like *x* (b, ...) and *y* (b, ...).

    With *rows* every input has that many rows in front; without, it is one client's own graph.
    Raises ScenarioError when the model cannot be traced, draws random numbers, or its loss is not one number.
    """
    names = list(trainable(model))

    def one(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        loss = objective.loss(functional_call(model, dict(zip(names, params, strict=True)), (x,)), y)
        if loss.dim():
            raise ScenarioError(
                f"training.objective: the loss has shape {tuple(loss.shape)}; it must be one number, the batch's mean."
            )
        return loss

    def step(*flat: Tensor) -> list[Tensor]:
        run: Any = grad_and_value(one)
        gradients, loss = (vmap(run) if rows else run)(list(flat[:-2]), flat[-2], flat[-1])
        return [*gradients, loss]

    lead = () if rows is None else (rows,)
    shapes = [*trainable(model).values(), x, y]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            flat = [torch.empty((*lead, *t.shape), dtype=t.dtype, device=t.device) for t in shapes]
            graph = make_fx(step)(*flat)
    except ScenarioError:
        raise
    except Exception as error:  # Anything a stranger's forward() may raise.
        if type(error).__name__.startswith("DataDependent"):
            raise ScenarioError(
                f"model.kind: {type(model).__name__} cannot be traced: its forward() decides by the values of tensors."
                f" Decide by shapes, or compute both and take torch.where."
            ) from error
        reason = str(error).strip().split("\n")[0][:160]
        raise ScenarioError(
            f"model.kind: {type(model).__name__} cannot be trained on a batch of shape {tuple(x.shape)}:"
            f" {type(error).__name__}: {reason}"
        ) from error
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ScenarioError(
                f"model.kind: {type(model).__name__} draws random numbers while it trains ({node.target});"
                f" layers like Dropout are not supported yet. Leave them out."
            )
    return graph


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
    module.recompile()
