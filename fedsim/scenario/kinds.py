"""Every ``kind`` a scenario can name: which registry answers, what its settings are, and whether they are right."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.core.types import Range
from fedsim.scenario.explain import Wanted, explain
from fedsim.scenario.meanings import meaning
from fedsim.scenario.schema import Energy, Schedule
from fedsim.scenario.words import about, of_setting

HUGE = 1e5
"""Bounds from which on a list of keys does not say them."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the scenario that takes a kind: its dotted key, the word for what goes there, its registry.

    *common* has the settings that stand in the same table whichever kind it is; they are the scenario's own, and no kind hears of them.
    """

    key: str
    noun: str
    registry: Registry[Any]
    common: type[BaseModel] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Return every dotted key at which it may stand."""
        return (self.key, *self.registry.also)

    @property
    def shared(self) -> dict[str, FieldInfo]:
        """Return the settings that any kind has here, by name."""
        return {name: field for name, field in self.common.model_fields.items() if name != "kind"} if self.common else {}


def slots() -> dict[str, Slot]:
    """Return every slot but the strategy's, by noun. Imports what registers, torch included."""
    from fedsim.client.detectors import detectors
    from fedsim.client.reactions import reactions
    from fedsim.codec import bfloat16, codecs  # pyright: ignore[reportUnusedImport]  # noqa: F401
    from fedsim.cost import profiles, recorded  # pyright: ignore[reportUnusedImport]  # noqa: F401  # Importing registers.
    from fedsim.cost.availability import availabilities
    from fedsim.cost.compute import computes
    from fedsim.cost.energy import energies
    from fedsim.cost.failures import failures
    from fedsim.cost.loading import loaders
    from fedsim.cost.network import networks
    from fedsim.cost.ram import rams
    from fedsim.data import bundled, counted, files, river, synthetic  # pyright: ignore[reportUnusedImport]  # noqa: F401  # Importing registers.
    from fedsim.data import recorded as recorded_streams  # pyright: ignore[reportUnusedImport]  # noqa: F401
    from fedsim.data.partition import partitions
    from fedsim.data.replay import losses, policies, replays, vectors  # pyright: ignore[reportUnusedImport]  # noqa: F401
    from fedsim.data.source import sources
    from fedsim.data.stream import classes, trace  # pyright: ignore[reportUnusedImport]  # noqa: F401
    from fedsim.data.stream.arrivals import arrivals
    from fedsim.data.stream.change import changes
    from fedsim.data.stream.drift import onsets, schedules
    from fedsim.data.stream.labelling import labellings
    from fedsim.data.stream.order import orders
    from fedsim.data.stream.trigger import triggers
    from fedsim.learn import optim_adaptive, sequences, sized  # pyright: ignore[reportUnusedImport]  # noqa: F401
    from fedsim.learn.algorithms import algorithms, feddyn, fednova, scaffold  # pyright: ignore[reportUnusedImport]  # noqa: F401
    from fedsim.learn.batch_policies import batch_policies
    from fedsim.learn.clipping import clippings
    from fedsim.learn.controllers import controllers
    from fedsim.learn.engine.executors import executors, local, processes  # pyright: ignore[reportUnusedImport]  # noqa: F401
    from fedsim.learn.models import models
    from fedsim.learn.objectives import objectives
    from fedsim.learn.optim import optimizers
    from fedsim.learn.rehearsal import a_gem, der, er, ewc, lwf, rehearsals, union  # pyright: ignore[reportUnusedImport]  # noqa: F401
    from fedsim.learn.schedules import lr_schedules
    from fedsim.learn.stopping import stoppings
    from fedsim.strategy.pacing import pacings

    found: list[Registry[Any]] = [
        sources, partitions, computes, networks, availabilities, rams, replays, detectors, reactions, triggers, arrivals, orders,
        labellings, changes, schedules, onsets, models, optimizers, clippings, objectives, rehearsals, algorithms, codecs, stoppings,
        executors, lr_schedules, controllers, batch_policies, loaders, energies, failures,
        pacings,
    ]  # fmt: skip
    common: dict[str, type[BaseModel]] = {lr_schedules.noun: Schedule, energies.noun: Energy}
    return {registry.noun: Slot(registry.key, registry.noun, registry, common.get(registry.noun)) for registry in found}


def chosen(slot: Slot, table: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function that *table* names and its checked settings. Raises ScenarioError in the reader's words."""
    kind, given = kind_of(slot.key, table), {name: value for name, value in table.items() if name != "kind"}
    function = slot.registry.get(kind, at=f"{slot.key}.kind")
    model = settings_model(slot.registry, function, kind)
    try:
        checked = model.model_validate(given)
    except ValidationError as error:
        takes = {**_takes(slot.registry, function), **dict.fromkeys(slot.shared, Wanted())}
        raise ScenarioError(explain(error, slot.key, takes, owner=kind)) from None
    return function, {name: getattr(checked, name) for name in checked.model_fields_set}


def settings_model(registry: Registry[Any], function: Callable[..., Any], kind: str) -> type[BaseModel]:
    """Return a pydantic model of what may be set of *function*: the same checks for the file and the JSON Schema."""
    fields: dict[str, Any] = {
        name: (_checked(p.annotation), ... if p.default is inspect.Parameter.empty else p.default)
        for name, p in registry.settings(function).items()
    }
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model(kind, __config__=config, **fields)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a reader sees it: its name, what it takes, its default (or 'required'), and what it means."""

    name: str
    takes: str
    default: str
    meaning: str


def describe(registry: Registry[Any], kind: str) -> tuple[str, list[Setting]]:
    """Return what *kind* is, in words, and its settings."""
    function = registry.get(kind, at=registry.noun)
    return about(function, kind), settings_of(function, registry.settings(function), registry.noun, kind)


def settings_of(function: Callable[..., Any], takes: Mapping[str, inspect.Parameter], noun: str, kind: str) -> list[Setting]:
    """Return the settings *takes* of *function* as a reader sees them."""
    return [
        Setting(
            name, words(p.annotation), "required" if p.default is inspect.Parameter.empty else _literal(p.default),
            of_setting(function, name, p.annotation, noun=noun, kind=kind),
        )
        for name, p in takes.items()
    ]  # fmt: skip


def shared_settings(slot: Slot) -> list[Setting]:
    """Return the settings that any kind has in the table at *slot*, as a reader sees them."""
    return [Setting(name, _ranged(field), _literal(field.default), field.description or "") for name, field in slot.shared.items()]


def key_settings(section: type[BaseModel], names: Iterable[str]) -> list[Setting]:
    """Return the keys *names* of *section* of a scenario, each with what it takes, its default and its meaning."""
    return [_key(name, section.model_fields[name], meaning(section, name)) for name in names]


def _key(name: str, field: FieldInfo, said: str) -> Setting:
    made: Any = field.get_default(call_default_factory=True)
    default = "required" if field.is_required() else "" if isinstance(made, BaseModel | dict) else _literal(made)
    return Setting(name, _ranged(field), default, said)


def _ranged(field: FieldInfo) -> str:
    return f"{words(field.annotation)} {_bounds(field)}".strip()


def _bounds(field: FieldInfo) -> Range:
    """Return the range of *field*, a billion and the like left out: they keep numbers in bounds, and tell a reader nothing."""
    bounds = {name: getattr(mark, name) for mark in field.metadata for name in ("gt", "ge", "lt", "le") if hasattr(mark, name)}
    return Range(**{name: bound for name, bound in bounds.items() if bound < HUGE})


def words(hint: Any) -> str:
    """Return a type hint as a reader of scenario files would say it.

    >>> words(Annotated[float, Range(gt=0)]), words(list[int]), words(bool)
    ('number > 0', 'list of whole number', 'true or false')
    """
    plain: dict[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "anything"}
    if get_origin(hint) is Annotated:
        base, *marks = get_args(hint)
        ranges = " ".join(str(_bounds(m) if isinstance(m, FieldInfo) else m) for m in marks if isinstance(m, Range | FieldInfo))
        return f"{words(base)} {ranges}".strip()
    if hint in plain:
        return plain[hint]
    if get_origin(hint) is dict:
        return f"table of {words(get_args(hint)[1])}" if get_args(hint)[1] is not Any else "table"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "table"
    arguments = [argument for argument in get_args(hint) if argument is not type(None)]
    if get_origin(hint) in (list, Sequence):
        return f"list of {words(arguments[0])}"
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return " | ".join(arguments)
    if {int, float} <= set(arguments):  # To a reader a whole number is one.
        arguments.remove(int)
    return " or ".join(words(argument) for argument in arguments) or getattr(hint, "__name__", str(hint)).lower()


def kind_of(key: str, table: Mapping[str, Any]) -> str:
    """Return the kind that *table*, which stands at *key*, names."""
    if "kind" not in table:
        raise ScenarioError(f"{key}.kind: missing. A table like {{ kind = '...' }} goes here; see 'fedsim list'.")
    if not isinstance(table["kind"], str):
        raise ScenarioError(f"{key}.kind = {table['kind']!r}: must be text in quotes; see 'fedsim list'.")
    return table["kind"]


def _takes(registry: Registry[Any], function: Callable[..., Any]) -> dict[str, Wanted]:
    """Return, for each setting of *function*, what it takes and what its range means."""
    found: dict[str, Wanted] = {}
    for name, parameter in registry.settings(function).items():
        marks = [mark for mark in _marks(parameter.annotation) if isinstance(mark, Range)]
        found[name] = Wanted(words(parameter.annotation), next((mark.why for mark in marks if mark.why), ""))
    return found


def _marks(hint: Any) -> list[Any]:
    """Return every mark on *hint*, however deep it sits."""
    own = list(get_args(hint)[1:]) if get_origin(hint) is Annotated else []
    return own + [mark for argument in get_args(hint) for mark in _marks(argument)]


def _checked(hint: Any) -> Any:
    """Return *hint* with our ranges turned into pydantic's, however deep they sit."""
    if get_origin(hint) is Annotated:
        base, *marks = get_args(hint)
        for mark in marks:
            if isinstance(mark, Range):
                base = Annotated[base, Field(gt=mark.gt, ge=mark.ge, lt=mark.lt, le=mark.le)]
        return base
    if get_origin(hint) in (list, Sequence):
        return Annotated[list[_checked(get_args(hint)[0])], Field(min_length=1)]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(_checked(member) for member in get_args(hint))]  # noqa: UP007  # Of members known only now.
    return hint


def _literal(value: Any) -> str:
    """Return a default as a scenario file would have it; nothing given is nothing."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or value == () else repr(list(value) if isinstance(value, tuple) else value)  # pyright: ignore[reportUnknownArgumentType]
