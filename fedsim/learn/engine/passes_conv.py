"""Passes for convolutions, as they run on a CPU, one client at a time, and on a GPU, in groups."""

from __future__ import annotations

import operator
from collections.abc import Container
from typing import cast

import torch
from torch.fx import Graph, Node

from fedsim.learn.engine.nodes import aten, call, only_user

_VIEWS = {aten.view.default, aten._unsafe_view.default}


def pool_before_relu(graph: Graph) -> None:
    """Take the largest of each window first, and ReLU of what is left: the same numbers, on a fraction of them.

    No bit moves: a window whose largest is positive has the same largest, the first among equals, either way; where
    none is positive, ReLU stops the gradient either way.
    """
    for relu in [node for node in graph.nodes if node.target is aten.relu.default]:
        users = {user.target: user for user in relu.users}
        pool = users.get(aten.max_pool2d_with_indices.default)
        back = users.get(aten.max_pool2d_with_indices_backward.default)
        mask = users.get(aten.threshold_backward.default)
        if len(relu.users) != 3 or not (pool and back and mask) or only_user(back) is not mask:
            continue
        if mask.args != (back, relu, 0) or back.args[1] is not relu:
            continue
        largest = next((user for user in pool.users if user.target is operator.getitem and user.args[1] == 0), None)
        if largest is None:
            continue
        source = cast(Node, relu.args[0])
        pool.replace_input_with(relu, source)
        with graph.inserting_after(largest):
            after = graph.call_function(aten.relu.default, (largest,))
        after.meta = dict(largest.meta)
        largest.replace_all_uses_with(after, delete_user_cb=lambda user, own=after: user is not own)
        with graph.inserting_before(back):
            stopped = call(graph, aten.threshold_backward.default, back.args[0], after, 0)
        back.args = (stopped, source, *back.args[2:])
        mask.replace_all_uses_with(back)
        graph.erase_node(mask)
        graph.erase_node(relu)


def channels_last(graph: Graph, devices: Container[str] = ("cpu", "cuda")) -> None:
    """Lay images out with their channels innermost, from the first convolution on. Moves the last bits.

    torch's kernels for CPUs hand the layout on, and are faster in it: pooling tenfold. A view that the layout may not allow
    becomes a reshape, which copies where it must. Graphs that look at memory itself stay as they are.

    On a GPU what vmap makes of the convolutions of many clients is one convolution in groups; cuDNN's kernels for tensor cores want this
    layout there too: written by hand, a step of pfl-research's shape took 1.88 ms so on an H200, and 2.94 as vmap lays it out. This pass
    was not measured there yet; analysis/benchmarks/gpu.py times both.
    """
    convolutions = [node for node in graph.nodes if node.target is aten.convolution.default]
    strided = any(node.target in (aten.as_strided.default, aten.as_strided_.default) for node in graph.nodes)
    images = [cast(Node, node.args[0]).meta["val"] for node in convolutions]
    if strided or any(image.dim() != 4 or image.device.type not in devices for image in images):
        return
    touched: set[Node] = set()
    for node in list(graph.nodes):
        if node.target is aten.convolution.default and not touched.intersection(node.all_input_nodes):
            image = cast(Node, node.args[0])
            with graph.inserting_before(node):
                laid = call(graph, aten.clone.default, image, memory_format=torch.channels_last)
            image.replace_all_uses_with(laid, delete_user_cb=lambda user, own=laid: user is not own and user.target in _CONVOLUTIONS)
            touched.add(laid)
        if touched.intersection(node.all_input_nodes):
            touched.add(node)
            if node.target in _VIEWS:
                node.target = aten.reshape.default


_CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}
