"""A budget of wall time: what it ends is whole rounds, readable, and not called done."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim import cli_real
from fedsim.record.leaving import Interrupted

Cli = Callable[..., Any]
Go = Callable[..., fedsim.Run]
ROUNDS = {"server.rounds": 100_000}


def test_a_run_ends_at_the_end_of_a_round(scenario_file: Callable[..., Path], cli: Cli, go: Go, tmp_path: Path) -> None:
    """After its wall time a run is interrupted, exit 130, with a line on what is safe; its rounds are those of a run that went on."""
    go({"server.rounds": 1})  # What a process imports and compiles once takes none of the budget.
    began = time.monotonic()
    answer = cli("run", scenario_file(ROUNDS), "--budget", "1.5s", "--out", tmp_path / "run", "--quiet")
    took_s, run = time.monotonic() - began, fedsim.load(tmp_path / "run")
    reached = run.final["rounds"]

    assert (130, "interrupted") == (answer.code, run.status) and 1.5 <= took_s < 20.0
    said = f"interrupted after round {reached}, at the end of its budget of wall time"
    assert said == run.manifest["error"] and f"fedsim: {said}; what was recorded until then is safe in" in answer.err
    assert 1 == len(answer.err.splitlines()) and reached >= 2 and run.manifest["digest"] is None
    assert list(range(1, reached + 1)) == run.rounds["round"].tolist() and set(run.tasks.outcome) == {"arrived"}
    whole = go({"server.rounds": reached})
    assert whole.metrics.equals(run.metrics) and whole.manifest["model"]["content"] == run.manifest["model"]["content"]
    assert 0 == cli("report", run.path).code


def test_what_is_over_in_time_is_done(go: Go) -> None:
    """A run that ends by itself is done, be its budget spent in its last round or not."""
    assert "done" == go({"server.rounds": 1}, budget_s=1.5, watch=lambda where: time.sleep(1.6 * where.round)).status
    with pytest.raises(KeyboardInterrupt, match="after round 0, at the end of its budget"):
        go({"server.rounds": 1}, budget_s=0.0)


@pytest.mark.parametrize(("budget", "says"), [("soon", "--budget 'soon': must look like 10m"), ("0s", "--budget '0s': must look like")])
def test_what_is_no_time_is_refused(budget: str, says: str, scenario_file: Callable[..., Path], cli: Cli) -> None:
    """The line names the option and the value, for each command that takes one."""
    for command in (["run"], ["advise"], ["study", "batch-size"], ["validate"]):
        answer = cli(*command, scenario_file(), "--budget", budget)
        assert (2, True) == (answer.code, says in answer.err), (command, answer)


def test_a_study_ends_in_order(scenario_file: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    """A study out of time says how many runs are done, and that the same goes on."""
    words = ("--quick", "--jobs", "1", "--budget", "1s", "--out", tmp_path / "it", "--quiet")
    answer = cli("study", "batch-size", scenario_file(ROUNDS), *words)

    assert 130 == answer.code and "interrupted, at the end of its budget of wall time; 0 runs and measurements are done" in answer.err
    assert "The same command goes on" in answer.err and not (tmp_path / "it" / "study.csv").exists()


def test_no_deployment_begins_after_the_budget(tmp_path: Path) -> None:
    """What hears of the next step passes it on while there is time, and then lets none begin."""
    heard = list[str]()
    cli_real.within(1000.0, heard.append, tmp_path)("simulating")
    with pytest.raises(Interrupted, match="interrupted before deploying it, at the end of its budget"):
        cli_real.within(-1.0, heard.append, tmp_path)("deploying it")

    assert ["simulating"] == heard
