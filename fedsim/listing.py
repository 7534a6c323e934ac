"""What a scenario can name, as a person reads it in a terminal: an overview that fits a screen, each noun and each section in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from fedsim.core.errors import ScenarioError, choices
from fedsim.scenario.glossary import GLOSSARY
from fedsim.scenario.kinds import Setting, describe, key_settings, settings_of, shared_settings, slots
from fedsim.scenario.meanings import below
from fedsim.scenario.schema import Scenario
from fedsim.scenario.words import about
from fedsim.strategy import stock

LINES = 23
"""Lines that the overview takes at most: a screen of 24, less the prompt."""
COLUMN = 13
"""Columns for a noun."""
STRATEGY = "strategy"
FOOTER = "fedsim list NOUN: kinds, settings; list SECTION (training, ...): keys; list all."


def kinds(noun: str | None) -> None:
    """Print the overview; of one *noun* every kind with its settings, of a section every key, of all both, in words.

    Raises ScenarioError for what is neither noun nor section nor key.
    """
    console = Console(highlight=False)
    if noun is None:
        for line in overview(console.width):
            console.print(escape(line), soft_wrap=True)
        return
    for line in told(noun, console.width):
        console.print(line, soft_wrap=True)


def told(name: str, width: int) -> list[str]:
    """Return what can be said of *name*, in lines of markup: a noun or its key, a section, a section's key by its whole name, or all."""
    every, parts = [*slots(), STRATEGY], sections()
    if name == "all":
        return [line for noun in every for line in details(noun, width)] + [line for each in parts for line in keys(each, width)]
    noun, place, names = _meant(name)
    return [*(keys(place, width, names) if place else ()), *(details(noun, width) if noun else ())]


def plain(name: str | None) -> dict[str, Any]:
    """Return what can be said of *name* as plain values, of everything where that is None or all: what ``--json`` prints.

    ``nouns``: by name the ``keys`` that take one, ``kinds`` by name with ``meaning`` and ``settings``, and ``shared``, the settings that
    any kind also takes. ``sections``: by place ``meaning`` and ``keys``. A setting or key has ``name``, ``takes``, ``default`` (a string as
    in TOML; ``required``; empty where there is none) and ``meaning``. Raises ScenarioError as ``kinds`` does.
    """
    if name in (None, "all"):
        wanted, places = [*slots(), STRATEGY], [(each, ()) for each in sections()]
    else:
        noun, place, names = _meant(str(name))
        wanted, places = [noun] if noun else [], [(place, names)] if place else []
    parts = sections()
    return {
        "nouns": {noun: _plain_noun(noun) for noun in wanted},
        "sections": {
            place: {
                "meaning": _summary(parts[place]),
                "keys": [asdict(setting) for setting in key_settings(parts[place], names or parts[place].model_fields)],
            }
            for place, names in places
        },
    }


def _plain_noun(noun: str) -> dict[str, Any]:
    if noun == STRATEGY:
        found, at, shared = {name: of_strategy(name) for name in stock.names()}, [stock.AT], list[Setting]()
    else:
        slot = slots()[noun]
        found, at = {name: describe(slot.registry, name) for name in slot.registry.names()}, [*slot.keys]
        shared = shared_settings(slot)
    kinds = {name: {"meaning": what, "settings": [asdict(setting) for setting in settings]} for name, (what, settings) in found.items()}
    return {"keys": at, "kinds": kinds, "shared": [asdict(setting) for setting in shared]}


def _meant(name: str) -> tuple[str | None, str | None, Sequence[str]]:
    """Return the noun and the section that *name* means, where it does, and which keys of that, all unless any. Raises ScenarioError."""
    every, parts, by_key = [*slots(), STRATEGY], sections(), _nouns()
    last = {key.rpartition(".")[2]: noun for key, noun in by_key.items()}
    noun = name if name in every else by_key.get(name)
    place = name if name in parts else next((each for each in parts if each.endswith(f".{name}")), None)
    above, _, key = name.rpartition(".")
    if noun is None and place is None and above in parts and key in parts[above].model_fields:
        return None, above, [key]
    if noun is None and place is None and name not in last:
        raise ScenarioError(f"{name!r}: no such kind, and no such section. {choices(name, {*every, *parts, 'all'})}")
    return noun or (None if place else last[name]), place, ()


def sections() -> dict[str, type[BaseModel]]:
    """Return each section of a scenario by its place, the whole scenario first; a place that takes a kind is a noun's."""
    found: dict[str, type[BaseModel]] = {"scenario": Scenario}
    nouns = _nouns()

    def gather(section: type[BaseModel], above: str) -> None:
        for name in section.model_fields:
            inner, place = below(section, name), f"{above}{name}"
            if inner is not None and place not in nouns:
                found[place] = inner
                gather(inner, f"{place}.")

    gather(Scenario, "")
    return found


def keys(place: str, width: int, names: Sequence[str] = ()) -> list[str]:
    """Return what the section at *place* is, and each of its keys (or only *names*), in lines of markup of at most *width* columns."""
    parts, nouns, section = sections(), _nouns(), sections()[place]
    settings = list[Setting]()
    for setting in key_settings(section, names or section.model_fields):
        at = setting.name if place == "scenario" else f"{place}.{setting.name}"
        inside = f"'fedsim list {nouns.get(at, at)}' shows the {'kinds' if at in nouns else 'keys'}" if at in {*nouns, *parts} else ""
        settings.append(replace(setting, takes=inside or setting.takes, meaning=setting.meaning.rstrip(".")))
    return [*_hanging(f"[bold]{place}[/]  ", len(place) + 2, _summary(section), 0, width), "", *_settings(settings, 2, width), ""]


def _summary(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split("\n\n")[0].split())


def _nouns() -> dict[str, str]:
    return {key: slot.noun for slot in slots().values() for key in slot.keys} | {stock.AT: STRATEGY}


def overview(width: int) -> list[str]:
    """Return every noun with the names of its kinds, in lines of at most *width* columns; not more than a screen has."""
    names = {noun: slot.registry.names() for noun, slot in slots().items()} | {STRATEGY: _shortened(stock.names())}
    lines = _overview(names, width)
    while len(lines) > LINES and (names := _narrower(names, width)):
        lines = _overview(names, width)
    return lines


def _narrower(names: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """Return *names* with a list of few cut so that it stands in a line with another that stands alone; nothing where there are no two."""
    pairs = _paired(names, width)
    alone = sorted((noun for noun in names if not any(noun in pair for pair in pairs)), key=lambda noun: len(_cell(noun, names)))
    if len(alone) < 2:
        return {}
    few = min(alone[1:], key=lambda noun: len(names[noun]))
    return {**names, few: _cut(names[few], width - COLUMN - 2 - len(_cell(alone[0], names)), 1)}


def _overview(names: dict[str, list[str]], width: int) -> list[str]:
    paired = _paired(names, width)
    pairs = [f"{_cell(a, names):<{left}}  {_cell(b, names)}" for left, a, b in paired]
    rest = [noun for noun in names if not any(noun in pair for pair in paired)]
    wrapped = {noun: textwrap.wrap(", ".join(names[noun]), max(20, width - COLUMN), break_on_hyphens=False) for noun in rest}
    while sum(map(len, wrapped.values())) + len(pairs) > LINES - 1:  # The longest lists give way first.
        long = [noun for noun, found in wrapped.items() if len(found) > 1]
        if not long:
            break
        longest = max(long, key=lambda noun: len(wrapped[noun]) - (noun == STRATEGY))  # Those of strategies a line later.
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
        return _noun(noun, stock.AT, [(name, *of_strategy(name)) for name in stock.names()], width)
    slot = slots()[noun]
    rows = [(name, *describe(slot.registry, name)) for name in slot.registry.names()]
    shared = [("any kind", "also takes", settings)] if (settings := shared_settings(slot)) else []
    word = slot.key.rpartition(".")[2]
    others = [each for each in slots().values() if each is not slot and each.noun != noun and each.key.endswith(f".{word}")]
    beside = [f"[dim]Another {word} is {each.key}: 'fedsim list {each.noun}' shows it.[/]" for each in others]
    head, *lines = _noun(noun, slot.key, [*rows, *shared], width)
    return [head, *beside, *lines]


def of_strategy(name: str) -> tuple[str, list[Setting]]:
    """Return what the strategy *name* is, in words, and its settings."""
    make, takes = stock.class_of(name), stock.arguments(name)
    found = [replace(s, takes=f"{s.takes} {stock.RANGES.get(s.name, '')}".strip()) for s in settings_of(make, takes, STRATEGY, name)]
    if {"fraction_train", "min_train_nodes"} <= set(takes):
        found.append(Setting("clients_per_round", "whole number >= 1", "", GLOSSARY[STRATEGY]["clients_per_round"]))
    return about(make, name), found


def _noun(noun: str, key: str, rows: Sequence[tuple[str, str, list[Setting]]], width: int) -> list[str]:
    lines = [f"[bold]{noun}[/]  [dim]{key}[/]", ""]
    for name, what, settings in rows:
        lines += _hanging(f"[bold cyan]{escape(name)}[/]  ", len(name) + 2, what, 2, width)
        lines += [*_settings(settings, 6, width), ""]
    return lines


def _settings(settings: Sequence[Setting], indent: int, width: int) -> list[str]:
    wide, lines = max((len(setting.name) for setting in settings), default=0), list[str]()
    for setting in settings:
        default = {"required": "; required", "": ""}.get(setting.default, f"; {setting.default} unless given")
        said = f"{setting.meaning} ({setting.takes}{default})" if setting.meaning else f"{setting.takes}{default}"
        lines += _hanging(f"{escape(setting.name):<{wide}}  ", wide + 2, said, indent, width)
    return lines


def _hanging(head: str, wide: int, text: str, indent: int, width: int) -> list[str]:
    """Return *text* after *head*, which takes *wide* columns, its further lines below its first."""
    found = textwrap.wrap(text, max(20, width - indent - wide), break_on_hyphens=False, break_long_words=False) or [""]
    hang = " " * (indent + wide)
    return [f"{' ' * indent}{head}{escape(found[0])}".rstrip(), *(f"{hang}{escape(line)}" for line in found[1:])]
