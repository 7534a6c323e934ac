"""Compiled steps and traced graphs that the runs of one process share (``core/lending``), each by all that it follows from.

A step follows from model, objective and the batches that it is probed on, values included: runs of one seed share it. A traced graph
follows from the same without the values of what it is given, which are fake while it is traced: runs of all seeds share it, each a copy,
since passes rewrite it. Only of models and objectives of torch and fedsim, whose code is the same as long as the process lives.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from fedsim.core.lending import Shelf, lending
from fedsim.learn.models import travelling
from fedsim.learn.objectives import Objective


class Noted(Protocol):
    """A step, as far as it matters here."""

    @property
    def note(self) -> str:
        """Return why it is torch's own, and no compiled one; empty otherwise."""
        ...


S = TypeVar("S", bound=Noted)

KEPT = 256
"""Steps, and graphs, that are kept: a scenario has a few of each."""
_graphs: Shelf[GraphModule] = Shelf(KEPT)
_steps: Shelf[Any] = Shelf(KEPT)


class _Told(pickle.Pickler):
    """Pickles tensors by what they hold, and those that are *blank* by their form alone: torch's own way writes something new each time."""

    def __init__(self, file: io.BytesIO, blank: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._blank = {id(tensor) for tensor in blank}

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        form = f"{type(obj)} {obj.dtype} {tuple(obj.shape)} {obj.stride()} {obj.requires_grad} {obj.device}"
        held = b"" if id(obj) in self._blank else obj.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return bytes, (form.encode() + held,)


def _key(model: nn.Module, objective: Objective, blank: Sequence[Tensor], *more: object) -> bytes | None:
    """Return what stands for all that is given, by value; None where nothing can, or a stranger's code is in it."""
    around = [getattr(objective, name) for name in ("_objective", "method") if hasattr(objective, name)]
    around += [each.rehearsal for each in around if hasattr(each, "rehearsal")]
    # A reader's own method stands behind a door of ours.
    parts: list[object] = [getattr(part, "_made", part) for part in (*model.modules(), objective, *around)]
    if not all(type(part).__module__.startswith(("torch.", "fedsim.")) for part in parts):
        return None
    file = io.BytesIO()
    try:
        _Told(file, blank).dump((model, objective, more))
    except Exception:  # A hook, say.
        return None
    return hashlib.blake2b(file.getbuffer(), digest_size=32).digest()


def graph(model: nn.Module, objective: Objective, batch: Sequence[Tensor], more: object, make: Callable[[], GraphModule]) -> GraphModule:
    """Return the graph that *make* traces for batches shaped like *batch*, or a copy of one that was traced of the like before.

    *more* is whatever else it follows from.
    """
    if not lending():
        return make()
    blank = [*travelling(model).values(), *batch]
    mine = _key(model, objective, blank, list(batch), more)
    if mine is None:
        return make()
    if (found := _graphs.of(mine)) is None:
        found = make()
        _graphs.keep(mine, _copy(found))
        return found
    return _copy(found)


def step(compile_step: Callable[..., S], model: nn.Module, objective: Objective, x: Tensor, y: Tensor, **settings: Any) -> S:
    """Return what *compile_step* makes of all that is given, or the step that it made of the very same before.

    Templates in *settings* are another way to the same graphs, and count only as being there.
    """
    def made() -> S:
        return compile_step(model, objective, x, y, **settings)

    if not lending() or (mine := key(model, objective, x, y, settings)) is None:
        return made()
    if (found := _steps.of(mine)) is None:
        found = made()
        if not found.note:  # By torch itself, on this very model.
            _steps.keep(mine, found)
    return found


def key(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, settings: Mapping[str, Any]) -> bytes | None:
    """Return what stands for all that a step follows from, by value; None where nothing can, or a stranger's code is in it."""
    return _key(model, objective, (), x, y, {**settings, "templates": settings["templates"] is None})


def _copy(traced: GraphModule) -> GraphModule:
    copied, moved = Graph(), dict[Any, Any]()
    copied.output(copied.graph_copy(traced.graph, moved))
    return GraphModule(traced, copied)
