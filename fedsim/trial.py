"""What running a scenario takes on this computer: its first rounds really played in a temporary folder, against the clock on the wall.

What is measured here is told to whoever asks what a run would cost. It reaches no run: what was played is thrown away.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim import apart
from fedsim.core.errors import FedsimError
from fedsim.core.machine import ALONE
from fedsim.core.types import Seconds
from fedsim.learn.engine.executors import Executor, Site
from fedsim.learn.work import Result, Start, Task
from fedsim.preview import Preview
from fedsim.record.leaving import Pruned
from fedsim.scenario.build import opened
from fedsim.scenario.hollow import hollow
from fedsim.scenario.load import Loaded
from fedsim.session import Progress, played

TRIAL_S = 4.0
"""Wall time for the rounds that are played, unless told otherwise. A step, a batch of tests and the report take what they take."""
ROUNDS, AT_LEAST_S, MOST = 4, 0.3, 20
"""Rounds that are played where there is time; short ones go on to so much wall time, or to so many."""
PILOT_STEPS, LONG_FLOP = 4, 1e10
"""Local steps of the first look at a task; one alone where it takes so many operations."""
AGAIN_S = 1.0
"""A first look that takes longer than this is not taken again: what compiling took in it is then not told apart."""


@dataclass(frozen=True, slots=True)
class Wall:
    """The wall time of a run here, foretold from *rounds* that were trained: *parts* are seconds by what takes them.

    ``start``: imports, and building the world. ``compile``: what only the first steps take. ``training``, ``evaluation`` (the server's),
    ``events`` (all else of the rounds: the folder, clients' plans, the strategy, rows), ``report``. All but the first and the last are
    what a run's own wall time is of. *why* says why nothing was measured; no parts then.
    *whole*: the last of the rounds was played to its end, and not only its first steps.
    """

    parts: Mapping[str, Seconds] = field(default_factory=dict[str, Seconds])
    rounds: int = 0
    whole: bool = True
    why: str = ""

    @property
    def wall_s(self) -> Seconds | None:
        """Return the wall time of the run; None where nothing was measured."""
        return sum(self.parts.values()) if self.parts else None

    def plain(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {
            "wall_s": self.wall_s,
            "wall_s_parts": dict(self.parts) or None,
            "wall_s_from_rounds": self.rounds,
            "wall_s_unknown": self.why or None,
        }


UNTIMED = Wall()
"""Nobody wanted to know."""


@dataclass(slots=True)
class Lap:
    """What passed since the lap before: *wall_s* in all, of it *train_s* for *tasks* that saw *seen* examples, *test_s* for *tests*."""

    wall_s: Seconds = 0.0
    train_s: Seconds = 0.0
    test_s: Seconds = 0.0
    tasks: int = 0
    seen: int = 0
    tests: int = 0

    def plus(self, other: Lap) -> Lap:
        """Return both as one."""
        return Lap(
            self.wall_s + other.wall_s, self.train_s + other.train_s, self.test_s + other.test_s, self.tasks + other.tasks,
            self.seen + other.seen, self.tests + other.tests,
        )  # fmt: skip

    @property
    def other_s(self) -> Seconds:
        """Return what was neither training nor evaluation."""
        return max(0.0, self.wall_s - self.train_s - self.test_s)


class _Enough(Pruned):
    """There is no time left for the round that goes."""


@dataclass
class _Stopwatch:
    """An executor that times *inner*, and lets no call take much longer than until *until_s*, on the clock of ``time.perf_counter``.

    *flops*: what an example takes to train on; *rows*: how many clients are trained together. *once_s* is what only the first steps took.
    """

    inner: Executor
    until_s: Seconds
    flops: float
    rows: int
    lap: Lap = field(default_factory=Lap)
    laps: list[Lap] = field(default_factory=list[Lap])
    once_s: Seconds = 0.0
    _each_s: Seconds | None = None
    _began_s: Seconds = field(default_factory=time.perf_counter)

    @property
    def computed(self) -> int | None:
        """Return how many tasks of the latest ``run`` are computed so far; None where nobody counts."""
        return getattr(self.inner, "computed", None)

    def serve(self, site: Site) -> None:
        """Compute at *site* from now on."""
        self.inner.serve(site)

    def run(self, tasks: Sequence[Task]) -> list[Result]:
        """Return the results of *tasks*, in their order. Raises _Enough where there was time for some of their steps only."""
        training = [task for task in tasks if task.job.kind == "train"]
        if not training:
            return self.inner.run(tasks)
        self.lap.tasks += len(training)
        if self._each_s is None:
            self._look(training[0])
        now, seen = time.perf_counter(), sum(task.seen for task in training)
        if self._each_s is not None and now + self._each_s * seen > self.until_s:
            self._few(training, max(0.5, self.until_s - now) / 2)
            raise _Enough("there was time for its first steps.")
        results, took_s = _timed(lambda: self.inner.run(tasks))
        self.lap.train_s, self.lap.seen = self.lap.train_s + took_s, self.lap.seen + seen
        return results

    def batch_sums(self, start: Start, batches: int) -> list[dict[str, float]]:
        """Return the sums of the first *batches* batches; where these would take long, the first one's for each, which is timed for all."""
        self.lap.tests += 1
        first, first_s = _timed(lambda: self.inner.batch_sums(start, min(1, batches)))
        if first_s * batches > max(0.0, self.until_s - time.perf_counter()) / 2:
            _, again_s = _timed(lambda: self.inner.batch_sums(start, min(1, batches)))
            self.lap.test_s += again_s * batches
            self._began_s += first_s + again_s - again_s * batches  # A lap takes what it would have.
            return first * batches
        sums, took_s = _timed(lambda: self.inner.batch_sums(start, batches))
        self.lap.test_s += took_s
        self._began_s += first_s
        return sums

    def close(self) -> None:
        """Leave *inner* to whoever opened it."""

    def next(self) -> None:
        """End a lap, and begin the next."""
        now = time.perf_counter()
        self.lap.wall_s = now - self._began_s
        self.laps.append(self.lap)
        self.lap, self._began_s = Lap(), now

    def _look(self, task: Task) -> None:
        """Take a first look at *task*: what an example takes, and what only comes once. It is in no lap."""
        few = _cut(task, 1 if self.flops * task.job.size(max(1, task.trained_on)) > LONG_FLOP else PILOT_STEPS)
        _, first_s = _timed(lambda: self.inner.run([few]))
        again_s = first_s if first_s > AGAIN_S else _timed(lambda: self.inner.run([few]))[1]
        self.once_s, self._each_s = max(0.0, first_s - again_s), again_s / max(1, few.seen)
        self._began_s += first_s + (0.0 if first_s > AGAIN_S else again_s)

    def _few(self, tasks: Sequence[Task], wall_s: Seconds) -> None:
        """Train, for about *wall_s*, with as many of *tasks* as are trained together, so many steps of each."""
        each_s, together = self._each_s or 0.0, tasks[: max(1, self.rows)]
        a_step_s = each_s * sum(task.seen / max(1, task.steps) for task in together)
        few = [_cut(task, max(1, int(wall_s / max(a_step_s, 1e-9)))) for task in together]
        if few[0].laid_out:  # Whose batches are laid out already is trained whole: as many as there is time for.
            few = few[: max(1, int(wall_s / max(each_s * few[0].seen, 1e-9)))]
        _, took_s = _timed(lambda: self.inner.run(few))
        self.lap.train_s, self.lap.seen = self.lap.train_s + took_s, self.lap.seen + sum(task.seen for task in few)


def timed(loaded: Loaded, foretold: Preview, *, imports_s: Seconds = 0.0, wall_s: Seconds = TRIAL_S) -> Wall:
    """Return what running *loaded* takes here, whose rounds and parts *foretold* has; plays some of them for about *wall_s*.

    *imports_s* is what a process takes before it begins. A scenario that cannot be played, or whose executor is a stranger's (who may send
    what it is given anywhere), is not timed: ``why`` says so. No error of the rounds that are played is raised.
    """
    kind = str(loaded.scenario.engine.executing["kind"])
    if ":" in kind:
        return Wall(why=f"engine.executor = {kind!r}: not played, since nobody knows where it computes")
    if apart.needed(loaded.scenario):
        return Wall(why="engine.reproducible = 'everywhere': runs in another process than this one, by other kernels")
    if what := hollow(loaded.scenario, foretold.parts.model, foretold.parts.federation):
        return Wall(why=f"{what}: has sizes, and no numbers to learn from")
    engine, flops = foretold.parts.engine, foretold.parts.fleet.flops.training
    rows = engine.chunk * max(1, loaded.scenario.engine.workers or 1)
    try:
        with ALONE, tempfile.TemporaryDirectory(prefix="fedsim-") as scratch, opened(loaded) as executor:
            watch = _Stopwatch(executor, math.inf, flops, rows)
            began_s = time.perf_counter()
            watch.until_s = began_s + wall_s
            broken = _play(loaded, foretold, watch, Path(scratch) / "run", began_s)
            if broken:
                return Wall(rounds=max(0, len(watch.laps) - 1), why=broken)
            _, report_s = _timed(lambda: _reported(Path(scratch) / "run"))
    except FedsimError as error:
        return Wall(why=str(error))
    return _told(foretold, watch, imports_s, report_s)


def _play(loaded: Loaded, foretold: Preview, watch: _Stopwatch, out: Path, began_s: Seconds) -> str:
    """Play rounds under the eyes of *watch*; return why that could not be, or nothing."""

    def seen(_: Progress) -> None:
        watch.next()
        done, now = len(watch.laps) - 1, time.perf_counter()
        if done and (done >= MOST or now > watch.until_s or (done >= ROUNDS and now - began_s > AT_LEAST_S)):
            raise Pruned("timed.")

    try:
        played(foretold.parts, loaded, watch, out, seen)
    except Pruned:
        pass
    except FedsimError as error:
        return str(error).replace(str(out), "its folder")
    return ""


def _told(foretold: Preview, watch: _Stopwatch, imports_s: Seconds, report_s: Seconds) -> Wall:
    """Return what all rounds take, by what those that were played took."""
    opening, *laps = watch.laps or [watch.lap]
    if (partly := watch.lap).tasks and not any(lap.seen for lap in laps):
        laps = [*laps, partly.plus(Lap(wall_s=partly.train_s + partly.test_s))]
    steady = [lap for lap in laps[1:] if lap.seen] or laps[:1]
    mean, told, scenario = _sum(steady), foretold.foretold, foretold.parts.scenario
    work, all_ = told.work, told.rounds / max(1, told.rehearsed)
    # Who misses the deadline is never computed, but where it leaves something behind at its client.
    answered = 1.0 if foretold.parts.fleet.online or not told.asked else 1.0 - told.missed / told.asked
    each_s = mean.train_s / mean.seen if mean.seen else 0.0
    once_s = watch.once_s + (max(0.0, laps[0].train_s - laps[0].seen * each_s) if len(laps) > 1 else 0.0)
    tests = _sum([opening, *laps])
    tested = 1 + math.ceil(told.rounds / scenario.evaluate.every)
    a_task_s = mean.other_s / mean.tasks if mean.tasks else mean.other_s / max(1, len(steady))
    tasks = work.tasks * all_ if mean.tasks else told.rounds
    return Wall(
        {
            "start": imports_s + foretold.built_s, "compile": once_s,
            "training": each_s * work.examples * all_ * answered, "evaluation": tests.test_s / max(1, tests.tests) * tested,
            "events": opening.other_s + a_task_s * tasks, "report": report_s,
        },
        rounds=len(laps), whole=not watch.lap.tasks,
    )  # fmt: skip


def _sum(laps: Sequence[Lap]) -> Lap:
    found = Lap()
    for lap in laps:
        found = found.plus(lap)
    return found


def _cut(task: Task, steps: int) -> Task:
    """Return *task* with its first *steps* local steps; as it is where its batches are laid out already."""
    if task.laid_out or task.steps <= steps:
        return task
    rates = None if task.rates is None else task.rates[:steps]
    return replace(task, job=replace(task.job, epochs=0, steps=steps), rates=rates)


def _reported(folder: Path) -> None:
    from fedsim.report.page import write_report
    from fedsim.score.run import Run

    write_report(Run(folder))


def _timed(call: Callable[[], Any]) -> tuple[Any, Seconds]:
    began_s = time.perf_counter()
    return call(), time.perf_counter() - began_s
