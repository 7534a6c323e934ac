"""How long a run takes here: what rounds that are played say of all of them, and that nothing of it reaches a run."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import fedsim
from conftest import tiny_table
from fedsim import trial
from fedsim.learn.engine.executors.local import Local  # noqa: F401 - a kind of this file
from fedsim.learn.work import Result, Start, Task
from fedsim.preview import preview
from fedsim.scenario.load import load
from fedsim.trial import timed

Tiny = Callable[..., dict[str, Any]]
Go = Callable[..., fedsim.Run]


class Clock:
    """A clock that goes on only when somebody works, and an engine that works by the book: so long a step, so long a batch of tests."""

    def __init__(self, step_s: float, test_s: float = 0.0) -> None:
        self.now_s, self.step_s, self.test_s, self.steps = 0.0, step_s, test_s, 0

    def perf_counter(self) -> float:
        return self.now_s

    def around(self, inner: Any) -> Any:
        """Return *inner* as an executor whose work takes time on this clock."""
        clock = self

        class Worked:
            def serve(self, site: Any) -> None:
                inner.serve(site)

            def run(self, tasks: Sequence[Task]) -> list[Result]:
                steps = sum(task.steps for task in tasks if task.job.kind == "train")
                clock.now_s, clock.steps = clock.now_s + steps * clock.step_s, clock.steps + steps
                return inner.run(tasks)

            def batch_sums(self, start: Start, batches: int) -> list[dict[str, float]]:
                clock.now_s += clock.test_s * batches
                return inner.batch_sums(start, batches)

            def close(self) -> None:
                inner.close()

        return Worked()


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> Callable[..., trial.Wall]:
    """Return ``on(clock, overrides)``: what is foretold of the tiny scenario by that clock."""
    from contextlib import contextmanager

    opened = trial.opened

    def told(clock: Clock, overrides: dict[str, Any], **how: Any) -> trial.Wall:
        @contextmanager
        def open_(loaded: Any) -> Any:
            with opened(loaded) as executor:
                yield clock.around(executor)

        monkeypatch.setattr(trial, "opened", open_)
        monkeypatch.setattr(trial, "time", clock)
        loaded = load(tiny(overrides))
        return timed(loaded, preview(loaded), **how)

    return told


def test_all_rounds_are_told_by_those_played(on: Callable[..., trial.Wall]) -> None:
    """By a clock on which a step takes 20 ms and a batch of tests 5 ms, training and evaluation of 60 rounds come out to the digit."""
    clock, overrides = Clock(step_s=0.02, test_s=0.005), {"server.rounds": 60, "evaluate.every": 2}
    wall, told = on(clock, overrides), preview(load(tiny_table(overrides)))
    steps, batches = told.foretold.work.steps, math.ceil(len(told.parts.federation.test) / 1024)

    assert wall.parts["training"] == pytest.approx(steps * 0.02)
    assert wall.parts["evaluation"] == pytest.approx(31 * batches * 0.005)
    assert [0.0, 0.0] == pytest.approx([wall.parts["compile"], wall.parts["events"]])
    assert wall.wall_s == pytest.approx(sum(wall.parts.values()))
    assert wall.whole and trial.ROUNDS == wall.rounds and clock.steps < steps / 10


def test_long_rounds_are_told_by_their_first_steps(on: Callable[..., trial.Wall]) -> None:
    """Where a step takes a second, no round is played to its end: some steps tell of all, for as long as was allowed."""
    clock = Clock(step_s=1.0, test_s=3.0)
    overrides = {"server.rounds": 40, "training.epochs": 30}
    wall, told = on(clock, overrides, wall_s=20.0), preview(load(tiny_table(overrides))).foretold

    assert wall.parts["training"] == pytest.approx(told.work.steps * 1.0, rel=0.02) and told.work.steps > 10_000
    assert not wall.whole and clock.steps < 60 and clock.now_s < 60


def test_what_misses_the_deadline_takes_no_time(on: Callable[..., trial.Wall]) -> None:
    """Tasks that nobody waits for are never computed: what is foretold of training is less by their share."""
    late = {"server.rounds": 40, "server.round_timeout_s": 1.2}
    all_, some = (on(Clock(0.001), overrides) for overrides in ({"server.rounds": 40}, late))
    told = preview(load(tiny_table(late))).foretold

    assert 0.1 < told.missed / told.asked < 0.9
    assert some.parts["training"] / all_.parts["training"] == pytest.approx(1 - told.missed / told.asked, rel=0.02)


def test_a_stranger_is_not_asked_to_compute(tiny: Tiny) -> None:
    """An executor of a reader's own is not played with, and a run that breaks in its first rounds is told: neither has a wall time."""
    own = load(tiny({"engine.executor": {"kind": f"{__name__}:Local"}}))
    broken = load(tiny({"model": {"kind": "mlp", "hidden": [8]}, "training.optimizer.lr": 1e30, "server.rounds": 30}))

    for loaded, why in ((own, "nobody knows where it computes"), (broken, "Training diverged")):
        wall = timed(loaded, preview(loaded))
        assert wall.wall_s is None and why in wall.why, wall


def test_nothing_of_it_reaches_a_run(tiny: Tiny, go: Go) -> None:
    """A run after a trial in the same process has the digest of one before."""
    before = go({"server.strategy": {"kind": "FedAdam"}})
    loaded = load(tiny({"server.strategy": {"kind": "FedAdam"}}))
    timed(loaded, preview(loaded))

    assert before.digest == go({"server.strategy": {"kind": "FedAdam"}}).digest


def test_check_says_how_long_it_takes(
    scenario_file: Callable[..., Path], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``check`` prints it, ``--json`` has it and its parts; with --dry neither. A run's summary names the same parts, its own of them."""
    monkeypatch.setattr("fedsim.cli.BEGAN_S", time.perf_counter())  # This process is older than a command's.
    file, out = scenario_file({"server.rounds": 3}), tmp_path / "run"
    said, ran, shown = (" ".join(cli(*words).out.split()) for words in (("check", file), ("run", file, "--out", out), ("show", out)))
    line, dry = (json.loads(cli("check", file, "--json", *words).out) for words in ((), ("--dry",)))

    parts = re.compile(r"wall time (?:about )?(\S+) s here \(start (\S+) s, rounds (\S+) s, report (\S+) s\)")
    told, took = (parts.search(words) for words in (said, ran))
    assert told and took and "by 3 rounds trained for it" in said and "nothing trained" not in said, (said, ran)
    assert float(took[1]) == pytest.approx(sum(float(part) for part in took.groups()[1:]), abs=0.1)
    rounds_s = fedsim.load(out).manifest["wall_s"]
    assert float(took[3]) == pytest.approx(rounds_s, rel=0.01) and re.search(rf"wall time {re.escape(took[3])} s for its rounds", shown)
    assert line["wall_s"] == pytest.approx(sum(line["wall_s_parts"].values())) and line["wall_s"] < 60
    assert dry["wall_s"] is None and dry["wall_s_parts"] is None

