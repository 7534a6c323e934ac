"""Reactions: what a client does once its detector has signalled drift. Values that say it; the client acts on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.core.types import FloatArray, IntArray, Positive, Range, Share

Steps = Annotated[int, Range(ge=0)]


class Reaction(Protocol):
    """What follows an alarm: to the memory at once, to the training of the next steps, and to what the server hears."""

    @property
    def keep_share(self) -> float:
        """Return the share of the memory that stays, the newest of it: 1 keeps all, 0 nothing."""
        ...

    @property
    def replay_share(self) -> float | None:
        """Return the share of replayed examples in a batch from then on, None for as it was."""
        ...

    @property
    def tell(self) -> bool:
        """Return whether the server hears with the next reply how often the detector signalled."""
        ...

    def lr_scale(self, steps: IntArray) -> FloatArray:
        """Return the factor on the learning rate *steps* after the last alarm. Shapes: (n,) -> (n,)."""
        ...


def _scales(given: Any, steps: IntArray) -> FloatArray:
    return answers.numbers(given, len(steps), least=0.0, above=True)


reactions: Registry[Callable[..., Reaction]] = Registry(
    "reaction", given=["at"], key="clients.reaction",
    gives=answers.Gives(
        "a Reaction", ("keep_share", "lr_scale", "replay_share", "tell"),
        {
            "keep_share": answers.within(ge=0, le=1), "lr_scale": _scales, "replay_share": answers.maybe(answers.within(ge=0, lt=1)),
            "tell": answers.truth,
        },
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Adapt:
    """A reaction of which each part may be left out. See ``adapt``."""

    keep_share: float = 1.0
    lr_factor: float = 1.0
    lr_steps: int = 0
    replay_share: float | None = None
    tell: bool = True

    def lr_scale(self, steps: IntArray) -> FloatArray:
        """Return *lr_factor* at 0, and from there back to 1 in a straight line of *lr_steps*.

        >>> adapt(lr_factor=3.0, lr_steps=4).lr_scale(np.array([0, 1, 2, 4, 9])).tolist()
        [3.0, 2.5, 2.0, 1.0, 1.0]
        """
        left = np.clip(1.0 - steps / max(1, self.lr_steps), 0.0, 1.0) if self.lr_steps else np.zeros(len(steps))
        return 1.0 + (self.lr_factor - 1.0) * left


@reactions.register("adapt")
def adapt(
    *,
    buffer: Literal["keep", "shrink", "reset"] = "keep",
    keep: Annotated[float, Range(gt=0, lt=1, why="the share of the buffer that stays")] | None = None,
    lr_factor: Positive = 1.0,
    lr_steps: Steps | None = None,
    replay_share: Share | None = None,
    tell: bool = True,
    at: str = "clients.reaction",
) -> Adapt:
    """Return the reaction that a table of settings describes; *at* is the table's dotted key.

    ``buffer`` is kept, emptied, or shrunk to the share ``keep`` (half, if not said). ``lr_factor`` raises the learning
    rate and fades within ``lr_steps`` steps (50): each task trains at the factor that its first step has. ``replay_share`` sets the
    share of replay. ``tell`` reports the alarm to the server with the next reply. Raises ScenarioError for settings that have no effect.
    """
    if keep is not None and buffer != "shrink":
        raise ScenarioError(f"{at}.keep = {keep}: has no effect with buffer = {buffer!r}; it goes with 'shrink'.")
    if lr_steps is not None and lr_factor == 1.0:
        raise ScenarioError(f"{at}.lr_steps = {lr_steps}: has no effect without lr_factor; 2.0 doubles the learning rate.")
    if lr_factor != 1.0 and lr_steps == 0:
        raise ScenarioError(f"{at}.lr_steps = 0: leaves lr_factor = {lr_factor} no step to act on; 50 is usual.")
    share = {"keep": 1.0, "reset": 0.0, "shrink": 0.5 if keep is None else keep}[buffer]
    steps = 0 if lr_factor == 1.0 else 50 if lr_steps is None else lr_steps
    return Adapt(share, lr_factor, steps, replay_share, tell)
