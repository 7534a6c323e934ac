"""Compiled steps as plain values, for a process that has no time to trace them: the code that torch wrote, and the constants in it.

What is thawed does the same operations in the same order, and so gives the same bits. Knows no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fedsim.learn.engine.noise import Mask
from fedsim.learn.engine.running import Placed, single_step, stacked_step
from fedsim.learn.engine.spread import by_row
from fedsim.learn.engine.step import Step

WORDS: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "NoneType": type(None), "torch": torch, "device": torch.device,
                         by_row.__module__.replace(".", "_") + "_by_row": by_row}  # fmt: skip
"""What the code of a graph may speak of: torch's operations are all found below ``torch``, and one is ours."""


@dataclass(frozen=True, slots=True)
class Code:
    """A graph: the *source* of its forward, and the tensors in it by the names it has for them."""

    source: str
    constants: dict[str, Tensor]

    @classmethod
    def of(cls, graph: GraphModule) -> Code | None:
        """Return *graph* as code; None where it speaks of what another process would not know."""
        written = graph.graph.python_code("self")
        used = {name for name in written.globals if name not in WORDS and f"{name}." in written.src}
        names = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
        constants = {name: getattr(graph, name, None) for name in names}
        plain = all(isinstance(held, Tensor) for held in constants.values()) and all(n.op != "call_module" for n in graph.graph.nodes)
        if used or not plain:
            return None
        return cls(written.src, {name: held.detach().clone() for name, held in constants.items() if isinstance(held, Tensor)})

    def thawed(self) -> Callable[..., Any]:
        """Return the graph as a function."""
        scope = dict(WORDS)
        exec(compile(self.source, "<a compiled step>", "exec"), scope)
        return partial(scope["forward"], SimpleNamespace(**self.constants))


@dataclass(frozen=True, slots=True)
class Frozen:
    """A step: its three graphs, and what was found out about it when it was compiled."""

    graphs: tuple[Code, Code, Code]
    stacked: bool
    rows: Placed
    masks: tuple[Mask, ...]
    random: bool
    note: str
    ours: tuple[bool, ...]
    recalls: tuple[tuple[int, ...], ...] = ()
    spread: bool = False

    @classmethod
    def of(cls, step: Step) -> Frozen | None:
        """Return *step* as plain values; None where it is torch's own, or where its graphs cannot be told."""
        if step.parts is None:
            return step.told
        first, body, last = (Code.of(part) for part in step.parts)
        if first is None or body is None or last is None:
            return None
        return cls(
            (first, body, last), step.stacked, step.rows, step.masks, step.random, step.note, step.ours, step.recalls, step.spread
        )

    def thawed(self) -> Step:
        """Return the step."""
        first, body, last = (code.thawed() for code in self.graphs)
        opening, run, closing = (stacked_step if self.stacked else single_step)(first, body, last)
        return Step(
            opening, run, closing, self.rows, self.masks, self.random, self.note, self.ours,
            stacked=self.stacked, spread=self.spread, told=self, recalls=self.recalls,
        )  # fmt: skip


def frozen(steps: Mapping[Any, Step]) -> dict[Any, Frozen]:
    """Return those of *steps* that can be told as plain values."""
    found = {kind: Frozen.of(step) for kind, step in steps.items()}
    return {kind: step for kind, step in found.items() if step is not None}
