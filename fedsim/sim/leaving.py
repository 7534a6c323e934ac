"""Leaving: time that passes only while a client is there, and how much it was away. Knows who is there when; knows no message."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np
import simpy

from fedsim.core.types import Seconds
from fedsim.cost.availability import Availability

Absences = Sequence[tuple[Seconds, Seconds]]
"""From when to when somebody was away, each; they may overlap."""


class Gone:
    """Which devices are away, or were, for what befell them, and from when until when."""

    def __init__(self) -> None:
        self._spans: dict[int, list[tuple[Seconds, Seconds]]] = {}

    def __contains__(self, client: int) -> bool:
        return client in self._spans

    def goes(self, client: int, since_s: Seconds, until_s: Seconds) -> None:
        """Take that the device of *client* is away for so long; it is there again before it goes another time."""
        self._spans.setdefault(client, []).append((since_s, until_s))

    def back_s(self, client: int) -> Seconds:
        """Return when *client*, which went at least once, is back from where it went last."""
        return self._spans[client][-1][1]

    def between(self, client: int, begin_s: Seconds, end_s: Seconds) -> Absences:
        """Return when *client* was away between two moments."""
        return [span for span in self._spans.get(client, ()) if span[0] < end_s and span[1] > begin_s]


def away_s(absences: Absences, begin_s: Seconds, end_s: Seconds) -> Seconds:
    """Return for how long of the time from *begin_s* to *end_s* somebody was away.

    >>> away_s([(4.0, 9.0), (8.0, 10.0), (12.0, 20.0)], 5.0, 13.0)
    6.0
    """
    found, until = 0.0, begin_s
    for since, back in sorted(absences):
        since, back = max(since, until), min(back, end_s)
        if back > since:
            found, until = found + (back - since), back
    return found


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

    def tells(self, client: int, after_s: Seconds) -> Generator[simpy.Event, None, bool]:
        """Let *after_s* pass, after which *client* tells something; return whether it does, and is not gone for good before."""
        gone_s = math.inf if self.pauses else self.leaves_s(client)
        yield self._env.timeout(min(after_s, max(0.0, gone_s - self._env.now)))
        return self._env.now < gone_s and (not self.pauses or (yield from self.back(client)))

    def between(self, client: int, begin_s: Seconds, end_s: Seconds) -> Absences:
        """Return when *client* was away between two moments."""
        found, now, who = list[tuple[Seconds, Seconds]](), begin_s, np.array([client])
        while now < end_s:
            then = self._availability.next_change(who, now)
            if not self._availability.available(who, now)[0]:
                found.append((now, then))
            now = then
        return found

    def _change_s(self, client: int) -> Seconds:
        return self._availability.next_change(np.array([client]), float(self._env.now))
