"""What a model keeps for itself between calls, and how it is put back: nothing of it goes from one client to the next.

What travels is parameters and floating buffers. Whole-number buffers, those that no state_dict holds and plain attributes stay where
they are; on a real device they last as long as a task, whose process builds its model anew. Here one module serves all clients.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Any]

_PLACES = ("_parameters", "_buffers", "_modules")


class Kept:
    """Everything that lies in *model* (parameters' values aside) and in *other*, as it is when this is made.

    Attributes are copied deeply, what two places share staying shared; modules and parameters are what they are. Functions, and
    what cannot be copied, are kept as they are: what a closure holds is not put back.
    """

    def __init__(self, model: nn.Module, other: object = None) -> None:
        self._modules = list(model.modules())
        self._owners: list[Any] = [*self._modules, *([other] if hasattr(other, "__dict__") else [])]
        self._places: list[dict[str, State]] = [{place: dict(vars(m)[place]) for place in _PLACES} for m in self._modules]
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        fixed = (*self._owners, *model.parameters(), *model.buffers())
        self._fixed: dict[int, Any] = {id(each): each for each in fixed}
        self._states = self._copied([self._own(owner) for owner in self._owners])
        self.moves: bool | None = None
        """Whether calls of the model change any of it; None while nobody has tried."""

    def as_built(self) -> None:
        """Put everything back as it was, where that may make a difference: as a device builds its model for each task."""
        if self.moves is not False:
            self.back()

    def back(self) -> None:
        """Put everything back as it was."""
        for module, places in zip(self._modules, self._places, strict=True):
            for place, held in places.items():
                now: State = vars(module)[place]
                if now.keys() != held.keys() or any(now[name] is not value for name, value in held.items()):
                    now.clear()
                    now.update(held)
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)
        for owner, state in zip(self._owners, self._copied(self._states), strict=True):
            held: State = vars(owner)
            for name in self._own(owner).keys() - state.keys():
                del held[name]
            held.update(state)

    def _own(self, owner: Any) -> State:
        if not isinstance(owner, nn.Module):
            return dict(vars(owner))
        return {name: value for name, value in vars(owner).items() if name not in (*_PLACES, "training")}

    def _copied(self, states: list[State]) -> list[State]:
        try:
            return copy.deepcopy(states, dict(self._fixed))
        except Exception:  # A lock, an open file, a tensor with a history: each for itself, then, so that the others are kept.
            memo = dict(self._fixed)
            return [{name: _one(value, memo) for name, value in state.items()} for state in states]


def _one(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        return value


@contextmanager
def worn(model: nn.Module, tensors: dict[str, Tensor]) -> Generator[None]:
    """Let *model* have *tensors* (by name) in the place of its own for as long as this lasts, a backward pass included.

    What is computed anew in the backward pass (``torch.utils.checkpoint``) so reads the same parameters. A tensor that lies in many
    places, a module under two names, is one tensor here too. A buffer that ``forward()`` assigns anew is written into *tensors*.
    """
    first: dict[int, str] = {}
    for name, own in (*model.named_parameters(), *model.named_buffers()):
        if name in tensors:
            first[id(own)] = name
    places: list[tuple[dict[str, Any], str, Any, str]] = []
    for module in model.modules():
        for held in (vars(module)["_parameters"], vars(module)["_buffers"]):
            places += [(held, name, own, first[id(own)]) for name, own in held.items() if own is not None and id(own) in first]
    before = dict(tensors)
    try:
        for held, name, _, which in places:
            held[name] = before[which]
        yield
    finally:
        for held, name, own, which in reversed(places):
            now = held.get(name)
            if isinstance(now, Tensor) and now is not before[which]:
                tensors[which] = now
            held[name] = own
