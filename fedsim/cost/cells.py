"""Cells: households, offices or radio cells whose clients share a link before any other. Values; knows no message."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.core.types import IntArray
from fedsim.cost.network import MBIT_PER_BYTE


@dataclass(frozen=True, slots=True)
class Cells:
    """*count* cells. *of* (clients,) is the cell of each client; what the link of one carries each way in Mbit/s, None where never full."""

    count: int
    of: IntArray
    down_mbps: float | None = None
    up_mbps: float | None = None

    @property
    def down(self) -> float | None:
        """Return what it carries to its clients, in bytes per second."""
        return None if self.down_mbps is None else self.down_mbps / MBIT_PER_BYTE

    @property
    def up(self) -> float | None:
        """Return what it carries from its clients, in bytes per second."""
        return None if self.up_mbps is None else self.up_mbps / MBIT_PER_BYTE
