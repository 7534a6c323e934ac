"""What a scenario can name, as a person reads it in a terminal: an overview that fits a screen, and each noun in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from fedsim.core.errors import ScenarioError, choices
from fedsim.scenario.glossary import GLOSSARY
from fedsim.scenario.kinds import Setting, describe, settings_of, shared_settings, slots
from fedsim.scenario.words import about
from fedsim.strategy import stock

LINES = 23
"""Lines that the overview takes at most: a screen of 24, less the prompt."""
COLUMN = 13
"""Columns for a noun."""
STRATEGY = "strategy"
FOOTER = "fedsim list NOUN shows each kind with its settings; fedsim list all shows all."


def kinds(noun: str | None) -> None:
    """Print the overview; of one *noun* (or of all) every kind with its settings, in words.

    Raises ScenarioError for a noun that there is not.
    """
    every = [*slots(), STRATEGY]
    console = Console(highlight=False)
    if noun is None:
        for line in overview(console.width):
            console.print(escape(line), soft_wrap=True)
        return
    noun = {key: slot.noun for slot in slots().values() for key in slot.keys}.get(noun, STRATEGY if noun == stock.AT else noun)
    if noun not in (*every, "all"):
        raise ScenarioError(f"{noun!r}: no such kind. {choices(noun, [*every, 'all'])}")
    for each in every if noun == "all" else [noun]:
        for line in details(each, console.width):
            console.print(line, soft_wrap=True)


def overview(width: int) -> list[str]:
    """Return every noun with the names of its kinds, in lines of at most *width* columns; not more than a screen has."""
    names = {noun: slot.registry.names() for noun, slot in slots().items()} | {STRATEGY: _shortened(stock.names())}
    paired = _paired(names, width)
    pairs = [f"{_cell(a, names):<{left}}  {_cell(b, names)}" for left, a, b in paired]
    rest = [noun for noun in names if not any(noun in pair for pair in paired)]
    wrapped = {noun: textwrap.wrap(", ".join(names[noun]), max(20, width - COLUMN), break_on_hyphens=False) for noun in rest}
    while sum(map(len, wrapped.values())) + len(pairs) > LINES - 1:  # The longest lists give way first.
        longest = max(wrapped, key=lambda noun: len(wrapped[noun]) - (noun == STRATEGY))  # Those of strategies a line later.
        if len(wrapped[longest]) == 1:
            break
        wrapped[longest] = _cut(names[longest], max(20, width - COLUMN), len(wrapped[longest]) - 1)
    lines = [f"{'' if i else noun:<{COLUMN}}{line}" for noun, found in wrapped.items() for i, line in enumerate(found)]
    return [*lines, *pairs, *textwrap.wrap(FOOTER, width)]


def _shortened(names: Sequence[str]) -> list[str]:
    """Return *names* with Flower's four longest, which differ in two words, as one."""
    long = "DifferentialPrivacy"
    private = [name for name in names if name.startswith(long)]
    return [*(name for name in names if name not in private), *([f"{long}... ({len(private)})"] if private else [])]


def _paired(names: dict[str, list[str]], width: int) -> list[tuple[int, str, str]]:
    """Return which nouns stand two in a line, as many as can: how wide the left one's cell is, it, and the one beside it.

    The longest that leave room stand on the left, beside the shortest that are left; cells are as wide as one before, where that fits.
    """
    size = {noun: len(_cell(noun, names)) for noun in names}
    order = sorted(names, key=size.__getitem__)
    found: list[tuple[int, str, str]] = []
    while len(order) > 1:
        left = order.pop()
        if size[left] + 2 + size[order[0]] > width:
            continue
        right = order.pop(0)
        wide = [cell for cell, _, _ in found if size[left] <= cell <= width - 2 - size[right]]
        found.append((min(wide, default=size[left]), left, right))
    return found


def _cell(noun: str, names: dict[str, list[str]]) -> str:
    return f"{noun:<{COLUMN}}{', '.join(names[noun])}"


def _cut(names: Sequence[str], width: int, lines: int) -> list[str]:
    """Return as many of *names* as go into so many lines, and how many more there are."""
    for shown in range(len(names) - 1, -1, -1):
        found = textwrap.wrap(f"{', '.join(names[:shown])} and {len(names) - shown} more", width, break_on_hyphens=False)
        if len(found) <= lines:
            return found
    return [f"{len(names)} kinds"]


def details(noun: str, width: int) -> list[str]:
    """Return what can be said of each kind of *noun*, in lines of markup of at most *width* columns."""
    if noun == STRATEGY:
        return _noun(noun, stock.AT, [(name, *_strategy(name)) for name in stock.names()], width)
    slot = slots()[noun]
    rows = [(name, *describe(slot.registry, name)) for name in slot.registry.names()]
    shared = [("any kind", "also takes", settings)] if (settings := shared_settings(slot)) else []
    return _noun(noun, slot.key, [*rows, *shared], width)


def _strategy(name: str) -> tuple[str, list[Setting]]:
    make, takes = stock.class_of(name), stock.arguments(name)
    found = settings_of(make, takes, STRATEGY, name)
    if {"fraction_train", "min_train_nodes"} <= set(takes):
        found.append(Setting("clients_per_round", "whole number >= 1", "", GLOSSARY[STRATEGY]["clients_per_round"]))
    return about(make, name), found


def _noun(noun: str, key: str, rows: Sequence[tuple[str, str, list[Setting]]], width: int) -> list[str]:
    lines = [f"[bold]{noun}[/]  [dim]{key}[/]", ""]
    for name, what, settings in rows:
        lines += _hanging(f"[bold cyan]{escape(name)}[/]  ", len(name) + 2, what, 2, width)
        wide = max((len(setting.name) for setting in settings), default=0)
        for setting in settings:
            default = {"required": "; required", "": ""}.get(setting.default, f"; {setting.default} unless given")
            said = f"{setting.meaning} ({setting.takes}{default})" if setting.meaning else f"{setting.takes}{default}"
            lines += _hanging(f"{escape(setting.name):<{wide}}  ", wide + 2, said, 6, width)
        lines.append("")
    return lines


def _hanging(head: str, wide: int, text: str, indent: int, width: int) -> list[str]:
    """Return *text* after *head*, which takes *wide* columns, its further lines below its first."""
    found = textwrap.wrap(text, max(20, width - indent - wide), break_on_hyphens=False, break_long_words=False) or [""]
    hang = " " * (indent + wide)
    return [f"{' ' * indent}{head}{escape(found[0])}".rstrip(), *(f"{hang}{escape(line)}" for line in found[1:])]
