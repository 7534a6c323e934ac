"""Rehearsal: how new and remembered examples train a model together, as a protocol and as what a task takes to the engine.

What a policy remembers is replay's matter (``data/replay``), the steps are the engine's, and each method has a file of its own beside
this one: it is known here by no name. Knows no torch, but for types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeGuard, get_args

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.state import State
from fedsim.core.types import Array, IntArray, Range, Seconds
from fedsim.data.replay import Arrivals, Replay
from fedsim.learn.work import Mix

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.learn.rehearsal.lesson import Lesson, Seen, Step, Turn

Ratio = Annotated[float, Range(ge=0, lt=1, why="the replayed share of a mini-batch; 0.5 replays one for each new example")]


@dataclass(frozen=True, slots=True)
class Way:
    """How a method trains, as far as it is known before anything does; time follows from it.

    *mix* says how the engine makes one loss of a mini-batch of new and replayed examples. A *numeric* method is ``Numeric`` or
    ``Stacked``: its steps have numbers of their own, and *mix* is of no account. *draws* counts the independent draws from memory that a
    mini-batch takes; with none there is no policy to tell numbers of, and no share of replay. *memory*: it is nothing without one.
    *union*: a task is epochs over all new and all remembered examples together, in place of mini-batches of both.
    """

    mix: Mix = "concat"
    numeric: bool = False
    draws: int = 1
    memory: bool = False
    union: bool = False


class Rehearsal(Protocol):
    """A method of rehearsal: values."""

    @property
    def way(self) -> Way:
        """Return how it trains."""
        ...

    def replayed(self, fresh: int, share: float | None) -> int:
        """Return how many examples one draw replays beside *fresh* new ones; *share* is what a reaction has set, None for its own."""
        ...

    def beside(self, new: int, sizes: IntArray, fresh: IntArray) -> tuple[int, int]:
        """Return how many examples pass through the model besides mini-batches: forward only, and with a gradient.

        A task of *new* new examples has mini-batches of *sizes*, of which *fresh* are new. Shapes: (steps,), (steps,).
        """
        ...


class Taught(Rehearsal, Protocol):
    """What every method whose steps depend on numbers has; besides it is ``Stacked``, or ``Numeric``.

    Between tasks it keeps a state: the part ``rehearsal`` of what a client keeps.
    """

    def begin(self, kept: State, lesson: Lesson) -> Any:
        """Return what it works with during a task, made of what it *kept* of the last one; empty before the first."""
        ...

    def end(self, lesson: Lesson, work: Any) -> State:
        """Return what is kept for the client's next task, once this one is trained; empty for nothing."""
        ...


class Numeric(Taught, Protocol):
    """A method that makes its gradients itself, of anything: its clients train one at a time, by torch's autograd."""

    def gradients(self, step: Step, work: Any) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of a mini-batch, and what each trained parameter's step follows; *work* is what ``begin`` returned.

        Shapes: -> (), those of ``step.leaves``.
        """
        ...


class Stacked(Taught, Protocol):
    """A method whose losses are functions of tensors: they are traced once, and clients train together, a chunk per step.

    Numbers of one client (``recalled``, ``noted``: numpy's) and arithmetic of all (``losses``, ``followed``: torch's, traced) are apart.
    """

    def recalled(self, turn: Turn, work: Any) -> Sequence[Array]:
        """Return what the losses of a turn are to know besides: as many arrays, of the same shapes, for all turns of the same sizes.

        One array that is the same object turn after turn is handed on once.
        """
        ...

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        """Return one loss, or several that have gradients of their own; the first is the one that is told. Shapes: -> () each."""
        ...

    def followed(self, gradients: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return what each trained parameter's step follows, of the gradients of each loss."""
        ...

    def noted(self, turn: Turn, outputs: Array, work: Any) -> None:
        """Take note of what the model put out for a mini-batch, before its step. Shapes: outputs (size, ...)."""
        ...


def share_of(fresh: int, ratio: float) -> int:
    """Return how many examples are the share *ratio* of a mini-batch that has *fresh* new ones beside them.

    >>> share_of(10, 0.5), share_of(8, 0.2), share_of(8, 0.0)
    (10, 2, 0)
    """
    if not 0 <= ratio < 1:
        raise ScenarioError(f"training.rehearsal.ratio = {ratio}: must be >= 0 and < 1 (the replayed share of a mini-batch).")
    return round(fresh * ratio / (1 - ratio))


_WAY = {
    "mix": answers.among(*get_args(Mix)), "numeric": answers.truth, "draws": answers.count(0), "memory": answers.truth,
    "union": answers.truth,
}  # fmt: skip


def _way(given: Any, *_: Any) -> Way:
    if not isinstance(given, Way):
        raise ValueError(f"{_form(given)}, expected a Way")
    for name, check in _WAY.items():
        try:
            check(getattr(given, name))
        except ValueError as error:
            raise ValueError(f"a {name} of {error}") from error
    return given


def _passes(given: Any, *_: Any) -> tuple[int, int]:
    forward, training = answers.pair(given)
    return answers.count(0)(forward), answers.count(0)(training)


def _stepped(given: Any, step: Step, _work: Any) -> tuple[Tensor, list[Tensor]]:
    from torch import Tensor  # Here: whoever steps has torch, and whoever reads settings needs none.

    loss, gradients = answers.pair(given)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"{_form(loss)} as loss, expected a tensor of one number")
    if not isinstance(gradients, list | tuple) or len(gradients) != len(step.leaves):  # pyright: ignore[reportUnknownArgumentType]
        raise ValueError(f"{_form(gradients)} as gradients, expected a list of {len(step.leaves)}, one for each trained parameter")
    for at, (gradient, leaf) in enumerate(zip(gradients, step.leaves, strict=True)):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if not isinstance(gradient, Tensor) or gradient.shape != leaf.shape or gradient.dtype != leaf.dtype:
            raise ValueError(f"{_form(gradient)} as gradient [{at}], expected {_form(leaf)}")
    return loss, list(gradients)  # pyright: ignore[reportUnknownArgumentType]


def _losses(given: Any, _seen: Seen) -> Sequence[Tensor]:
    from torch import Tensor

    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"{_form(given)}, expected a list of losses")
    for loss in given:  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(loss, Tensor) or loss.dim():
            raise ValueError(f"{_form(loss)} as loss, expected a tensor of one number")
    return given  # pyright: ignore[reportUnknownVariableType]


def _followed(given: Any, gradients: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    if not isinstance(given, list | tuple) or len(given) != len(gradients[0]):  # pyright: ignore[reportUnknownArgumentType]
        raise ValueError(f"{_form(given)}, expected a list of {len(gradients[0])}, one for each trained parameter")
    for at, (one, like) in enumerate(zip(given, gradients[0], strict=True)):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if getattr(one, "shape", None) != like.shape or one.dtype != like.dtype:
            raise ValueError(f"{_form(one)} at [{at}], expected {_form(like)}")
    return given  # pyright: ignore[reportUnknownVariableType]


def _recalled(given: Any, *_: Any) -> Sequence[Array]:
    if not isinstance(given, list | tuple):
        raise ValueError(f"{_form(given)}, expected a list of arrays")
    return [answers.real(each) for each in given]  # pyright: ignore[reportUnknownVariableType]


def _form(given: Any) -> str:
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return f"{str(given.dtype).removeprefix('torch.')} of shape {tuple(given.shape)}"
    return f"a list of {len(given)}" if isinstance(given, list | tuple) else f"a {type(given).__name__}"  # pyright: ignore[reportUnknownArgumentType]


NUMERIC, STACKED = ("begin", "gradients", "end"), ("begin", "recalled", "losses", "followed", "noted", "end")


def stacks(method: Rehearsal) -> TypeGuard[Stacked]:
    """Return whether *method* says its losses, so that they can be traced."""
    return hasattr(method, "losses") and not hasattr(method, "gradients")


def _whole(made: Any, _given: object) -> None:
    made.replayed(10, None)
    if not made.way.numeric:
        return
    what, names = ("Stacked", STACKED) if stacks(made) else ("Numeric", NUMERIC)
    missing = [name for name in names if not hasattr(made, name)]
    if missing:
        raise ValueError(f"says that it is numeric, and has no {missing[0]}; a {what} has {', '.join(names)}")


rehearsals: Registry[Callable[..., Rehearsal]] = Registry(
    "rehearsal", key="training.rehearsal",
    gives=answers.Gives(
        "a Rehearsal", ("way", "replayed", "beside"),
        {"way": _way, "replayed": answers.count(0), "beside": _passes, "gradients": _stepped, "end": answers.state,
         "recalled": _recalled, "losses": _losses, "followed": _followed},
        looked=_whole,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """The steps of a task, by counts alone. Shapes: all (steps,).

    Step s trains on the new items ``begins[s]`` to ``begins[s] + fresh[s]``, hands the first *inserted[s]* of these to the memory,
    and has *sizes[s]* examples, those that it replays counted.
    """

    begins: IntArray
    fresh: IntArray
    inserted: IntArray
    sizes: IntArray


@dataclass(frozen=True, slots=True)
class Live:
    """Rehearsal whose numbers only the engine knows: everything else that its steps depend on.

    *new* are the task's new items in order. *planned* are the items that each draw replays, step by step, where the
    policy needs no numbers, and *held* those remembered in the end; otherwise the engine asks *replay*. *places* are
    the positions of the stream's items. *candidates* counts those of all steps among which the most interfered are
    chosen (MIR).
    """

    rehearsal: Rehearsal
    replay: Replay
    new: Arrivals
    layout: Layout
    planned: tuple[tuple[IntArray, ...], ...] | None
    held: IntArray | None
    places: IntArray
    key: Key
    first_step: int
    now: Seconds
    candidates: int = 0

    @property
    def sizes(self) -> IntArray:
        """Return the size of each mini-batch. Shapes: -> (steps,)."""
        return self.layout.sizes

    @property
    def beside(self) -> tuple[int, int]:
        """Return how many examples pass besides those of mini-batches: forward only, and with a gradient."""
        new, sizes, fresh = len(self.new.items), self.layout.sizes, self.layout.fresh
        forward, training = self.rehearsal.beside(new, sizes, fresh)
        told = new + int((sizes - fresh).sum())
        forward += 2 * self.candidates + told * ("features" in self.replay.needs)
        training += int(fresh.sum()) * bool(self.candidates) + told * ("gradients" in self.replay.needs)
        return forward, training
