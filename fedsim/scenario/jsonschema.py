"""The JSON Schemas of scenario and of fleet files: the sections from their pydantic models, each kind from its registered function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.errors import PydanticInvalidForJsonSchema

from fedsim.scenario.fleet import KINDS, Fleet, FleetClients
from fedsim.scenario.fleet import WAYS as COSTS
from fedsim.scenario.kinds import Slot, settings_model, slots
from fedsim.scenario.meanings import below, meaning
from fedsim.scenario.schema import Scenario
from fedsim.scenario.stop import BOUNDS, WAYS
from fedsim.scenario.words import about, of_setting
from fedsim.strategy import stock

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLUG_IN: dict[str, Any] = {
    "type": "object", "required": ["kind"], "properties": {"kind": {"type": "string", "pattern": ".+:.+"}},
    "description": "Your own, as 'package.module:name'; every other key is a setting of it.",
}  # fmt: skip


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that scenario files satisfy, for editors that complete and check TOML.

    What depends on more than one key (labels per shard, clients per round) only ``fedsim check`` can tell.

    >>> sorted(json_schema()["required"])
    ['clients', 'data', 'model', 'name', 'server', 'training']
    """
    schema = _meant(Scenario)
    parts: dict[str, Any] = schema["$defs"]
    places = {key: slot.noun for slot in slots().values() for key in slot.keys} | {stock.AT: "strategy"}
    for key, noun in places.items():
        section, _, name = key.rpartition(".")
        _refer(parts[section.rpartition(".")[2].capitalize()]["properties"] if section else schema["properties"], name, noun)
    del parts["Model"]  # Nothing refers to it any more.
    common = {slot.noun: _shared(parts.pop(slot.common.__name__)) for slot in slots().values() if slot.common}
    one_of = {"Training": ("epochs", "steps"), "Stop": WAYS}
    for section, ways in one_of.items():
        parts[section]["oneOf"] = [{"required": [way]} for way in ways]
    by_score = [{"required": [name]} for name in (*WAYS, "metric", "least", "goal")]
    parts["Stop"]["oneOf"].append({"anyOf": [{"required": [bound]} for bound in BOUNDS], "not": {"anyOf": by_score}})
    for slot in slots().values():
        parts[slot.noun] = _any_kind(slot, parts)
        if more := common.get(slot.noun):
            parts[slot.noun]["anyOf"] = [{**each, "properties": {**each["properties"], **more}} for each in parts[slot.noun]["anyOf"]]
    parts["strategy"] = {
        "anyOf": [*(_kind("strategy", name, stock.class_of(name), _arguments(name), parts) for name in stock.names()), PLUG_IN]
    }
    for kind in parts["strategy"]["anyOf"]:
        if "strategy" in kind["properties"]:  # A wrapper's argument of that name is a strategy table of its own.
            kind["properties"]["strategy"] = {"$ref": "#/$defs/strategy"}
    return {"$schema": DIALECT, **schema}


def fleet_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that fleet files satisfy.

    That seconds are of a device of some speed (on_gflops, or clients.compute.gflops) only a run of the fleet can tell.

    >>> sorted(fleet_schema()["required"])
    ['clients', 'name']
    """
    schema = _meant(Fleet)
    parts: dict[str, Any] = schema["$defs"]
    for slot in slots().values():
        if slot.key in {f"clients.{name}" for name in FleetClients.model_fields}:
            _refer(parts["FleetClients"]["properties"], slot.key.partition(".")[2], slot.noun)
            parts[slot.noun] = _any_kind(slot, parts)
    schema["properties"]["compute"]["propertyNames"] = {"pattern": f"^({KINDS})$"}
    parts["Cost"]["oneOf"] = [{"required": [way]} for way in COSTS]
    return {"$schema": DIALECT, **schema}


def _meant(root: type[BaseModel]) -> dict[str, Any]:
    """Return the schema that pydantic makes of *root*, with what each key means."""
    schema = root.model_json_schema()
    for section in _sections(root):
        fields = schema["properties"] if section is root else schema["$defs"][section.__name__]["properties"]
        for name in section.model_fields:
            if said := meaning(section, name):
                fields[name]["description"] = said
    return schema


def _refer(fields: dict[str, Any], name: str, noun: str) -> None:
    """Let the field *name* be a table of a kind of *noun*."""
    given = {word: fields[name][word] for word in ("default", "description") if fields[name].get(word) is not None}
    fields[name] = {**given, "$ref": f"#/$defs/{noun}"}


def _any_kind(slot: Slot, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what may stand in *slot*; what its kinds' settings refer to goes into *parts*."""
    functions = {name: slot.registry.get(name, at=slot.key) for name in slot.registry.names()}
    kinds = [_kind(slot.noun, name, f, settings_model(slot.registry, f, name), parts) for name, f in functions.items()]
    return {"anyOf": [*kinds, PLUG_IN]}


def _sections(section: type[BaseModel]) -> list[type[BaseModel]]:
    """Return *section* and all below it."""
    return [section, *(each for name in section.model_fields if (inner := below(section, name)) for each in _sections(inner))]


def _shared(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a table's own settings are, those of its kinds apart."""
    own = {name: dict(given) for name, given in section["properties"].items() if name != "kind"}
    return {name: {word: value for word, value in given.items() if word != "title"} for name, given in own.items()}


def _kind(noun: str, name: str, function: Callable[..., Any], settings: type[BaseModel], parts: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the table ``{ kind = name, settings }``; what its settings refer to goes into *parts*."""
    try:
        found = settings.model_json_schema()
    except PydanticInvalidForJsonSchema:  # A stranger's function that takes what JSON cannot say: its settings go unchecked.
        found: dict[str, Any] = {"additionalProperties": True}
    parts.update(found.pop("$defs", {}))
    what = about(function, name)
    return {
        **({"description": what} if what else {}),
        "type": "object",
        "properties": {"kind": {"const": name}, **_told(noun, name, function, found.get("properties", {}))},
        "required": ["kind", *found.get("required", [])],
        "additionalProperties": found.get("additionalProperties", False),
    }


def _told(noun: str, kind: str, function: Callable[..., Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return *properties* with what each setting means; pydantic titles them with their own names, which tells nothing."""
    found: dict[str, Any] = {}
    for name, given in properties.items():
        meaning = of_setting(function, name, noun=noun, kind=kind)
        rest = {word: value for word, value in given.items() if word != "title"}
        found[name] = {**rest, **({"description": meaning} if meaning else {})}
    return found


def _arguments(kind: str) -> type[BaseModel]:
    """Return a pydantic model of what a scenario may set of stock strategy *kind*."""
    takes = stock.arguments(kind)
    fields: dict[str, Any] = {
        name: (Any if name == "strategy" else _hint(name, p), ... if p.default is inspect.Parameter.empty else p.default)
        for name, p in takes.items()
    }
    if {"fraction_train", "min_train_nodes"} <= set(takes):
        fields["clients_per_round"] = (Annotated[int, Field(ge=1)], None)
    return create_model(kind, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields)


def _hint(setting: str, parameter: inspect.Parameter) -> Any:
    hint = parameter.annotation
    if setting.startswith(("min_", "num_")):
        return Annotated[hint, Field(ge=0)]
    return Annotated[hint, Field(ge=0, le=1)] if setting == "fraction_train" else hint
