"""A stacked step of plain SGD whose rows have learning rates of their own: found by trying, and only where no bit of a row moves.

Where all rows have one rate, that is a number in the product that updates a weight, W <- W + rate A' B. What a library makes of it is
its own: MKL multiplies B by it as it packs it, at most sizes and on most processors, and then A' (rate B) has the same bits, which rows
of any rates can share. Where it does not, that product goes row by row, and everything before it stays stacked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fedsim.learn.engine.nodes import aten, shape
from fedsim.learn.engine.probing import PROBE_RATE, PROBES, Client, after, most_rows, probed, stacked
from fedsim.learn.engine.running import stacked_step
from fedsim.learn.engine.step import Step
from fedsim.learn.objectives import Objective

_RATES = PROBE_RATE * np.random.default_rng(0).uniform(0.2, 5.0, 5)
"""The rates of probes, as ``PROBE_RATE`` says: none is a power of two times another, which would round alike. Rows have them in turn."""


def by_row(params: Tensor, left: Tensor, right: Tensor, rates: Tensor) -> None:
    """Add to each row of *params* its rate times the product of its *left* and *right*, as a row of one rate has it added."""
    for i, rate in enumerate(rates.tolist()):
        params[i : i + 1].baddbmm_(left[i : i + 1], right[i : i + 1], beta=1, alpha=rate)


def compile_spread(
    compile_step: Callable[..., Step], model: nn.Module, objective: Objective, x: Tensor, y: Tensor, *,
    spread: bool = True, more: Sequence[Tensor] = (), **settings: Any,
) -> Step:  # fmt: skip
    """Return the step that *compile_step* makes of all that is given, with a rate for each row; that step itself where none keeps its bits.

    *settings* are those of ``compile_step``, and the step is a plain one. *spread* tells its name in a store from that of the step itself.
    """
    step = compile_step(model, objective, x, y, more=more, **settings)
    if not spread or step.rows == "one" or step.parts is None:
        return step
    if y.device.type != "cpu" or settings["arithmetic"].graphs:
        return step  # Its rate is one tensor there, for CUDA graphs: rows go together that have the same.
    found = _apart(_spread(step, ()), step, model, (x, *more), y)
    if not found:
        return _spread(step, ())
    rest = _spread(step, found)
    return step if _apart(rest, step, model, (x, *more), y) else rest


def _spread(step: Step, apart: Collection[int]) -> Step:
    """Return *step* with a rate for each row; the parameters number *apart* are updated row by row."""
    first, body, last = cast(tuple[GraphModule, GraphModule, GraphModule], step.parts)
    names = [node.name for node in first.graph.nodes if node.op == "placeholder"]
    parts = first, spread_body(body, {names[i] for i in apart if i < len(names)}), last
    opening, run, closing = stacked_step(*parts)
    return dataclasses.replace(step, open=opening, run=run, close=closing, parts=parts, spread=True)


def spread_body(body: GraphModule, apart: Collection[str]) -> GraphModule:
    """Return *body* with the rate of each row in the place of one. Shapes: rate () -> (rows,).

    Inputs called as in *apart* are updated row by row.
    """
    graph = Graph()
    graph.output(graph.graph_copy(body.graph, {}))
    rate = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(rate.users):
        with graph.inserting_before(node):
            if node.target is aten.mul.Scalar:
                (update,) = node.users  # Added to a parameter: which has as many dimensions.
                across = graph.call_function(aten.view.default, (rate, [-1, *[1] * (len(shape(cast(Node, update.args[0]))) - 1)]))
                node.target, node.args = aten.mul.Tensor, (node.args[0], across)
                continue
            param, left, right = cast(tuple[Node, Node, Node], node.args)
            if param.name in apart:
                graph.call_function(by_row, (param, left, right, rate))
            else:
                across = graph.call_function(aten.view.default, (rate, [-1, 1, 1]))
                scaled = graph.call_function(aten.mul.Tensor, (right, across))
                graph.call_function(aten.baddbmm_.default, (param, left, scaled), {"beta": 1, "alpha": 1})
        graph.erase_node(node)
    return GraphModule(body, graph)


def _apart(spread: Step, step: Step, model: nn.Module, real: Sequence[Tensor], y: Tensor) -> set[int]:
    """Return which of the tensors that *spread* leaves (parameters, buffers, the loss) differ from what *step* leaves of rows alone."""
    found = probed(step, model, real, y, partial(_agreeing, spread, step, y))
    return {i for i, same in enumerate(zip(*found, strict=True)) if not all(same)}


def _agreeing(spread: Step, step: Step, y: Tensor, client: Client) -> list[bool]:
    """Return, of each tensor that a step leaves, whether rows of many rates come out as each does among rows of its own, bit for bit."""
    most = most_rows(client)

    def left(step: Step, first: int, count: int, rate: Any) -> list[Tensor]:
        carried, bx, by, masks = stacked(client, y, first, count)
        return [each.nan_to_num() for each in after(step, carried, bx, by, masks, True, rate, len(carried))]

    rates = np.resize(_RATES, most)
    alone = [[each[0] for each in left(step, 0, 2, float(rate))] for rate in _RATES]
    same = [True] * len(alone[0])
    for first, count in PROBES:
        if count > 1:
            rows = min(count, most)
            many = left(spread, first, rows, torch.from_numpy(rates[:rows]).to(client[0][0]))
            same = [
                so_far and all(torch.equal(each[row], alone[row % len(_RATES)][i]) for row in range(rows))
                for i, (so_far, each) in enumerate(zip(same, many, strict=True))
            ]
    return same
