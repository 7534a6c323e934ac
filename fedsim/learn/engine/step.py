"""The compiled step: what one chunk of clients does with one batch each, in place, as few operations as possible.

Three graphs: views of the parameters are taken once per chunk (*opening*), the *body* runs per step, and the loss is
finished for all steps at once (*closing*).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fedsim.learn.engine import passes
from fedsim.learn.engine.trace import ROWS, free_rows, has_convolution, trace
from fedsim.learn.models import trainable
from fedsim.learn.objectives import Objective

Views = list[Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """A training step for batches of one shape. Shapes: parameters and batches are (rows, ...).

    ``open(params)`` returns what ``run`` wants in their place. ``run(views, x, y, rate)`` does a step; with plain SGD
    it updates the parameters in place (*rate* is minus the learning rate) and returns no gradients. Its first result
    stands for the loss: ``close`` turns such results, stacked over steps, into losses.
    """

    open: Callable[[list[Tensor]], Views]
    run: Callable[[Views, Tensor, Tensor, float], tuple[Tensor, list[Tensor]]]
    close: Callable[[Tensor], Tensor]
    stacked: bool


def compile_step(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, *, plain: bool, whole_targets: bool, untouched: bool = False
) -> Step:
    """Return the step of *model* for batches shaped like *x* (b, ...) and *y* (b, ...).

    *plain* says that the update is p <- p - lr g and nothing else, and so may be folded into the graph.
    *whole_targets* promises that no target is cross-entropy's ignore_index. *untouched* runs the graph as traced.

    Convolutions on a CPU run one client at a time, whatever the chunk: grouped convolution with one client gives
    other bits there than with two, and is slower. Raises ScenarioError when the model cannot be trained.
    """
    count = len(trainable(model))
    single = trace(model, objective, x, y, rows=None)
    one_by_one = x.device.type == "cpu" and has_convolution(single)
    module = single if one_by_one else trace(model, objective, x, y, rows=ROWS)
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    params = inputs[:count]
    with graph.inserting_after(inputs[-1]):
        rate = graph.placeholder("rate")
    if not untouched:
        passes.clean(graph, inputs[-1], whole_targets=whole_targets)
    if plain:
        passes.update_in_place(graph, params, rate, fuse=not untouched)
    opening = passes.before_loop(graph, params)
    closing = [] if one_by_one else passes.after_loop(graph)
    parts = _split(module, params, opening, closing)
    if one_by_one:
        return _looped(*parts)
    for part in parts:
        free_rows(part)
    first, body, last = parts

    def run(views: Views, x: Tensor, y: Tensor, rate: float) -> tuple[Tensor, list[Tensor]]:
        *gradients, head = body(*views, x, y, rate)
        return head, gradients

    return Step(open=lambda p: first(*p), run=run, close=lambda heads: last(heads)[0], stacked=True)


def _looped(first: GraphModule, body: GraphModule, last: GraphModule) -> Step:
    """Return a step that runs its rows one after the other, for layers that gain nothing from being stacked."""

    def open_rows(params: list[Tensor]) -> Views:
        return [view for row in zip(*params, strict=True) for view in first(*row)]

    def run(views: Views, x: Tensor, y: Tensor, rate: float) -> tuple[Tensor, list[Tensor]]:
        width = len(views) // len(x)
        rows = [body(*views[i * width : (i + 1) * width], x[i], y[i], rate) for i in range(len(x))]
        heads = torch.stack([cast(Tensor, row[-1]) for row in rows])
        return heads, [torch.stack(list(g)) for g in list(zip(*rows, strict=True))[:-1]]

    def close(heads: Tensor) -> Tensor:
        return torch.stack([last(head)[0] for head in heads])

    return Step(open=open_rows, run=run, close=close, stacked=False)


def _split(
    module: GraphModule, params: list[Node], opening: list[Node], closing: list[Node]
) -> tuple[GraphModule, GraphModule, GraphModule]:
    """Cut one graph into three: views of *params*, the body, and what turns the body's head into the loss."""
    graph, early, late = module.graph, set(opening), set(closing)
    end = next(node for node in graph.nodes if node.op == "output")
    outputs = list(cast(tuple[list[Node]], end.args)[0])
    middle = [n for n in graph.nodes if n.op == "call_function" and n not in early and n not in late]
    wanted = [n for n in (*params, *opening) if any(user in middle for user in n.users)] or params[:1]
    head = closing[0].all_input_nodes[0] if closing else outputs[-1]

    def cut(inputs: list[Node], nodes: list[Node], results: list[Node], names: list[str] | None = None) -> GraphModule:
        new, moved = Graph(), dict[Node, Node]()
        for i, node in enumerate(inputs):
            moved[node] = new.placeholder(names[i] if names else node.name)
            moved[node].meta = dict(node.meta)
        for node in graph.nodes:
            if node in nodes or node.op == "get_attr":
                moved[node] = new.node_copy(node, lambda n: moved[n])
        new.output([moved[node] for node in results])
        new.eliminate_dead_code(lambda n: n.target in passes.WRITES or n.is_impure())
        return GraphModule(module, new)

    others = [n for n in graph.nodes if n.op == "placeholder" and n not in params]
    first = cut(params, opening, wanted)
    body = cut([*wanted, *others], middle, [*outputs[:-1], head])
    last = cut([head], closing, [outputs[-1]])
    return first, body, last


