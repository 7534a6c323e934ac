"""Studies: what is run and what is read, how a figure becomes a grade and a verdict, and what a killed study leaves."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import HELD, PLANTED, WIDE, Mean, Point, curvatures, noise, quadratic
from test_docs import documented

import fedsim
from fedsim.core.errors import ScenarioError
from fedsim.learn.gradients import noise_at
from fedsim.learn.job import Job
from fedsim.many import runs
from fedsim.many.runs import Asked, Crew
from fedsim.many.worker import answer
from fedsim.record import manifest
from fedsim.scenario.build import build
from fedsim.scenario.load import Loaded
from fedsim.scenario.schema import Scenario
from fedsim.score.target import Target
from fedsim.studies import grades, measures, studied, table
from fedsim.studies.fit import fit
from fedsim.studies.found import Line, Study
from fedsim.studies.measures import MEASURED, Estimate, Measured
from fedsim.studies.plan import Plan, Row, Variant, mean_size, rows_of

Tiny = Callable[..., dict[str, Any]]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let workers of a study answer in this process; yields what they were asked, run by run."""
    asked: list[str] = []

    def ask(_: Any, request: dict[str, Any], **_more: Any) -> dict[str, str]:
        asked.append(f"{request['what']} {Path(request['out']).name}")
        return answer(json.loads(json.dumps(request)))

    monkeypatch.setattr("fedsim.learn.speed.TIMED", 3)
    monkeypatch.setattr("fedsim.learn.speed.SIDES", (64,))
    monkeypatch.setattr(runs, "_started", lambda everywhere: None)
    monkeypatch.setattr(runs._Worker, "ask", ask)
    yield asked


def loaded(scenario: dict[str, Any]) -> Loaded:
    return Loaded(Scenario.model_validate(scenario), Path.cwd())


def test_a_study_is_resumed(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """A killed study goes on: what is done is read, what broke is run again, another scenario's run stays; the table is the same."""
    scenario = tiny({"training.batch_size": 4})
    options: dict[str, Any] = {"batches": [4, "full"], "quick": True, "target": "accuracy=0.2", "jobs": 1, "out": tmp_path / "s"}
    first = fedsim.study(scenario, **options)
    began = len(beside)
    done = sorted(each.name for each in (tmp_path / "s").iterdir() if each.is_dir())
    again = fedsim.study(scenario, **options)
    timed = [name for name in first if "samples_per_s" in name or "utilisation" in name or "speed" in name]

    assert began == len(beside) and began == len(done) + 2  # Measured: a run for each size.
    assert first.drop(columns=timed).equals(again.drop(columns=timed))
    broken = tmp_path / "s" / done[0]
    about = manifest.read(broken)
    manifest.write(broken, about | {"status": "interrupted", "digest": None})
    fedsim.study(scenario, **options)
    assert f"run {done[0]}" in beside[began:]
    began = len(beside)
    fedsim.study(scenario, overrides={"clients.count": 5}, **options)
    assert manifest.read(broken)["scenario"]["clients"]["count"] == 6
    assert f"run {done[0]}.2" in beside[began:]
    csv, page = (tmp_path / "s" / name for name in (table.CSV, table.PAGE))
    assert len(csv.read_text().splitlines()) == 3 and "http" not in page.read_text().split("<body>")[1].split("<script")[0]


def test_a_study_that_is_interrupted_says_how_to_go_on(tiny: Tiny, tmp_path: Path, beside: list[str], monkeypatch: Any) -> None:
    """Ctrl-C leaves what is finished, and its words name the folder."""
    ask = runs._Worker.ask

    def stop(worker: Any, request: dict[str, Any], **_more: Any) -> Any:
        if len(beside) == 2:
            raise KeyboardInterrupt
        return ask(worker, request)

    monkeypatch.setattr(runs._Worker, "ask", stop)
    with pytest.raises(KeyboardInterrupt, match=r"2 runs and measurements are done, and safe in .*s\. The same command goes on"):
        fedsim.study(tiny(), batches=[4], quick=True, target="accuracy=0.2", jobs=1, out=tmp_path / "s")
    assert ["done", "done"] == [fedsim.load(each).status for each in (tmp_path / "s").iterdir()]


def test_workers_are_processes_of_their_own(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker leaves an ordinary run folder, says what refused and what diverged; a dead one is started again, and its death told."""
    wild = tiny({"training.optimizer.lr": 1e38, "server.rounds": 3, "training.batch_size": 1})
    refused = tiny({"model": {"kind": "nobody:Net"}})
    with Crew(tmp_path, 1) as crew:
        first = crew.runs([Asked("a", loaded(tiny()), (1,)), Asked("b", loaded(wild)), Asked("c", loaded(refused))])
        process = crew._all[0].process
        assert process is not None
        process.kill()
        process.wait()
        words, pipe = [sys.executable, "-c", "input()"], subprocess.PIPE
        monkeypatch.setattr(runs, "_started", lambda everywhere: subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True))
        last = crew.runs([Asked("d", loaded(tiny()))])[0]
    assert ["done", "diverged", "refused"] == [outcome.status for outcome in first]
    assert ("failed", "its process ended with code 0.") == (last.status, last.error)
    assert first[0].run is not None and first[0].run.digest == fedsim.run(tiny(), out=tmp_path / "e").digest
    assert (tmp_path / "a" / "model-1.safetensors").is_file()
    assert process.poll() is not None


def test_a_verdict_follows_from_the_interval() -> None:
    """The textbook agrees where the whole interval has its grade, disagrees where none of it has, and is undecided between."""
    cells = [
        grades.judged(Estimate(mean, half, 3), grades.stability, grades.STABILITY, "high")
        for mean, half in ((5.0, 1.0), (20.0, 5.0), (9.0, 4.0), (20.0, 15.0), (5.0, math.nan), (math.nan, 1.0))
    ]

    assert ["agrees", "disagrees", "undecided", "undecided", "undecided", "undecided"] == [cell.verdict for cell in cells]
    assert ["high", "very high", "high", "very high", "high", ""] == [cell.grade for cell in cells]


def test_generalisation_is_poor_beyond_noise_and_beyond_a_third_of_a_point() -> None:
    """Poor is worse than the best row by more than 2 standard errors of the paired difference and by more than 0.3 points."""
    best = {0: 0.95, 1: 0.96, 2: 0.94}

    def cell(*behind: float, says: str = "poor") -> tuple[str, str]:
        found = grades.generalisation({s: best[s] - b for s, b in enumerate(behind)}, best, True, False, says)
        return found.grade, found.verdict

    assert ("poor", "agrees") == cell(0.02, 0.021, 0.019)
    assert ("good", "disagrees") == cell(0.002, 0.0021, 0.0019)  # Certain, and nothing worth a word.
    assert ("good", "undecided") == cell(0.05, -0.04, 0.02)
    assert ("good", "agrees") == cell(0.0, 0.0, 0.0, says="good")
    assert ("poor", "disagrees") == cell(0.02, 0.021, 0.019, says="good")
    assert ("poor", "undecided") == cell(0.02)


def test_a_policy_is_optimised_within_five_percent() -> None:
    """The policy's virtual time to the target is compared with the best size's, seed by seed; one that never arrives is undecided."""
    best = {0: 10.0, 1: 20.0, 2: 30.0}

    assert "agrees" == grades.dynamic({s: 1.01 * t for s, t in best.items()}, best, "optimised").verdict
    assert "disagrees" == grades.dynamic({s: 1.5 * t for s, t in best.items()}, best, "optimised").verdict
    assert "undecided" == grades.dynamic({0: 1.0, 1: math.nan, 2: 3.0}, best, "optimised").verdict


def plan(**more: Any) -> Plan:
    sizes = np.array([10, 30])
    scenario = Scenario.model_validate(PLANTED | {"training": PLANTED["training"] | {"batch_size": 10} | more})
    rows = rows_of((1, 16, 64, "full"), sizes, 10)
    job = Job(epochs=more.get("epochs") or 0, steps=more.get("steps") or 0, batch_size=10, lr=0.1)
    return Plan(Loaded(scenario, Path.cwd()), job, sizes, rows, (3,), Target("loss", 0.1, False), 5, 2.0, None)


def test_budgets_are_equal() -> None:
    """Equal steps are the scenario's own, equal epochs too, whichever of the two it counts; a size that no client fills is full."""
    counted, stepped = plan(epochs=2, steps=None), plan(epochs=None, steps=4)

    assert [(row.label, row.batch, row.size) for row in counted.rows] == [
        ("1", 1, 1.0), ("16", 16, 14.5), ("64", "full", 25.0), ("full", "full", 25.0),
    ]  # fmt: skip
    assert (4, 2) == (counted.steps, counted.epochs)  # 2 and 6 steps; the mean over clients.
    assert (4, 2) == (stepped.steps, stepped.epochs)
    assert [0.0025, 0.005, 0.01, 0.02, 0.04] == list(counted.rates(Row("1", 1, mean_size(1, counted.sizes))))
    training = stepped.loaded_of(Variant("full", 0.5, "target", 4)).scenario
    assert (2, None, "full", 0.5, 4) == (
        training.training.epochs, training.training.steps, training.training.batch_size, training.training.optimizer["lr"], training.seed,
    )  # fmt: skip
    assert training.stop is not None and (0.1, stepped.longest) == (training.stop.at_most, training.server.rounds)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"batches": "1,eight"}, "'eight' is no batch"), ({"batches": [0]}, "'0' is no batch size"), ({"batches": ""}, "no batch size"),
        ({"target": "acuracy=0.9"}, "Did you mean 'accuracy'"), ({"target": "accuracy"}, "must look like"),
        ({"target": "accuracy=much"}, "is no number"), ({"seeds": 0}, "between 1 and 100"), ({"stretch": 0.5}, "between 1 and 1000"),
        ({"jobs": 0}, "between 1 and 256"), ({"question": "batchsize"}, "Did you mean 'batch-size'"),
    ],
)  # fmt: skip
def test_bad_words_are_refused(words: dict[str, Any], said: str, tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """What is no batch size, no score and no number of anything is named, and nothing runs."""
    with pytest.raises(ScenarioError, match=said):
        studied(loaded(tiny()), out=tmp_path / "s", **words)
    assert [] == beside and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stream": {}}, "stream: a study compares"),
        ({"training.curriculum": {"begin": 0.3, "over": 9, "clock": "local_step"}}, "curriculum.clock = 'local_step': lets a task"),
        ({"training.curriculum": {"begin": 0.3, "over": 9, "clock": "virtual_s"}}, "'round' and 'version' work"),
        ({"training.stopping": {"kind": "patience", "epochs": 2}}, "training.stopping: ends"),
    ],
)  # fmt: skip
def test_what_cannot_be_studied_is_refused(changes: dict[str, Any], said: str, tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """Streams and tasks that end by themselves have no equal budgets."""
    with pytest.raises(ScenarioError, match=said):
        studied(loaded(tiny(changes)), out=tmp_path / "s")


@pytest.mark.parametrize(
    "changes",
    [
        {"training.curriculum": {"begin": 0.3, "over": 4}}, {"training.curriculum": {"begin": 0.3, "over": 4, "clock": "version"}},
        {"training.epochs": 0.5}, {"training.accumulate": 2, "training.drop_last": True},
        {"training.epochs": 1.5, "training.batch_policy": {"kind": "even"}},
        {"training.drop_last": True, "training.batch_policy": {"kind": "even"}, "training.curriculum": {"begin": 0.5, "over": 4}},
        {"training.mix": {"by": "label"}},
    ],
)  # fmt: skip
def test_examples_are_those_that_were_trained_on(changes: dict[str, Any], tiny: Tiny, go: Callable[..., fedsim.Run]) -> None:
    """The mean batch, and examples to a target, are those of every single step, as a watched run has them: by a curriculum, or a policy."""
    ragged = {"training.batch_size": 4, "data.partition": {"kind": "dirichlet", "alpha": 0.3}, "server.rounds": 3, **changes}
    run = go({**ragged, "monitor": {"every": 1, "tasks": 1.0, "noise": 0.0}})
    job = build(Loaded(Scenario.model_validate(tiny(ragged)), Path.cwd())).job
    steps, by_task = run.steps, run.steps.groupby(["client", "number"]).batch.sum()

    assert len(steps) == run.tasks.steps.sum()
    assert measures.mean_batch(run, job) == pytest.approx(steps.batch.mean())
    assert measures.trained_on(run.tasks, job) == [int(by_task[c, n]) for c, n in zip(run.tasks.client, run.tasks.number, strict=True)]


def test_a_fit_goes_by_the_batches_that_were(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """Clients of 30 examples have batches of 16 and 14: the critical batch is fitted by their mean, 15, and drawn there."""
    options: dict[str, Any] = {"batches": [4, 16, "full"], "quick": True, "target": "loss=2.2", "stretch": 5, "jobs": 1}
    found = studied(loaded(tiny()), out=tmp_path / "s", **options)
    took = [(line.figures["steps_to_target"].mean, line.figures["examples_to_target"].mean) for line in found.lines]

    assert [4, 16, 30] == [line.row.size for line in found.lines]
    assert [30 / 8, 15.0, 30.0] == pytest.approx([line.taken for line in found.lines], rel=0.02)
    assert found.fit == fit([examples / steps for steps, examples in took], [steps for steps, _ in took])
    page = (tmp_path / "s" / table.PAGE).read_text()
    assert "Rates are chosen by the scores of seed 7" in page and "has no cost per step" in page
    assert table.footnotes(found) == table.summary(found)["foot"]
    assert documented()["study"] == table.summary(found).keys()


def test_times_within_a_hundredth_tie() -> None:
    """What is quicker by the fourth digit is not called the quickest alone; what is slower by two hundredths is no tie."""

    def line(batch: int, took_s: float) -> Line:
        figures = {f"{name}_to_target": Estimate(value) for name, value in (("virtual_s", took_s), ("rounds", 3.0), ("bytes", 1e6))}
        return Line(Row(str(batch), batch, batch), {"target": 0.1}, {}, figures, {}, {})

    def said(*took_s: float) -> str:
        lines = [line(batch, each) for batch, each in zip((1, 16, 64), took_s, strict=True)]
        return table._quickest(Study(plan(epochs=2), Target("loss", 0.1, False), "loss", lines, None, Path(), None, 0, 0))  # type: ignore[arg-type]  # No host.

    assert "Quickest to loss <= 0.1: batches of 16" in said(7.4930, 7.4926, 7.7)
    assert "Within 1 % of that, a tie: batches of 1." in said(7.4930, 7.4926, 7.7)
    assert "tie" not in said(7.4930, 7.3, 7.7)


def test_a_wrong_fit_is_told_by_its_error() -> None:
    """Steps that do not fall with the batch are far from a hyperbola; two sizes say nothing."""
    lost = fit([1, 10, 100], [10.0, 300.0, 20.0])

    assert lost is not None and lost.error > 0.25
    assert fit([1, 10], [100.0, 10.0]) is None


def test_a_measure_of_another_run_is_none(tiny: Tiny, tmp_path: Path) -> None:
    """Measures that lie beside a run are read only where they are this run's."""
    run = fedsim.run(tiny(), out=tmp_path / "a")
    said = {"digest": run.digest, "noise": {"1": [2.0, 1.0]}, "train": {"loss": 1.0}, "examples": 5}
    (run.path / MEASURED).write_text(json.dumps(said))
    found = Measured.of(run)

    assert found is not None and found.noise == {1: (2.0, 1.0)} and found.covers([1]) and not found.covers([1, 2])
    (run.path / MEASURED).write_text(json.dumps(said | {"digest": "0"}))
    assert Measured.of(run) is None


def planted(tmp_path: Path, **options: Any) -> Study:
    shutil.copy(Path(__file__).parent / "planted.py", tmp_path / "planted_quadratic.py")
    return studied(Loaded(Scenario.model_validate(PLANTED), tmp_path), out=tmp_path / "s", jobs=1, stretch=1, **options)


def test_a_planted_quadratic_has_its_critical_batch(tmp_path: Path, beside: list[str]) -> None:
    """Steps to the target are the planted ones to 10 %, and so is the critical batch size of the hyperbola, which fits to 10 %."""
    found = planted(tmp_path, batches=[8, 32, 128], seeds=1)
    lines = {line.row.size: line for line in found.lines}
    tried = {size: [*line.tried] for size, line in lines.items()}
    steps = {size: min(taken for rate in tried[size] if (taken := quadratic(size, rate, found.target.value))) for size in lines}
    best = [min(taken for rate in np.geomspace(0.01, 1.99, 100) if (taken := quadratic(size, rate, found.target.value))) for size in steps]
    expected = fit(list(steps), best)

    assert {size: line.figures["steps_to_target"].mean for size, line in lines.items()} == pytest.approx(steps, rel=0.1)
    assert found.fit is not None and expected is not None
    assert found.fit.critical == pytest.approx(expected.critical, rel=0.1)
    assert found.fit.error < 0.1 and expected.error < 0.1


def test_signal_to_noise_goes_with_the_batch() -> None:
    """The study's signal-to-noise is that of batches which are drawn: in proportion to their size, slope 1 within 0.05."""
    pool, model = noise(), Point().double()
    x, y = torch.from_numpy(pool.train.x), torch.from_numpy(pool.train.y)
    trace, square = noise_at(model, Mean(), {"w": 0.2 * np.ones(WIDE)}, x, y)
    exact = 0.2 * curvatures()
    sizes, luck = (4, 16, 64, 256), np.random.default_rng(8)
    drawn = [
        float(exact @ exact) / float(np.mean([((pool.train.x[luck.integers(HELD, size=size)].mean(0)) ** 2).sum() for _ in range(60)]))
        for size in sizes
    ]

    assert (square, trace) == pytest.approx((float(exact @ exact), WIDE * HELD / (HELD - 1)), rel=0.03)
    assert [square / (trace / size) for size in sizes] == pytest.approx(drawn, rel=0.05)
    assert np.polyfit(np.log(sizes), np.log(drawn), 1)[0] == pytest.approx(1.0, abs=0.05)
