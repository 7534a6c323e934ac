"""Compiled steps that the runs of a test session share: to compile is nearly all that a run of a second's training takes.

A step follows from what ``compile_step`` is given, and from the code that compiles it. Both are the key, whole and by value (a function
by identity): a test that patches a pass or a probe gets a step of its own. Knows only models and objectives of torch and fedsim, whose
classes no test writes anew; the engine's own tests call ``compile_step`` itself.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from fedsim.learn import kept, models, norms, objectives, seeded, sequences, standardise
from fedsim.learn.engine import eager, noise, passes, passes_conv, passes_loss, probing, step, steps, templates, trace
from fedsim.learn.engine.step import Step

CODE: tuple[ModuleType | type, ...] = (
    step, probing, passes, passes_conv, passes_loss, trace, templates, noise, eager, kept, models, norms, objectives, seeded, sequences,
    standardise, objectives.Classification, objectives.Mixed, standardise.Standardise, norms.GhostNorm, norms.FrozenNorm,
)  # fmt: skip
"""Where what compiles a step is looked up."""


class _Told(pickle.Pickler):
    """Pickles tensors by what they hold: torch's own way writes something new each time."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        held = obj.detach().contiguous().numpy().tobytes()
        return str, (f"{type(obj)} {obj.dtype} {obj.shape} {obj.stride()} {obj.requires_grad} {held!r}",)


def told(*given: object) -> bytes:
    """Return all that *given* hold, as bytes that are the same for the same."""
    file = io.BytesIO()
    _Told(file).dump(given)
    return file.getvalue()


def remembering(compile_step: Callable[..., Step]) -> Callable[..., Step]:
    """Return *compile_step* with a memory."""
    known: dict[tuple[bytes, tuple[int, ...]], tuple[Step, list[object]]] = {}

    def remembered(model: nn.Module, objective: Any, x: Any, y: Any, *, templates: Any = None, **more: Any) -> Step:
        def compiled() -> Step:
            return compile_step(model, objective, x, y, templates=templates, **more)

        parts = [*model.modules(), objective, getattr(objective, "_objective", objective)]
        if not all(type(part).__module__.startswith(("torch.", "fedsim.")) for part in parts):
            return compiled()
        try:
            given = told(model, objective, x, y, templates is None, more)
        except Exception:  # A hook, say.
            return compiled()
        code = [value for place in CODE for value in vars(place).values()]
        key = given, tuple(map(id, code))
        if key not in known:
            found = compiled()
            if found.note:  # By torch itself, on this very model.
                return found
            known[key] = found, code  # Kept alive, so that no id comes twice.
        return known[key][0]

    return remembered


def share() -> None:
    """Let every engine of this process share compiled steps from now on."""
    steps.compile_step = remembering(steps.compile_step)

