"""What a panel says of a run that tells where it is: remembers its scores and its pace. Reads the host's clock."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult

from fedsim.live.pace import Pace
from fedsim.live.panel import Standing, lines
from fedsim.scenario.stop import Stop

if TYPE_CHECKING:
    from fedsim.session import Progress as Where

VALUES = 512
"""Scores that are remembered; where there are more, every second one goes."""
LONG_S = 1.0
"""How long a round must take before its own tasks are told."""


class Teller:
    """A run by *name*, of *rounds* at most, which *stop* may end; it began *age_s* ago. Draws itself where rich is given it.

    One thread tells it where the run is, and any may ask it.
    """

    def __init__(self, name: str, rounds: int, stop: Stop | None, *, clock: str = "virtual", doing: str = "", age_s: float = 0.0) -> None:
        self._name, self._rounds, self._stop, self._clock, self._doing = name, rounds, stop, clock, doing
        self._heard = time.monotonic()
        self._began, self._pace = self._heard - age_s, Pace()
        if age_s:
            self._pace.take(0.0, 0.0, 0)
        self._where: Where | None = None
        self._values: list[float] = []
        self._scored = -1

    def remember(self, where: Where) -> None:
        """Take *where* the run once was: its scores, and nothing of its pace."""
        if where.scores and where.scored != self._scored:
            if len(self._values) >= VALUES:
                self._values = self._values[::2]
            self._values.append(where.scores[self.leading(where.scores)])
            self._scored = where.scored

    def take(self, where: Where) -> None:
        """Take *where* the run is now."""
        self.remember(where)
        self._where, self._heard = where, time.monotonic()
        self._pace.take(self._heard - self._began, self._share(where), where.tasks)

    def leading(self, names: Iterable[str]) -> str:
        """Return which of the scores by *names* is told first: the one that ends the run, else accuracy, else the first."""
        there = sorted(names)
        wanted = [self._stop.metric if self._stop else None, "accuracy"]
        return next((name for name in wanted if name in there), there[0])

    @property
    def standing(self) -> Standing:
        """Return where the run stands now."""
        where, wall_s = self._where, time.monotonic() - self._began
        if where is None:
            return Standing(self._name, doing=self._doing, wall_s=wall_s)
        done, due = where.under_way() if time.monotonic() - self._heard >= LONG_S else (0, 0)
        share = self._share(where, done / due if due else 0.0)
        score = self.leading(where.scores) if where.scores else ""
        return Standing(
            name=self._name, counts=where.counts, round=where.round, rounds=self._rounds, clock=self._clock, now_s=where.now_s,
            down_bytes=where.down_bytes, up_bytes=where.up_bytes, score=score, values=self._values,
            others={name: value for name, value in sorted(where.scores.items()) if name != score},
            tasks=where.tasks + done, tasks_per_s=self._pace.tasks_per_s(), done=done, due=due, wall_s=wall_s, share=share,
            left_s=self._pace.left_s(wall_s, share), at_most=self._stop is not None and bool(self._stop.learned),
        )  # fmt: skip

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines of the panel."""
        yield from lines(self.standing, options.max_width, ascii_only=options.ascii_only)

    def _share(self, where: Where, of_round: float = 0.0) -> float:
        """Return how much of the run is done, *of_round* of the next round being."""
        rounds = min(1.0, (where.round + of_round) / self._rounds) if self._rounds else 0.0
        spent = self._stop.share(where.now_s, where.down_bytes + where.up_bytes) if self._stop else 0.0
        return min(1.0, max(rounds, spent))
