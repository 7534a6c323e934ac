"""The rounds of a Flower strategy: the loop of its stock ``start`` over its public methods, ours to stop, to resume and to run dry.

Knows what a round is made of, and in which order. Knows no clock, and scores no model.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsim.core.errors import RunError
from fedsim.core.state import State
from fedsim.core.types import Seconds
from fedsim.flower import compat, records
from fedsim.learn.controllers import Changes, Controller
from fedsim.learn.job import Job

Score = Callable[[int, ArrayRecord], MetricRecord | None]
"""Scores the model after a round; None where it did not. 0 is the start."""
Heard = Callable[[int, Changes], None]
"""Hears after which round a controller asked for which changes."""


@dataclass(frozen=True, slots=True)
class Control:
    """A controller over what clients are ordered: the scenario's *job* with its changes goes into the config record of training.

    It is asked before a round's messages are made, where the model was scored since it was last asked (``evaluate.every``), and is told
    these scores, and the training metrics of the latest round that had any; of one name the score counts. *heard* is told of changes.
    """

    controller: Controller
    job: Job
    heard: Heard = lambda _round, _changes: None

    def steer(self, state: State, train: ConfigRecord, after: tuple[int, int], told: Iterable[MetricRecord | None]) -> State:
        """Return what the controller keeps once it was asked *after* a round and version: *train* says then what it wants."""
        metrics = {
            name: float(value) for record in told if record for name, value in record.items() if isinstance(value, int | float)
        }
        state, changes = self.controller.next(state, after[1], metrics)
        if others := sorted(set(changes) - set(self.controller.changes)):
            says = ", ".join(self.controller.changes) or "nothing"
            raise RunError(f"server.controller: it changes {others[0]}, and says that it changes {says}.")
        for wire, value in records.changed(self.job, changes).items():
            train[wire] = value
        self.heard(after[0], changes)
        return state


@dataclass(frozen=True, slots=True)
class Course:
    """How many rounds a server plays, how long it waits in each for replies, and the config records of its messages.

    Strategies write into these records, which is why one serves all rounds, as in Flower.
    """

    rounds: int
    timeout_s: Seconds
    train: ConfigRecord
    evaluate: ConfigRecord
    control: Control | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """A round that is done: the model after it, whether it *changed*, and what the strategy told of training and evaluation."""

    round: int
    arrays: ArrayRecord
    changed: bool
    trained: MetricRecord | None
    evaluated: MetricRecord | None


def rounds(strategy: Strategy, grid: Grid, arrays: ArrayRecord, course: Course, first: int = 1) -> Iterator[Done]:
    """Play the rounds of *course* from number *first* on, the model being *arrays*; yield each when it is done.

    What ``Strategy.start`` does between two of its own evaluations, in its order. Who has had enough asks for no more.
    """
    for number in range(first, course.rounds + 1):
        compat.say("")
        compat.say("[ROUND %s/%s]", number, course.rounds)
        asked = strategy.configure_train(number, arrays, course.train, grid)
        made, trained = strategy.aggregate_train(number, grid.send_and_receive(messages=asked, timeout=course.timeout_s))
        if made is not None:
            arrays = made
            if records.VERSION in course.train:  # What it counts is in the record, so that it goes on where rounds do.
                course.train[records.VERSION] = cast(int, course.train[records.VERSION]) + 1
        if trained is not None:
            compat.say("\t└──> Aggregated MetricRecord: %s", trained)
        asked = strategy.configure_evaluate(number, arrays, course.evaluate, grid)
        evaluated = strategy.aggregate_evaluate(number, grid.send_and_receive(messages=asked, timeout=course.timeout_s))
        if evaluated is not None:
            compat.say("\t└──> Aggregated MetricRecord: %s", evaluated)
        yield Done(number, arrays, made is not None, trained, evaluated)


class Enough(BaseException):
    """Raised from the evaluation that a strategy's own ``start`` is handed: it has no other way to end early.

    Not an Exception, so that no strategy's own handling of errors can take it for one.
    """


def starts_itself(strategy: Strategy) -> bool:
    """Return whether *strategy* has a ``start`` of its own, and is not to be played round by round."""
    return getattr(strategy.start, "__func__", None) is not Strategy.start


def drive(strategy: Strategy, grid: Grid, arrays: ArrayRecord, course: Course, score: Score, enough: Callable[[], bool]) -> Result:
    """Let *strategy* run its *course* from *arrays*, until *score* has scored the last model, or there is *enough* after one.

    Returns, and logs, what ``Strategy.start`` would. A strategy that starts itself is let; it hears of enough by an exception, and
    knows no controller.
    """
    if starts_itself(strategy):
        return _started(strategy, grid, arrays, course, score, enough)
    began, result = time.time(), Result()
    compat.say("Starting %s strategy:", type(strategy).__name__)
    compat.say_start(course.rounds, arrays, course.train, course.evaluate)
    strategy.summary()
    compat.say("")
    scores = score(0, arrays)
    compat.say("Initial global evaluation results: %s", scores)
    _keep(result.evaluate_metrics_serverapp, 0, scores)
    control, version, trained = course.control, 0, None
    state: State = {} if control is None else control.controller.first()
    if not enough():
        if control is not None and scores is not None:
            state = control.steer(state, course.train, (0, version), (trained, scores))
        for done in rounds(strategy, grid, arrays, course):
            version, trained = version + done.changed, done.trained or trained
            if done.changed:
                result.arrays = done.arrays
            compat.say("Global evaluation")
            scores = score(done.round, done.arrays)
            compat.say("\t└──> MetricRecord: %s", scores)
            _keep(result.train_metrics_clientapp, done.round, done.trained)
            _keep(result.evaluate_metrics_clientapp, done.round, done.evaluated)
            _keep(result.evaluate_metrics_serverapp, done.round, scores)
            if enough():
                break
            if control is not None and scores is not None and done.round < course.rounds:
                state = control.steer(state, course.train, (done.round, version), (trained, scores))
    compat.say("")
    compat.say("Strategy execution finished in %.2fs", time.time() - began)
    compat.say("")
    compat.say("Final results:")
    compat.say("")
    for line in io.StringIO(str(result)):
        compat.say("\t%s", line.strip("\n"))
    compat.say("")
    return result


def _keep(metrics: dict[int, MetricRecord], number: int, told: MetricRecord | None) -> None:
    if told is not None:
        metrics[number] = told


def _started(strategy: Strategy, grid: Grid, arrays: ArrayRecord, course: Course, score: Score, enough: Callable[[], bool]) -> Result:
    """Let *strategy* start itself; a round that is enough ends it, with what was told so far lost to it."""

    def scored(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        scores = score(number, arrays)
        if enough():
            raise Enough
        return scores

    try:
        return strategy.start(
            grid=grid, initial_arrays=arrays, num_rounds=course.rounds, timeout=course.timeout_s, train_config=course.train,
            evaluate_config=course.evaluate, evaluate_fn=scored,
        )  # fmt: skip
    except Enough:
        return Result()
