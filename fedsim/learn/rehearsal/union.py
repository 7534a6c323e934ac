"""Training on the union of what is new and what is remembered: nothing is replayed in mini-batches. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.core.types import IntArray
from fedsim.learn.rehearsal import Way, rehearsals


@dataclass(frozen=True, slots=True)
class Union:
    """Epochs over the union. See ``union``."""

    way = Way(draws=0, union=True)

    def replayed(self, fresh: int, share: float | None) -> int:
        """Return that no mini-batch replays anything."""
        return 0

    def beside(self, new: int, sizes: IntArray, fresh: IntArray) -> tuple[int, int]:
        """Return that nothing passes besides mini-batches."""
        return 0, 0


@rehearsals.register("union")
def union() -> Union:
    """Epochs over all new and all remembered examples together, reshuffled: FedAvg on what the client has."""
    return Union()
