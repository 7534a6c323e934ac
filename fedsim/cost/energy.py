"""Energy models: what a client's device draws while it computes, sends, receives and waits. Knows no clock and no message.

Pure functions of (key, client, seconds, bytes), for many clients at once. Shares of what a device draws anyway (its screen, its other
apps) are nobody's: what is charged is what the task makes it draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]  # It has none.

from fedsim.core import answers
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import Array, FloatArray, IntArray, NonNegative, Range

MBIT_PER_BYTE = 8e-6
RADIOS = {
    "wifi": {"up_w_per_mbps": 0.28317, "down_w_per_mbps": 0.13701, "radio_w": 0.13286},
    "lte": {"up_w_per_mbps": 0.43839, "down_w_per_mbps": 0.05197, "radio_w": 1.28804},
    "3g": {"up_w_per_mbps": 0.86898, "down_w_per_mbps": 0.12212, "radio_w": 0.81788},
}
"""What a phone's radio draws: so much while it is on, and so much for each Mbit/s. Huang et al. 2012 (MobiSys), table 4."""
IDLE_W = 0.2688
"""What a phone draws that is awake, with its screen dark. Carroll and Heiser 2010 (USENIX ATC), figure 2; of a phone of 2008."""

Radio = Literal["wifi", "lte", "3g"]


class Energy(Protocol):
    """What the devices of all clients draw: equal arguments, equal answers, whatever was asked before."""

    @property
    def constants(self) -> Mapping[str, float]:
        """Return every number that the answers rest on, by name with its unit, like ``{"soc_w": 3.0}``."""
        ...

    def compute_j(self, clients: IntArray, seconds: FloatArray) -> FloatArray:
        """Return the joules of so many *seconds* of training or evaluation by each of *clients*. Shapes: (n,), (n,) -> (n,)."""
        ...

    def down_j(self, clients: IntArray, sizes_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
        """Return the joules of receiving so many bytes in so many *seconds*. Shapes: (n,), (n,), (n,) -> (n,)."""
        ...

    def up_j(self, clients: IntArray, sizes_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
        """Return the joules of sending so many bytes in so many *seconds*. Shapes: (n,), (n,), (n,) -> (n,)."""
        ...

    def idle_j(self, clients: IntArray, seconds: FloatArray) -> FloatArray:
        """Return the joules of so many *seconds* in which a message waits at the device. Shapes: (n,), (n,) -> (n,)."""
        ...


def _joules(given: Any, clients: Array, *_: Any) -> FloatArray:
    """Return joules, 0 at the least, for each of *clients*."""
    return answers.numbers(given, len(clients), least=0.0)


def _constants(given: Any, *_: Any) -> dict[str, float]:
    """Return numbers by name."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):  # pyright: ignore[reportUnknownVariableType]
        raise ValueError(f"{given!r:.60}, expected a table of numbers, like {{'soc_w': 3.0}}")
    return {name: answers.one(value) for name, value in given.items()}  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]


_METHODS = ("compute_j", "down_j", "up_j", "idle_j")
energies: Registry[Callable[..., Energy]] = Registry(
    "energy", given=["key"], key="clients.energy",
    gives=answers.Gives("an Energy", (*_METHODS, "constants"), {**dict.fromkeys(_METHODS, _joules), "constants": _constants}),
)  # fmt: skip
"""Functions that return an Energy. Given: ``key``."""


@dataclass(frozen=True, slots=True)
class ConstantEnergy:
    """Devices that are all alike, and whose radio draws the same at any rate. See ``constant``."""

    compute_w: float
    down_w: float
    up_w: float
    idle_w: float

    @property
    def constants(self) -> Mapping[str, float]:
        """Return the four powers, in watts."""
        return {"compute_w": self.compute_w, "down_w": self.down_w, "up_w": self.up_w, "idle_w": self.idle_w}

    def compute_j(self, clients: IntArray, seconds: FloatArray) -> FloatArray:
        """Return the power by the *seconds*. Shapes: (n,), (n,) -> (n,)."""
        return self.compute_w * seconds

    def down_j(self, clients: IntArray, sizes_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
        """Return the power by the *seconds*, whatever was received. Shapes: (n,), (n,), (n,) -> (n,)."""
        return self.down_w * seconds

    def up_j(self, clients: IntArray, sizes_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
        """Return the power by the *seconds*, whatever was sent. Shapes: (n,), (n,), (n,) -> (n,)."""
        return self.up_w * seconds

    def idle_j(self, clients: IntArray, seconds: FloatArray) -> FloatArray:
        """Return the power by the *seconds*. Shapes: (n,), (n,) -> (n,)."""
        return self.idle_w * seconds


@dataclass(frozen=True, slots=True)
class PhoneEnergy:
    """Phones: a processor that draws its own power while it works, and a radio that draws more the faster it goes. See ``phone``."""

    soc_w: float
    sigma: float
    idle_w: float
    radio: Mapping[str, float]
    key: Key

    @property
    def constants(self) -> Mapping[str, float]:
        """Return the powers, in watts, and those by rate, in watts for a Mbit/s."""
        return {"soc_w": self.soc_w, "sigma": self.sigma, "idle_w": self.idle_w, **self.radio}

    def compute_j(self, clients: IntArray, seconds: FloatArray) -> FloatArray:
        """Return each processor's own power by the *seconds*. Shapes: (n,), (n,) -> (n,)."""
        if not self.sigma:
            return self.soc_w * seconds
        normals: FloatArray = ndtri(self.key.uniform(clients))
        return self.soc_w * np.exp(self.sigma * normals) * seconds

    def down_j(self, clients: IntArray, sizes_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
        """Return the radio's power by the *seconds*, and what the bits take. Shapes: (n,), (n,), (n,) -> (n,)."""
        return self._radio_j("down_w_per_mbps", sizes_bytes, seconds)

    def up_j(self, clients: IntArray, sizes_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
        """Return the radio's power by the *seconds*, and what the bits take. Shapes: (n,), (n,), (n,) -> (n,)."""
        return self._radio_j("up_w_per_mbps", sizes_bytes, seconds)

    def idle_j(self, clients: IntArray, seconds: FloatArray) -> FloatArray:
        """Return the power of a phone that is awake, by the *seconds*. Shapes: (n,), (n,) -> (n,)."""
        return self.idle_w * seconds

    def _radio_j(self, way: str, sizes_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
        # (base + slope * rate) * seconds, and rate * seconds is what was sent.
        return self.radio["radio_w"] * seconds + self.radio[way] * (sizes_bytes * MBIT_PER_BYTE)


@energies.register("constant")
def constant(
    *, compute_w: NonNegative, down_w: NonNegative = 0.0, up_w: NonNegative = 0.0, idle_w: NonNegative = 0.0
) -> ConstantEnergy:
    """Return devices that draw *compute_w* at work, *down_w* and *up_w* while they receive and send, and *idle_w* while a message waits.

    Boards of the Jetson kind draw some 10 W at work, a laptop's processor 30 W, a server's GPU 300 W.

    >>> constant(compute_w=10.0).compute_j(np.array([0, 17]), np.array([1.0, 2.5])).tolist()
    [10.0, 25.0]
    """
    return ConstantEnergy(compute_w, down_w, up_w, idle_w)


@energies.register("phone")
def phone(
    key: Key, *, soc_w: NonNegative = 3.0, radio: Radio = "wifi", idle_w: NonNegative = IDLE_W,
    sigma: Annotated[float, Range(ge=0, le=3, why="of the logarithm of a processor's power")] = 0.0,
) -> PhoneEnergy:  # fmt: skip
    """Return phones: a system on a chip of *soc_w* at work, and a *radio* after Huang et al.: watts while it is on, and more by its rate.

    Training draws 2 to 5 W of a phone. With *sigma* they differ: LogNormal powers of median *soc_w*, a client's the same at every task.
    A radio that goes at r Mbit/s draws ``radio_w + slope * r``: LTE at 2 Mbit/s up 1.28804 + 2 * 0.43839 = 2.16 W.
    References: Huang et al. 2012 (MobiSys), doi:10.1145/2307636.2307658, table 4; Carroll and Heiser 2010 (USENIX ATC) for *idle_w*.

    >>> phones = phone(Key(0), radio="lte")
    >>> phones.up_j(np.array([3]), np.array([250_000.0]), np.array([1.0])).round(5).tolist()  # 2 Mbit in a second.
    [2.16482]
    """
    return PhoneEnergy(soc_w, sigma, idle_w, dict(RADIOS[radio]), key.fold("power"))
