"""The JSON Schemas of scenario and fleet files: they take what fedsim takes, and see the slips of a person who types."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim import ScenarioError
from fedsim.scenario.fleet import Cost, Fleet, FleetClients, FleetEngine, devices, load_fleet
from fedsim.scenario.jsonschema import fleet_schema, json_schema
from fedsim.scenario.kinds import slots
from fedsim.scenario.load import _set
from fedsim.scenario.section import Transport
from fedsim.strategy import stock

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, which nbformat brings")
SCENARIOS = sorted((Path(__file__).resolve().parents[1] / "scenarios").glob("*.toml"))
FLEETS = sorted((Path(__file__).resolve().parents[1] / "scenarios" / "fleets").glob("*.toml"))


@functools.cache
def schema() -> dict[str, Any]:
    """Return the schema, made once."""
    return json_schema()


@functools.cache
def of_fleets() -> dict[str, Any]:
    """Return the schema of fleets, made once."""
    return fleet_schema()


def complaints(table: dict[str, Any], by: Callable[[], dict[str, Any]] = schema) -> list[str]:
    """Return the dotted keys that the schema refuses in *table*."""
    found = jsonschema.Draft202012Validator(by()).iter_errors(table)
    return sorted(".".join(map(str, error.absolute_path)) for error in found)


@pytest.mark.parametrize("of", [schema, of_fleets], ids=["scenarios", "fleets"])
def test_it_is_a_schema(of: Callable[[], dict[str, Any]]) -> None:
    """The schema is valid by the rules of draft 2020-12, and each of its references leads somewhere."""
    jsonschema.Draft202012Validator.check_schema(of())

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert set() == references(of()) - {f"#/$defs/{name}" for name in of()["$defs"]}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_our_scenarios_satisfy_it(path: Path) -> None:
    """Each file in scenarios/ satisfies the schema."""
    assert [] == complaints(tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "overrides",
    [
        {"training.batch_size": "full"},
        {"training.optimizer.lr": 1},
        {"server.strategy": {"kind": "FedAvg", "clients_per_round": 3}},
        {"server.strategy": {"kind": "my_pkg.rules:Mine", "anything": [1, {"goes": True}]}},
        {"model": {"kind": "my_pkg.nets:Net", "width": 3}},
        {"model": {"kind": "mlp", "hidden": [8, 8]}},
        {"data.source": {"kind": "csv", "path": "a.csv", "label": "y"}},
        {"stop": {"metric": "accuracy", "at_least": 0.9}},
        {
            "server.strategy": {
                "kind": "DifferentialPrivacyServerSideFixedClipping", "noise_multiplier": 0.1, "clipping_norm": 1.0,
                "num_sampled_clients": 3, "strategy": {"kind": "FedAvgM", "server_momentum": 0.9},
            }
        },
    ],
)  # fmt: skip
def test_what_fedsim_takes_it_takes(tiny: Callable[..., dict[str, Any]], overrides: dict[str, Any]) -> None:
    """A table that is right, whichever kinds it names, satisfies the schema."""
    assert [] == complaints(tiny(overrides))


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ({"training.epochz": 1}, "training"),
        ({"training": {"epochs": 1, "steps": 3, "optimizer": {"kind": "sgd", "lr": 0.1}}}, "training"),
        ({"training.optimizer.lr": 0}, "training.optimizer"),
        ({"training.optimizer.lrr": 0.1}, "training.optimizer"),
        ({"training.optimizer": {"kind": "sgd"}}, "training.optimizer"),
        ({"model.kind": "mpl"}, "model"),
        ({"model": {"kind": "mlp", "hidden": []}}, "model"),
        ({"model": {"hidden": [3]}}, "model"),
        ({"data.partition.kind": "dirichlet"}, "data.partition"),
        ({"clients.network.latency_ms": 3}, "clients.network"),
        ({"clients.count": 0}, "clients.count"),
        ({"server.strategy.fraction_trian": 0.2}, "server.strategy"),
        ({"server.strategy.fraction_train": 1.5}, "server.strategy"),
        ({"server.strategy.kind": "FedAvgg"}, "server.strategy"),
        ({"stop": {"metric": "accuracy"}}, "stop"),
        ({"colour": "blue"}, ""),
    ],
)
def test_a_slip_is_seen(tiny: Callable[..., dict[str, Any]], overrides: dict[str, Any], where: str) -> None:
    """A misspelt key, an unknown kind, a missing or impossible setting is refused where it stands."""
    assert [where] == complaints(tiny(overrides))


def test_every_kind_is_in_it() -> None:
    """Each slot's schema names exactly the registered kinds, and leaves room for plug-ins."""
    parts = schema()["$defs"]
    registered = {slot.noun: slot.registry.names() for slot in slots().values()} | {"strategy": stock.names()}
    listed = {noun: [k["properties"]["kind"].get("const") for k in parts[noun]["anyOf"]] for noun in registered}

    assert {noun: [*names, None] for noun, names in registered.items()} == listed


def fleet(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return a fleet as a table, *overrides* by dotted key applied."""
    table: dict[str, Any] = {
        "name": "few", "seed": 1, "clients": {"count": 3, "compute": {"kind": "constant", "gflops": 5.0, "overhead_s": 1.0}},
        "compute": {"train": {"seconds_per_example": 0.01}},
    }  # fmt: skip
    for key, value in overrides.items():
        if key.startswith("compute"):  # Kinds of messages have dots in their names.
            table["compute"] = {**table["compute"], **value}
        else:
            _set(table, key, value)
    return table


@pytest.mark.parametrize("path", FLEETS, ids=lambda path: path.stem)
def test_our_fleets_satisfy_it(path: Path) -> None:
    """Each file in scenarios/fleets/ satisfies the schema of fleets; none is a scenario."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))

    assert [] == complaints(table, of_fleets) and complaints(table)


@pytest.mark.parametrize("overrides", [
    {}, {"on_gflops": 3}, {"engine.workers": 2}, {"transport": {}}, {"transport.node_poll_s": 0.1},
    {"clients.network": {"kind": "lognormal", "down_mbps": 6.0, "up_mbps": 2.0}},
    {"clients.availability": {"kind": "onoff", "mean_on_s": 40.0, "mean_off_s": 40.0}},
    {"compute": {"train.warm_up": {"flops_per_example": 1e6}, "query": {"seconds": 0}}},
    {"compute": {"evaluate": {"function": "costs:of", "measured": False}}},
])  # fmt: skip
def test_what_a_fleet_may_say(overrides: dict[str, Any]) -> None:
    """A fleet that loads satisfies the schema, whichever kinds it names."""
    devices(load_fleet(fleet(overrides)))

    assert [] == complaints(fleet(overrides), of_fleets)


@pytest.mark.parametrize(("overrides", "where"), [
    ({"colour": "blue"}, ""),
    ({"rounds": 3}, ""),
    ({"name": "a b"}, "name"),
    ({"seed": -1}, "seed"),
    ({"on_gflops": 0}, "on_gflops"),
    ({"clients.count": 0}, "clients.count"),
    ({"clients.replay": {"kind": "reservoir"}}, "clients"),
    ({"clients.compute": {"kind": "constnat"}}, "clients.compute"),
    ({"clients.network.latency_ms": 3}, "clients.network"),
    ({"clients.availability": {"mean_on_s": 1.0}}, "clients.availability"),
    ({"compute": {"trian": {"seconds": 1.0}}}, "compute"),
    ({"compute": {"train": {}}}, "compute.train"),
    ({"compute": {"train": {"seconds": 1.0, "flops_per_example": 1.0}}}, "compute.train"),
    ({"compute": {"train": {"seconds": -1.0}}}, "compute.train.seconds"),
    ({"compute": {"train": {"seconds_per_exmaple": 1.0}}}, "compute.train"),
    ({"transport.node_poll": 1.0}, "transport"),
    ({"engine.workers": 65}, "engine.workers"),
])  # fmt: skip
def test_a_slip_in_a_fleet_is_seen(overrides: dict[str, Any], where: str) -> None:
    """What fedsim refuses of a fleet, the schema refuses where it stands."""
    with pytest.raises(ScenarioError):
        devices(load_fleet(fleet(overrides)))

    assert {where} == set(complaints(fleet(overrides), of_fleets))


def test_the_schema_of_fleets_has_the_models_keys() -> None:
    """Each section has exactly the model's keys, each with what it means; its devices, links and availability are a scenario's."""
    found, parts = of_fleets(), of_fleets()["$defs"]
    sections = {"Fleet": found, **{each.__name__: parts[each.__name__] for each in (FleetClients, FleetEngine, Cost, Transport)}}

    for model in (Fleet, FleetClients, FleetEngine, Cost, Transport):
        properties = sections[model.__name__]["properties"]
        assert list(model.model_fields) == list(properties)
        assert all(about.get("description") for about in properties.values()), model
    tables = parts["FleetClients"]["properties"].items()
    nouns = [about["$ref"].rpartition("/")[2] for name, about in tables if name not in ("count", "overhead")]
    assert 3 == len(nouns) and [schema()["$defs"][noun] for noun in nouns] == [parts[noun] for noun in nouns]
