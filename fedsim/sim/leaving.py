"""Leaving: time that passes only while a client is there. Knows who is there when, and the clock; knows no message."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np
import simpy

from fedsim.core.types import Seconds
from fedsim.cost.availability import Availability


class There:
    """Clients that come and go; what they are at *pauses* while they are away, or else is over once they leave."""

    def __init__(self, env: simpy.Environment, availability: Availability, *, pauses: bool) -> None:
        self._env, self._availability, self.pauses = env, availability, pauses

    def here(self, client: int) -> bool:
        """Return whether *client* is there now."""
        return bool(self._availability.available(np.array([client]), float(self._env.now))[0])

    def leaves_s(self, client: int) -> Seconds:
        """Return when *client* leaves: now, where it is away."""
        return self._change_s(client) if self.here(client) else float(self._env.now)

    def spend(self, client: int, seconds: Seconds) -> Generator[simpy.Event, None, Seconds]:
        """Let *seconds* pass in which *client* is there; return how many were left when it left for good.

        It leaves for good where nothing pauses, or where it never comes back. What ends the moment it leaves has ended.
        """
        left = seconds
        if not seconds:
            yield self._env.timeout(0.0)  # It takes its turn among what happens now, all the same.
        while left > 0:
            now = float(self._env.now)
            gone_s = self.leaves_s(client)
            if now + left <= gone_s:
                yield self._env.timeout(left)
                return 0.0
            if gone_s > now:
                left = max(0.0, left - (gone_s - now))
                yield self._env.timeout(gone_s - now)
            if not self.pauses or not (yield from self.back(client)):
                return left
        return 0.0

    def back(self, client: int) -> Generator[simpy.Event, None, bool]:
        """Wait until *client* is there, where that is worth it; return whether it is."""
        while self.pauses and not self.here(client):
            back_s = self._change_s(client)
            if math.isinf(back_s):
                break
            yield self._env.timeout(back_s - self._env.now)
        return self.here(client)

    def _change_s(self, client: int) -> Seconds:
        return self._availability.next_change(np.array([client]), float(self._env.now))
