"""Templates: a step is traced for three batch sizes, and its graph for any other size follows from these.

Tracing is what costs most in a step, and where every client trains on all that it has there are as many sizes as clients.
In a traced graph a number that depends on the batch size does so as a + b n, or as a / n for a mean. Two traces tell a and
b, and the third says whether all of the graph is like that; where not, each size is traced by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from fedsim.core.errors import ScenarioError
from fedsim.core.types import IntArray
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.engine.noise import Mask, masks_of
from fedsim.learn.engine.trace import Untraceable, trace
from fedsim.learn.job import FULL, Job
from fedsim.learn.objectives import Objective

FEW = 8
"""Batch sizes up to which each is traced by itself, which is sooner done then."""
SIZES = (13, 29, 22)
"""The batch sizes that are traced: two to tell how a number depends on the size, one to hold the outcome against."""


def many_sizes(job: Job, held: IntArray, *, streams: bool) -> bool:
    """Return whether *job* makes batches of many sizes for clients that hold so many examples; on streams, whether it may.

    >>> held = np.arange(20, 40)
    >>> [many_sizes(Job(batch_size=size), held, streams=False) for size in (FULL, 5, 10)]
    [True, False, True]
    """
    if streams:
        return job.batch_size == FULL or job.batch_size > FEW
    size, rests = job.passes(held)
    return len(np.unique(np.concatenate([size, rests[rests > 0]]))) > FEW


class _Otherwise(Exception):
    """A graph depends on the batch size in another way than a template can say."""


@dataclass
class Templates:
    """Traces of one model and objective, for any batch size: ``trace`` as in ``trace.py``, and the same graphs."""

    model: nn.Module
    objective: Objective
    arithmetic: Arithmetic = PLAIN
    _known: dict[tuple[int | None, bool], tuple[GraphModule, GraphModule] | None] = field(default_factory=dict[Any, Any])

    @property
    def known(self) -> bool:
        """Return whether some graph follows from others."""
        return any(self._known.values())

    def trace(self, x: Tensor, y: Tensor, masks: Sequence[Mask], rows: int | None, *, spelled: bool = False) -> GraphModule:
        """Return the graph for batches like *x* and *y*.

        A batch of one is traced by itself: torch has rules of its own for what has one row.
        """
        kind = rows, spelled
        if len(x) > 1 and kind not in self._known:
            self._known[kind] = self._learned(x, y, *kind)
        if len(x) > 1 and (pair := self._known[kind]) is not None:
            return _between(*pair, len(x))
        return trace(self.model, self.objective, x, y, masks, rows, self.arithmetic, spelled)

    def _learned(self, x: Tensor, y: Tensor, rows: int | None, spelled: bool = False) -> tuple[GraphModule, GraphModule] | None:
        """Return the graphs of the first two of SIZES, where that of the third follows from these; None where it does not."""
        found: list[GraphModule] = []
        try:
            for size in SIZES:
                index = torch.arange(size, device=x.device) % len(x)
                bx, by = x[index], y[index]
                found.append(trace(self.model, self.objective, bx, by, masks_of(self.model, bx), rows, self.arithmetic, spelled))
            same = alike(_between(found[0], found[1], SIZES[2]), found[2])
        except (_Otherwise, Untraceable, ScenarioError):  # For the size at hand it may be another matter: that is traced then.
            return None
        return (found[0], found[1]) if same else None


def _between(one: GraphModule, two: GraphModule, size: int) -> GraphModule:
    """Return the graph for batches of *size* that follows from those of the first two of SIZES. Raises _Otherwise."""
    graph, moved, mode = Graph(), dict[Node, Node](), FakeTensorMode()
    pairs = _pairs(one, two)
    partner = dict(pairs)
    for a, b in pairs:
        copy = graph.node_copy(a, moved.__getitem__)
        moved[a] = copy
        copy.args = _value(a.args, b.args, size, moved, partner)
        copy.kwargs = _value(a.kwargs, b.kwargs, size, moved, partner)
        copy.meta = {"val": _value(a.meta["val"], b.meta["val"], size, moved, partner, mode)} if "val" in a.meta else {}
    return GraphModule(one, graph)


def _pairs(one: GraphModule, two: GraphModule) -> list[tuple[Node, Node]]:
    """Return the nodes of both graphs, side by side. Raises _Otherwise where they are not the same operations."""
    first, second = list(one.graph.nodes), list(two.graph.nodes)
    if len(first) != len(second):
        raise _Otherwise
    for a, b in zip(first, second, strict=True):
        if a.op != b.op or a.target != b.target or ("val" in a.meta) != ("val" in b.meta):
            raise _Otherwise
        if a.op == "get_attr" and not _constant(one, two, str(a.target)):
            raise _Otherwise
    return list(zip(first, second, strict=True))


def _constant(one: GraphModule, two: GraphModule, name: str) -> bool:
    a, b = (getattr(module, name) for module in (one, two))
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _value(
    a: Any, b: Any, size: int, moved: Mapping[Node, Node], partner: Mapping[Node, Node], mode: FakeTensorMode | None = None
) -> Any:
    """Return what stands where *a* and *b* stand in the two graphs, for batches of *size*."""
    if isinstance(a, Node):
        if partner.get(a) is not b:
            raise _Otherwise
        return moved[a]
    if type(a) is not type(b):
        raise _Otherwise
    if isinstance(a, Tensor) and mode is not None:
        if a.dtype != b.dtype or a.device != b.device:
            raise _Otherwise
        shape, stride = (_value(tuple(p), tuple(q), size, moved, partner) for p, q in ((a.shape, b.shape), (a.stride(), b.stride())))
        with mode:
            return torch.empty_strided(shape, stride, dtype=a.dtype, device=a.device)
    if isinstance(a, Mapping):
        if a.keys() != b.keys():
            raise _Otherwise
        return {name: _value(item, b[name], size, moved, partner, mode) for name, item in cast(Mapping[str, Any], a).items()}
    if isinstance(a, (list, tuple)):
        if len(cast(Any, a)) != len(b):
            raise _Otherwise
        items = [_value(p, q, size, moved, partner, mode) for p, q in zip(cast(list[Any], a), b, strict=True)]
        return items if isinstance(a, list) else tuple(items)
    if isinstance(a, (bool, str)) or not isinstance(a, (int, float)):
        if a != b:
            raise _Otherwise
        return a
    return _number(a, b, size)


def _number(a: float, b: float, size: int) -> float:
    """Return the number for batches of *size*, from those for the first two of SIZES.

    >>> _number(13 * 64, 29 * 64, 10), _number(64, 64, 10), _number(1 / 13, 1 / 29, 10), _number(14, 30, 10)
    (640, 64, 0.1, 11)
    """
    m, n, _ = SIZES
    if a == b:
        return a
    if isinstance(a, int):
        slope, rest = divmod(int(b) - a, n - m)
        if rest:
            raise _Otherwise
        return a + slope * (size - m)
    above = round(a * m)
    if above / m != a or above / n != b:
        raise _Otherwise
    return above / size


def alike(one: GraphModule, two: GraphModule) -> bool:
    """Return whether two graphs are the same: operations, arguments, and shapes, strides and types of what comes out."""
    try:
        return all(_told(a) == _told(b) for a, b in _pairs(one, two))
    except _Otherwise:
        return False


def _told(node: Node) -> str:
    """Return all that a graph says of *node*, as text. Names count: they are given in order."""

    def about(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple(value.shape), value.stride(), value.dtype, value.device
        if isinstance(value, (list, tuple)):
            return [about(item) for item in cast(list[Any], value)]
        return value

    return repr((node.name, node.args, dict(node.kwargs), about(node.meta.get("val"))))
