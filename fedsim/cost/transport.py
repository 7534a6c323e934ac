"""Flower's transport: when its processes look for messages, and whose cores they share. Knows no message and no clock of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.types import Seconds


@dataclass(frozen=True, slots=True)
class Transport:
    """How often a SuperNode looks for messages, and for its app's reply, and the server for replies; 0: it need not look.

    *server_s* is what the server takes from one exchange to the next. *cores* are those that all clients share, where they are
    processes of one computer; None: each has a device of its own. Where *crowd_from* or more are at work at once, work takes *crowd_factor*
    times its processor time: more than there are cores take each other's caches.
    """

    key: Key
    node_poll_s: Seconds = 0.0
    reply_poll_s: Seconds = 0.0
    server_poll_s: Seconds = 0.0
    server_s: Seconds = 0.0
    cores: float | None = None
    crowd_from: int | None = None
    crowd_factor: float | None = None

    def began_s(self, client: int) -> Seconds:
        """Return when *client*'s SuperNode looked last before a run began: not after 0, and each has its own luck."""
        return -self.node_poll_s * float(self.key.uniform(np.array([client]))[0])


def look_s(since: Seconds, every: Seconds, now: Seconds) -> Seconds:
    """Return when who looks *every* so often, from *since* on, looks next: *now*, or later. *every* 0 is always.

    >>> look_s(10.0, 3.0, 10.0), look_s(10.0, 3.0, 10.5), look_s(10.0, 3.0, 16.0), look_s(10.0, 0.0, 10.5)
    (10.0, 13.0, 16.0, 10.5)
    """
    if not every:
        return now
    return max(now, since + math.ceil((now - since) / every) * every)
