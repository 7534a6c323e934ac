"""What programs read: the keys of the one line that ``--json`` prints, command by command. Others rely on them: none goes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from test_docs import documented

import fedsim
from fedsim.cli import app
from fedsim.real.calibration import Calibration
from fedsim.real.validation import Validation
from fedsim.scenario.kinds import slots
from fedsim.strategy import stock

Go = Callable[..., fedsim.Run]
Cli = Callable[..., Any]
SUMMARY = "bytes_down bytes_up digest final metrics_digest run status virtual_s wall_s"
KEYS = {
    "show": SUMMARY, "watch": SUMMARY, "report": "report run", "verify": "difference digest run verified",
    "export --to csv": "files folder notes to",
}  # fmt: skip

CHECK = """
    batch_size bytes_down bytes_down_per_round bytes_up bytes_up_per_round chunk clients clients_per_round clients_touched
    examples_at_once examples_per_client examples_per_step kept_bytes kept_bytes_per_client kept_unknown labels_from_clients
    labels_per_client_median missed_per_round notes parameters rehearsed_rounds round_s rounds sampled_rounds scenario
    slowest_round_s step_bytes steps_per_task stopped stream streams_end test_examples together train_examples
    training_flops_per_example virtual_s virtual_s_interval wall_s wall_s_from_rounds wall_s_parts wall_s_unknown
"""
CALIBRATION = """
    clients cores crowd fits gflops latency_s name notes overhead_s server_s step_s tasks
"""


def test_the_keys_of_a_line_are_known(go: Go, cli: Cli) -> None:
    """Each command prints one line, and nothing else, with these very keys."""
    run = go({"server.rounds": 1})
    for command, keys in KEYS.items():
        first, *words = command.split()
        answer = cli(first, run.path, *words, "--json")

        assert (0, "", 1) == (answer.code, answer.err, len(answer.out.splitlines())), answer
        assert keys.split() == sorted(json.loads(answer.out)), command
    assert True is json.loads(cli("verify", run.path, "--json").out)["verified"]


def test_what_differs_is_in_the_line(go: Go, cli: Cli) -> None:
    """A run that does not come out again is told on the line, by what differs first, and by exit code 1."""
    run = go({"server.rounds": 1})
    about = run.path / "manifest.json"
    about.write_text(about.read_text().replace(run.digest, "0" * 64))
    answer = cli("verify", run.path, "--json")
    line = json.loads(answer.out)

    assert (1, False, "0" * 64) == (answer.code, line["verified"], line["digest"]) and line["difference"]


def test_every_command_that_prints_results_takes_json() -> None:
    """Each command has --json, but for schema, whose whole output is JSON."""
    commands: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    commands |= commands.pop("study").commands

    assert ["schema"] == [name for name, each in commands.items() if "--json" not in [word for param in each.params for word in param.opts]]


def test_lines_of_what_needs_no_run_are_known(cli: Cli, tmp_path: Path, scenario_file: Callable[..., Path]) -> None:
    """Commands that only look: the keys of their lines, and of what lies in them."""
    file, empty = scenario_file(), tmp_path / "empty"
    empty.mkdir()
    line = {
        name: json.loads(cli(*words, "--json").out)
        for name, words in {
            "check": ("check", file), "runs": ("runs", empty), "init": ("init", "--flower", tmp_path / "app"),
            "deploy": ("deploy", file, "--print"), "list": ("list",),
        }.items()
    }  # fmt: skip

    assert {"runs": []} == line["runs"] and {"folder", "files"} == line["init"].keys()
    assert {"nodes", "form", "text"} == line["deploy"].keys() == documented()["deploy"]
    assert {"nouns", "sections"} == line["list"].keys()
    assert set(CHECK.split()) == line["check"].keys()


def test_a_list_has_all_that_a_scenario_can_name(cli: Cli) -> None:
    """Every noun and every kind of it, every section and every key, with what it takes, its default, and what it means."""
    found = json.loads(cli("list", "--json").out)
    every = {noun: set(slot.registry.names()) for noun, slot in slots().items()} | {"strategy": set(stock.names())}

    assert every == {noun: set(each["kinds"]) for noun, each in found["nouns"].items()}
    assert ["name", "takes", "default", "meaning"] == list(found["nouns"]["replay"]["kinds"]["fifo"]["settings"][0])
    settings = [s for each in found["nouns"].values() for kind in each["kinds"].values() for s in kind["settings"]]
    assert [] == [s["name"] for s in [*settings, *(key for each in found["sections"].values() for key in each["keys"])] if not s["takes"]]
    lr = next(s for s in found["nouns"]["optimizer"]["kinds"]["adam"]["settings"] if s["name"] == "lr")
    assert ("number > 0", "0.001") == (lr["takes"], lr["default"]) and lr["meaning"]
    assert {"scenario", "training", "server", "clients"} <= found["sections"].keys()
    one = json.loads(cli("list", "clients.replay", "--json").out)
    assert {"replay": found["nouns"]["replay"]} == one["nouns"] and 2 == cli("list", "nope", "--json").code


def test_lines_of_deployments_are_known(tmp_path: Path) -> None:
    """What validate and calibrate print, by the values that they print."""
    assert {"name", "folder", "agrees", "rows", "notes"} == Validation("it", tmp_path, (), ()).plain().keys() == documented()["validate"]
    assert set(CALIBRATION.split()) == {each.name for each in dataclasses.fields(Calibration)} == documented()["calibrate"] - {"fleet"}
