"""Graph passes: the traced gradient becomes a training step that writes no weight gradient and does no idle work.

Each pass takes the flat ATen graph as it is and leaves what it does not recognise. The tests hold the result against
the graph as it was traced: the same bits where a pass says so, a stated tolerance where a product is fused.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import numpy as np
import torch
from torch.fx import Graph, Node

from fedsim.learn.engine.nodes import aten, call, flipped, flips, shape
from fedsim.learn.engine.passes_conv import channels_last, pool_before_relu
from fedsim.learn.engine.passes_loss import fuse_cross_entropy

_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.expand.default}
_IGNORED = -100
"""Cross-entropy's ignore_index: a class that stands for "no target"."""


def drop_idle(graph: Graph) -> None:
    """Remove views to the same shape, transposes of transposes or below sums, and products with 1. No bit moves."""
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            if node.op != "call_function":
                continue
            source = node.args[0] if node.args else None
            if not isinstance(source, Node) or "val" not in source.meta:
                continue
            replacement: Node | None = None
            if node.target in _RESHAPES and shape(node) == shape(source):
                replacement = source
            elif node.target is aten.mul.Scalar and node.args[1] == 1:
                replacement = source
            elif _swaps(node) and _swaps(source) and _dims(node) == _dims(source):
                replacement = cast(Node, source.args[0])
            elif node.target is aten.t.default and source.target is aten.t.default:
                replacement = cast(Node, source.args[0])
            elif node.target is aten.sum.dim_IntList and len(node.args) == 2 and flips(source):
                rank, dims = len(shape(source)), cast(list[int], node.args[1])
                if [d % rank >= rank - 2 for d in dims] == [True]:  # Sum over what the swap took from the other place.
                    node.args = (source.args[0], [2 * rank - 3 - dims[0] % rank])
                    changed = True
            if replacement is not None:
                node.replace_all_uses_with(replacement)
                graph.erase_node(node)
                changed = True
    graph.eliminate_dead_code()


def _swaps(node: Node) -> bool:
    return node.target is aten.transpose.int


def _dims(node: Node) -> set[int]:
    rank = len(shape(node))
    return {cast(int, d) % rank for d in node.args[1:]}


def fold_constants(graph: Graph, targets: Node) -> None:
    """Work out, at trace time, what is one known number: masks of targets that are all there, counts, 1 / batch.

    Only for *targets* that never are cross-entropy's ignore_index. Divisions round as they would at run time, so no
    bit moves.
    """
    known: dict[Node, float | bool] = {}

    def of(value: Any) -> Any:
        return known.get(value) if isinstance(value, Node) else value if isinstance(value, (int, float)) else None

    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        kind, args = node.target, node.args
        value: float | bool | None = None
        if kind is aten.ne.Scalar and args[1] == _IGNORED and _comes_from(args[0], targets):
            value = True
        elif kind in (aten.ones_like.default, aten.zeros_like.default) and not _is_scattered(node):
            value = 1.0 if kind is aten.ones_like.default else 0.0
        elif kind is aten.scalar_tensor.default:
            value = cast(float, args[0])
        elif kind in (*_RESHAPES, aten._to_copy.default, aten.unsqueeze.default) and of(args[0]) is not None:
            value = of(args[0])
        elif kind is aten.sum.dim_IntList and of(args[0]) is True:
            value = float(np.prod([shape(cast(Node, args[0]))[d] for d in cast(list[int], args[1])]))
        elif kind is aten.where.self and of(args[0]) is True:
            value = of(args[1])
            if value is None and shape(cast(Node, args[1])) == shape(node):
                node.replace_all_uses_with(cast(Node, args[1]))
                continue
        elif kind is aten.div.Tensor and of(args[0]) is not None and of(args[1]) is not None:
            real = {torch.float32: np.float32, torch.float64: np.float64}.get(node.meta["val"].dtype)
            value = float(real(of(args[0])) / real(of(args[1]))) if real else None
        elif kind in (aten.div.Tensor, aten.mul.Tensor) and isinstance(args[0], Node) and of(args[1]) is not None:
            if shape(args[0]) == shape(node):
                _scale(graph, node, args[0], cast(float, of(args[1])))
        if value is not None:
            known[node] = value
    graph.eliminate_dead_code()


def _comes_from(node: Any, targets: Node) -> bool:
    while isinstance(node, Node) and node.target in (aten.unsqueeze.default, aten.view.default):
        node = node.args[0]
    return node is targets


def _is_scattered(node: Node) -> bool:
    return any(user.target is aten.scatter.value for user in node.users)


def _scale(graph: Graph, node: Node, source: Node, factor: float) -> None:
    """Replace a product or quotient with a known number by the scalar form, or by scattering the product at once."""
    with graph.inserting_before(node):
        if node.target is aten.mul.Tensor and source.target is aten.scatter.value and len(source.users) == 1:
            zeros, dim, index, number = source.args
            scaled = graph.call_function(aten.scatter.value, (zeros, dim, index, cast(float, number) * factor))
        else:
            scalar = aten.div.Scalar if node.target is aten.div.Tensor else aten.mul.Scalar
            scaled = graph.call_function(scalar, (source, factor))
    scaled.meta = dict(node.meta)
    node.replace_all_uses_with(scaled)


def fuse_bias(graph: Graph) -> None:
    """Turn a matrix product plus a bias into one product that starts from the bias. Moves the last bits."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs:
            continue
        for bias, product in (node.args, node.args[::-1]):
            if not (isinstance(bias, Node) and isinstance(product, Node)) or product.target is not aten.bmm.default:
                continue
            if len(product.users) > 1 or shape(product) != shape(node) or len(shape(bias)) != 3 or shape(bias)[1] != 1:
                continue
            with graph.inserting_before(node):
                fused = call(graph, aten.baddbmm.default, bias, *product.args)
            node.replace_all_uses_with(fused)
            break
    graph.eliminate_dead_code()


LARGE_WEIGHTS = 2**18
"""Numbers in a matrix from which on the order of a product matters: it no longer stays in a core's cache."""
FEW, MANY = 4, 32
"""Batch sizes between which it does."""


def weights_first(graph: Graph) -> None:
    """Compute b + X W' as (b' + W X')' for one client's batch and large weights. Moves the last bits.

    With a handful of examples MKL takes half the time so.
    """
    for node in list(graph.nodes):
        if node.target is not aten.addmm.default or node.kwargs:
            continue
        bias, inputs, weights = cast(tuple[Node, Node, Node], node.args)
        if not flips(weights) or len(shape(bias)) != 1 or weights.meta["val"].numel() < LARGE_WEIGHTS:
            continue
        if not FEW <= shape(inputs)[0] <= MANY or inputs.meta["val"].device.type != "cpu":
            continue
        with graph.inserting_before(node):
            column = call(graph, aten.unsqueeze.default, bias, 1)
            product = call(graph, aten.addmm.default, column, flipped(graph, weights), flipped(graph, inputs))
            turned = call(graph, aten.clone.default, flipped(graph, product), memory_format=torch.contiguous_format)
        node.replace_all_uses_with(turned)
        graph.erase_node(node)


def reuse_buffers(graph: Graph) -> None:
    """Let ReLU and its gradient write over an input that nobody reads again. No bit moves."""
    made_here = {aten.baddbmm.default, aten.bmm.default, aten.addmm.default, aten.mm.default, aten.add.Tensor,
                 aten.convolution.default, aten.clone.default}  # fmt: skip
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or len(source.users) != 1:
            continue
        pooled = source.target is operator.getitem and cast(Node, source.args[0]).target is _POOL and source.args[1] == 0
        if not pooled and source.target not in made_here:
            continue
        if node.target is aten.relu.default:
            node.target = aten.relu_.default
        elif node.target is aten.threshold_backward.default:
            node.target = aten.threshold_backward.grad_input
            node.kwargs = {"grad_input": source}


_POOL = aten.max_pool2d_with_indices.default


def update_in_place(graph: Graph, params: list[Node], rate: Node, *, fuse: bool = True) -> None:
    """End the graph with the update p <- p - rate * gradient, in place; a gradient that is a product is never written.

    *rate* holds minus the learning rate. Without *fuse* every gradient is written first. Output: what is left after the gradients (the
    loss). Updates come last, since the gradient of one layer still reads the parameters of the next.
    """
    end = next(node for node in graph.nodes if node.op == "output")
    outputs = list(cast(tuple[list[Node]], end.args)[0])
    trained = set(params)
    with graph.inserting_before(end):
        # What is read off a parameter must be read before any parameter changes.
        gradients = [
            call(graph, aten.clone.default, gradient) if _is_view_of(gradient, trained) else gradient
            for gradient in outputs[: len(params)]
        ]
        for param, gradient in zip(params, gradients, strict=True):
            _update(graph, param, gradient, rate, fuse, trained)
    end.args = (outputs[len(params) :],)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and node.target not in WRITES:
            graph.erase_node(node)


def rates_as_tensors(graph: Graph, rate: Node) -> None:
    """Let *rate* be a tensor without dimensions, whose memory is read each time: a number would be frozen in a CUDA graph.

    What starts from a parameter scales the smaller factor of its product. Moves the last bits.
    """
    for node in list(rate.users):
        if node.target is aten.mul.Scalar:
            node.target = aten.mul.Tensor
            continue
        param, left, right = cast(tuple[Node, Node, Node], node.args)
        with graph.inserting_before(node):
            if np.prod(shape(left)) <= np.prod(shape(right)):
                left = graph.call_function(aten.mul.Tensor, (left, rate))
            else:
                right = graph.call_function(aten.mul.Tensor, (right, rate))
        node.args, node.kwargs = (param, left, right), {"beta": 1, "alpha": 1}


def write_buffers(graph: Graph, count: int, buffers: list[Node]) -> None:
    """Write the new buffers over the old, and return them no more. Output: *count* gradients, then what is left (the loss)."""
    end = next(node for node in graph.nodes if node.op == "output")
    outputs = list(cast(tuple[list[Node]], end.args)[0])
    for node in list(graph.nodes):  # What a layer counts in whole numbers (BatchNorm its batches) stays at home.
        if node.op == "call_function" and not node.users and _writes_to_a_copy(node):
            graph.erase_node(node)
    with graph.inserting_before(end):
        for buffer, new in zip(buffers, outputs[count:], strict=False):
            if new.target is aten.clone.default and new.args[0] is buffer and len(new.users) == 1:
                continue  # Nobody wrote into it.
            graph.call_function(aten.copy_.default, (buffer, new))
    end.args = ([*outputs[:count], *outputs[count + len(buffers) :]],)


def _writes_to_a_copy(node: Node) -> bool:
    target = node.args[0] if node.args else None
    return (
        node.target is aten.add_.Tensor
        and isinstance(target, Node)
        and target.target is aten.clone.default
        and cast(Node, target.args[0]).op == "get_attr"
    )


WRITES = {aten.baddbmm_.default, aten.addmm_.default, aten.add_.Tensor, aten.copy_.default}


_IN_PLACE: dict[Any, Any] = {aten.bmm.default: aten.baddbmm_.default, aten.mm.default: aten.addmm_.default}


def _is_view_of(node: Node, trained: set[Node]) -> bool:
    """Return whether *node* shares the memory of a parameter."""
    while node.op == "call_function" and node not in trained:
        schema, source = getattr(node.target, "_schema", None), node.args[0] if node.args else None
        # A reshape is a view or a copy, and nothing says which beforehand.
        views = schema is not None and (schema.name == "aten::reshape" or any(r.alias_info for r in schema.returns))
        if not views or not isinstance(source, Node):
            return False
        node = source
    return node in trained


def _update(graph: Graph, param: Node, gradient: Node, rate: Node, fuse: bool, trained: set[Node]) -> None:
    turned = flips(gradient)
    product = cast(Node, gradient.args[0]) if turned else gradient
    in_place = _IN_PLACE.get(product.target)
    # Of a product of parameters (W = A B) each one's gradient has the other as a factor: fused, it would read the new one.
    factors = cast(tuple[Node, ...], product.args[:2]) if in_place is not None else ()
    late = any(_is_view_of(factor, trained) for factor in factors)
    if not fuse or late or in_place is None or len(product.users) > 1 or (turned and len(gradient.users) > 1):
        # Not add_(alpha=...): that is fused in vectorised loops and not in scalar ones, and which elements fall into
        # which depends on how many rows there are.
        graph.call_function(aten.add_.Tensor, (param, graph.call_function(aten.mul.Scalar, (gradient, rate))))
        return
    left, right = cast(tuple[Node, Node], product.args)
    if turned:  # (A B)' = B' A'
        left, right = flipped(graph, right), flipped(graph, left)
    graph.call_function(in_place, (param, left, right), {"beta": 1, "alpha": rate})


def merge_twins(graph: Graph) -> None:
    """Compute once what is computed twice from the same inputs. No bit moves."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _pure(node):
            continue
        mark = (node.target, repr(node.args), repr(node.kwargs))
        if mark in seen:
            node.replace_all_uses_with(seen[mark])
            graph.erase_node(node)
        else:
            seen[mark] = node


def _pure(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and node.target in _VIEWS


_VIEWS = {*_RESHAPES, aten.transpose.int, aten.t.default, aten.unsqueeze.default, aten.permute.default}


def sum_to_shape(graph: Graph) -> None:
    """Sum without keeping the dimension where the next view drops it. No bit moves."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if node.target is not aten.view.default or not isinstance(source, Node) or len(source.users) > 1:
            continue
        if source.target is aten.sum.dim_IntList and len(source.args) == 3 and source.args[2] is True:
            dims = {d % len(shape(cast(Node, source.args[0]))) for d in cast(list[int], source.args[1])}
            kept = tuple(size for d, size in enumerate(shape(cast(Node, source.args[0]))) if d not in dims)
            if kept == shape(node):
                source.args = source.args[:2]
                source.meta = dict(node.meta)
                node.replace_all_uses_with(source)
                graph.erase_node(node)


def before_loop(graph: Graph, params: list[Node]) -> list[Node]:
    """Return the views of parameters alone: parameters change in place, so their views can be taken once."""
    found: list[Node] = []
    known = set(params)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _VIEWS and all(n in known for n in node.all_input_nodes):
            known.add(node)
            found.append(node)
    return found


_AFTER = {aten.transpose.int, aten.squeeze.dims, aten.squeeze.dim, aten.neg.default, aten.sum.dim_IntList, aten.mean.dim, aten.div.Scalar,
          aten.mul.Scalar, aten.view.default}  # fmt: skip


def after_loop(graph: Graph) -> list[Node]:
    """Return the tail of the loss: what nothing but the loss needs, and can be done for all steps at once."""
    end = next(node for node in graph.nodes if node.op == "output")
    found: list[Node] = []
    node, reader = cast(tuple[list[Node]], end.args)[0][-1], end
    while node.target in _AFTER and list(node.users) == [reader] and len(node.all_input_nodes) == 1:
        found.insert(0, node)
        node, reader = node.all_input_nodes[0], node
    return found


def reshape_turned(graph: Graph) -> None:
    """Let views of transposed tensors copy where they must: strides may differ once products are fused. No bit moves."""
    turned = {aten.transpose.int, aten.permute.default, aten.t.default}
    for node in graph.nodes:
        if node.target is aten.view.default and cast(Node, node.args[0]).target in turned:
            node.target = aten.reshape.default


def clean(graph: Graph, targets: Node, *, whole_targets: bool) -> None:
    """Run every pass that does not know of an optimiser, in order."""
    drop_idle(graph)
    if whole_targets:
        fold_constants(graph, targets)
        drop_idle(graph)
    merge_twins(graph)
    sum_to_shape(graph)
    fuse_bias(graph)
    weights_first(graph)
    drop_idle(graph)
    fuse_cross_entropy(graph)
    pool_before_relu(graph)
    drop_idle(graph)
    merge_twins(graph)
    reuse_buffers(graph)
    reshape_turned(graph)
    channels_last(graph)
