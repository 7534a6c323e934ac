"""The rounds of a Flower strategy: the loop of its stock ``start`` over its public methods, ours to stop, to resume and to run dry.

Knows what a round is made of, and in which order. Knows no clock, and scores no model.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsim.core.types import Seconds
from fedsim.flower import compat

Score = Callable[[int, ArrayRecord], MetricRecord | None]
"""Scores the model after a round; None where it did not. 0 is the start."""


@dataclass(frozen=True, slots=True)
class Course:
    """How many rounds a server plays, how long it waits in each for replies, and the config records of its messages.

    Strategies write into these records, which is why one serves all rounds, as in Flower.
    """

    rounds: int
    timeout_s: Seconds
    train: ConfigRecord
    evaluate: ConfigRecord


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

    Returns, and logs, what ``Strategy.start`` would. A strategy that starts itself is let; it hears of enough by an exception.
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
    if not enough():
        for done in rounds(strategy, grid, arrays, course):
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
