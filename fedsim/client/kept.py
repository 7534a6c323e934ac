"""What a client keeps from message to message: counts, times, and named parts. Knows not what the parts are for.

One form everywhere: in the simulator, in a real node's ``Context.state``, across a process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedsim.core.state import State, joined, pack, parted, unpack
from fedsim.core.types import Array, Seconds

Parts = Mapping[str, State]


@dataclass(frozen=True, slots=True)
class Kept:
    """A client between two messages: how many training tasks it has begun, and evaluations, and what it carries.

    On a stream, what had arrived by *until_s* has been tested, what had its label by then has been trained on; *before_s* is when the
    task before the last one began. *seen* counts the examples trained on there. *steps* counts the local steps so far, as they were
    planned: a task that stops early has taken fewer.

    *parts* are states by name: ``replay``, the memory; ``rehearsal``, what its method has of the last task; ``watch``, the
    detector's side; ``local``, the client's own model; ``algorithm`` and ``optimizer``, what theirs keep; ``statistics``, the
    model's buffers where they are the client's own.
    """

    trained: int = 0
    evaluated: int = 0
    until_s: Seconds = -math.inf
    before_s: Seconds = -math.inf
    seen: int = 0
    steps: int = 0
    parts: Parts = field(default_factory=dict[str, State])

    def having(self, parts: Parts) -> Kept:
        """Return it with *parts* in the place of those of the same names."""
        return dataclasses.replace(self, parts={**self.parts, **parts}) if parts else self

    def few(self, *names: str) -> Parts:
        """Return those of the parts *names* that hold anything."""
        return {name: self.parts[name] for name in names if self.parts.get(name)} if names else {}

    def packed(self) -> bytes:
        """Return it as bytes; ``unpacked`` undoes it.

        >>> kept = Kept(trained=2, parts={"local": {"weight": np.ones(3)}})
        >>> Kept.unpacked(kept.packed()).parts["local"]["weight"].tolist()
        [1.0, 1.0, 1.0]
        """
        counts: dict[str, Array] = {name: np.array([getattr(self, name)], kind) for name, kind in _COUNTS.items()}
        return pack(joined({**self.parts, "": counts}))

    @classmethod
    def unpacked(cls, data: bytes) -> Kept:
        """Return what ``packed`` wrote. Raises RunError when *data* is damaged."""
        parts = parted(unpack(data))
        counts = {name: array.tolist()[0] for name, array in parts.pop("").items()}
        return cls(**counts, parts=parts)


_COUNTS = {"trained": np.int64, "evaluated": np.int64, "until_s": np.float64, "before_s": np.float64, "seen": np.int64, "steps": np.int64}
