"""The compiled step: what one chunk of clients does with one batch each, in place, as few operations as possible.

Three graphs: views of the parameters are taken once per chunk (*opening*), the *body* runs per step, and the loss is
finished for all steps at once (*closing*).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

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

    *rows* is how many it may be given for a row's bits not to depend on the others: any number, two or *many*, or
    just *one* at a time, in memory of its own. Measured on torch 2.13 with MKL: a product of odd sizes takes another
    kernel for a batch of one matrix than for many, and other kernels again by the alignment of a row.
    """

    open: Callable[[list[Tensor]], Views]
    run: Callable[[Views, Tensor, Tensor, float], tuple[Tensor, list[Tensor]]]
    close: Callable[[Tensor], Tensor]
    rows: Literal["any", "many", "one"] = "any"


PROBES = ((0, 1), (0, 2), (1, 2), (2, 3), (0, 17), (5, 12))
"""(first row, number of rows) of the slices that must all give one and the same row. 17 rows pass through every
alignment to 64 bytes that float32 can have."""

MANY_NUMBERS = 10_000
"""Parameters from which on two draws are enough: a small model may round alike by chance, and is drawn eight times."""

PROBE_BYTES = 2**28
"""Parameters that probing may stack; larger models are probed with fewer rows."""


def compile_step(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, *, plain: bool, whole_targets: bool, untouched: bool = False
) -> Step:
    """Return the step of *model* for batches shaped like *x* (b, ...) and *y* (b, ...).

    What comes out depends on them too, a little (see ``_same_bits``): give every engine the same.

    *plain* says that the update is p <- p - lr g and nothing else, and so may be folded into the graph.
    *whole_targets* promises that no target is cross-entropy's ignore_index. *untouched* runs the graph as traced.

    Convolutions on a CPU run one client at a time, whatever the chunk: grouped convolution with one client gives
    other bits there than with two, and is slower. So does any step whose rows turn out to depend on their number or
    place. Kernels are the task's own matter, never its cohort's.
    Raises ScenarioError when the model cannot be trained.
    """
    single = trace(model, objective, x, y, rows=None)
    settings = {"plain": plain, "whole_targets": whole_targets, "untouched": untouched}
    if not (x.device.type == "cpu" and has_convolution(single)):
        step = _stacked(_parts(trace(model, objective, x, y, rows=ROWS), model, **settings))
        small = sum(p.numel() for p in trainable(model).values()) < MANY_NUMBERS
        draws = 8 if small else 2
        same = [all(pair) for pair in zip(*(_same_bits(step, model, x, y, plain, seed) for seed in range(draws)), strict=True)]
        if all(same[1:]):
            return step if same[0] else dataclasses.replace(step, rows="many")
    return _single(_parts(single, model, stacked=False, **settings))


def _same_bits(step: Step, model: nn.Module, x: Tensor, y: Tensor, plain: bool, seed: int) -> list[bool]:
    """Return, for each of PROBES, whether all its rows come out the same as all others, bit for bit.

    Every row gets the same parameters and the same batch; what may differ is the kernel that a number of rows is
    given, and the alignment of a row in memory. Kernels are not chosen by value, so numbers drawn at random tell:
    another kernel would have to round all of them alike, in every draw, to go unseen.
    """
    draw = torch.Generator().manual_seed(seed)
    shapes = list(trainable(model).values())
    most = max(3, min(17, PROBE_BYTES // sum(p.numel() * p.element_size() for p in shapes)))
    if x.is_floating_point():
        x = torch.randn(x.shape, generator=draw).to(x)  # Real features may be zeros, which round to nothing.
    params = [torch.randn(p.shape, generator=draw).div(math.sqrt(max(1, p.shape[-1:].numel()))).to(p) for p in shapes]

    def rows(first: int, count: int) -> list[Tensor]:
        # Cloned: contiguous() would hand out the parameters themselves where there is one row.
        mine = [p.expand(first + count, *p.shape).clone(memory_format=torch.contiguous_format)[first:] for p in params]
        bx, by = (t.expand(count, *t.shape).contiguous() for t in (x, y))
        with torch.no_grad():
            head, gradients = step.run(step.open(mine), bx, by, -0.1)
            return [*(mine if plain else gradients), step.close(head)]

    reference = [t[0] for t in rows(0, most)]
    return [
        all(torch.equal(row, one) for many, one in zip(rows(first, min(count, most)), reference, strict=True) for row in many)
        for first, count in PROBES
    ]


_Parts = tuple[GraphModule, GraphModule, GraphModule]


def _parts(
    module: GraphModule, model: nn.Module, *, plain: bool, whole_targets: bool, untouched: bool, stacked: bool = True
) -> _Parts:
    """Return a traced gradient as opening, body and closing, with the passes and the update in it."""
    count, graph = len(trainable(model)), module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    params = inputs[:count]
    with graph.inserting_after(inputs[-1]):
        rate = graph.placeholder("rate")
    if not untouched:
        passes.clean(graph, inputs[-1], whole_targets=whole_targets)
    if plain:
        passes.update_in_place(graph, params, rate, fuse=not untouched)
    opening = passes.before_loop(graph, params)
    closing = passes.after_loop(graph) if stacked else []
    parts = _split(module, params, opening, closing)
    for part in parts if stacked else ():
        free_rows(part)
    return parts


def _stacked(parts: _Parts) -> Step:
    """Return a step that runs all its rows in one go."""
    first, body, last = parts

    def run(views: Views, x: Tensor, y: Tensor, rate: float) -> tuple[Tensor, list[Tensor]]:
        *gradients, head = body(*views, x, y, rate)
        return head, gradients

    return Step(open=lambda p: first(*p), run=run, close=lambda heads: last(heads)[0])


def _single(parts: _Parts) -> Step:
    """Return a step for exactly one row."""
    first, body, last = parts

    def run(views: Views, x: Tensor, y: Tensor, rate: float) -> tuple[Tensor, list[Tensor]]:
        *gradients, head = body(*views, x[0], y[0], rate)
        return head.unsqueeze(0), [gradient.unsqueeze(0) for gradient in gradients]

    def close(heads: Tensor) -> Tensor:
        return torch.stack([last(head)[0] for head in heads])

    return Step(open=lambda p: first(*(param[0] for param in p)), run=run, close=close, rows="one")


def _split(
    module: GraphModule, params: list[Node], opening: list[Node], closing: list[Node]
) -> _Parts:
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


