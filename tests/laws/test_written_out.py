"""A scenario written out, defaults and all, is the scenario: what a folder, a study and a worker load is what somebody once wrote."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

import fedsim
from fedsim.core.errors import ScenarioError
from fedsim.scenario import judge
from fedsim.scenario.build import build
from fedsim.scenario.load import Loaded, load, recorded
from fedsim.scenario.schema import Scenario, Schedule
from tests.conftest import tiny_table

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "scenarios").glob("*.toml"))
STREAM: dict[str, Any] = {"stream": {"arrivals": {"kind": "constant", "per_s": 1.0}}}
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    **{f"{kind} schedule": {"training.schedule": {"kind": kind, **more}} for kind, more in {
        "constant": {}, "cosine": {"over": 30}, "step": {"size": 3}, "exponential": {"rate": 0.9},
    }.items()},
    "warm-up": {"training.schedule": {"kind": "constant", "warmup": 3, "warmup_from": 0.1}},
    "warm-up by default": {"training.schedule": {"kind": "constant", "warmup": 3}},
    "clock": {"training.schedule": {"kind": "cosine", "over": 30, "clock": "local_step", "restart": True}},
    "scaled": {"training.scale_with_batch": {"base": 10}},
    "scaled by the root": {"training.scale_with_batch": {"base": 10, "rule": "sqrt"}},
    "steps": {"training.steps": 3},
    "share of an epoch": {"training.epochs": 0.5},
    "whole float": {"training.epochs": 2.0},
    "full": {"training.batch_size": "full"},
    "cut": {"training.accumulate": 2, "training.drop_last": True, "training.sampling": "replacement"},
    "mix": {"training.mix": {"by": "label"}},
    "mix by shares": {"training.mix": {"by": "label", "shares": {"0": 1, "1": 2.5}, "draw": "multinomial"}},
    "mix in order": {"training.mix": {"by": "difficulty", "shares": [1, 2, 3.0], "levels": 3}},
    "mix by heat": {"training.mix": {"by": "label", "temperature": 2}},
    "curriculum": {"training.curriculum": {"begin": 0.3, "over": 10}},
    "curriculum's own": {"training.curriculum": {"kind": "loss", "begin": 0.3, "over": 9.5, "clock": "virtual_s", "first": "hard"}},
    "stopping": {"training.stopping": {"kind": "patience"}},
    "policy": {"training.batch_policy": {"kind": "even"}},
    "rule": {"training.optimizer": {"kind": "adam", "lr": 0.01}, "training.clipping": {"kind": "norm", "bound": 1}},
    "algorithm": {"training.algorithm": {"kind": "scaffold"}},
    "objective": {"training.objective": {"kind": "classification", "label_smoothing": 0.1}},
    "checkpointing": {"training.checkpointing": True, "engine.precision": "bfloat16"},
    "device": {
        "clients.ram": {"kind": "constant", "mib": 9}, "training.too_large": "accumulate",
        "clients.loading": {"kind": "prefetch", "examples_per_s": 9},
    },
    "failing": {"clients.failures": {"kind": "dropout", "probability": 0.5, "away_s": 9}, "clients.leaving": "abort"},
    "energy": {"clients.energy": {"kind": "phone", "radio": "lte", "soc_w": 4, "intensity": 475}},
    "energy by name": {"clients.energy": {"kind": "constant", "compute_w": 4, "intensity": "world"}},
    "there": {"clients.availability": {"kind": "onoff", "mean_on_s": 9, "mean_off_s": 9.5}},
    "statistics": {"model": {"kind": "mlp", "norm": "batch", "hidden": [8]}, "server.statistics": "keep_local"},
    "measured": {
        "model": {"kind": "mlp", "norm": "batch", "hidden": [8]}, "server.statistics": "recalibrate", "server.calibration_examples": 20,
    },
    "a full server": {"server.link": {"ingress_mbps": 100, "egress_mbps": 9.5}},
    "a server full one way": {"server.link": {"ingress_mbps": 100.0}},
    "edges": {"edges": {"count": 2}},
    "edges' own": {"edges": {
        "count": 2, "assign": "in_turn", "rounds": 3, "timeout_s": 9, "network": {"kind": "constant", "down_mbps": 9, "up_mbps": 9},
        "access": {"egress_mbps": 9, "ingress_mbps": 9.5},
    }},
    "listed edges": {"edges": {"count": 2, "assign": [0, 1, 0, 1, 0, 1], "access": {"ingress_mbps": 9}}},
    "cells": {"clients.cells": {"count": 2, "up_mbps": 9}},
    "listed cells": {"clients.cells": {"count": 2, "assign": [0, 1, 0, 1, 0, 1], "down_mbps": 9.5}},
    "protocols": {"clients.overhead": {"message_bytes": 5000, "share": 0.03, "loss": 0.01}},
    "protocols of nothing": {"clients.overhead": {}},
    "server": {"server.round_timeout_s": 9, "server.controller": {"kind": "plateau"}},
    "a deadline": {"server.pacing": {"kind": "deadline", "seconds": 9}},
    "the first": {"server.pacing": {"kind": "over_selection", "take": 2}},
    "a share": {"server.pacing": {"kind": "minimum_fraction", "fraction": 1, "seconds": 9.5}},
    "a deadline that follows": {"server.pacing": {"kind": "adaptive"}},
    "a server that takes its time": {"server.aggregation": {"seconds": 1, "per_mb_s": 0.5}},
    "codec": {"codec": {"up": {"kind": "bfloat16"}, "down": {"kind": "plain"}}},
    "codec of nothing": {"codec": {}},
    "evaluate": {"evaluate": {"every": 2, "federated_fraction": 0.5, "by_classes": [[0, 1], [2]], "client_test_fraction": 0.3}},
    "stop": {"stop": {"metric": "accuracy", "at_least": 1}},
    "stop by time": {"stop": {"virtual_s": 9, "megabytes": 0.5}},
    "stop low": {"stop": {"metric": "loss", "at_most": 0.1}},
    "plateau": {"stop": {"metric": "accuracy", "plateau": 3, "least": 0.1, "goal": "max"}},
    "transport": {"transport": {"server_s": 0.5, "cores": 2.0, "crowd_from": 3, "crowd_factor": 1.2}},
    "floor": {"stop": {"noise_floor": 3}, "monitor": {}},
    "monitor": {"monitor": {"every": 5, "tasks": 0.5, "noise": 1, "noise_every": 2, "examples": 4}},
    "engine": {"engine": {
        "dtype": "float64", "executor": {"kind": "local"}, "chunk": 2, "device": "auto", "workers": 1, "cuda_graphs": False,
    }},
    "stream": {"stream": {}},
    "drift": {
        **STREAM, "stream.drift": {"change": {"kind": "swap_labels", "pairs": [[0, 1]]}, "schedule": {"kind": "abrupt", "at_s": [9]}},
    },
    "stream's own": {
        **STREAM, "stream.order": {"kind": "shuffled"}, "stream.labels": {"kind": "constant", "delay_s": 3}, "stream.items": 9,
        "stream.stored": 2, "stream.trigger": {"kind": "count", "examples": 3}, "stream.predict": "local", "stream.weight": "seen",
    },
    "told drifts": {**STREAM, "stream.drifts_s": {"0": [3, 4.5]}},
    "told to all": {**STREAM, "stream.drifts_s": [3]},
    "watching": {
        **STREAM, "clients.replay": {"kind": "reservoir", "capacity": 9}, "clients.detector": {"kind": "ddm"},
        "clients.reaction": {"kind": "adapt", "buffer": "reset"}, "training.rehearsal": {"kind": "er"},
    },
    "said to be nothing": {"stop": None, "training.schedule": None, "engine.chunk": None},
}  # fmt: skip
"""A scenario for each key, with the rest of its section at its default, and where it matters with values of another type."""
LOADED = {
    "bucket": {"training.bucket": {"width": 4}}, "bucket's own": {"training.bucket": {"width": 4, "pad": 1, "together": 3}},
    "same bits everywhere": {"engine.reproducible": "everywhere"},
}  # fmt: skip
"""What the small scenario, which has no sequences, and this process, which is not pinned, cannot be built with: it is only loaded."""


def keys(section: type[BaseModel], at: str = "") -> Iterator[str]:
    """Yield the dotted keys of the schema, sections that may be left out among them."""
    for name, field in section.model_fields.items():
        yield at + name
        union = get_origin(field.annotation) in (Union, types.UnionType)
        for each in get_args(field.annotation) if union else (field.annotation,):
            if inspect.isclass(each) and issubclass(each, BaseModel):
                yield from keys(each, f"{at}{name}.")


def leaves(table: dict[str, Any], at: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield at + name
        if isinstance(value, dict):
            yield from leaves(value, f"{at}{name}.")


def again(scenario: Scenario) -> Scenario:
    """Return *scenario* as it comes back from a folder: what was written there, read by whoever reads."""
    written = json.loads(json.dumps(scenario.plain()))
    ours, (theirs, strange) = load(written).scenario, recorded(written)
    assert ours == theirs == load(scenario).scenario
    assert not strange
    return ours


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_are_what_is_written_of_them(path: Path) -> None:
    """Written out and loaded, a scenario is equal to itself and has its digest."""
    scenario = load(path).scenario
    assert again(scenario) == scenario
    assert again(scenario).digest == scenario.digest


@pytest.mark.parametrize("name", [*SETTINGS, *LOADED])
def test_what_loads_loads_written_out(name: str) -> None:
    """Whatever loads is, written out with its defaults, loaded again: an equal scenario, of the same digest."""
    scenario = load(tiny_table(), (SETTINGS | LOADED)[name]).scenario
    assert again(scenario) == scenario
    assert again(scenario).digest == scenario.digest


@pytest.mark.parametrize("name", SETTINGS)
def test_what_builds_builds_written_out(name: str) -> None:
    """What is judged when the parts meet is judged by what is set, and not by who set it."""
    scenario = load(tiny_table(), SETTINGS[name]).scenario
    notes = build(Loaded(scenario, Path.cwd())).notes
    assert build(Loaded(again(scenario), Path.cwd())).notes == notes


def test_every_key_is_in_the_list() -> None:
    """Each key of the schema is written by one of these scenarios, so that a new one has to come in here."""
    said = {key for settings in (SETTINGS | LOADED).values() for key in leaves(load(tiny_table(), settings).scenario.plain())}
    assert set() == set(keys(Scenario)) - said


def test_nothing_goes_by_who_set_it() -> None:
    """No room asks which keys were written: only where a kind's settings are checked, whose table is kept as it was given.

    A sweep's file is apart: no scenario, and written out nowhere.
    """
    rooms = [path for path in (ROOT / "fedsim").rglob("*.py") if path.parent.name != "sweeping"]
    asks = [path for path in rooms if "fields_set" in path.read_text() or "exclude_unset" in path.read_text()]
    assert [path.name for path in asks] == ["kinds.py"]


def test_a_warm_up_from_another_share_is_still_refused() -> None:
    """Where a share was set that does nothing, the reader hears it: whoever judged by nothing would pass the law."""
    scenario = load(tiny_table(), {"training.schedule": {"kind": "constant", "warmup_from": 0.5}}).scenario
    assert isinstance(scenario.training.schedule, Schedule)
    with pytest.raises(ScenarioError, match=r"training.schedule.warmup_from = 0.5: has no effect without training.schedule.warmup"):
        judge.check_schedule(scenario, scenario.training.schedule)


def test_a_run_by_a_schedule_is_verified(go: Callable[..., fedsim.Run], cli: Any) -> None:
    """fedsim verify plays a run again that named a schedule and no warm-up."""
    run = go({"training.schedule": {"kind": "cosine", "over": 30}, "server.rounds": 1})
    assert 0 == cli("verify", run.path).code
