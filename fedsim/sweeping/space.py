"""The sweep file: which scenario, which seeds, which keys with which values, and how they are searched. Checks words; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fedsim.core.errors import ScenarioError, choices
from fedsim.scenario.explain import explain, sections
from fedsim.scenario.load import read_table
from fedsim.scenario.section import Section, Table

WAYS = ("grid", "list", "random", "optuna")
MOST = 100_000
"""Variants that a sweep may have."""
WAVE = 4
"""Trials that are asked for at once, unless a sweep says otherwise."""
Assignment = dict[str, Any]
"""Values by dotted key of the scenario: what makes a variant of it."""


class Search(Section):
    """How the keys are searched."""

    kind: Literal["grid", "list", "random", "optuna"] = "grid"
    trials: Annotated[int | None, Field(ge=1, le=MOST)] = None
    wave: Annotated[int, Field(ge=1, le=1000)] = WAVE
    sampler: Table | None = None
    pruner: Table | None = None


class SweepFile(Section):
    """A sweep, as its file says it."""

    name: Annotated[str | None, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = None
    scenario: str | Table
    seeds: int | list[int] = 1
    measure: str | list[str] | None = None
    direction: Literal["minimize", "maximize"] | list[Literal["minimize", "maximize"]] | None = None
    target: str | None = None
    pareto: list[str] | None = None
    set: dict[str, Any] = Field(default_factory=dict[str, Any])
    search: Search = Search()
    keys: dict[str, Any] = Field(default_factory=dict[str, Any])
    together: dict[str, list[dict[str, Any]]] = Field(default_factory=dict[str, list[dict[str, Any]]])
    points: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])


class Range(Section):
    """Numbers from *low* to *high*, both included: all, or every *step*; of a grid, *points* of them. On a *log* scale, whole ones."""

    low: float | int
    high: float | int
    log: bool = False
    step: Annotated[float | int | None, Field(gt=0)] = None
    integer: bool = False
    points: Annotated[int | None, Field(ge=2, le=MOST)] = None


@dataclass(frozen=True, slots=True)
class Span:
    """A range that holds together: its ends, the distance of its values (0 for all between), and what kind of numbers they are."""

    low: float
    high: float
    log: bool
    step: float
    integer: bool
    points: int

    def number(self, value: float, digits: int = 6) -> float | int:
        """Return *value* as the scenario takes it: whole, or in so many *digits* as a name has room for."""
        return round(value) if self.integer else min(max(float(f"{value:.{digits}g}"), self.low), self.high)

    @property
    def steps(self) -> int:
        """Return how many values lie on the steps; 0 where there are none."""
        return 0 if not self.step else math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def at(self, share: float) -> float | int:
        """Return the value at *share*, in [0, 1), of the way: each is equally likely where shares are.

        >>> Span(0.01, 1.0, True, 0.0, False, 0).at(0.5), Span(1, 6, False, 1, True, 0).at(0.999)
        (0.1, 6)
        >>> [Span(0.0, 1.0, False, 0.25, False, 0).at(share) for share in (0.0, 0.5, 0.999)]
        [0.0, 0.5, 1.0]
        """
        if self.step and not self.log:
            return self.number(self.low + self.step * min(int(share * self.steps), self.steps - 1), 12)
        if self.integer:  # Of whole numbers on a log scale each has the room of its own half steps.
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(max(self.number(math.exp(low + share * (high - low))), int(self.low)), int(self.high))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + share * (high - low)
        return self.number(math.exp(value) if self.log else value)

    def values(self, key: str) -> list[float | int]:
        """Return the values that a grid has. Raises ScenarioError where nobody says how many."""
        if self.points:
            shares = [i / (self.points - 1) for i in range(self.points)]
            low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
            between = [low + share * (high - low) for share in shares]
            found = [math.exp(value) if self.log else value for value in between]
            few = list(dict.fromkeys(self.number(value, 3) for value in found))
            return few if len(few) == len(found) or self.integer else [self.number(value) for value in found]
        if self.step and not self.log:
            return [self.number(self.low + i * self.step, 12) for i in range(self.steps)]
        raise ScenarioError(f"keys.{key}: a grid needs to know which values: points = 5 with log, or step = 0.1; or list them.")


@dataclass(frozen=True, slots=True)
class Axis:
    """What a sweep varies: one key over *choices* or a *span*, or several that move together, over choices by the name of them all."""

    name: str
    choices: tuple[Assignment, ...] = ()
    span: Span | None = None

    def grid(self) -> list[Assignment]:
        """Return the assignments that a grid has."""
        return [{self.name: value} for value in self.span.values(self.name)] if self.span else list(self.choices)

    def at(self, share: float) -> Assignment:
        """Return the assignment at *share*, in [0, 1), of the way."""
        return {self.name: self.span.at(share)} if self.span else self.choices[int(share * len(self.choices))]

    @property
    def ends(self) -> list[Assignment]:
        """Return some assignments that show whether the scenario takes the key: all choices, or the ends of a range."""
        if self.span is None:
            return list(self.choices)
        return [{self.name: self.span.number(value)} for value in dict.fromkeys((self.span.low, self.span.high))]


@dataclass(frozen=True, slots=True)
class Space:
    """A sweep file that was read and checked, and the *folder* beside which its scenario lies; *asked* is the file as a plain table."""

    file: SweepFile
    name: str
    folder: Path
    axes: tuple[Axis, ...]
    asked: Mapping[str, Any]

    @property
    def source(self) -> Path | Mapping[str, Any]:
        """Return the scenario: a file, or a table."""
        scenario = self.file.scenario
        return self.folder / scenario if isinstance(scenario, str) else scenario

    @property
    def varied(self) -> tuple[str, ...]:
        """Return every key that some variant sets, in the order of the file."""
        tables = [*(each for axis in self.axes for each in axis.choices or ({axis.name: None},)), *self.file.points]
        return tuple(dict.fromkeys(key for table in tables for key in table))


def read(source: str | Path | Mapping[str, Any], settings: Mapping[str, Any] | None = None, **more: Any) -> Space:
    """Return the sweep in *source*, a file or a table, with *settings* by dotted key of the scenario put under its ``set``.

    *more* are keys of the sweep, said elsewhere, which stand before the file's where they are not None.

    Raises ScenarioError, one line in the reader's words, for whatever is wrong with it.
    """
    table, folder = read_table(source, None, None, SweepFile)
    table |= {name: value for name, value in more.items() if value is not None}
    table = {**table, "set": {**flat(table.get("set", {})), **(settings or {})}} if settings or "set" in table else table
    try:
        file = SweepFile.model_validate(table)
    except ValidationError as error:
        line = explain(error, "", sections(SweepFile)).replace("A scenario needs it", "A sweep needs it")
        hint = " A sweep has search, keys, together, points; a scenario is named by it: scenario = 'quickstart.toml'."
        raise ScenarioError(line + (hint if "server" in table or "clients" in table else "")) from None
    stem = Path(source).stem if not isinstance(source, Mapping) else "sweep"
    axes = (*(_axis(key, value) for key, value in _keys(file.keys).items()), *(_moving(n, t) for n, t in file.together.items()))
    space = Space(file, file.name or stem, folder, axes, table)
    _check(space)
    return space


def flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return *table* by dotted key: what TOML makes of ``training.optimizer.lr = 1``, and of the same in quotes.

    A table with a ``kind`` is a value.

    >>> flat({"training": {"optimizer": {"lr": 1}}, "server.strategy": {"kind": "FedAvg"}})
    {'training.optimizer.lr': 1, 'server.strategy': {'kind': 'FedAvg'}}
    """
    found: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{above}.{name}" if above else name
        found |= flat(value, key) if isinstance(value, Mapping) and "kind" not in value else {key: value}  # pyright: ignore[reportUnknownArgumentType]
    return found


def _keys(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return what is varied by dotted key; a table is a range where it has ends, and holds further keys otherwise."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{above}.{name}" if above else name
        holds = isinstance(value, Mapping) and not {"low", "high"} & value.keys()
        found |= _keys(value, key) if holds else {key: value}
    return found


def _axis(key: str, value: Any) -> Axis:
    if isinstance(value, Mapping):
        return Axis(key, span=_span(key, value))
    if not isinstance(value, list) or not value:
        likes = "a list of values, like [0.1, 0.3], or a range, { low = 0.01, high = 1.0 }"
        raise ScenarioError(f"keys.{key} = {value!r:.60}: must be {likes}.")
    return Axis(key, tuple({key: each} for each in _once(value)))  # pyright: ignore[reportUnknownArgumentType]


def _span(key: str, value: Mapping[str, Any]) -> Span:
    at = f"keys.{key}"
    try:
        asked = Range.model_validate(value)
    except ValidationError as error:
        raise ScenarioError(explain(error, at, sections(Range)).replace("A scenario needs it", "A range needs it")) from None
    if not asked.low < asked.high:
        raise ScenarioError(f"{at}: low = {asked.low:g} must be below high = {asked.high:g}.")
    if asked.log and asked.low <= 0:
        raise ScenarioError(f"{at}: low = {asked.low:g} must be > 0 on a log scale.")
    if asked.log and asked.step is not None:
        raise ScenarioError(f"{at}: step and log do not go together. Leave one out, or give points = {asked.points or 5}.")
    numbers = (asked.low, asked.high, *([] if asked.step is None else [asked.step]))
    if asked.integer and any(number != int(number) for number in numbers):
        raise ScenarioError(f"{at}: integer = true wants whole numbers for low, high and step.")
    step = asked.step or (1 if asked.integer and not asked.log else 0)
    return Span(asked.low, asked.high, asked.log, step, asked.integer, asked.points or 0)


def _moving(name: str, tables: Sequence[Mapping[str, Any]]) -> Axis:
    given = [flat(table) for table in tables]
    if not given:
        raise ScenarioError(f"together.{name}: is empty. Each [[together.{name}]] gives values to the same keys.")
    for other in given[1:]:
        if other.keys() != given[0].keys():
            apart = ", ".join(sorted(other.keys() ^ given[0].keys()))
            raise ScenarioError(f"together.{name}: its tables give values to different keys ({apart}); each gives the same keys one.")
    return Axis(name, tuple(_once(given)))


def _once(values: Sequence[Any]) -> list[Any]:
    """Return *values* without those that came before: 1 and 1.0 are two, for a scenario may take one of them only."""
    found: list[Any] = []
    for value in values:
        if not any(type(value) is type(each) and value == each for each in found):
            found.append(value)
    return found


def _check(space: Space) -> None:
    file, kind, given = space.file, space.file.search.kind, space.file.search.model_fields_set
    keys = [key for axis in space.axes for key in (axis.choices[0] if axis.choices else {axis.name: None})]
    if kind == "list" and (space.axes or not file.points):
        raise ScenarioError("search.kind = 'list': wants its variants as [[points]], each a table of keys, and no keys or together.")
    if kind != "list" and file.points:
        raise ScenarioError(f"points: go with search.kind = 'list', and this is {kind!r}.")
    if kind != "list" and not space.axes:
        raise ScenarioError("keys: missing. A sweep needs what to vary, like 'training.optimizer.lr' = [0.1, 0.3].")
    for key in keys:
        if keys.count(key) > 1:
            raise ScenarioError(f"keys.{key}: is varied twice, and together with others. Leave one out.")
    for key in {*keys, *(key for point in file.points for key in flat(point))}:
        if key == "seed":
            raise ScenarioError("keys.seed: seeds are no variants: seeds = 5, or seeds = [1, 2, 3]. Each variant runs with all of them.")
        if key == "name":
            raise ScenarioError("keys.name: the name of a scenario makes no variant of it.")
    drawn = kind in ("random", "optuna")
    if drawn != (file.search.trials is not None):
        said = f"missing. {kind!r} needs how many." if drawn else f"goes with random and optuna; a {kind} has all."
        raise ScenarioError(f"search.trials: {said}")
    if "sampler" in given and kind != "optuna":
        raise ScenarioError(f"search.sampler: goes with search.kind = 'optuna', and this is {kind!r}.")
    if isinstance(file.direction, list) != isinstance(file.measure, list) and file.direction is not None:
        raise ScenarioError("direction: goes with measure: one of each, or as many of both.")
    if isinstance(file.direction, list) and isinstance(file.measure, list) and len(file.direction) != len(file.measure):
        raise ScenarioError(f"direction: has {len(file.direction)}, and measure {len(file.measure)}. Give one for each.")
    if isinstance(file.measure, list) and (not file.measure or len(set(file.measure)) < len(file.measure)):
        raise ScenarioError(f"measure = {file.measure}: must be one measure or more, each once.")
    if file.search.pruner is not None and isinstance(file.measure, list) and len(file.measure) > 1:
        raise ScenarioError("search.pruner: goes by one measure, and this sweep has several.")


def chosen_of(kind: str, options: Sequence[str], at: str) -> None:
    """Raise ScenarioError unless *kind*, named at *at*, is one of *options*."""
    if kind not in options:
        raise ScenarioError(f"{at}.kind = {kind!r}: no such {at.rpartition('.')[2]}. {choices(kind, options)}")
