"""From a file, a table or a run's manifest to a Scenario: overrides applied, every key and every kind checked."""

from __future__ import annotations

import copy
import datetime
import difflib
import json
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from fedsim.core.errors import RunError, ScenarioError
from fedsim.scenario.asked import asked
from fedsim.scenario.explain import explain, sections
from fedsim.scenario.schema import Scenario
from fedsim.scenario.stop import WAYS


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked scenario, the folder beside which its relative paths are looked up, and what its file says that it *asks* (asked.py)."""

    scenario: Scenario
    folder: Path
    asks: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)


def load(
    source: str | Path | Mapping[str, Any] | Scenario,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Loaded:
    """Return the scenario in *source* (a file, a table, or a Scenario) with *overrides* by dotted key applied.

    Raises ScenarioError, one line in the reader's words, for whatever is wrong with the file or an override.
    """
    table, folder = read_table(source.plain() if isinstance(source, Scenario) else source, overrides, seed, Scenario)
    try:
        return Loaded(Scenario.model_validate(table), folder, asked(source))
    except ValidationError as error:
        if isinstance(source, str | Path) and "search" in table and "scenario" in table:
            raise ScenarioError(f"{source}: is the file of a sweep, not of a scenario. It goes into fedsim sweep.") from None
        raise ScenarioError(explain(error, "", sections(Scenario))) from None


def read_table(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None, seed: int | None, schema: type[BaseModel]
) -> tuple[dict[str, Any], Path]:
    """Return the table in *source*, a file of *schema* or a table, with *overrides* applied, and the folder its paths are seen from.

    Raises ScenarioError where it cannot be read, or holds what no such file can say; *schema* is not checked yet.
    """
    if isinstance(source, Mapping):
        try:
            table, folder = copy.deepcopy(dict(source)), Path.cwd()
        except RecursionError:
            raise ScenarioError("the scenario is nested without end.") from None
    else:
        table, folder = _read(Path(source), schema), Path(source).resolve().parent
    table = plain(table)
    given = {
        _word(key): plain(value, _word(key)) for key, value in {**(overrides or {}), **({} if seed is None else {"seed": seed})}.items()
    }
    for key in sorted(given, key=_turn):  # Not in the order of saying: kinds first, and tables before what is in them.
        _set(table, key, given[key], given, schema)
    _check_sizes(table)
    return table, folder


def _word(key: object) -> str:
    if not isinstance(key, str):
        raise ScenarioError(f"{key!r:.60}: is no key; keys are text, like 'training.optimizer.lr'.")
    return key


def plain(value: Any, key: str = "", depth: int = 0) -> Any:
    """Return *value*, the reader's for *key*, as TOML would have it: numpy's and torch's numbers are numbers, paths are text.

    Raises ScenarioError for what no file can say.
    """
    if depth > DEEPEST:
        raise ScenarioError(f"{key[:60]}...: is nested deeper than {DEEPEST} tables.")
    if isinstance(value, Mapping):
        return {str(name): plain(each, f"{key}{'.' if key else ''}{name}", depth + 1) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [plain(each, key, depth + 1) for each in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, os.PathLike):
        return os.fspath(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if hasattr(value, "tolist"):  # An array or a number of numpy's or torch's.
        return plain(value.tolist(), key, depth + 1)
    if value is None or isinstance(value, str | int | float | datetime.date | datetime.time):
        return value
    raise ScenarioError(f"{key} = {value!r:.80}: is a {type(value).__name__}, which no scenario file can say.")


DEEPEST = 50
"""Tables in tables that a scenario may have; strategies that wrap strategies need a dozen."""


def _check_sizes(table: Any, key: str = "", depth: int = 0) -> None:
    """Refuse what no part of a scenario can mean: numbers beyond 64 bits, tables in tables without end."""
    if depth > DEEPEST:
        raise ScenarioError(f"{key[:60]}...: is nested deeper than {DEEPEST} tables.")
    if isinstance(table, int) and not -(2**63) <= table < 2**63:
        raise ScenarioError(f"{key} = {float(table) if abs(table) < 1e300 else 'a number without end':.3}: is more than 64 bits hold.")
    if isinstance(table, Mapping | list | tuple):
        items = cast("Mapping[Any, Any]", table).items() if isinstance(table, Mapping) else enumerate(cast("list[Any]", table))
        for name, value in items:
            if isinstance(value, Mapping | list | tuple | int):
                _check_sizes(value, f"{key}.{name}" if key else str(name), depth + 1)


def recorded(table: Mapping[str, Any]) -> tuple[Scenario, list[str]]:
    """Return the scenario that a run folder holds, and the keys in it that this version does not know.

    Raises RunError for one that cannot be read: it was edited, or another version wrote it.
    """
    known, strange = copy.deepcopy(dict(table)), list[str]()
    for _ in range(100):  # A file from anywhere may have any number of strange keys.
        try:
            return Scenario.model_validate(known), strange
        except ValidationError as error:
            extra = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
            if not extra:
                raise RunError(f"its scenario cannot be read: {explain(error, '', sections(Scenario))}") from None
            for where in extra:
                inside: Any = known
                for part in where[:-1]:
                    inside = inside[part]
                del inside[where[-1]]
                strange.append(".".join(map(str, where)))
    raise RunError(f"its scenario cannot be read: it has more than a hundred strange keys, like {strange[0]}.")


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Return the overrides that ``--set a.b=v`` words amount to; values are TOML, bare words are text.

    >>> parse_overrides(["training.optimizer.lr=0.05", "model.kind=mlp", "model.hidden=[32, 32]"])
    {'training.optimizer.lr': 0.05, 'model.kind': 'mlp', 'model.hidden': [32, 32]}
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not all(part.strip() for part in key.split(".")):
            raise ScenarioError(f"--set {setting!r}: must look like training.optimizer.lr=0.05.")
        try:
            overrides[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key.strip()] = text.strip()
        except (ValueError, RecursionError) as error:
            raise ScenarioError(f"--set {key.strip()}: {_beyond(error)}.") from None
    return overrides


def _read(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    try:
        if not path.is_file():
            beside = {p.stem: p.name for p in path.parent.glob("*.toml") if p.stem != "pyproject"} if path.parent.is_dir() else {}
            near = difflib.get_close_matches(path.stem, beside, n=1)  # Without the ending, by which all are alike.
            hint = f" Did you mean {str(path.parent / beside[near[0]])!r}?" if near else ""
            what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "no such file"
            raise ScenarioError(f"{path}: {what}.{hint} {FORMS.get(schema.__name__, 'It must be a .toml file.')}")
        text = path.read_text(encoding="utf-8-sig")  # Editors on Windows put a byte order mark in front.
        return tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{path}: {_beyond(error)}.") from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror or error}).") from None


FORMS = {
    "Scenario": "A scenario is a .toml file.", "Fleet": "A fleet is a .toml file.",
    "SweepFile": "A sweep is a .toml file, or the folder of one that was begun.",
}  # fmt: skip
"""What a file of each schema is, for whoever named something else."""


def _beyond(error: ValueError | RecursionError) -> str:
    """Return what is too much for Python's own reader, in the reader's words."""
    return (
        "is nested too deep"
        if isinstance(error, RecursionError)
        else "holds a whole number of thousands of digits; 64 bits are what there is"
    )


ALTERNATIVES = (
    ("training.epochs", "training.steps"),
    ("server.strategy.fraction_train", "server.strategy.clients_per_round"),
    tuple(f"stop.{way}" for way in WAYS),
)
"""Keys of which one is given: setting one takes the others away."""


def _turn(key: str) -> tuple[int, bool]:
    return key.count("."), key.rpartition(".")[2] != "kind"


def _default(path: Sequence[str], schema: type[BaseModel]) -> dict[str, Any]:
    """Return the table that stands at *path* where a file says nothing, so that one setting of it can be set; else an empty one."""
    section: Any = schema
    for part in path:
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return {}
        section = next(
            (kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel)),
            None,
        )
        if section is None:
            given = field.get_default(call_default_factory=True)
            return dict(given) if isinstance(given, Mapping) else {}  # pyright: ignore[reportUnknownArgumentType]
    return {}


def _set(
    table: dict[str, Any], key: str, value: Any, asked: Collection[str] = (), schema: type[BaseModel] = Scenario
) -> None:
    """Set *key* in *table*; of alternatives the others go, unless they are *asked* for too."""
    *path, last = key.split(".")
    at: dict[str, Any] = table
    for depth, part in enumerate(path):
        below = at.setdefault(part, _default(path[: depth + 1], schema))
        if not isinstance(below, dict):
            where = ".".join(path[: depth + 1])
            raise ScenarioError(f"{key}: cannot be set, because {where} = {json.dumps(below)} is not a table.")
        at = cast(dict[str, Any], below)
    if last == "kind" and at.get("kind") != value:
        at.clear()  # Another kind takes other settings; those of the old one go with it.
    for group in ALTERNATIVES:
        for other in group if key in group else ():
            if other != key and other not in asked:
                at.pop(other.rpartition(".")[2], None)
    at[last] = copy.deepcopy(value)  # A later override may write into it, and it is the caller's.
