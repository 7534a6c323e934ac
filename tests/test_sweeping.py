"""Sweeps: which variants, which runs, what they come to; the same after a kill and for any number of processes; what is refused."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from scipy import stats

import fedsim
from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.keys import Key
from fedsim.many import memory, runs
from fedsim.many.worker import RUN, answer
from fedsim.record import manifest
from fedsim.report.page import write_report
from fedsim.scenario.load import load
from fedsim.score.taken import Figure
from fedsim.sweeping import checking, page, pruning, state, swept
from fedsim.sweeping.checking import probed
from fedsim.sweeping.course import directions_of, way_of
from fedsim.sweeping.found import Goal, Sweep, Variant, front
from fedsim.sweeping.points import Point
from fedsim.sweeping.space import read

Tiny = Callable[..., dict[str, Any]]
LR = "training.optimizer.lr"
SPAN = {"low": 0.001, "high": 10.0, "log": True}


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let workers answer in this process; yields the names of the runs that they were asked for."""
    asked: list[str] = []

    def ask(_: Any, request: dict[str, Any], **_more: Any) -> dict[str, str]:
        if request["what"] == RUN:
            asked.append(Path(request["out"]).name)
        return answer(json.loads(json.dumps(request)))

    monkeypatch.setattr(runs, "_started", lambda everywhere: None)
    monkeypatch.setattr(runs._Worker, "ask", ask)
    yield asked


def points(**sweep: Any) -> list[dict[str, Any]]:
    """Return the assignments of a sweep that knows its variants beforehand."""
    return [point.assignment for point in way_of(read({"scenario": "x.toml", **sweep}), 7, []).points]  # type: ignore[union-attr]


def test_a_grid_has_every_combination_and_what_moves_together_is_one() -> None:
    """Values, ranges by step and by points, and keys that move together are multiplied, the last fastest; unquoted keys are the same."""
    found = points(
        keys={"training": {"optimizer": {"lr": {**SPAN, "points": 5}}}, "clients.count": {"low": 2, "high": 6, "step": 2, "integer": True}},
        together={"b": [{"training.batch_size": 5, "training.epochs": 1}, {"training.batch_size": 9, "training.epochs": 2}]},
    )

    assert 5 * 3 * 2 == len(found) == len({json.dumps(each) for each in found})
    assert [0.001, 0.01, 0.1, 1.0, 10.0] == sorted({each[LR] for each in found}) and {2, 4, 6} == {each["clients.count"] for each in found}
    assert {(5, 1), (9, 2)} == {(each["training.batch_size"], each["training.epochs"]) for each in found}
    assert found[0] == {LR: 0.001, "clients.count": 2, "training.batch_size": 5, "training.epochs": 1}
    assert [0.1, 0.2, 0.3] == [each[LR] for each in points(keys={LR: {"low": 0.1, "high": 0.3, "step": 0.1}})]
    listed = points(search={"kind": "list"}, points=[{LR: 1.0}, {"training": {"epochs": 2}}])
    assert [{LR: 1.0}, {"training.epochs": 2}] == listed


def test_random_draws_are_of_their_key_alone() -> None:
    """Draws fill their range as they should, are the same again, and another axis, or more trials, move none of them."""
    search = {"kind": "random", "trials": 400}
    whole = {"low": 1, "high": 4, "integer": True}
    found = points(keys={LR: SPAN, "training.epochs": whole, "clients.count": [3, 5]}, search=search)

    assert found == points(keys={LR: SPAN, "training.epochs": whole, "clients.count": [3, 5]}, search=search)
    fewer = points(keys={LR: SPAN}, search={"kind": "random", "trials": 50})
    assert [each[LR] for each in fewer] == [each[LR] for each in found[:50]]
    shares = (np.log10([each[LR] for each in found]) + 3) / 4
    assert stats.kstest(shares, "uniform").pvalue > 0.001
    for key, values in (("training.epochs", [1, 2, 3, 4]), ("clients.count", [3, 5])):
        counts = [sum(each[key] == value for each in found) for value in values]
        assert sum(counts) == 400 and stats.chisquare(counts).pvalue > 0.001


def test_a_grid_runs_and_its_frame_says_what_the_folders_do(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """Each variant has a run a seed, the very run that it would be by itself; means and intervals are those of the folders; again reads."""
    sweep = {"name": "s", "scenario": tiny(), "seeds": [7, 8, 9], "keys": {LR: [0.5, 0.05]}}
    options: dict[str, Any] = {"out": tmp_path / "s", "jobs": 2, "pareto": ["accuracy", "bytes_up"], "target": "accuracy=0.99"}
    found = fedsim.sweep(sweep, **options)

    assert sorted(beside) == sorted(f"lr={rate}-{seed}" for rate in (0.5, 0.05) for seed in (7, 8, 9))
    alone = fedsim.run(tiny({LR: 0.05}), seed=8, out=tmp_path / "alone")
    assert alone.digest == fedsim.load(tmp_path / "s" / "lr=0.05-8").digest
    for _, row in found.iterrows():
        ends = [fedsim.load(tmp_path / "s" / f"{row.variant}-{seed}").final["accuracy"] for seed in (7, 8, 9)]
        low, high = stats.t.interval(0.95, 2, loc=np.mean(ends), scale=stats.sem(ends))
        assert (row["final accuracy"], row["final accuracy low"], row["final accuracy high"]) == pytest.approx((np.mean(ends), low, high))
        assert (row.status, row.seeds, row["rounds_to_target reached"]) == ("done", 3, 0)
    assert found.pareto.tolist() == (found["final accuracy"] == found["final accuracy"].max()).tolist()  # All send the same bytes.
    again = fedsim.sweep(sweep, **options)
    assert found.equals(again) and 6 == len(beside)
    assert fedsim.sweep(tmp_path / "s", only_read=True).equals(found) and 6 == len(beside)
    written = pd.read_csv(tmp_path / "s" / "sweep.csv")
    assert written["final accuracy"].tolist() == found["final accuracy"].tolist()
    by_run = pd.read_csv(tmp_path / "s" / "runs.csv")
    assert by_run.groupby("number")["final accuracy"].mean().tolist() == pytest.approx(found["final accuracy"].tolist())
    body = (tmp_path / "s" / "sweep.html").read_text().split("<body>")[1]
    for part in ("All keys at once", "Each key by itself", "Pareto front", "The best", "parcoords"):
        assert part in body
    assert "http" not in body.split("<script")[0]
    assert "done" == json.loads((tmp_path / "s" / "sweep.json").read_text())["status"]


def test_what_fails_is_a_row_with_its_reason(tiny: Tiny, tmp_path: Path, beside: list[str], cli: Callable[..., Any]) -> None:
    """A rate that diverges and a combination that the scenario refuses are listed, are on no front and have no rank; the rest stands."""
    file = tmp_path / "f.toml"
    base = tiny({"training.batch_size": 1, "server.rounds": 3, "server.strategy.fraction_train": 0.5})
    sweep = {
        "scenario": base, "search": {"kind": "list"}, "measure": "final loss",
        "points": [{LR: 0.01}, {LR: 1e38}, {"server.strategy.clients_per_round": 99}, {LR: 0.01}],
    }  # fmt: skip
    found = swept(sweep, out=tmp_path / "s", jobs=1)

    assert ["done", "failed", "refused", "done"] == [each.status for each in found.variants], [each.why for each in found.variants]
    assert "diverged" in found.variants[1].why and "clients_per_round" in found.variants[2].why
    assert [0, 3] == [each.point.number for each in found.ranked] and 0 == found.variants[3].twin and 3 >= len(beside)
    table = fedsim.sweep(sweep, out=tmp_path / "s", jobs=1)
    assert table["final loss"].notna().tolist() == [True, False, False, True]
    file.write_text(f"scenario = {str(tmp_path / 'none.toml')!r}\n[keys]\n'{LR}' = [1.0]\n")
    answered = cli("sweep", file)
    assert 2 == answered.code and "none.toml" in answered.err and 1 == len(answered.err.splitlines())


OPTUNA: dict[str, Any] = {
    "search": {"kind": "optuna", "trials": 8, "wave": 2, "sampler": {"kind": "tpe", "n_startup_trials": 3}},
    "keys": {LR: SPAN, "training.batch_size": [5, 10, 20]}, "measure": "final loss",
}  # fmt: skip


def test_trials_are_those_of_optuna_asked_in_waves(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """The trials are what optuna says when it is asked two at a time and told in order; the same for three processes, and gone on with."""
    sweep = {"scenario": tiny(), **OPTUNA}
    found = fedsim.sweep(sweep, out=tmp_path / "one", jobs=1)
    seed = Key(7).fold("sweep", "sampler").seed64() % 2**32
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(n_startup_trials=3, seed=seed))
    spans = {LR: optuna.distributions.FloatDistribution(0.001, 10.0, log=True),
             "training.batch_size": optuna.distributions.CategoricalDistribution([0, 1, 2])}  # fmt: skip
    losses = dict(zip(found.number, found["final loss"], strict=True))
    for first in range(0, 8, 2):
        trials = [study.ask(spans) for _ in range(2)]
        for number, trial in enumerate(trials, first):
            rate, size = found.loc[number, [LR, "training.batch_size"]]
            assert (rate, size) == (pytest.approx(trial.params[LR], rel=1e-5), [5, 10, 20][trial.params["training.batch_size"]])
            study.tell(trial, losses[number])
    assert 8 == len(found) == len(beside) and (found.status == "done").all()
    several = fedsim.sweep(sweep, out=tmp_path / "three", jobs=3)
    assert several.equals(found)
    for path in sorted((tmp_path / "three").glob("*/manifest.json"))[3:6]:
        about = manifest.read(path.parent)
        manifest.write(path.parent, about | {"status": "interrupted", "digest": None})
    del beside[:]
    assert fedsim.sweep(sweep, out=tmp_path / "three", jobs=2).equals(found) and 3 == len(beside)


def test_a_pruner_goes_by_whole_waves(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """Who is pruned, and when, is what the median of the waves before says; a pruned run is readable, and has no other seeds."""
    rates = [1.0, 0.3, 1e-5, 0.5, 1e-6, 2e-6]
    sweep = {
        "scenario": tiny({"server.rounds": 4}), "seeds": 2, "keys": {LR: rates}, "measure": "final accuracy",
        "search": {"wave": 2, "pruner": {"kind": "median", "n_startup_trials": 2}},
    }  # fmt: skip
    found = swept(sweep, out=tmp_path / "s", jobs=2)

    def scores(each: Variant) -> dict[int, float]:
        run = fedsim.load(tmp_path / "s" / f"{each.point.name}-7")
        told = run.metrics[(run.metrics.scope == "central") & (run.metrics.name == "accuracy")]
        return {int(r): v for r, v in zip(told["round"], told["value"], strict=True) if 0 < r < 4}

    ended = [each.status for each in found.variants]
    for first in range(0, 6, 2):
        before = [scores(each) for each in found.variants[:first] if each.status == "done"]
        for each in found.variants[first : first + 2]:
            mine, expected = scores(each), None
            for step in mine:
                best = max(value for r, value in mine.items() if r <= step)
                if len(before) >= 2 and best < np.median([other[step] for other in before]):
                    expected = expected or step
            assert (max(mine) if each.status == "pruned" else None) == expected, each.point.name
    assert ended.count("pruned") >= 2 and ended[:2] == ["done", "done"]
    gone = next(each for each in found.variants if each.status == "pruned")
    run = fedsim.load(tmp_path / "s" / f"{gone.point.name}-7")
    assert ("pruned", None) == (run.status, run.manifest["digest"]) and f"pruned after round {run.final['rounds']}" in run.manifest["error"]
    assert len(run.tasks) and "was pruned" in write_report(run).read_text() and run.model()
    assert not (tmp_path / "s" / f"{gone.point.name}-8").exists()
    with pytest.raises(RunError, match="is pruned; only"):
        fedsim.session.verify(run.path, tmp_path / "again")
    asked = len(beside)
    again = swept(sweep, out=tmp_path / "s", jobs=1)
    assert ended == [each.status for each in again.variants] and asked == len(beside)
    rule = pruning.Rule({"kind": "median", "n_startup_trials": 2}, "accuracy", "maximize", 1, 4)
    assert not pruning.judged(run, rule, [], 5)[1]  # By other trials it was pruned.


HALVING = [{"kind": "hyperband", "reduction_factor": 2}, {"kind": "successive_halving", "min_resource": 1, "reduction_factor": 2}]


@pytest.mark.parametrize("pruner", HALVING)
def test_what_a_pruner_notes_survives_a_reading(tiny: Tiny, tmp_path: Path, beside: list[str], pruner: dict[str, Any]) -> None:
    """Halving goes by rungs that it notes: read from the folders it comes to what it came to while runs went."""
    search = {"kind": "optuna", "trials": 8, "wave": 4, "sampler": {"kind": "qmc"}, "pruner": pruner}
    sweep = {"scenario": tiny({"server.rounds": 5}), **OPTUNA, "search": search, "measure": "accuracy"}
    found = fedsim.sweep(sweep, out=tmp_path / "s", jobs=2)
    asked = len(beside)

    assert "pruned" in set(found.status)
    assert fedsim.sweep(sweep, out=tmp_path / "s", jobs=1).equals(found) and asked == len(beside)


def test_nsga2_goes_by_several_measures(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """Several measures have a direction each, and the front of the sweep is that of optuna."""
    search = {"kind": "optuna", "trials": 8, "wave": 4, "sampler": {"kind": "nsga2", "population_size": 4}}
    sweep = {"scenario": tiny(), "search": search, "measure": ["accuracy", "virtual_s"],
             "keys": {LR: SPAN, "training.epochs": {"low": 1, "high": 4, "integer": True}}}  # fmt: skip
    found = swept(sweep, out=tmp_path / "s", jobs=2, pareto=["accuracy", "virtual_s"])
    study = optuna.create_study(directions=["maximize", "minimize"])
    for each in found.variants:
        study.add_trial(optuna.trial.create_trial(values=[each.value("final accuracy"), each.value("virtual_s")]))

    assert ("maximize", "minimize") == tuple(goal.direction for goal in found.goals)
    assert {trial.number for trial in study.best_trials} == {each.point.number for each in found.front}


def test_the_front_is_that_of_brute_force() -> None:
    """No row of the front is beaten by another, every other row is; ties and equal rows included."""
    draws = np.random.default_rng(0)
    for size, measures in ((1, 2), (40, 2), (60, 3), (30, 1)):
        values = draws.integers(0, 6, (size, measures)).astype(float)
        beaten = [any(all(b >= a) and any(b > a) for b in values) for a in values]
        assert front(values).tolist() == [not each for each in beaten]


WRONG = [
    ({"keys": {"training.optimizer.lrr": [1.0]}}, "lrr"),
    ({"keys": {"clients.compute.warp": [1, 2]}}, "clients.compute.warp"),
    ({"keys": {}}, "keys: missing"),
    ({"keys": {LR: 0.1}}, "must be a list of values"),
    ({"keys": {LR: []}}, "must be a list of values"),
    ({"keys": {LR: {"low": 1.0, "high": 0.1}}}, "low = 1 must be below high = 0.1"),
    ({"keys": {LR: {"low": 0, "high": 1, "log": True}}}, "must be > 0 on a log scale"),
    ({"keys": {LR: {"low": 0.1, "high": 1.0}}}, "a grid needs to know which values"),
    ({"keys": {LR: {"low": 0.1, "heigh": 1.0}}}, "high"),
    ({"keys": {LR: {"low": 0.1, "high": 1.5, "integer": True}}}, "whole numbers"),
    ({"keys": {"seed": [1, 2]}}, "seeds = 5"),
    ({"keys": {LR: [0.1]}, "together": {"a": [{LR: 0.2}]}}, "varied twice"),
    ({"together": {"a": [{LR: 0.2}, {"training.epochs": 2}]}}, "different keys"),
    ({"search": {"kind": "gridd"}}, "search.kind = 'gridd'"),
    ({"search": {"kind": "random"}}, "search.trials: missing"),
    ({"search": {"kind": "grid", "trials": 3}}, "goes with random and optuna"),
    ({"search": {"kind": "list"}}, "[[points]]"),
    ({"search": {"sampler": {"kind": "tpe"}}}, "search.sampler: goes with"),
    ({"search": {"kind": "optuna", "trials": 3, "sampler": {"kind": "tpee"}}}, "Did you mean 'tpe'?"),
    ({"search": {"kind": "optuna", "trials": 3, "sampler": {"kind": "tpe", "seed": 3}}}, "no such setting"),
    ({"search": {"kind": "optuna", "trials": 3, "sampler": {"kind": "nsga2", "population_size": 1}}}, "population_size"),
    ({"search": {"pruner": {"kind": "meedian"}}}, "Did you mean 'median'?"),
    ({"search": {"pruner": {"kind": "percentile"}}}, "percentile"),
    ({"search": {"pruner": {"kind": "median"}}, "measure": ["accuracy", "bytes"]}, "goes by one measure"),
    ({"measure": ["accuracy", "bytes"], "direction": ["minimize"]}, "Give one for each"),
    ({"seeds": 0}, "seeds = 0: must be between 1 and 100 seeds"),
    ({"target": "accuracy"}, "must look like accuracy=0.9"), ({"target": "loss<=-1"}, "target = 'loss<=-1': can never hold"),
    ({"set": {"server.roundz": 3}}, "server.roundz"),
    ({"sead": 3}, "sead: no such key"),
    ({"name": "../x"}, "name"),
    ({"measure": "acuracy"}, "measure = 'acuracy': is no measure of these runs. Did you mean 'accuracy'?"),
    ({"measure": "rounds_to_target"}, "to which target?"), ({"pareto": ["bytez"]}, "--pareto = 'bytez'"),
    ({"scenario": "nowhere.toml"}, "scenario = 'nowhere.toml': "),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_a_bad_sweep_is_refused_before_anything_runs(
    tiny: Tiny, tmp_path: Path, beside: list[str], wrong: dict[str, Any], words: str
) -> None:
    """The error names the key of the file and what would have worked; no run was asked for."""
    keys = {} if {"keys", "together"} & wrong.keys() else {"keys": {LR: [0.1]}}
    with pytest.raises(ScenarioError) as told:
        swept({"scenario": tiny(), **keys, **wrong}, out=tmp_path / "s", jobs=1)

    assert words in str(told.value) and not beside and not list(tmp_path.glob("s/*/"))


def test_a_measure_that_nobody_has_ends_it_after_the_first_run(
    tiny: Tiny, tmp_path: Path, beside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an objective of a reader's own the first run knows what there is to measure; the error lists it. Of ours nothing need run."""
    monkeypatch.setattr(checking, "OURS", "another")
    with pytest.raises(ScenarioError, match="final accuracy, final loss"):
        swept({"scenario": tiny(), "keys": {LR: [0.1, 0.2, 0.3, 0.4]}, "measure": "acuracy"}, out=tmp_path / "s", jobs=1)
    with pytest.raises(ScenarioError, match="search.pruner: goes by a score that rounds have"):
        swept({"scenario": tiny(), "keys": {LR: [0.1]}, "measure": "bytes", "search": {"pruner": {"kind": "median"}}}, out=tmp_path / "p")
    assert 1 <= len(beside) <= 3


def test_a_sweep_that_goes_is_nobody_elses(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """Another process is refused, may read, and goes on when the first is gone; a folder without a sweep is no sweep."""
    sweep = {"scenario": tiny(), "keys": {LR: [0.1]}}
    with state.claimed(tmp_path / "s"):
        with (tmp_path / "s" / state.LOCK).open("a") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(RunError, match="another process is at this sweep"):
            swept(sweep, out=tmp_path / "s", jobs=1)
        with pytest.raises(ScenarioError, match="no run of this sweep is done"):
            swept(sweep, out=tmp_path / "s", only_read=True)
    assert not beside
    assert "done" == swept(sweep, out=tmp_path / "s", jobs=1).variants[0].status
    with pytest.raises(ScenarioError, match="no sweep"):
        swept(tmp_path)


def test_a_full_disk_ends_it(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run for which there was no space is the last, and what is done is said to be safe."""
    asked: list[str] = []

    def ask(_: Any, request: dict[str, Any], **_more: Any) -> dict[str, str]:
        asked.append(request["out"])
        return {"status": "failed", "error": f"{request['out']}: No space left on device."} if len(asked) > 2 else answer(request)

    monkeypatch.setattr(runs, "_started", lambda everywhere: None)
    monkeypatch.setattr(runs._Worker, "ask", ask)
    with pytest.raises(RunError, match=r"No space left on device.*goes on from what is done. 1 of 6 runs are over"):
        swept({"scenario": tiny(), "keys": {LR: [0.1, 0.2, 0.3]}, "seeds": 2}, out=tmp_path / "s", jobs=1)
    assert 3 == len(asked) and "failed" == json.loads((tmp_path / "s" / "sweep.json").read_text())["status"]


def test_time_that_is_up_is_said(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """What has not run by then is unfinished, and the same goes on."""
    sweep = {"scenario": tiny(), "keys": {LR: [0.1, 0.2]}}
    late = swept(sweep, out=tmp_path / "s", jobs=1, budget="0.0001s")

    assert ["unfinished"] * 2 == [each.status for each in late.variants] and "time was up" == late.late and not beside
    assert ["done"] * 2 == [each.status for each in swept(sweep, out=tmp_path / "s", jobs=1).variants]


def test_a_killed_sweep_goes_on(tiny_toml: Callable[..., str], tmp_path: Path, beside: list[str]) -> None:
    """After SIGKILL in the middle nothing that was done runs again, nobody is left behind, and the frame is that of an unbroken sweep."""
    (tmp_path / "tiny.toml").write_text(tiny_toml({"server.rounds": 60}))
    file, folder = tmp_path / "k.toml", tmp_path / "k"
    file.write_text(f"scenario = 'tiny.toml'\nseeds = 2\n[keys]\n'{LR}' = [0.1, 0.2, 0.3, 0.4]\n")
    process = subprocess.Popen([sys.executable, "-m", "fedsim", "sweep", file, "--out", folder, "--jobs", "1"], process_group=0)

    def standing() -> dict[str, str]:
        return {path.parent.name: manifest.read(path.parent)["status"] for path in folder.glob("[!.]*/manifest.json")}

    try:
        until = time.monotonic() + 120
        while list(standing().values()).count("done") < 2 and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    while "running" in {fedsim.load(folder / name).status for name in standing()}:  # Its worker reads the end of its input.
        time.sleep(0.05)
    done = {name for name, status in standing().items() if status == "done"}
    assert 2 <= len(done) < 8 and "killed" == state.look(folder).status  # type: ignore[union-attr]
    found = fedsim.sweep(file, out=folder, jobs=1)
    assert 8 - len(done) == len(beside) and not done & set(beside)
    assert (found.status == "done").all() and "done" == state.look(folder).status  # type: ignore[union-attr]
    assert fedsim.sweep(file, out=tmp_path / "whole", jobs=1).equals(found)


def test_a_run_begins_when_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run always goes; another where what both may still take is free, by the largest that was seen."""
    had, free = {1: 1.0, 2: 1.0}, 10.0
    monkeypatch.setattr(memory, "taken", lambda pid, most=False: int(had[pid] * 2**30) if not most else 4 * 2**30)
    monkeypatch.setattr(memory, "free", lambda: free * 2**30)
    room = memory.Room()
    free = 0.5
    assert room.fits(1)
    with room.held(1):
        assert not room.fits(2)  # Nobody knows yet: 2 GiB each, of which each has 1.
        free = 2.2
        assert room.fits(2)
    assert 4 * 2**30 == room.peak
    with room.held(1):
        assert not room.fits(2)
        free = 7.0
        assert room.fits(2)
        had[1] = 4.0
        free = 3.2
        assert room.fits(2)


def test_a_page_of_thousands_is_thinned_and_says_so(tmp_path: Path) -> None:
    """Of 5,000 variants the best are drawn, and of the others every so many; the words say how many."""
    draws = np.random.default_rng(1)
    variants = []
    for n in range(5000):
        rate, kind = float(draws.uniform(0.01, 1.0)), ("a", "b")[n % 2]
        taken = {7: {"final accuracy": Figure(1 - (rate - 0.3) ** 2), "bytes_up": Figure(rate * 1e6)}}
        variants.append(Variant(Point(n, f"{n:04d}", {"k.rate": rate, "k.kind": kind}), (7,), {}, taken))
    goals = (Goal("final accuracy", True),)
    found = Sweep("big", {"scenario": "x"}, {"name": "x"}, ("k.rate", "k.kind"), (7,), goals, ("final accuracy", "bytes_up"), None,
                  variants, tmp_path, 5000)  # fmt: skip
    shown = page.thinned(found, variants, 100)

    assert 100 == len({each.point.number for each in shown}) and {each.point.number for each in found.ranked[:50]} <= {
        each.point.number for each in shown
    }  # fmt: skip
    text = page.write_page(found).read_text()
    assert f"Shown are {page.LINES:,} of 5,000" in text and len(text) < 12e6


def test_the_sweeps_that_come_along_can_be_read() -> None:
    """Each sweep in scenarios/sweeps names a scenario that is there, and keys that it takes."""
    files = sorted((Path(__file__).parents[1] / "scenarios" / "sweeps").glob("*.toml"))
    for file in files:
        space = read(file)
        probed(space, load(space.source, space.file.set))
        assert way_of(space, 7, directions_of(space)).ask()
    assert files
