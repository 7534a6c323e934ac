"""Where a run that is made in a notebook tells how far it is: one line below the cell, gone when the run has ended.

Knows Jupyter's display, and nothing of what is told. Elsewhere, and where a notebook cannot show it, there is silence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from html import escape
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from fedsim.live.panel import Standing, clock, costs, left, reached
from fedsim.live.teller import Teller
from fedsim.scenario.schema import Scenario

if TYPE_CHECKING:
    from fedsim.session import Progress as Where

EVERY_S = 0.25
"""How often the line is drawn. A thread of its own does it, so that it goes on while a long step computes."""
NOTHING = {"text/plain": "", "text/html": ""}


@contextmanager
def followed(scenario: Scenario, watch: Callable[[Where], None] | None) -> Generator[Callable[[Where], None] | None]:
    """Show in a notebook how far a run of *scenario* is; yields what to tell it with. Where *watch* is given, or nobody looks, that."""
    if watch is not None or not in_notebook():
        yield watch
        return
    teller = Teller(scenario.name, scenario.server.rounds, scenario.stop, doing="building the world")
    with _drawn(teller):
        yield teller.take


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook: Jupyter's, or one that shows what it does (VS Code, Colab)."""
    if "IPython" not in sys.modules:  # Nobody waits for its import who does not use it.
        return False
    with suppress(Exception):
        return getattr(_shell(), "kernel", None) is not None
    return False


def line(at: Standing) -> dict[str, str]:
    """Return where a run stands as one line, in the two forms that a notebook chooses from: HTML, and plain words."""
    if at.doing:
        said, bar = [at.doing, clock(at.wall_s)], ""
    else:
        scores = [f"{at.score} {at.values[-1]:.4g}"] if at.score else []
        said = [reached(at), *scores, *costs(at), clock(at.wall_s), *([left(at)] if at.left_s is not None else [])]
        bar = f'<progress value="{at.share:.4f}" max="1" style="vertical-align:middle;width:12em"></progress> ' if at.rounds else ""
    words = ", ".join(said)
    html = f'<div style="white-space:nowrap;overflow:hidden"><strong>{escape(at.name)}</strong> {bar}{escape(words)}</div>'
    return {"text/plain": f"{at.name}: {words}", "text/html": html}


@contextmanager
def _drawn(teller: Teller) -> Generator[None]:
    """Draw what *teller* tells, now and again and again, until the run has ended; then nothing. A display that fails breaks no run."""
    handle: Any = None
    with suppress(Exception):
        from IPython.display import display

        handle = display(line(teller.standing), raw=True, display_id=True)
    if handle is None:
        yield
        return
    ended = Event()

    def draw() -> None:
        with suppress(Exception):  # Then it stays as it is.
            while not ended.wait(EVERY_S):
                handle.update(line(teller.standing), raw=True)

    # In a copy of this context: by it Jupyter knows which cell is meant.
    thread = Thread(target=copy_context().run, args=(draw,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):
            handle.update(NOTHING, raw=True)


def _shell() -> Any:
    from IPython import get_ipython  # pyright: ignore[reportPrivateImportUsage, reportUnknownVariableType]

    return get_ipython()  # pyright: ignore[reportUnknownVariableType]
