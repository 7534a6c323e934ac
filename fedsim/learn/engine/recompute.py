"""Activation checkpointing as a graph pass: the backward half computes again what it reads of the forward half. No bit moves.

Chen et al. 2016, arXiv:1604.06174: the forward half is cut into about the square root of its activations' number of segments, of
about equal bytes. Kept is what one segment hands to a later one; all else that the backward half reads is computed anew, a segment at
once, when its first number is wanted. The last segment is still there then, and stays as it is.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node


def recompute(graph: Graph) -> int:
    """Rewrite a traced gradient, whose last output is the loss, so that it keeps few activations.

    Returns how many bytes of the forward half wait for the backward half, the largest segment that is computed again among them.
    """
    end = next(node for node in graph.nodes if node.op == "output")
    loss = cast(list[Node], end.args[0])[-1]
    forward = _before(loss)
    order = [node for node in graph.nodes if node in forward and node.op == "call_function"]
    late = [node for node in graph.nodes if node.op == "call_function" and node not in forward]
    segments = _segments(order, set(late))
    last = max(segments.values(), default=0)
    moved: dict[Node, Node] = {}
    for reader in late:
        for node in list(reader.all_input_nodes):
            if segments.get(node, last) < last and not _stays(node, segments):
                again = _again(graph, node, segments, moved, reader)
                reader.replace_input_with(node, again)
    anew = [0] * (last + 1)
    for node, copy in moved.items():
        anew[segments[node]] += _bytes(copy)
    return sum(_bytes(node) for node in _waiting(order, {*late, *moved.values()})) + max(anew)


def _waiting(order: list[Node], late: set[Node]) -> set[Node]:
    """Return what of the forward nodes *order* is there for *late* ones: of a view, what it looks at."""
    found, forward = {node for node in order if any(user in late for user in node.users)}, set(order)
    for node in reversed(order):
        if node in found and _looks(node):
            found |= {source for source in node.all_input_nodes[:1] if source in forward}
    return found


def _before(loss: Node) -> set[Node]:
    """Return all that *loss* follows from."""
    found, waiting = set[Node](), [loss]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _segments(order: list[Node], late: set[Node]) -> dict[Node, int]:
    """Return the number of the segment of each forward node, by the bytes of what the backward half reads."""
    read = [_bytes(node) if any(user in late for user in node.users) else 0 for node in order]
    count = max(1, math.isqrt(sum(size > 0 for size in read)))
    share, segments, passed = sum(read) / count, dict[Node, int](), 0
    for node, size in zip(order, read, strict=True):
        segments[node] = min(count - 1, int(passed // share)) if share else 0
        passed += size
    return segments


def _stays(node: Node, segments: dict[Node, int]) -> bool:
    """Return whether *node* is kept: handed to a later segment, or not to be called twice."""
    tags, schema = getattr(node.target, "tags", ()), getattr(node.target, "_schema", None)
    once = torch.Tag.nondeterministic_seeded in tags or schema is None or schema.is_mutable
    return once or any(segments.get(user, segments[node]) > segments[node] for user in node.users)


def _again(graph: Graph, node: Node, segments: dict[Node, int], moved: dict[Node, Node], reader: Node) -> Node:
    """Return *node* computed again before *reader*, from what is kept."""
    if segments.get(node) is None or _stays(node, segments):
        return node
    if node not in moved:
        given = {each: _again(graph, each, segments, moved, reader) for each in node.all_input_nodes}
        with graph.inserting_before(reader):
            moved[node] = graph.node_copy(node, given.__getitem__)
        moved[node].meta = dict(node.meta)
    return moved[node]


def _bytes(node: Node) -> int:
    """Return what *node* takes beside what it is a view of."""
    value: Any = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) and not _looks(node) else 0


def _looks(node: Node) -> bool:
    """Return whether *node* is a view, which takes nothing."""
    return any(each.alias_info is not None for each in getattr(getattr(node.target, "_schema", None), "returns", ()))
