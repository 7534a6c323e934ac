"""CUDA graphs: steps whose operations a GPU begins by itself, captured once for each step and shape of a chunk. Knows no task.

A graph reads and writes the same memory each time. So rows are laid into memory that stays (*spaces*), what goes into a step is copied to
where its graph reads it, the learning rate too, and what comes out is taken before the next step. Each graph is tried once against the
step itself, on the batch at hand; what cannot be captured, or gives other numbers, runs as it does without, and the notes say so.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.core.errors import reason
from fedsim.learn.engine.room import is_full
from fedsim.learn.engine.step import Step

Replay = Callable[[], Sequence[Tensor]]
"""Does again what was captured, on the memory that was captured, and returns what came out: the same tensors each time."""

SPACES = 4
"""Numbers of rows that have memory which stays; the one that was not used for the longest time goes first, and its graphs with it."""
SEEN = 2
"""Chunks of a shape, and then steps, after which it is worth to keep memory for it, and to capture."""
MOST = 64
"""Graphs that are kept."""
EQUAL = {torch.float32: 1e-5, torch.float64: 1e-12}
"""How far a graph and the step itself may lie apart, as a share of the largest number: they run the same kernels."""


class Capture(Protocol):
    """What makes graphs."""

    def capture(self, function: Callable[[], Sequence[Tensor]]) -> Replay:
        """Return what does again what *function* does; it may be run meanwhile. Raises RuntimeError where that cannot be."""
        ...


class Cuda:
    """Captures CUDA's own graphs, in memory that they share: what comes out of one is taken before another runs."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._beside: torch.cuda.Stream | None = None
        self._live: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def capture(self, function: Callable[[], Sequence[Tensor]]) -> Replay:
        """Return a graph of *function*, captured after a run on the stream beside: libraries make themselves ready in it.

        Workspaces of libraries are let go before and after: those of a graph lie in the memory that graphs share, and go with it. The
        stream that was current is so again, whatever happens.
        """
        beside = self._beside = self._beside or torch.cuda.Stream()
        if not len(self._live):  # A pool whose graphs are all gone is gone, too.
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        beside.wait_stream(torch.cuda.current_stream())
        clear: Callable[[], None] = getattr(getattr(torch, "_C"), "_cuda_clearCublasWorkspaces")  # As torch's own do.
        try:
            with torch.cuda.stream(beside):
                function()
                clear()
                with torch.cuda.graph(graph, pool=self._pool, stream=beside):
                    found = function()
        finally:
            clear()
            torch.cuda.current_stream().wait_stream(beside)
        self._live.add(graph)

        def replay() -> Sequence[Tensor]:
            graph.replay()
            return found

        return replay


class Laid(Protocol):
    """Rows of a chunk."""

    params: list[Tensor]
    """Parameters and buffers. Shapes: (rows, ...) each."""


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured step, and where it reads: its batch and masks, and its learning rate."""

    step: Step  # Held, so that nothing else is called by its number.
    inputs: list[Tensor]
    rate: Tensor
    replay: Replay


Mark = tuple[int, int, int, tuple[tuple[int, ...], ...]]
"""A step, the first of its rows and the one behind the last, and the shapes of what goes in."""


@dataclass(slots=True)
class _Space:
    """Memory that stays for rows of one shape, the graphs that run in it, and how often each step was seen."""

    params: list[Tensor]
    graphs: dict[Mark, _Graph | None]
    seen: Counter[Mark]


class Graphs:
    """Runs steps by graphs that *capture* makes. Results are those of the steps themselves, within EQUAL."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._spaces: OrderedDict[tuple[torch.Size, ...], _Space] = OrderedDict()
        self._chunks: Counter[tuple[torch.Size, ...]] = Counter()
        self._at: _Space | None = None
        self._left: Counter[str] = Counter()
        self._off = False
        self.replayed = 0
        """How many steps were run by graphs so far."""

    @property
    def notes(self) -> list[str]:
        """Return what a reader should know: which steps run without."""
        return [f"CUDA graphs: steps that {why} ran without, which is slower ({times}x)." for why, times in sorted(self._left.items())]

    def forget(self, off: bool) -> bool:
        """Let go of all memory that is kept, for good where it is to be *off*; return whether it was on."""
        was, self._off = not self._off, self._off or off
        self._spaces.clear()
        self._at = None
        if off and was:
            self._left["find no room beside one client"] += 1
        return was

    def place(self, rows: Laid) -> None:
        """Lay *rows* into memory that stays, where their shape was seen before; nowhere else does a step run by a graph."""
        shape = tuple(param.shape for param in rows.params)
        self._chunks[shape] += 1
        self._at = None
        if shape not in self._spaces:
            if self._off or self._chunks[shape] < SEEN:
                return
            while len(self._spaces) >= SPACES:
                self._spaces.popitem(last=False)
            self._spaces[shape] = _Space([torch.empty_like(param) for param in rows.params], {}, Counter())
        self._spaces.move_to_end(shape)
        self._at = self._spaces[shape]
        _put(self._at.params, rows.params)
        rows.params = list(self._at.params)

    def taken(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return *params* in memory of their own: the next chunk lies where these do."""
        kept = {id(param) for param in self._at.params} if self._at is not None else set[int]()
        return [param.clone() if id(param) in kept else param for param in params]

    def run(
        self, step: Step, params: Sequence[Tensor], which: slice, batch: tuple[Tensor, Tensor], masks: Sequence[Tensor], rate: float
    ) -> tuple[Tensor, list[Tensor]] | None:
        """Return what *step* makes of the rows *which* of *params*, as its ``run`` does; None where it has to run by itself.

        Gradients are to be used before the next step: they lie where its own will.
        """
        space = self._at
        if space is None or params[0] is not space.params[0]:  # Not seen before, or rows that somebody else made.
            return None
        if why := _unfit(step):
            self._left[why] += 1
            return None
        inputs = [*batch, *masks]
        mark: Mark = (id(step), which.start, which.stop, tuple(tuple(each.shape) for each in inputs))
        if mark not in space.graphs:
            space.seen[mark] += 1
            if space.seen[mark] < SEEN:
                return None
            if sum(len(each.graphs) for each in self._spaces.values()) >= MOST:
                self._left[f"are of more than {MOST} shapes"] += 1
                return None
            space.graphs[mark] = self._captured(space, step, which, inputs, rate)
        graph = space.graphs[mark]
        if graph is None:  # It was tried, and is told of.
            return None
        _put(graph.inputs, inputs)
        graph.rate.fill_(rate)
        head, *gradients = graph.replay()
        self.replayed += 1
        return head.clone(), gradients

    def apart(self) -> None:
        """Take note that a step is of rows that do not lie side by side."""
        self._left["are of rows that lie apart"] += 1

    def _captured(self, space: _Space, step: Step, which: slice, inputs: list[Tensor], rate: float) -> _Graph | None:
        """Return a graph of *step*, tried on *inputs*; None where there is none that gives the same. The rows are as they were."""
        mine, given = [param[which] for param in space.params], [each.clone() for each in inputs]
        begun, speed = [param.clone() for param in mine], torch.full((), rate, dtype=mine[0].dtype, device=mine[0].device)
        views = step.open(mine)

        def function() -> list[Tensor]:
            head, gradients = step.run(views, given[0], given[1], given[2:], speed)
            return [head, *gradients]

        expected = [each.clone() for each in (*function(), *mine)]
        _put(mine, begun)
        try:
            replay = self._capture.capture(function)
            _put(mine, begun)
            found = [each.clone() for each in (*replay(), *mine)]
        except RuntimeError as error:  # Whatever does not go into a graph: torch has no type of its own for it.
            full = is_full(error)  # The step itself found room: only its graph does without.
            self._left["find no room to be captured" if full else f"cannot be captured ({reason(error)[:160]})"] += 1
            return None
        finally:
            _put(mine, begun)
        if not all(_near(one, two) for one, two in zip(found, expected, strict=True)):
            self._left["gave other numbers as a graph"] += 1
            return None
        return _Graph(step, given, speed, replay)


def _unfit(step: Step) -> str:
    """Return what *step* does that goes into no graph; empty for nothing."""
    if step.note:
        return "are left to torch"
    return "draw random numbers of their own" if step.random else ""


def _near(one: Tensor, two: Tensor) -> bool:
    one, two = one.nan_to_num(), two.nan_to_num()
    return not one.numel() or float((one - two).abs().max()) <= EQUAL.get(one.dtype, 1e-2) * float(two.abs().max())


def _put(there: Sequence[Tensor], here: Sequence[Tensor]) -> None:
    for to, this in zip(there, here, strict=True):
        to.copy_(this, non_blocking=True)
