"""Hosts: how long clients compute, as events on the virtual clock, alone or beside others. Knows seconds of work; knows no message."""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import simpy

from fedsim.core.types import Seconds


class Host(Protocol):
    """What clients compute on."""

    def work(self, seconds: Seconds) -> simpy.Event:
        """Return the end of work, begun now, that takes so long with nobody beside it."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """A device of its own for each client."""

    env: simpy.Environment

    def work(self, seconds: Seconds) -> simpy.Event:
        """Return the end of the seconds that it takes."""
        return self.env.timeout(seconds)


class Shared:
    """One computer for all: k clients of one thread each share its *cores* equally, as a kernel's scheduler lets processes.

    Egalitarian processor sharing: each goes at a rate of min(1, cores / k), in a crowd of *crowd_from* or more at that over
    *crowd_factor*, which changes only when somebody begins or ends, so the clock moves by event. With V(t) the work that a client
    present throughout has had done by t, a job that begins at V ends when V has grown by its work: a heap of those ends takes O(log k)
    per change. Ties end in the order in which they began.
    """

    def __init__(self, env: simpy.Environment, cores: float, crowd_from: int | None = None, crowd_factor: float | None = None) -> None:
        self._env, self._cores = env, cores
        self._crowd_from, self._crowd_factor = math.inf if crowd_from is None else crowd_from, crowd_factor or 1.0
        self._done, self._at = 0.0, float(env.now)  # V, and when it was that.
        self._jobs: list[tuple[float, int, simpy.Event]] = []
        self._begun = self._plan = 0

    def work(self, seconds: Seconds) -> simpy.Event:
        """Return the end of the work, slower while others are at theirs."""
        self._advance()
        end = self._env.event()
        self._begun += 1
        heapq.heappush(self._jobs, (self._done + seconds, self._begun, end))
        self._next()
        return end

    def _rate(self) -> float:
        if not self._jobs:
            return 0.0
        rate = min(1.0, self._cores / len(self._jobs))
        return rate / self._crowd_factor if len(self._jobs) >= self._crowd_from else rate

    def _advance(self) -> None:
        now = float(self._env.now)
        self._done += (now - self._at) * self._rate()
        self._at = now

    def _next(self) -> None:
        self._plan += 1
        if self._jobs:
            self._env.process(self._end(max(0.0, self._jobs[0][0] - self._done) / self._rate(), self._plan))

    def _end(self, wait_s: Seconds, plan: int) -> Generator[simpy.Event, None, None]:
        yield self._env.timeout(wait_s)
        if plan != self._plan:  # Somebody began meanwhile.
            return
        self._advance()
        self._done = max(self._done, self._jobs[0][0])  # The last bits of a sum must not keep it from its end.
        while self._jobs and self._jobs[0][0] <= self._done:
            heapq.heappop(self._jobs)[2].succeed()
        self._next()
