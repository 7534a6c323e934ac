"""Pydantic's errors in the reader's words: one line with the dotted key, the value, and what would have worked."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from fedsim.core.errors import choices

_TYPES = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "string_type": "text in quotes", "dict_type": "a table like { kind = '...' }", "model_type": "a table",
    "model_attributes_type": "a table", "list_type": "a list", "finite_number": "a finite number",
}  # fmt: skip
_SIGNS = {"greater_than": (">", "gt"), "greater_than_equal": (">=", "ge"), "less_than": ("<", "lt"), "less_than_equal": ("<=", "le")}


def explain(error: ValidationError, prefix: str, options: list[str], owner: str = "") -> str:
    """Return the first of *error*'s findings as one line, and how many more there are.

    *options* are the keys that the outermost table takes; *owner* is the kind whose settings they are.
    """
    found = error.errors()
    line = _line(found[0], prefix, options, owner)
    more = len({tuple(_path(item["loc"])) for item in found}) - 1
    return line if not more else f"{line} (and {more} more {'error' if more == 1 else 'errors'})"


def _path(loc: tuple[int | str, ...]) -> list[str]:
    # Members of a union appear in a location by name; a reader has no use for them.
    return [str(part) for part in loc if not (isinstance(part, str) and ("[" in part or "-" in part or part in _MEMBERS))]


_MEMBERS = {"int", "float", "str", "bool", "dict"}


def _line(item: Any, prefix: str, options: list[str], owner: str) -> str:
    path = _path(item["loc"])
    key = ".".join([*([prefix] if prefix else []), *path])
    value, kind, context = item["input"], item["type"], item.get("ctx", {})
    if kind == "missing":
        return f"{key}: missing." + (f" {owner!r} needs it." if owner else "")
    if kind == "extra_forbidden":
        has = f"{owner!r} has no such setting" if owner else "no such key"
        return f"{key}: {has}. {choices(path[-1], options if len(path) == 1 else _siblings(path))}"
    shown = f"{key} = {_show(value)}"
    if kind in _TYPES:
        return f"{shown}: must be {_TYPES[kind]}."
    if kind in _SIGNS:
        sign, bound = _SIGNS[kind]
        return f"{shown}: must be {sign} {context[bound]:g}." if isinstance(context[bound], float) else f"{shown}: must be {sign} {context[bound]}."
    if kind == "literal_error":
        expected = context["expected"]
        return f"{shown}: must be {expected}."
    if kind == "value_error":
        return f"{key}: {context['error']}."
    if kind == "string_pattern_mismatch":
        return f"{shown}: letters, digits, '.', '_' and '-' only, and no '.', '_' or '-' at the front."
    return f"{shown}: {item['msg'][:1].lower()}{item['msg'][1:]}."


def _siblings(path: list[str]) -> list[str]:
    from fedsim.scenario.schema import Scenario

    fields: Any = Scenario.model_fields
    for part in path[:-1]:
        if part not in fields:
            return []
        annotation: Any = fields[part].annotation
        section = next((a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")), None)
        if section is None:
            return []
        fields = section.model_fields
    return list(fields)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
