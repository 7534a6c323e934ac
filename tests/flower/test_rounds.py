"""Our rounds are those of Flower's ``Strategy.start``: the same rows, the same result, the same log; and ours to stop and resume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from test_strategies import table

import fedsim
from fedsim.flower import compat, compat_steps, records, rounds
from fedsim.flower.rounds import Course, Done, drive
from fedsim.learn.engine.queue import here
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load
from fedsim.sim.grid import VirtualGrid
from fedsim.sim.rows import RoundRow, TaskRow, VersionRow
from fedsim.strategy import stock

Go = Callable[..., fedsim.Run]
BOTH = {"evaluate.federated_fraction": 0.5, "server.rounds": 3}


class Heard:
    """Keeps every row."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def task(self, row: TaskRow) -> None:
        self.rows.append(row)

    def round(self, row: RoundRow) -> None:
        self.rows.append(row)

    def heard(self, row: Any) -> None: ...

    def version(self, row: VersionRow) -> None:
        self.rows.append((row.version, row.now_s, row.merged.tolist()))


def score(number: int, arrays: ArrayRecord) -> MetricRecord | None:
    """Return a score of the model after every second round."""
    return None if number % 2 else MetricRecord({"norm": float(sum(np.abs(array.numpy()).sum() for array in arrays.values()))})


def by_flower(strategy: Strategy, grid: Any, arrays: ArrayRecord, course: Course, score: Any, enough: Any) -> Result:
    """Run *course* as Flower does."""
    return strategy.start(grid, arrays, course.rounds, course.timeout_s, course.train, course.evaluate, score)


def never() -> bool:
    return False


def told(driver: Callable[..., Result], kind: str, tiny: Any, caplog: Any, more: dict[str, Any] | None = None) -> list[Any]:
    """Return what a run of *kind* under *driver* tells: its rows, its result with the model's numbers, and its log, wall times apart."""
    parts, heard = build(load(tiny({"server.strategy": table(kind), **BOTH, **(more or {})}))), Heard()
    grid = VirtualGrid(parts.fleet, here(parts.engine), heard, mods=parts.strategy.mods, writable=parts.strategy.writable)
    strategy = compat_steps.name_draws(compat_steps.keep_types(parts.strategy.strategy, parts.first), parts.key)
    caplog.clear()
    with caplog.at_level(logging.INFO, "flwr"), compat.cheap_collections():  # As in a session.
        result = driver(strategy, grid, compat.array_record(parts.first), course_of(parts), score, never)
    grid.finish()
    log = [record.getMessage() for record in caplog.records if "finished in" not in record.getMessage()]
    return [heard.rows, repr(result), {name: array.numpy().tobytes() for name, array in result.arrays.items()}, log]


def course_of(parts: Parts) -> Course:
    """Return the scenario's course."""
    server = parts.scenario.server
    return Course(server.rounds, server.round_timeout_s, records.job_config(parts.job), ConfigRecord())


@pytest.fixture(autouse=True)
def _speaking(monkeypatch: Any) -> None:
    """Flower's log reaches pytest's ear."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)


@pytest.mark.parametrize("kind", stock.names())
def test_rounds_are_those_of_start(kind: str, tiny: Any, caplog: Any) -> None:
    """Three rounds with federated evaluation give the rows, the result and the log of Flower's own start, for every stock strategy."""
    ours, theirs = told(drive, kind, tiny, caplog), told(by_flower, kind, tiny, caplog)

    assert theirs == ours
    assert any(getattr(row, "kind", "") == "evaluate" for row in ours[0]) and ours[2] and len(ours[3]) > 20


def test_rounds_in_which_nobody_answers_are_those_of_start(tiny: Any, caplog: Any) -> None:
    """Where no reply comes in time nothing is aggregated, and the model goes on as it was: as in Flower's own start."""
    late = {"server.round_timeout_s": 0.1}

    assert told(by_flower, "FedAvg", tiny, caplog, late) == told(drive, "FedAvg", tiny, caplog, late)


def evaluates_too_early(strategy: Strategy, grid: Any, arrays: ArrayRecord, course: Course, first: int = 1) -> Iterator[Done]:
    """Play rounds wrongly: clients evaluate the model of the round before."""
    for number in range(first, course.rounds + 1):
        asked = list(strategy.configure_train(number, arrays, course.train, grid))
        made, trained = strategy.aggregate_train(number, grid.send_and_receive(asked, timeout=course.timeout_s))
        asked = list(strategy.configure_evaluate(number, arrays, course.evaluate, grid))
        arrays = made or arrays
        evaluated = strategy.aggregate_evaluate(number, grid.send_and_receive(asked, timeout=course.timeout_s))
        yield Done(number, arrays, made is not None, trained, evaluated)


def counts_from_nought(strategy: Strategy, grid: Any, arrays: ArrayRecord, course: Course, first: int = 1) -> Iterator[Done]:
    """Play rounds wrongly: they are called 0, 1, 2."""
    once = Course(course.rounds - 1, course.timeout_s, course.train, course.evaluate)
    yield from REAL(strategy, grid, arrays, once, first - 1)


def forgets_what_it_learned(strategy: Strategy, grid: Any, arrays: ArrayRecord, course: Course, first: int = 1) -> Iterator[Done]:
    """Play rounds wrongly: each begins with the first model."""
    for number in range(first, course.rounds + 1):
        yield from REAL(strategy, grid, arrays, Course(number, course.timeout_s, course.train, course.evaluate), number)


REAL = rounds.rounds


@pytest.mark.parametrize("wrong", [evaluates_too_early, counts_from_nought, forgets_what_it_learned])
def test_the_law_rejects_wrong_rounds(wrong: Any, tiny: Any, caplog: Any, monkeypatch: Any) -> None:
    """Loops that look right and are not differ in their rows: the law has teeth."""
    theirs = told(by_flower, "FedAvg", tiny, caplog)
    monkeypatch.setattr(rounds, "rounds", wrong)

    assert theirs[0] != told(drive, "FedAvg", tiny, caplog)[0]


@pytest.mark.parametrize("kind", ["FedAvg", "FedAdam", "DifferentialPrivacyClientSideAdaptiveClipping"])
def test_a_run_has_the_digests_of_start(kind: str, go: Go, monkeypatch: Any) -> None:
    """A whole run under Flower's own start has the digests of one in our rounds, stopped or not; what it logs is in both."""
    settings = {"server.strategy": table(kind), **BOTH}
    stop = {"stop": {"metric": "loss", "at_most": 100.0}}
    ours = [go({**settings, **more}) for more in ({}, stop)]
    monkeypatch.setattr(rounds, "starts_itself", lambda strategy: True)
    theirs = [go({**settings, **more}) for more in ({}, stop)]

    assert [(run.digest, run.metrics_digest) for run in theirs] == [(run.digest, run.metrics_digest) for run in ours]
    assert [3, 0] == [run.final["rounds"] for run in ours]
    mine, flowers = ((run.path / "flower.log").read_text().splitlines() for run in (ours[0], theirs[0]))
    assert [line for line in flowers if "finished in" not in line] == [line for line in mine if "finished in" not in line]


def test_rounds_go_on_where_they_were_left(tiny: Any, caplog: Any) -> None:
    """Two rounds, and then a third from the model after them, are three rounds: rows and all."""
    whole = told(drive, "FedAvgM", tiny, caplog)

    def in_two(strategy: Strategy, grid: Any, arrays: ArrayRecord, course: Course, *_: Any) -> Result:
        playing = rounds.rounds(strategy, grid, arrays, course)
        done = [next(playing), next(playing)][-1]
        assert (2, True) == (done.round, done.changed)
        (last,) = rounds.rounds(strategy, grid, done.arrays, course, first=done.round + 1)
        return Result(arrays=last.arrays)

    halves = told(in_two, "FedAvgM", tiny, caplog)

    assert (whole[0], whole[2]) == (halves[0], halves[2])


class Twice(FedAvg):
    """A stranger's: starts itself, and plays everything twice."""

    def start(self, *args: Any, **kwargs: Any) -> Any:
        super().start(*args, **kwargs)
        return super().start(*args, **kwargs)


def test_a_start_of_ones_own_is_run_as_it_is(go: Go) -> None:
    """What a reader's strategy does in its own start is done: here all rounds come twice."""
    run = go({"server.strategy": {"kind": f"{__name__}:Twice"}})

    assert [1, 2, 1, 2] == run.rounds["round"].tolist()
