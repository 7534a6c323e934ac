"""What mini-batches are composed of: a scenario's mix and curriculum, looked at beside its data, and put into the job."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.data.federation import Federation
from fedsim.data.source import Pool
from fedsim.learn.bucketing import Bucketing
from fedsim.learn.curriculum import Curriculum
from fedsim.learn.job import Job
from fedsim.learn.mixing import Mixing
from fedsim.learn.objectives import Objective
from fedsim.scenario import judge
from fedsim.scenario.schema import Bucket, Course, Mix, Scenario, Share

LEVELS = 3
"""Of difficulty, where a scenario does not say how many."""


def put(scenario: Scenario, job: Job, federation: Federation, objective: Objective, *, own_start: bool) -> Job:
    """Return *job* with the mix and the curriculum that the scenario asks for. Raises ScenarioError where they cannot be had.

    *own_start* says that messages tell no version.
    """
    mix, course, bucket = scenario.training.mix, scenario.training.curriculum, scenario.training.bucket
    if mix is not None:
        _check_mix(scenario, mix, federation)
    if course is not None:
        _check_course(scenario, course, own_start=own_start)
    if bucket is not None:
        _check_bucket(scenario, bucket, federation)
    for at, graded in (("training.curriculum", course is not None), ("training.mix.by = 'difficulty'", mix and mix.by == "difficulty")):
        if graded and not hasattr(objective, "each"):
            raise ScenarioError(
                f"{at}: goes by the loss of each example, and training.objective.kind = {scenario.training.objective['kind']!r} has none"
                f" (each). 'classification' has."
            )
    return dataclasses.replace(
        job, mixing=None if mix is None else _mixing(mix, federation),
        curriculum=None if course is None else Curriculum(course.begin, course.over, course.clock, course.first),
        clocks=job.clocks if course is None else (*job.clocks, course.clock),
        bucketing=None if bucket is None else Bucketing(bucket.width, bucket.pad, bucket.together or 0),
    )  # fmt: skip


def _mixing(mix: Mix, federation: Federation) -> Mixing:
    shares = None if mix.shares is None else _shares(mix, _names(mix, federation))
    return Mixing(mix.by, shares, mix.temperature or 1.0, mix.draw, mix.levels or LEVELS)


def _names(mix: Mix, federation: Federation) -> Sequence[str]:
    """Return what the sources of a mix are called, in the order of their numbers; the numbers themselves where nobody names them."""
    if mix.by == "difficulty":
        return [str(level) for level in range(mix.levels or LEVELS)]
    if mix.by == "label":
        return federation.classes or [str(label) for label in range(federation.outputs)]
    assert federation.groups is not None
    return federation.domains or [str(group) for group in range(int(federation.groups.max()) + 1)]


def _shares(mix: Mix, names: Sequence[str]) -> tuple[float, ...]:
    """Return the share of each source, in the order of their numbers."""
    at, given = "training.mix.shares", mix.shares
    found: list[Share] = [0.0] * len(names)
    if isinstance(given, list):
        if len(given) != len(names):
            raise ScenarioError(
                f"{at} = {_short(given)}: has {len(given)}, and there are {len(names)} sources ({_short(list(names))}). Give one for each,"
                f" in that order, or a table of those that count."
            )
        found = given
    for name, share in (given.items() if isinstance(given, dict) else ()):
        number = names.index(name) if name in names else int(name) if name.isdecimal() else len(names)
        if number >= len(names):
            raise ScenarioError(f"{at}.{name}: there is no such source. {choices(name, names)}")
        found[number] = share
    if not any(found):
        raise ScenarioError(f"{at} = {_short(given)}: no source has a share. One at least must be > 0.")
    return tuple(found)


def _short(given: object) -> str:
    shown = str(given)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _check_mix(scenario: Scenario, mix: Mix, federation: Federation) -> None:
    training, at = scenario.training, "training.mix"
    if training.batch_size == "full":
        raise ScenarioError(
            f"{at}: says what a mini-batch is mixed from, and training.batch_size = 'full' is all that a client holds. Set a number."
        )
    if mix.shares is not None and mix.temperature is not None:
        raise ScenarioError(f"{at}.temperature = {mix.temperature:g}: makes shares of numbers of examples, and {at}.shares has them.")
    if mix.levels is not None and mix.by != "difficulty":
        raise ScenarioError(f"{at}.levels = {mix.levels}: counts levels of difficulty, and {at}.by = {mix.by!r}. Leave it out.")
    if mix.by == "label" and not np.issubdtype(federation.test.y.dtype, np.integer):
        raise ScenarioError(f"{at}.by = 'label': the targets of these data are no classes, but {federation.test.y.dtype} numbers.")
    if mix.by == "label" and federation.test.y.ndim > 1:
        raise ScenarioError(f"{at}.by = 'label': an example of these data has {federation.test.y[0].size} targets, and a source needs one.")
    if mix.by == "group" and (scenario.data.partition or {}).get("kind") == "natural":
        raise ScenarioError(
            f"{at}.by = 'group': with data.partition.kind = 'natural' a client is a group, and has one source. Take another partition, like"
            f" 'iid', under which groups are spread over clients."
        )
    if mix.by == "group" and federation.groups is None:
        raise ScenarioError(
            f"{at}.by = 'group': data.source.kind = {scenario.data.source['kind']!r} names no groups here. A 'csv' does by client ="
            f" \"COLUMN\", an 'npz' by an array of clients."
        )
    if scenario.stream is None:
        return
    rehearsal = (training.rehearsal or {"kind": "er"})["kind"]
    if rehearsal != "union":
        raise ScenarioError(
            f"{at}: on a [stream] new examples come into mini-batches as they arrived, beside those that training.rehearsal.kind ="
            f" {rehearsal!r} replays. Leave it out, or take training.rehearsal.kind = 'union', whose epochs can be mixed."
        )
    if mix.by == "group":
        raise ScenarioError(f"{at}.by = 'group': on a [stream] nobody tells an example's group. 'label' and 'difficulty' work.")


def _check_course(scenario: Scenario, course: Course, *, own_start: bool) -> None:
    at = "training.curriculum"
    if scenario.stream is not None:
        raise ScenarioError(
            f"{at}: on a [stream] what a client trains on is what has come, each example once, and what is not chosen would be gone. Leave"
            f" it out, or the [stream]."
        )
    judge.check_clock(scenario, at, course.clock, own_start=own_start)


def _check_bucket(scenario: Scenario, bucket: Bucket, federation: Federation) -> None:
    at, training = "training.bucket", scenario.training
    x = federation.test.x
    if x.ndim != 2 or x.dtype.kind not in "iu":
        shown = "numbers" if x.dtype.kind not in "iu" else f"of shape {x.shape[1:]}"
        raise ScenarioError(
            f"{at}: sorts sequences of whole numbers by their length, and these examples are {shown}, as the model takes them. 'gru' and"
            f" 'lstm' take sequences."
        )
    for key, other in (("mix", training.mix), ("curriculum", training.curriculum)):
        if other is not None:
            raise ScenarioError(f"{at}: says which examples meet in a mini-batch, and training.{key} does so too. Leave one out.")
    if scenario.stream is not None:
        raise ScenarioError(f"{at}: on a [stream] new examples come into mini-batches as they arrived. Leave it out, or the [stream].")
    own = scenario.model.table.get("pad", 0)
    if scenario.model.kind in ("gru", "lstm") and own != bucket.pad:
        raise ScenarioError(f"{at}.pad = {bucket.pad}: must be model.pad = {own}, or what is cut off would not be what it leaves out.")


def check_tokens(scenario: Scenario, pool: Pool) -> None:
    """Refuse whole numbers beyond the vocabulary of a model that has one: torch does, in the middle of a run."""
    size = scenario.model.table.get("vocabulary")
    if scenario.model.kind not in ("gru", "lstm") or not isinstance(size, int) or pool.train.x.dtype.kind not in "iu":
        return
    x = [part.x for part in (pool.train, pool.test) if part is not None]
    lowest, highest = min(int(each.min()) for each in x), max(int(each.max()) for each in x)
    if lowest < 0 or highest >= size:
        raise ScenarioError(
            f"model.vocabulary = {size}: the data have numbers from {lowest} to {highest}; it takes those from 0 to {size - 1}."
        )
