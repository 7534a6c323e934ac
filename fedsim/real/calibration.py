"""From deployed runs to a fleet file: how fast their nodes were, and what Flower's transport took. Starts nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  # It has none.

from fedsim.core.errors import RunError
from fedsim.core.types import FloatArray, Frame, Seconds
from fedsim.cost.network import constant
from fedsim.real.again import deployed_run
from fedsim.real.wire import POLL_S
from fedsim.rehearsal import lasting
from fedsim.scenario.build import Parts, build
from fedsim.scenario.fleet import Fleet, on_fleet
from fedsim.scenario.load import Loaded, load
from fedsim.score.run import Run
from fedsim.session import execute

NODE_POLL_S, REPLY_POLL_S = 3.0, 0.5
"""How often Flower's SuperNode looks for messages, and for its app's reply; a canary looks that it still does."""
WIRE_MBPS = 10_000.0
"""What a wire of one computer brings, or what is said of one where messages of one size cannot tell: time per byte is then latency."""
APART = 20.0
"""The condition number of scaled columns up to which they can be told apart; of (1, FLOPs) that is tasks a quarter larger than others."""
ROUNDS = 3
"""The fewest rounds that a run must have to be fitted to: the first is apart, since processes and disks are cold, and steps compiled."""
HALVINGS, AROUND = 6, tuple(0.7 + 0.05 * step for step in range(13))
"""Halvings of the interval that the latency is looked for in, and what is tried around what they come to, in times of it: by how a
poll falls, a round takes a step longer with a little more latency, or even shorter.
"""


@dataclass(frozen=True, slots=True)
class Speed:
    """What tasks take of a processor: GFLOP/s, *step_s* for each local step, *overhead_s* for any task; *notes* say what was not told."""

    gflops: float
    step_s: Seconds
    overhead_s: Seconds
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a fleet fits a run, in the folder *run*: what its rounds took, the first left out, and what they take in simulation."""

    run: str
    period_s: Seconds
    predicted_s: Seconds


@dataclass(frozen=True, slots=True)
class Crowd:
    """From *begins* tasks at once on, each takes *factor* times its processor time."""

    begins: int
    factor: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What deployed runs say of their nodes and their transport; *notes* are what they cannot say."""

    name: str
    clients: int
    gflops: float
    step_s: Seconds
    overhead_s: Seconds
    latency_s: Seconds
    server_s: Seconds
    cores: float | None
    crowd: Crowd | None
    tasks: int
    fits: tuple[Fit, ...]
    notes: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """Return the fleet, as a table."""
        transport: dict[str, Any] = {
            "node_poll_s": NODE_POLL_S, "reply_poll_s": REPLY_POLL_S, "server_poll_s": POLL_S, "server_s": _digits(self.server_s),
        }  # fmt: skip
        speeds = {"gflops": _digits(self.gflops), "step_s": _digits(self.step_s), "overhead_s": _digits(self.overhead_s)}
        clients = {
            "count": self.clients, "compute": {"kind": "constant", **speeds},
            "network": {"kind": "constant", "down_mbps": WIRE_MBPS, "up_mbps": WIRE_MBPS, "latency_s": _digits(self.latency_s)},
        }  # fmt: skip
        shared: dict[str, Any] = {} if self.cores is None else {"cores": _digits(self.cores)}
        if self.crowd is not None:
            shared |= {"crowd_from": self.crowd.begins, "crowd_factor": _digits(self.crowd.factor)}
        return {"name": self.name, "clients": clients, "transport": {**transport, **shared}}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one deployed run shows: its scenario, what its rounds took, its tasks, and what its server took between exchanges."""

    run: Run
    loaded: Loaded
    period_s: Seconds
    tasks: Frame
    gaps_s: FloatArray
    hosts: frozenset[str]
    cores: float | None


def period_s(run: Run) -> Seconds:
    """Return what a round of *run* took, from its start to the next one's, the first left out; its last to its end."""
    rounds: Frame = run.rounds
    begins = rounds.groupby("round").started_s.min().to_numpy()
    if len(begins) < ROUNDS:
        raise RunError(f"{run.path}: has {len(begins)} rounds. What a round takes can be told from {ROUNDS} on: the first is apart.")
    ends = float(rounds.ended_s.max())
    gap_s = float(np.median(begins[1:] - rounds.groupby("round").ended_s.max().to_numpy()[:-1]))
    return float((ends + gap_s - begins[1]) / (len(begins) - 1))


def calibrated(*paths: str | Path) -> Calibration:
    """Return what the deployed runs in *paths* say together, one or several of the same nodes. Raises RunError where they say too little.

    Compute: the processor seconds of each task, least squares without negative ones over (1, steps, FLOPs), by relative errors; what its
    process took besides is fixed. Runs that differ in local work and in batch size tell these apart. How many cores were there for
    tasks follows from how long these took (``cores_for``); where runs had more nodes than cores and others had not, so does what a crowd
    costs (``crowd_of``). The transport's polls are Flower's and ours. What they leave of a round is latency, equal both ways: by dry
    runs, that with which the rounds of all runs take most nearly what the real ones took.
    """
    seen = [_seen(path) for path in paths]
    first, notes, crowd = seen[0], list[str](), None
    hosts, cores = frozenset().union(*(each.hosts for each in seen)), first.cores
    whole = math.inf if cores is None or len(hosts) > 1 else cores
    apart, crowded = ([each.tasks for each in seen if (each.loaded.scenario.clients.count > whole) == much] for much in (False, True))
    table = pd.concat(apart or crowded)
    speed = speed_of(table)
    if len(hosts) > 1:
        cores = None
        notes.append(f"The nodes were on {len(hosts)} hosts, and are taken as devices of their own.")
    elif cores is None:
        notes.append("The run does not say how many cores its nodes shared, and they are taken as devices of their own.")
    else:
        cores = cores_for([each.tasks for each in seen], cores)
        if apart and crowded:
            crowd = crowd_of(crowded, speed, int(whole) + 1)
        elif crowded:
            notes.append(
                f"The nodes were always more than the {whole:g} cores, and slower for it: on fewer, each is faster than this fleet says."
                f" Another run, of at most {whole:g} nodes, tells (fedsim calibrate RUN RUN)."
            )
        else:
            notes.append(
                f"The nodes were never more than the {whole:g} cores. More of them take each other's caches, and are slower than this"
                f" fleet says; another run, of {int(whole) + 1} nodes, tells by how much (fedsim calibrate RUN RUN)."
            )
    scenario = first.loaded.scenario
    found = Calibration(
        f"{scenario.name}-fleet", scenario.clients.count, speed.gflops, speed.step_s, speed.overhead_s, 0.0,
        max(0.0, float(np.median(np.concatenate([each.gaps_s for each in seen])))), cores, crowd,
        sum(len(each.tasks) for each in seen), (), (*speed.notes, *notes),
    )  # fmt: skip
    return _with_latency(found, seen)


def predicted(loaded: Loaded, fleet: Mapping[str, Any] | Fleet, out: str | Path) -> Run:
    """Run *loaded* in simulation on *fleet*, in the folder *out*."""
    return execute(on(loaded, fleet), out)


def round_s(world: Parts) -> Seconds:
    """Return what a round of *world* takes in a dry run, the first left out, in the mean."""
    return float(lasting(world)[1:].mean())


def on(loaded: Loaded, fleet: Mapping[str, Any] | Fleet) -> Loaded:
    """Return *loaded* on the devices, links and transport of *fleet*."""
    changes = on_fleet(fleet if isinstance(fleet, Fleet) else Fleet.model_validate(fleet))
    return replace(load(loaded.scenario.plain(), changes), folder=loaded.folder)


def _seen(path: str | Path) -> _Seen:
    run, loaded = deployed_run(path, "fitted to")
    about, observed_s, rounds = run.manifest, period_s(run), run.rounds
    gaps_s: FloatArray = (rounds.started_s.to_numpy()[1:] - rounds.ended_s.to_numpy()[:-1])[1:]
    return _Seen(
        run, loaded, observed_s, _tasks(run), gaps_s,
        frozenset(str(node["host"]) for node in about["nodes"]), float(about.get("deployment", {}).get("cores") or 0) or None,
    )  # fmt: skip


def cores_for(tables: Sequence[Frame], cores: float) -> float:
    """Return how many of a computer's *cores* were there for tasks: what else ran, Flower's own processes among it, took the others.

    Of k tasks at once on C cores, min(k, C) go on; so the processor seconds of all tasks are the integral of that over time, which gives
    C. *tables* are those of runs. Where there never were as many tasks as cores nobody can tell, and all are taken to be there.
    """
    stretches = pd.concat([_stretches(table) for table in tables])
    many, long = stretches.at_once.to_numpy(dtype=np.float64), stretches.lasted_s.to_numpy(dtype=np.float64)
    used = float(sum(table.cpu_s.sum() for table in tables))
    if many.max() < cores:
        return cores
    low, high = 0.0, cores
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float((np.minimum(many, middle) * long).sum()) < used else (low, middle)
    return high


def crowd_of(tables: Sequence[Frame], speed: Speed, begins: int) -> Crowd:
    """Return what a crowd of *begins* tasks at once or more costs, from *tables* of runs that had so many, by the *speed* of tasks apart.

    A crowd makes a task's processor seconds *factor* times what they are apart. Of all that tasks took, the share in a crowd is that of
    the time during which so many were at work, weighed by the cores at work; divided by the factor, and with the rest, it is what all
    would have taken apart.
    """
    shared = took = alone = 0.0
    for table in tables:
        stretches = _stretches(table)
        busy = stretches.lasted_s * stretches.at_once.clip(upper=begins - 1)  # Beyond, they share what as many cores do.
        used = float(table.cpu_s.sum())
        shared += used * float(busy[stretches.at_once >= begins].sum() / busy.sum())
        took += used
        alone += float((table.flops / (1e9 * speed.gflops) + table.steps * speed.step_s + speed.overhead_s).sum())
    left = alone - (took - shared)
    return Crowd(begins, max(1.0, shared / left) if left > 0 and shared > 0 else 1.0)


def _stretches(table: Frame) -> Frame:
    """Return the stretches between any task's beginning and end in *table*: how long each lasted, and how many were at work."""
    turns = sorted([*((start, 1) for start in table.received_s), *((end, -1) for end in table.computed_s)])
    moments, counts = np.array([now for now, _ in turns]), np.cumsum([turn for _, turn in turns])
    return pd.DataFrame({"at_once": counts[:-1], "lasted_s": np.diff(moments)})


def _with_latency(found: Calibration, seen: Sequence[_Seen]) -> Calibration:
    worlds = [build(on(each.loaded, found.plain())) for each in seen]

    def at(latency_s: float) -> Calibration:
        links = constant(down_mbps=WIRE_MBPS, up_mbps=WIRE_MBPS, latency_s=latency_s)
        fits = [
            Fit(str(each.run.path), each.period_s, round_s(replace(world, fleet=replace(world.fleet, network=links))))
            for each, world in zip(seen, worlds, strict=True)
        ]
        return replace(found, latency_s=latency_s, fits=tuple(fits))

    low, high = at(0.0), at(max(each.period_s for each in seen))
    if _over(low) >= 0:
        return low
    for _ in range(HALVINGS):
        middle = at((low.latency_s + high.latency_s) / 2)
        low, high = (middle, high) if _over(middle) < 0 else (low, middle)
    tried = [low, high, *(at((low.latency_s + high.latency_s) / 2 * times) for times in AROUND)]
    least = min(map(_apart, tried))
    best = sorted((each for each in tried if _apart(each) <= least * (1 + 1e-9)), key=lambda each: each.latency_s)
    return best[len(best) // 2]


def _over(found: Calibration) -> float:
    """Return by how much predicted rounds take longer than real ones: the mean logarithm of their ratio."""
    return sum(math.log(fit.predicted_s / fit.period_s) for fit in found.fits) / len(found.fits)


def _apart(found: Calibration) -> float:
    """Return how far predicted rounds are from real ones: the sum of the squared logarithms of their ratios."""
    return sum(math.log(fit.predicted_s / fit.period_s) ** 2 for fit in found.fits)


def _tasks(run: Run) -> Frame:
    """Return the training tasks of *run* whose nodes told what they took, but for the first round's."""
    tasks: Frame = run.tasks
    tasks = tasks[(tasks.kind == "train") & (tasks.outcome == "arrived")]
    found = tasks.merge(run.worked.drop(columns=["client"]), on="message")
    found = found[found["round"] > found["round"].min()]
    if found.empty:
        raise RunError(f"{run.path}: no node told what its tasks took, so there is nothing to fit to.")
    return found


def work_s(run: Run) -> Seconds:
    """Return what a training task of the deployed *run* took of its processor besides its process, in the median."""
    return float(_tasks(run).work_s.median())


def speed_of(table: Frame) -> Speed:
    """Return what the tasks of *table* took, by its columns flops, steps, work_s and cpu_s. Raises RunError where none took any."""
    flops, steps, work, cpu = (table[name].to_numpy(dtype=np.float64) for name in ("flops", "steps", "work_s", "cpu_s"))
    used = (flops > 0) & (work > 0)
    if not used.any():
        raise RunError("no task of the run took any operations, so that the speed of its nodes cannot be told.")
    flops, steps, work = flops[used], steps[used], work[used]
    besides, note = float(np.median(cpu[used] - work)), ""
    told: FloatArray = np.stack([flops, np.ones(len(work)), steps], axis=1) / work[:, None]
    told = told / np.linalg.norm(told, axis=0)
    known = next(count for count in (3, 2, 1) if float(np.linalg.cond(told[:, :count])) <= APART)
    if known == 1:
        note = (
            f"All tasks are of about one size ({flops.min():.3g} to {flops.max():.3g} FLOPs), so what is fixed of a task cannot be told"
            f" from what grows with it: all of it is taken to grow. Another run with more local work tells (fedsim calibrate RUN RUN)."
        )
        each, fixed, step = float(np.median(work / flops)), 0.0, 0.0
    else:
        lines: FloatArray = np.stack([flops, np.ones(len(work)), steps], axis=1)[:, :known] / work[:, None]
        scale = np.abs(lines).max(axis=0)
        each, fixed, step = (float(value) for value in [*(nnls(lines / scale, np.ones(len(work)))[0] / scale), 0.0][:3])
        if known == 2:
            note = "Steps are all of about one size, so what a step takes besides its operations cannot be told: it is taken to be speed."
            note += " Another run with another batch size tells (fedsim calibrate RUN RUN)."
        if not each:
            note = "More operations took no longer: what a task takes is its process and its steps, and its speed is a bound."
            each = float(np.median(work / flops)) / 10
    return Speed(1e-9 / each, step, besides + fixed, (note,) if note else ())


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
