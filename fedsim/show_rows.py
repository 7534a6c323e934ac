"""Figures by name, a row each, as a terminal shows them: broken between words, never between a number and its unit. Knows no figure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

APART = 2
"""Columns on either side of a name and of a figure."""
NARROWEST = 20
"""Columns that figures have at least, however narrow the terminal is."""
HELD = "\u00a0"
"""Stands for a space at which no line is broken."""
UNIT = re.compile(r"(?<=\d) (?=(?:d|h|min|ms|s|[kMGT]?B|%|[MG]FLOP)(?!\w))")
"""The space between a number and its unit."""


def rows(title: str, figures: Sequence[tuple[str, str]]) -> None:
    """Print *figures*, names and what they are in plain text, below *title* if there is one, as wide as the terminal is."""
    console = Console(highlight=False)
    wide = max((len(name) for name, _ in figures), default=0)
    if title:
        console.print(Text(title, "italic"), soft_wrap=True)
    for name, said in figures:
        for i, line in enumerate(lines(said, console.width - wide - 4 * APART)):
            left = Text(("" if i else name).ljust(wide), "dim")
            console.print(Text(" " * APART) + left + Text(f"{' ' * 2 * APART}{line}"), soft_wrap=True)


def lines(said: str, width: int) -> list[str]:
    """Return *said* in lines of at most *width* columns; a word that is longer, like a path to be copied, is left whole.

    >>> lines("a round takes 1.53 s of virtual time; deadline 10 min 0 s", 50)
    ['a round takes 1.53 s of virtual time; deadline', '10 min 0 s']
    >>> lines("7.05 MB", 3), lines("", 9)
    (['7.05 MB'], [''])
    """
    held = UNIT.sub(HELD, said)
    held = re.sub(rf"(\d{HELD}(?:d|h|min)) (?=\d+{HELD}(?:h|min|s)\b)", rf"\1{HELD}", held)
    found = textwrap.wrap(held, max(NARROWEST, width), break_long_words=False, break_on_hyphens=False)
    return [line.replace(HELD, " ") for line in found] or [""]
