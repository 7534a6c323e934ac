"""Codecs: what travels in the place of plain arrays, and how large it is, told from shapes. Knows no message, no client and no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from fedsim.core import answers
from fedsim.core.errors import RunError
from fedsim.core.registry import Registry
from fedsim.core.state import State
from fedsim.core.types import Params

Form: TypeAlias = tuple[str, tuple[int, ...]]
"""The type and shape of an array: all that its size depends on."""
Forms: TypeAlias = Mapping[str, Form]


class Codec(Protocol):
    """An encoding of named arrays."""

    def forms(self, forms: Forms) -> dict[str, Form]:
        """Return the forms of what travels for arrays of *forms*, by name."""
        ...

    def encode(self, params: Params, kept: State) -> tuple[Params, State]:
        """Return what travels for *params*, and what the sender keeps for the next time: nothing, or what was lost this time."""
        ...

    def decode(self, params: Params, forms: Forms) -> Params:
        """Return the arrays, of *forms*, that *params* stand for."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """No encoding."""

    def forms(self, forms: Forms) -> dict[str, Form]:
        """Return *forms*."""
        return dict(forms)

    def encode(self, params: Params, kept: State) -> tuple[Params, State]:
        """Return *params*, and nothing to keep."""
        return params, {}

    def decode(self, params: Params, forms: Forms) -> Params:
        """Return *params*."""
        return params


@dataclass(frozen=True, slots=True)
class Coding:
    """How a federation's arrays travel: by *down* to the clients, where they have *down_forms*, and by *up* to the server."""

    down: Codec
    up: Codec
    down_forms: Forms
    up_forms: Forms

    @property
    def changes_up(self) -> bool:
        """Return whether what travels to the server is not what was computed."""
        return type(self.up) is not Plain

    def sent_down(self, params: Params) -> Params:
        """Return what travels to a client for *params*. Raises RunError where its size is not the one that was foretold."""
        return _checked(self.down.encode(params, {})[0], self.down.forms(forms_of(params)), "codec.down")

    def got_down(self, params: Params) -> Params:
        """Return what a client makes of what came."""
        return _formed(self.down.decode(params, self.down_forms), self.down_forms, "codec.down")

    def sent_up(self, params: Params, kept: State) -> tuple[Params, State]:
        """Return what travels to the server for *params*, and what the client keeps."""
        encoded, kept = self.up.encode(params, kept)
        return _checked(encoded, self.up.forms(forms_of(params)), "codec.up"), kept

    def got_up(self, params: Params) -> Params:
        """Return what the server makes of what came."""
        return _formed(self.up.decode(params, self.up_forms), self.up_forms, "codec.up")


def forms_of(params: Params) -> dict[str, Form]:
    """Return the form of each array, by name."""
    return {name: (str(array.dtype), array.shape) for name, array in params.items()}


def _formed(params: Params, forms: Forms, at: str) -> Params:
    """Return *params* that were decoded: those of *forms*, all of them, or all but an algorithm's extra arrays (``EXTRA/NAME``)."""
    found = forms_of(params)
    wrong = [name for name in found if found[name] != forms.get(name)] + [name for name in forms if name not in found and "/" not in name]
    if wrong:
        raise RunError(f"{at}: it decodes {wrong[0]} to {found.get(wrong[0], 'nothing')}, expected {forms.get(wrong[0], 'nothing')}.")
    return params


def _checked(params: Params, forms: Forms, at: str) -> Params:
    found = forms_of(params)
    if found != dict(forms):
        wrong = next(name for name in (*forms, *found) if found.get(name) != forms.get(name))
        raise RunError(f"{at}: it encodes {wrong} as {found.get(wrong)}, and its forms() foretold {forms.get(wrong)}.")
    return params


codecs: Registry[Callable[..., Codec]] = Registry(
    "codec", key="codec.up", also=("codec.down",), gives=answers.Gives("a Codec", ("forms", "encode", "decode"), {}),
)  # fmt: skip


@codecs.register("plain")
def plain() -> Plain:
    """Arrays as they are."""
    return Plain()
