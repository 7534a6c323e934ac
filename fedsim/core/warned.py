"""What libraries and a reader's code say besides: warnings and log lines, kept from the terminal and told where they belong."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

PLACES = 20
"""How many places of code a run's notes name at most."""


def spare_dependencies() -> None:
    """Where warnings are errors (``python -W error``), have those that fedsim is not to blame for told, and not raised.

    Dependencies warn of each other while they are imported; nobody could start. A library that makes an error of a warning of its own, as
    IPython does, has not asked for this.
    """
    if any(rule[0] == "error" and rule[2].__module__ == "builtins" for rule in warnings.filters):
        warnings.filterwarnings("default", module=r"(?!fedsim\b)")


Told = tuple[str, str, int, int]
"""Words, file, line, and how often: a warning on its way from a worker."""


class Heard:
    """Warnings by the place that they come from: the first words of each, and how often it spoke."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, int], str] = {}
        self._times: dict[tuple[str, int], int] = {}

    def hear(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Keep a warning; as ``warnings.showwarning``."""
        place = filename, lineno
        if place in self._said or len(self._said) < PLACES:
            self._said.setdefault(place, " ".join(str(message).split())[:300])
            self._times[place] = self._times.get(place, 0) + 1

    @property
    def told(self) -> list[Told]:
        """Return what was kept: words, file, line, and how often."""
        return [(said, *place, self._times[place]) for place, said in self._said.items()]

    def lines(self, when: str, but: Heard | None = None) -> tuple[str, ...]:
        """Return a line for each place, none for those that *but* knows."""
        known = but._said if but else {}
        return tuple(
            f"Warned {when}: {said} ({Path(place[0]).name}, line"
            f" {place[1]}{f', {self._times[place]:,} times' if self._times[place] > 1 else ''})"
            for place, said in self._said.items() if place not in known
        )  # fmt: skip


@contextmanager
def hearing() -> Generator[Heard]:
    """Within, warnings are kept, and nothing of them is printed. Those that are errors are raised as ever."""
    heard = Heard()
    with warnings.catch_warnings():
        warnings.showwarning = heard.hear
        yield heard


def tell(told: Iterable[Told]) -> None:
    """Warn here of what was warned of elsewhere, as often."""
    for said, filename, lineno, times in told:
        for _ in range(times):
            warnings.warn_explicit(said, UserWarning, filename, lineno)


class _Quiet(logging.FileHandler):
    """A log whose disk may be full: it loses a line then, and prints no traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Let it go."""


@contextmanager
def log_to(path: Path | None, library: str, level: int = logging.NOTSET) -> Generator[None]:
    """Within, the log of *library*, from *level* up, goes to the file *path* and nowhere else; to nowhere when there is no path.

    The file is there once something is said. Who sets ``TORCH_LOGS`` asks torch for a log of his own, and gets it.
    """
    loggers = [] if library == "torch" and os.environ.get("TORCH_LOGS") else _speaking(library)
    handler = logging.NullHandler() if path is None else _Quiet(path, encoding="utf-8", delay=True)
    handler.setLevel(level)  # torch's loggers pass on everything, and leave it to their handlers.
    handler.setFormatter(logging.Formatter("%(levelname)s : %(message)s"))
    before = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()


def _speaking(library: str) -> list[logging.Logger]:
    """Return the logger of *library*, and those below it that have handlers of their own."""
    below = [
        one for name, one in logging.root.manager.loggerDict.items() if name.startswith(f"{library}.") and isinstance(one, logging.Logger)
    ]
    return [logging.getLogger(library), *(logger for logger in below if logger.handlers)]
