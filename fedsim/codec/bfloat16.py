"""bfloat16: the upper half of each float32, rounded to nearest, ties to even. Knows no message."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.codec import Form, Forms, codecs
from fedsim.core.state import State
from fedsim.core.types import Array, Params


@dataclass(frozen=True, slots=True)
class Bfloat16:
    """Floats travel as their bfloat16, in the bits of uint16, which numpy and Flower have; other arrays as they are."""

    def forms(self, forms: Forms) -> dict[str, Form]:
        """Return two bytes for each float."""
        return {name: ("uint16", shape) if _halved(kind) else (kind, shape) for name, (kind, shape) in forms.items()}

    def encode(self, params: Params, kept: State) -> tuple[Params, State]:
        """Return the rounded floats, and nothing to keep."""
        return {name: rounded(array) if _halved(str(array.dtype)) else array for name, array in params.items()}, {}

    def decode(self, params: Params, forms: Forms) -> Params:
        """Return floats of the types in *forms*."""
        return {
            name: widened(array).astype(forms[name][0]) if array.dtype == np.uint16 and name in forms else array
            for name, array in params.items()
        }


def rounded(array: Array) -> Array:
    """Return the bfloat16 of each float, as uint16. Not-a-number stays so; what is too large becomes infinite.

    >>> widened(rounded(np.array([1.0, 1.00390625, 1.01171875, -3.4e38, np.nan], np.float32))).tolist()
    [1.0, 1.0, 1.015625, -inf, nan]
    """
    bits = np.asarray(array, dtype=np.float32, order="C").view(np.uint32)
    near = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.asarray(np.where(np.isnan(array), np.uint32(0x7FC0), near), dtype=np.uint16)


def widened(array: Array) -> Array:
    """Return the float32 that each bfloat16 is."""
    return np.asarray(array.astype(np.uint32) << np.uint32(16), dtype=np.uint32).view(np.float32)


def _halved(kind: str) -> bool:
    return kind in ("float32", "float64")


@codecs.register("bfloat16")
def bfloat16() -> Bfloat16:
    """bfloat16 (8 bits of exponent, 8 of precision): half the bytes of float32, rounded to nearest even."""
    return Bfloat16()
