"""Ground: what a run asks of where it takes place, virtual or real. Knows no run, and no clock of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from flwr.serverapp import Grid

from fedsim.core.types import Seconds
from fedsim.sim.invariants import Invariants


class Ground(Protocol):
    """Where a strategy's messages go, and what a run wants to know of that: its clock, its bytes, and who answered."""

    def open(self) -> Grid:
        """Return the grid that the strategy is given, once who takes part is there. Raises RunError where that cannot be."""
        ...

    @property
    def now(self) -> Seconds:
        """Return the seconds since the run began, on the run's clock."""
        ...

    @property
    def invariants(self) -> Invariants:
        """Return what watches the clock and counts the bytes."""
        ...

    @property
    def asked(self) -> int:
        """Return how many messages were sent so far."""
        ...

    @property
    def arrived(self) -> int:
        """Return how many replies a strategy was given so far."""
        ...

    @property
    def strangers(self) -> Sequence[int]:
        """Return the nodes that were sent messages, and that there are not."""
        ...

    @property
    def exhausted(self) -> bool:
        """Return whether every client has come to the end of its stream."""
        ...

    def wait_for_others(self, duration_s: Seconds) -> None:
        """Wait at least *duration_s* for nodes that are not there; raise RunError when they never will be."""
        ...

    def aggregated(self, *, made: bool) -> None:
        """Take that the strategy has aggregated what it was handed, and whether that *made* a model."""
        ...

    def finish(self, *, broken: bool = False) -> None:
        """Settle what has no fate yet, and check that no byte is missing, unless the run is *broken* anyway."""
        ...

    def described(self) -> Mapping[str, Any]:
        """Return what a manifest says of the ground; nothing where it is virtual."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Return what a reader must know of how it went there."""
        ...

    def close(self) -> None:
        """Let go of all that took part: nothing more is going to happen."""
        ...
