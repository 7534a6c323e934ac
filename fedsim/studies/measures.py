"""What a study reads off its runs: when a target was reached, at what cost; and what is measured of their models, which takes a while."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  # It has none.

from fedsim.client.sizing import resized
from fedsim.core.types import Frame
from fedsim.data.federation import Federation
from fedsim.data.source import Examples
from fedsim.learn.job import Job
from fedsim.learn.pace import When
from fedsim.many.worker import POINT
from fedsim.score.run import Run
from fedsim.score.target import Target

MEASURED = "measured.json"
"""What was measured of a run, beside what it recorded itself."""
SCORED = 10_000
"""Training examples that a model is scored on, at most, for the gap between training and test."""
SHARES = (1, 10, 50, 100)
"""At which percentages of training the noise of gradients is looked at."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, half the width of its 95 % interval (Student's t over *n* seeds; NaN for one), and what it is the mean of."""

    mean: float
    half: float = math.nan
    n: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from one value per seed; NaN where there are none, or one of them is none.

        >>> Estimate.of([1.0, 2.0, 3.0]).half.__round__(3)
        2.484
        """
        n = len(values)
        if not n or not all(math.isfinite(value) for value in values):
            return cls(math.inf if n and all(value == math.inf for value in values) else math.nan, math.nan, n)
        mean = float(np.mean(values))
        if n == 1:
            return cls(mean)
        return cls(mean, float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n), n)

    @property
    def ends(self) -> tuple[float, float]:
        """Return the ends of the interval; of a single value nobody knows them."""
        return self.mean - self.half, self.mean + self.half


@dataclass(frozen=True, slots=True)
class Reached:
    """What it took until a run's target: rounds, local steps one after the other, all updates, examples, bytes, virtual seconds.

    *steps* and *examples* are those of a client, the mean over those of each round, summed over rounds.
    """

    rounds: int
    steps: float
    updates: int
    examples: float
    bytes: int
    virtual_s: float


def reached(run: Run, target: Target, job: Job) -> Reached | None:
    """Return what *run* took until *target* first held in its central evaluation; None where it never did."""
    metrics: Frame = run.metrics
    found = metrics[(metrics.scope == "central") & (metrics.name == target.metric)].sort_values("round")
    held = found[[target.holds(float(value)) for value in found["value"]]]
    if held.empty:
        return None
    first = held.iloc[0]
    tasks: Frame = run.tasks
    tasks = tasks[(tasks.kind == "train") & (tasks.outcome == "arrived") & (tasks["round"] <= int(first["round"]))]
    seen = tasks.assign(seen=trained_on(tasks, job))
    each = seen.groupby("round")[["steps", "seen"]].mean().sum() if len(seen) else {"steps": 0.0, "seen": 0.0}
    return Reached(
        int(first["round"]), float(each["steps"]), int(tasks.steps.sum()), float(each["seen"]),
        int(first["down_bytes"] + first["up_bytes"]), float(first["now_s"]),
    )  # fmt: skip


def trained_on(tasks: Frame, job: Job) -> list[int]:
    """Return how many examples passed through the model in each of *tasks*, which a journal has of *job*, each pass counted.

    A curriculum's are those of the round and the version of the task, the two clocks that a journal has of it (``plan.check``); batches
    are of the size that the client's policy chose, where one did.
    """
    found: list[int] = []
    for held, server_round, version, size in zip(tasks.examples, tasks["round"], tasks.version, tasks.batch_size, strict=True):
        read = int(held)
        if job.curriculum is not None:
            read = job.curriculum.examples(read, When(round=int(server_round), version=int(version)))
        found.append((resized(job, int(size)) if size > 0 else job).seen(read))
    return found


def virtual_speed(run: Run, job: Job) -> float:
    """Return how many examples a client's device trains on in a virtual second, over all tasks of *run*."""
    tasks = run.tasks
    tasks = tasks[(tasks.kind == "train") & (tasks.computed_s >= 0)]
    busy_s = float((tasks.computed_s - tasks.started_s).sum())
    return sum(trained_on(tasks, job)) / busy_s if busy_s > 0 else math.nan


def mean_batch(run: Run, job: Job) -> float:
    """Return how many examples the updates of *run* had, on average over updates: of a policy, what it chose."""
    tasks = run.tasks
    tasks = tasks[(tasks.kind == "train") & (tasks.computed_s >= 0)]
    steps = int(tasks.steps.sum())
    return sum(trained_on(tasks, job)) / steps if steps else math.nan


def compute_share(run: Run) -> float:
    """Return the share of the time of a client's message that its device trains: the rest is links, and waiting."""
    tasks = run.tasks
    tasks = tasks[(tasks.kind == "train") & (tasks.arrived_s >= 0)]
    whole_s = float((tasks.arrived_s - tasks.sent_s).sum())
    return float((tasks.computed_s - tasks.started_s).sum()) / whole_s if whole_s > 0 else math.nan


def points_of(rounds: int) -> dict[int, int]:
    """Return the round that stands for each percentage of training.

    >>> points_of(30)
    {1: 1, 10: 3, 50: 15, 100: 30}
    """
    return {share: max(1, math.ceil(rounds * share / 100)) for share in SHARES}


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a run: by round, (tr(Sigma), |G|^2) of single examples' gradients; scores on training examples."""

    noise: Mapping[int, tuple[float, float]]
    train: Mapping[str, float]
    examples: int

    @classmethod
    def of(cls, run: Run) -> Measured | None:
        """Return what lies in *run*'s folder; None where nothing does, or it is of another run."""
        try:
            found = json.loads((run.path / MEASURED).read_text(encoding="utf-8"))
            if found["digest"] != run.digest:
                return None
            return cls({int(r): (float(t), float(g)) for r, (t, g) in found["noise"].items()}, found["train"], found["examples"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def covers(self, rounds: Sequence[int]) -> bool:
        """Return whether the noise at all of *rounds* was looked at."""
        return set(rounds) <= set(self.noise)


def measure(request: Mapping[str, Any]) -> None:
    """Measure the run in the folder ``out`` of *request* at the models of the rounds ``points``, and write what was found beside it.

    ``scenario``, seen from ``folder``, is the one whose data and model they are. The models of single rounds are let go of afterwards.
    """
    from safetensors.numpy import load_file

    from fedsim.core.machine import ALONE
    from fedsim.learn.gradients import looked_at, noise_at
    from fedsim.record.manifest import whole

    out, points = Path(request["out"]), request["points"]
    with ALONE:
        parts = _parts(json.dumps(request["scenario"], sort_keys=True), Path(request["folder"]))
        run, key, store = Run(out), parts.key.fold("study"), parts.engine.site.store
        x, y = store.tensors(drawn(parts.federation, looked_at(parts.model), key.fold("noise").numpy()))
        found = {r: noise_at(parts.model, parts.objective, load_file(out / POINT.format(r)), x, y) for r in dict.fromkeys(points)}
        train = store.tensors(drawn(parts.federation, SCORED, key.fold("scored").numpy()))
        scores = parts.engine.evaluate(run.params(), *train)
    whole(out / MEASURED, json.dumps({"digest": run.digest, "noise": found, "train": scores, "examples": len(y)}))
    for each in out.glob(POINT.format("*")):
        each.unlink()


_BUILT: dict[str, Any] = {}


def _parts(scenario: str, folder: Path) -> Any:
    """Return the parts of *scenario*, kept while the next one asks for the same."""
    from fedsim.flower.aggregated import bared
    from fedsim.scenario.build import build
    from fedsim.scenario.load import Loaded
    from fedsim.scenario.schema import Scenario

    if scenario not in _BUILT:
        _BUILT.clear()
        _BUILT[scenario] = parts = build(Loaded(Scenario.model_validate(json.loads(scenario)), folder))
        bared(parts.strategy.strategy)  # Nobody calls it, and it would hold all until the collector comes.
    return _BUILT[scenario]


def drawn(federation: Federation, most: int, luck: np.random.Generator) -> Examples:
    """Return at most *most* of the examples that clients train on, drawn without replacement; client by client where data are generated."""
    if federation.pooled is not None:
        every = np.concatenate([federation.train(client) for client in range(federation.count)])
        places = luck.permutation(every)[:most]
        return Examples(federation.pooled.x[places], federation.pooled.y[places])
    xs: list[Any] = []
    ys: list[Any] = []
    taken = 0
    for client in luck.permutation(federation.count)[:most]:
        examples, places = federation.examples(int(client)), federation.train(int(client))
        places = luck.permutation(places)[: max(1, most // min(most, federation.count))]
        xs.append(examples.x[places])
        ys.append(examples.y[places])
        taken += len(places)
        if taken >= most:
            break
    return Examples(np.concatenate(xs), np.concatenate(ys))
