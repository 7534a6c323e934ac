"""Where what a run tells goes: a panel that is drawn again and again on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from fedsim.live.panel import clock, costs, left, reached
from fedsim.live.teller import Teller
from fedsim.scenario.schema import Scenario

if TYPE_CHECKING:
    from fedsim.session import Progress as Where

A_SECOND = 4
"""How often a second the panel is drawn. A thread of its own does it, so that it goes on while a long step computes."""
TENTHS, LINE_S = 10, 2.0
"""Into how many parts a run is cut that a line follows, and what passes between two lines at least."""
SILENCE_S, SILENCES = 60.0, 20
"""After how long a line comes anyway, and after which part of the time that the run has taken, if that is more."""


@contextmanager
def progress(
    scenario: Scenario, *, silent: bool, clock: str = "virtual", first: str = "building the world"
) -> Generator[Callable[[Where], None] | None]:
    """Show a run's progress on standard error while it goes; yields what to tell it with, or None when silent.

    *clock* says whose seconds are told, *first* what is done before the first round.
    """
    if silent:
        yield None
        return
    with shown(Teller(scenario.name, scenario.server.rounds, scenario.stop, clock=clock, doing=first)) as tell:
        yield tell


@contextmanager
def shown(teller: Teller) -> Generator[Callable[[Where], None]]:
    """Show what *teller* tells, on standard error; yields what to tell it with."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines(teller).tell
        return
    with Live(teller, console=console, refresh_per_second=A_SECOND, transient=True) as live:
        told: list[str] = []

        def tell(where: Where) -> None:
            for sentence in where.said[len(told) :]:
                live.console.print(f"[dim]{escape(sentence)}[/]")
                told.append(sentence)
            teller.take(where)

        yield tell


class Lines:
    """A line after each tenth of a run that takes long, and one a minute, later less often: what a log has room for."""

    def __init__(self, teller: Teller) -> None:
        self._teller, self._tenths, self._printed = teller, 0, time.monotonic()

    def tell(self, where: Where) -> None:
        """Take *where* the run is, and print a line if one is due."""
        self._teller.take(where)
        waited_s = time.monotonic() - self._printed
        if waited_s < LINE_S:
            return
        at = self._teller.standing
        if int(TENTHS * at.share) > self._tenths or waited_s >= max(SILENCE_S, at.wall_s / SILENCES):
            scores = [f"{at.score} {at.values[-1]:.4g}"] if at.score else []
            told = [reached(at), *scores, *costs(at), clock(at.wall_s), *([left(at)] if at.left_s is not None else [])]
            print(f"{at.name}: {', '.join(told)}", file=sys.stderr, flush=True)
            self._tenths, self._printed = int(TENTHS * at.share), time.monotonic()
