"""Pydantic's errors in the reader's words: one line with the dotted key, the value, and what would have worked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fedsim.core.errors import choices

_TYPES = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "string_type": "text in quotes", "dict_type": "a table like { kind = '...' }", "model_type": "a table",
    "model_attributes_type": "a table", "list_type": "a list", "finite_number": "a finite number",
}  # fmt: skip
_SIGNS = {"greater_than": (">", "gt"), "greater_than_equal": (">=", "ge"), "less_than": ("<", "lt"), "less_than_equal": ("<=", "le")}
_PLAIN: dict[Any, str] = {int: "whole number", float: "number", str: "text in quotes", bool: "true or false"}
_MEMBERS = {"int", "float", "str", "bool", "dict"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a key takes, in words; *why* says what its range means; *keys* are a section's own."""

    words: str = ""
    why: str = ""
    keys: Mapping[str, Wanted] = field(default_factory=dict[str, "Wanted"])


def sections(model: type[BaseModel]) -> dict[str, Wanted]:
    """Return what each key of *model* takes, sections with the keys below them."""
    found: dict[str, Wanted] = {}
    for name, about in model.model_fields.items():
        inside = () if get_origin(about.annotation) is dict else get_args(about.annotation)  # A table's keys are no type of it.
        hints = (about.annotation, *inside)
        below = next((hint for hint in hints if isinstance(hint, type) and issubclass(hint, BaseModel)), None)
        words = next((_PLAIN[hint] for hint in hints if hint in _PLAIN), "table like { kind = '...' }")
        found[name] = Wanted(words) if below is None else Wanted("table", "", sections(below))
    return found


NAMED = 5
"""Further keys that an error line names at most."""


def explain(error: ValidationError, prefix: str, takes: Mapping[str, Wanted], owner: str = "") -> str:
    """Return the first of *error*'s findings as one line, and which other keys are wrong.

    *takes* says what the keys of the outermost table take; *owner* is the kind whose settings they are.
    """
    by_key: dict[tuple[str, ...], list[Any]] = {}
    for item in error.errors():
        by_key.setdefault(_path(item), []).append(item)
    path, items = next(iter(by_key.items()))
    line, others = _line(path, items, prefix, takes, owner), list(by_key)[1:]
    if not others:
        return line
    keys = ", ".join(".".join([*([prefix] if prefix else []), *other]) for other in others[:NAMED])
    return f"{line} (also wrong: {keys}{', ...' if len(others) > NAMED else ''})"


def _path(item: Any) -> tuple[str, ...]:
    if item["type"] in ("extra_forbidden", "missing"):  # The last part is a key, whatever it looks like.
        return tuple(map(str, item["loc"]))
    # Members of a union appear in a location by name; a reader has no use for them.
    return tuple(
        str(part) for part in item["loc"]
        if not (isinstance(part, str) and ("[" in part or "-" in part or part in _MEMBERS))
    )  # fmt: skip


def _line(path: tuple[str, ...], items: list[Any], prefix: str, takes: Mapping[str, Wanted], owner: str) -> str:
    item = items[0]
    key = ".".join([*([prefix] if prefix else []), *path])
    for part in path[:-1]:
        takes = takes[part].keys if part in takes else {}
    wanted = takes.get(path[-1], Wanted()) if path else Wanted()
    if item["type"] == "missing":
        return f"{key}: missing. {_needs(wanted, owner)}"
    if item["type"] == "extra_forbidden":
        has = f"{owner!r} has no such setting" if owner else "no such key"
        return f"{key}: {has}. {choices(path[-1], takes)}{_elsewhere(key)}"
    if item["type"] == "value_error":
        return f"{key}: {item['ctx']['error']}."
    shown = f"{key} = {_show(item['input'])}"
    # A union finds one fault per member: a value that fits none may be made to fit either.
    musts = list(dict.fromkeys(must for must in map(_must, items) if must))
    if musts:
        return f"{shown}: must be {' or '.join(musts)}{f' ({wanted.why})' if wanted.why else ''}."
    if item["type"] == "string_pattern_mismatch":
        return f"{shown}: letters, digits, '.', '_' and '-' only, and no '.', '_' or '-' at the front."
    return f"{shown}: {item['msg'][:1].lower()}{item['msg'][1:]}."


def _elsewhere(key: str) -> str:
    from fedsim.scenario.places import elsewhere  # It knows every kind, and kinds know this file.

    return elsewhere(key)


def _needs(wanted: Wanted, owner: str) -> str:
    if wanted.keys:
        return choices("", wanted.keys)
    a = "" if wanted.words.startswith(("text", "true", "anything")) else "a "
    why = f", {wanted.why}" if wanted.why else ""
    return f"{repr(owner) if owner else 'A scenario'} needs it ({a}{wanted.words}{why})."


def _must(item: Any) -> str:
    kind, context, given = item["type"], item.get("ctx", {}), item["input"]
    if kind == "dict_type" and isinstance(given, str) and given.isprintable() and 0 < len(given) <= 60 and "'" not in given:
        return f"a table like {{ kind = '{given}' }}"
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _SIGNS:
        sign, bound = _SIGNS[kind]
        return f"{sign} {context[bound]:g}" if isinstance(context[bound], float) else f"{sign} {context[bound]}"
    if kind == "literal_error":
        return context["expected"]
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind == "string_too_long":
        return f"text of at most {context['max_length']} characters"
    return ""


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
