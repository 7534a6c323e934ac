"""The parts of a report: each is registered, and one that breaks is a line on the page. Knows no part and draws nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from fedsim.core.answers import Gives
from fedsim.core.errors import FedsimError, RunError, door
from fedsim.core.registry import Registry
from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the report: its *title* (no heading where it is empty), whether it *applies* to a run, and its *html*.

    *html* returns what stands below the heading: HTML as it is, so what a run or a reader says must be escaped in it. It draws
    plotly's figures by ``Drawing.html``, which brings the library along once.
    """

    title: str
    applies: Callable[[Seen], bool]
    html: Callable[[Seen, Drawing], str]


sections: Registry[Callable[[], Section]] = Registry(
    "section", gives=Gives("a section of the report", ("title", "applies", "html"))
)
"""Functions that return a section. An installed package registers its own by an entry point of the group ``fedsim.section``."""


def part(name: str, seen: Seen, draw: Drawing) -> str:
    """Return the section *name* as a piece of the page: empty where it does not apply, one line where it breaks."""
    title, drawn = name, draw.drawn
    try:
        with door(f"section {name!r}", wrong=RunError):
            section = _made(name)
            title = str(section.title)
            if not section.applies(seen):
                return ""
            html: Any = section.html(seen, draw)
            if not isinstance(html, str):
                raise TypeError(f"html gave a {type(html).__name__}, not text")  # pyright: ignore[reportUnknownArgumentType]
    except FedsimError as error:
        draw.drawn = drawn  # What it had drawn is not on the page, nor is the library that came along.
        return f"<h2>{escape(title)}</h2><p class=note>This part could not be made. {escape(str(error))}</p>"
    return f"<h2>{escape(title)}</h2>{html}" if title else html


def _made(name: str) -> Section:
    made = sections.call(sections.get(name, at="section"), {})
    gives = sections.gives
    if gives is not None and not all(hasattr(made, each) for each in gives.names):
        raise RunError(f"section {name!r}: returned a {type(made).__name__}, not {gives.what}.")
    return made
