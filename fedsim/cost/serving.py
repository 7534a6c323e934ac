"""What aggregating takes a server, by how many replies of how many bytes it was handed. Never sees a tensor, nor a clock."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.core.types import Seconds


@dataclass(frozen=True, slots=True)
class Aggregation:
    """What a server takes each time that it is handed replies of training: *seconds*, and more for each reply and each megabyte of them."""

    seconds: Seconds = 0.0
    per_reply_s: Seconds = 0.0
    per_mb_s: Seconds = 0.0

    def took_s(self, replies: int, payload_bytes: int) -> Seconds:
        """Return how long the server is at *replies* of so many bytes in all; of none there is nothing to do.

        >>> Aggregation(0.2, 0.01, 0.5).took_s(10, 4_000_000), Aggregation(0.2).took_s(0, 0)
        (2.3, 0.0)
        """
        return self.seconds + self.per_reply_s * replies + self.per_mb_s * payload_bytes / 1e6 if replies else 0.0
