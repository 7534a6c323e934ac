"""Pages that are generated: keys, kinds, commands, the Python side and the columns of tables, each from where the program has them.

``mkdocs.yml`` names this file as a hook; ``pages()`` is all that it gives, text by the name of a page. Knows fedsim, and no theme.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click
import typer
from pydantic import BaseModel

import fedsim
from fedsim import listing
from fedsim.exporting.columns import OWN, SHARED, TABLES
from fedsim.scenario.fleet import Cost, Fleet
from fedsim.scenario.kinds import Setting, describe, key_settings, shared_settings, slots
from fedsim.strategy import stock

STRATEGY = listing.STRATEGY


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of *files*: called by mkdocs."""
    from mkdocs.structure.files import File  # Only where a site is built.

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """Return each generated page by its name."""
    return {
        "reference/scenario.md": scenario(), "reference/kinds.md": kinds(), "reference/commands.md": commands(),
        "reference/python.md": python(), "reference/columns.md": columns(),
    }  # fmt: skip


def scenario() -> str:
    """Return the page of every section of scenario and fleet files: each key with what it takes, its default, and its meaning."""
    nouns = {key: slot.noun for slot in slots().values() for key in slot.keys} | {stock.AT: STRATEGY}
    found = [
        "# Keys of a scenario", "", "Every key of a scenario file, section by section. `fedsim list training` shows the same in a terminal,"
        " and `fedsim schema` is a JSON Schema for editors. A key that takes a kind has its kinds on [another page](kinds.md).", "",
    ]  # fmt: skip
    for place, section in listing.sections().items():
        found += [f"## {place}", "", _said(section), "", *_keys(section, "" if place == "scenario" else f"{place}.", nouns), ""]
    found += ["## Fleet files", "", _said(Fleet), "", *_keys(Fleet, "", nouns), ""]
    found += ["### compute: what a kind of message costs", "", _said(Cost), "", *_keys(Cost, "", nouns), ""]
    return "\n".join(found)


def kinds() -> str:
    """Return the page of every noun that takes a kind: each kind, in words, and its settings."""
    found = [
        "# Kinds", "", "What may stand where a scenario says `kind = ...`, and its settings. Each also takes `\"module:name\"`, a function"
        " or class of your own (see [your own model, data, strategy](../guides/own-parts.md)). `fedsim list NOUN` shows the same.", "",
    ]  # fmt: skip
    for noun, slot in slots().items():
        rows = [(name, *describe(slot.registry, name)) for name in slot.registry.names()]
        found += [f"## {noun}", "", f"At {', '.join(f'`{key}`' for key in slot.keys)}.", "", *_kinds(noun, rows)]
        if shared := shared_settings(slot):
            found += [f"### {noun}: settings that any kind takes", "", *_table(shared), ""]
    rows = [(name, *listing.of_strategy(name)) for name in stock.names()]
    return "\n".join([*found, f"## {STRATEGY}", "", f"At `{stock.AT}`.", "", *_kinds(STRATEGY, rows)])


def commands() -> str:
    """Return the page of the command line: each command with its arguments and options, as its help has them."""
    from fedsim.cli import app

    found = ["# Commands", "", "What `fedsim COMMAND --help` says, in one place."]
    for path, command in _commands(typer.main.get_command(app), "fedsim"):
        told = [
            (name, _cell(said)) for each in command.params if (name := _named(each)) != "--help" and (said := getattr(each, "help", None))
        ]  # fmt: skip
        words = [name for each in command.params if isinstance(each, click.Argument) for name in [_named(each)]]
        found += ["", f"## {path}", "", "```text", " ".join([path, "[OPTIONS]", *words]), "```", "", *_help(command.help or ""), ""]
        found += ["| | |", "|---|---|", *(f"| `{name}` | {said} |" for name, said in told)] if told else []
    return "\n".join([*found, ""])


def python() -> str:
    """Return the page of ``fedsim.__all__``: each name with its signature and what its docstring says."""
    found = ["# In Python", "", "Everything that `import fedsim` promises. What is not here may change."]
    for name in fedsim.__all__:
        value = getattr(fedsim, name)
        found += ["", f"## {name}", ""]
        if isinstance(value, types.ModuleType):
            found += [*_doc(value), ""]
            for inner in (each for each in getattr(value, "__all__", ()) if callable(getattr(value, each))):
                found += [f"### {name}.{inner}", "", *_signed(inner, getattr(value, inner)), *_doc(getattr(value, inner)), ""]
            continue
        found += [*_signed(name, value), *_doc(value), ""]
        if inspect.isclass(value) and not issubclass(value, Exception):
            for inner, member in vars(value).items():
                if not inner.startswith("_") and (callable(member) or hasattr(member, "__get__")) and inspect.getdoc(member):
                    method = inspect.unwrap(getattr(member, "__func__", member))
                    signed = _signed(f"{name}.{inner}", method) if inspect.isfunction(method) else []
                    found += [f"### {name}.{inner}", "", *signed, *_doc(member), ""]
    return "\n".join(found)


def columns() -> str:
    """Return the page of what the tables of a run hold, column by column, with units."""
    found = [
        "# Columns of tables", "", "A run's tables, as frames in Python (`run.tasks`) and as files by `fedsim export`. Columns that several"
        " tables have come first; of each table, those that are its own.", "", "## Shared", "", *_columns(SHARED), "",
    ]  # fmt: skip
    for name in TABLES:
        doc = inspect.getdoc(getattr(fedsim.Run, name, None)) if name in vars(fedsim.Run) else ""
        found += [f"## {name}", "", *(_paragraphs(doc) if doc else ()), *(_columns(OWN[name]) if name in OWN else ()), ""]
    return "\n".join(found)


def _keys(section: type[BaseModel], above: str, nouns: dict[str, str]) -> list[str]:
    rows = list[str]()
    for setting in key_settings(section, section.model_fields):
        at = f"{above}{setting.name}"
        takes = f"[a kind](kinds.md#{nouns[at]})" if at in nouns else f"[a table](#{_anchor(at)})" if at in listing.sections() else ""
        rows.append(_row(setting, takes))
    return ["| key | takes | unless given | |", "|---|---|---|---|", *rows]


def _anchor(place: str) -> str:
    return place.replace(".", "")


def _kinds(noun: str, rows: Iterable[tuple[str, str, Sequence[Setting]]]) -> Iterator[str]:
    for name, what, settings in rows:
        yield from (f"### {noun}: {name}", "", f"{_cell(what[:1].upper() + what[1:])}{'.' if what else ''}", "")
        yield from (*_table(settings), "") if settings else ()


def _table(settings: Sequence[Setting]) -> list[str]:
    return ["| setting | takes | unless given | |", "|---|---|---|---|", *map(_row, settings)]


def _row(setting: Setting, takes: str = "") -> str:
    default = {"required": "required", "": ""}.get(setting.default, f"`{setting.default}`")
    return f"| `{setting.name}` | {takes or _cell(setting.takes)} | {default} | {_cell(setting.meaning)} |"


def _columns(known: dict[str, tuple[str, str]]) -> list[str]:
    rows = [f"| `{name}` | {_cell(unit)} | {_cell(said)} |" for name, (unit, said) in known.items()]
    return ["| column | unit | |", "|---|---|---|", *rows]


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _commands(inner, f"{path} {name}")
    else:
        yield path, command


def _named(each: click.Parameter) -> str:
    metavar = each.metavar or ("" if getattr(each, "is_flag", False) else each.name or "")
    return f"{', '.join(each.opts)} {metavar}".strip() if isinstance(each, click.Option) else metavar


def _help(text: str) -> list[str]:
    """Return a command's help as paragraphs, and as code what it marks to be kept as it is."""
    found = list[str]()
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        kept = block.startswith("\b\n")
        plain = block.removeprefix("\b\n").replace("\\\\[", "[").replace("\\[", "[")
        found += ["```text", plain, "```", ""] if kept else [_cell(" ".join(plain.split())), ""]
    return found


def _signed(name: str, value: Any) -> list[str]:
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        return []
    plain = signature.replace("'", "").replace("fedsim.score.run.", "").replace("pathlib.", "").replace("pandas.core.frame.", "pd.")
    if len(f"{name}{plain}") > 90:
        inside, _, answer = plain.partition(") -> ") if ") -> " in plain else (plain[:-1], "", "")
        parts = re.split(r", (?![^\[(]*[\])])", inside[1:])
        plain = "(\n" + "".join(f"    {part},\n" for part in parts) + ")" + (f" -> {answer}" if answer else "")
    return ["```text", f"{name}{plain}", "```", ""]


def _said(section: type[BaseModel]) -> str:
    return _cell(" ".join((section.__doc__ or "").split("\n\n")[0].split()))


def _doc(value: Any) -> list[str]:
    return _paragraphs(inspect.getdoc(value) or "")


def _paragraphs(doc: str) -> list[str]:
    """Return the paragraphs of a docstring as Markdown, and its examples as code."""
    found = list[str]()
    for block in re.split(r"\n\s*\n", doc):
        if block.lstrip().startswith(">>>"):
            found += ["```pycon", inspect.cleandoc(block), "```", ""]
        elif block.startswith("    "):
            found += ["```text", inspect.cleandoc(block), "```", ""]
        else:
            found += [_cell(re.sub("::$", ":", " ".join(block.split()))), ""]
    return found


def _cell(text: str) -> str:
    """Return *text*, marked as docstrings are, as Markdown for a paragraph or a table's cell."""
    parts = re.split(r"(``.+?``|(?<!`)`[^`]+`)", text)
    return "".join(f"`{part.strip('`')}`" if i % 2 else _plain(part) for i, part in enumerate(parts))


def _plain(text: str) -> str:
    kept = re.sub(r"([\\\[\]_])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;")).replace("|", "&#124;")
    return re.sub(r"\*(\w+)\*", r"<em>\1</em>", kept)
