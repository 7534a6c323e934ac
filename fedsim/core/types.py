"""Names for the shapes that travel between layers, and the range marker that settings carry."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
Array: TypeAlias = NDArray[Any]
Params: TypeAlias = dict[str, Array]
"""A model's arrays by name, in the module's own order."""
Frame: TypeAlias = Any
"""A pandas frame. By pandas' own annotations every column is a union of five types, which helps nobody."""
Seconds: TypeAlias = float
"""Virtual seconds since the start of the run."""


@dataclass(frozen=True, slots=True)
class Range:
    """The values a setting may take; the scenario door reads it off the annotation of a registered function.

    *why* ends the error line, so that a reader learns what the number means.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    why: str = ""

    def __str__(self) -> str:
        """Return the range in words.

        >>> str(Range(gt=0, le=1))
        '> 0 and <= 1'
        """
        bounds = [(">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le)]
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    def holds(self, value: float) -> bool:
        """Return whether *value* lies inside; infinities and NaN never do."""
        return bool(
            np.isfinite(value)
            and (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )


Positive: TypeAlias = Annotated[float, Range(gt=0)]
NonNegative: TypeAlias = Annotated[float, Range(ge=0)]
Share: TypeAlias = Annotated[float, Range(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Range(ge=1)]
