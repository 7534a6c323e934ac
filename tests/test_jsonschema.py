"""The JSON Schema of scenario files: it takes what fedsim takes, and sees the slips of a person who types."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.scenario.jsonschema import json_schema
from fedsim.scenario.kinds import slots
from fedsim.strategy import stock

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, which nbformat brings")
SCENARIOS = sorted((Path(__file__).resolve().parents[1] / "scenarios").glob("*.toml"))


@functools.cache
def schema() -> dict[str, Any]:
    """Return the schema, made once."""
    return json_schema()


def complaints(table: dict[str, Any]) -> list[str]:
    """Return the dotted keys that the schema refuses in *table*."""
    found = jsonschema.Draft202012Validator(schema()).iter_errors(table)
    return sorted(".".join(map(str, error.absolute_path)) for error in found)


def test_it_is_a_schema() -> None:
    """The schema is valid by the rules of draft 2020-12, and each of its references leads somewhere."""
    jsonschema.Draft202012Validator.check_schema(schema())

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert set() == references(schema()) - {f"#/$defs/{name}" for name in schema()["$defs"]}


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
