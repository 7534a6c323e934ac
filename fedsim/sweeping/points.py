"""Which variants a grid, a list or a random search has, and what each is called. Draws by named keys; knows no run and no optuna."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.sweeping.space import MOST, Assignment, Axis, Space, flat

LONGEST = 80
"""Characters of a variant's name."""


@dataclass(frozen=True)
class Point:
    """A variant that is asked for: its *number*, from 0, its *name*, which is that of its runs' folders, and the values it sets."""

    number: int
    name: str
    assignment: Assignment


def fixed(space: Space, key: Key) -> list[Point]:
    """Return the variants of a grid, a list or a random search, whose draws are of *key*, each named by number and axis."""
    kind = space.file.search.kind
    if kind == "list":
        found = [flat(point) for point in space.file.points]
    elif kind == "random":
        found = [drawn(space.axes, key.fold("trial", n)) for n in range(space.file.search.trials or 0)]
    else:
        found = grid(space.axes)
    by_kind = told_by_kind(space)
    called = [words(each, by_kind) for each in found]
    plain = kind != "random" and len(set(called)) == len(called) and max(map(len, called)) <= LONGEST
    return [Point(n, name if plain else numbered(n, name), each) for n, (name, each) in enumerate(zip(called, found, strict=True))]


def grid(axes: Sequence[Axis]) -> list[Assignment]:
    """Return every combination of the axes' values, the last axis fastest. Raises ScenarioError for more than are a sweep."""
    values = [axis.grid() for axis in axes]
    if (many := math.prod(map(len, values))) > MOST:
        counts = " x ".join(str(len(each)) for each in values)
        wish = f"at most {MOST:,} are a sweep. search.kind = 'random' draws some."
        raise ScenarioError(f"keys: a grid of {counts} = {many:,} variants; {wish}")
    return [{key: value for part in parts for key, value in part.items()} for parts in itertools.product(*values)]


def drawn(axes: Sequence[Axis], key: Key) -> Assignment:
    """Return the values that *key* draws, each axis by its own name: another axis moves none of the others'."""
    return {name: value for axis in axes for name, value in axis.at(key.fold(axis.name).uniform_at(0)).items()}


def numbered(number: int, name: str) -> str:
    """Return *name* with its number before it, so that it is one of its kind."""
    return f"{number:03d},{name}"[:LONGEST]


def told_by_kind(space: Space) -> frozenset[str]:
    """Return the keys whose values are tables that differ by their kind: it stands for all of such a table in a name."""
    given = [*(choice for axis in space.axes for choice in axis.choices), *(flat(point) for point in space.file.points)]
    found = set[str]()
    for key in space.varied:
        tables = [each[key] for each in given if key in each]
        kinds = [table.get("kind") if isinstance(table, Mapping) else None for table in tables]
        apart = [table for i, table in enumerate(tables) if table not in tables[:i]]
        if kinds and None not in kinds and len(set(kinds)) == len(apart):
            found.add(key)
    return frozenset(found)


def words(assignment: Mapping[str, Any], by_kind: frozenset[str] = frozenset()) -> str:
    """Return the name of a variant: its keys by their last words, as many as tell them apart, and the values.

    Of tables at keys *by_kind* only the kind is said.

    >>> words({"training.optimizer.lr": 0.1, "server.strategy": {"kind": "FedAvg"}, "training.batch_size": "full"})
    'lr=0.1,strategy=FedAvg,batch_size=full'
    >>> words({"codec.up.bits": 8, "codec.down.bits": 4})
    'up.bits=8,down.bits=4'
    """
    names = short(list(assignment))
    brief = {key: {"kind": value["kind"]} if key in by_kind else value for key, value in assignment.items()}
    said = ",".join(f"{names[key]}={spoken(value)}" for key, value in brief.items())
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "-", said).strip("-.,") or "as-it-is"


def short(keys: Sequence[str]) -> dict[str, str]:
    """Return each of *keys* by its last words, as many as it takes to tell them apart."""
    found: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        found[key] = next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)
    return found


def spoken(value: Any) -> str:
    """Return *value* in a few letters; a table is its kind and its settings.

    >>> spoken(0.1), spoken(True), spoken({"kind": "FedProx", "proximal_mu": 0.1}), spoken([32, 16])
    ('0.1', 'true', 'FedProx-proximal_mu=0.1', '32-16')
    """
    if isinstance(value, Mapping):
        kind = str(value.get("kind", ""))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        rest = [f"{name}={spoken(each)}" for name, each in value.items() if name != "kind"]  # pyright: ignore[reportUnknownVariableType]
        return "-".join([*([kind.rpartition(":")[2]] if kind else []), *rest])
    if isinstance(value, list):
        return "-".join(spoken(each) for each in value)  # pyright: ignore[reportUnknownVariableType]
    if value is None:
        return "as-it-is"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)
