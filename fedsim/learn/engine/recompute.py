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

    Returns how many bytes of the forward half there are at once while the backward half runs, what is computed again among them.
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
    return _held(graph, loss, {*order, *moved.values()})


def _held(graph: Graph, loss: Node, values: set[Node]) -> int:
    """Return the most bytes of *values* that are there between two nodes of *graph*, from *loss* on, each until its last reader.

    A segment that is computed again is not there with the last one, which has been read by then; nor is each step of it there with all
    others: what nobody reads any more is let go of, as the graph's code does. Whoever reads a view reads what it looks at.
    """
    nodes: list[Node] = list(graph.nodes)
    base, ends, going = dict[Node, Node](), dict[Node, int](), dict[int, list[Node]]()
    for at, node in enumerate(nodes):
        if _looks(node):
            base[node] = _seen_by(node.all_input_nodes[0], base)
        for each in (node, *node.all_input_nodes):
            ends[_seen_by(each, base)] = at
    for node, at in ends.items():
        going.setdefault(at, []).append(node)
    now, most, passed = 0, 0, False
    for at, node in enumerate(nodes):
        now += _bytes(node) * (node in values) - sum(_bytes(each) for each in going.get(at, ()) if each in values)
        passed = passed or node is loss
        most = max(most, now) if passed else 0
    return most


def _seen_by(node: Node, base: dict[Node, Node]) -> Node:
    """Return what *node* looks at, where it is a view; itself otherwise."""
    return base[node] if node in base else node


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
