"""From a deployed run to a fleet file: how fast its nodes were, and what Flower's transport took. Starts nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  # It has none.

from fedsim.core.errors import RunError
from fedsim.core.types import FloatArray, Frame, Seconds
from fedsim.real.wire import POLL_S
from fedsim.record import manifest
from fedsim.scenario.fleet import Fleet, on_fleet
from fedsim.scenario.load import Loaded, load, recorded
from fedsim.score.run import Run
from fedsim.session import execute

NODE_POLL_S, REPLY_POLL_S = 3.0, 0.5
"""How often Flower's SuperNode looks for messages, and for its app's reply; a canary looks that it still does."""
WIRE_MBPS = 10_000.0
"""What a wire of one computer brings, or what is said of one where messages of one size cannot tell: time per byte is then latency."""
SPREAD = 1.25
"""The ratio of the largest task to the smallest from which on what is fixed of a task can be told from what grows with it."""
ROUNDS = 3
"""The fewest rounds that a run must have to be fitted to: the first is apart, since processes and disks are cold, and steps compiled."""
STEPS = 12
"""Halvings of the interval that the latency is looked for in."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a deployed run says of its nodes and its transport; *notes* are what it cannot say.

    *period_s* is what a round took, from its start to the next one's, the first left out; *predicted_s* the same of a simulation on
    the fleet that this is.
    """

    name: str
    clients: int
    gflops: float
    overhead_s: Seconds
    latency_s: Seconds
    server_s: Seconds
    cores: float | None
    tasks: int
    period_s: Seconds
    predicted_s: Seconds
    notes: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """Return the fleet, as a table."""
        transport: dict[str, Any] = {
            "node_poll_s": NODE_POLL_S, "reply_poll_s": REPLY_POLL_S, "server_poll_s": POLL_S, "server_s": _digits(self.server_s),
        }  # fmt: skip
        clients = {
            "count": self.clients,
            "compute": {"kind": "constant", "gflops": _digits(self.gflops), "overhead_s": _digits(self.overhead_s)},
            "network": {"kind": "constant", "down_mbps": WIRE_MBPS, "up_mbps": WIRE_MBPS, "latency_s": _digits(self.latency_s)},
        }
        shared = {} if self.cores is None else {"cores": self.cores}
        return {"name": self.name, "clients": clients, "transport": {**transport, **shared}}


def period_s(run: Run) -> Seconds:
    """Return what a round of *run* took, from its start to the next one's, the first left out; its last to its end."""
    rounds: Frame = run.rounds
    begins = rounds.groupby("round").started_s.min().to_numpy()
    if len(begins) < ROUNDS:
        raise RunError(f"{run.path}: has {len(begins)} rounds. What a round takes can be told from {ROUNDS} on: the first is apart.")
    ends = float(rounds.ended_s.max())
    gap_s = float(np.median(begins[1:] - rounds.groupby("round").ended_s.max().to_numpy()[:-1]))
    return float((ends + gap_s - begins[1]) / (len(begins) - 1))


def calibrated(path: str | Path) -> Calibration:
    """Return what the deployed run in *path* says. Raises RunError where it says too little.

    Compute: the processor seconds of each task, least squares without negative ones over (1, FLOPs), by relative errors; what its
    process took besides is fixed. The transport's polls are Flower's and ours. What they leave of a round is latency, equal both ways:
    found by halving, each a simulation, until a simulated round takes what a real one took.
    """
    run = Run(Path(path))
    about = run.manifest
    if about.get("ground") != "flower":
        raise RunError(f"{path}: is a simulated run. fedsim calibrate takes one on real clients (fedsim deploy).")
    if about["status"] != "done":
        raise RunError(f"{path}: is {about['status']}; only a deployed run that is done can be fitted to.")
    observed_s, table = period_s(run), _tasks(run)
    gflops, overhead_s, notes = _compute(table)
    hosts = {str(node["host"]) for node in about["nodes"]}
    cores = float(about.get("deployment", {}).get("cores") or 0) or None
    if len(hosts) > 1:
        cores = None
        notes.append(f"Its nodes were on {len(hosts)} hosts, and are taken as devices of their own.")
    elif cores is None:
        notes.append("Its folder does not say how many cores its nodes shared, and they are taken as devices of their own.")
    rounds: Frame = run.rounds
    gaps = (rounds.started_s.to_numpy()[1:] - rounds.ended_s.to_numpy()[:-1])[1:]
    server_s = max(0.0, float(np.median(gaps)))
    scenario, strange = recorded(about["scenario"])
    if strange:
        raise RunError(f"{path}: this version does not know {', '.join(strange)} of its scenario.")
    found = Calibration(
        f"{scenario.name}-fleet", scenario.clients.count, gflops, overhead_s, 0.0, server_s, cores, len(table), observed_s, 0.0, ()
    )
    loaded = Loaded(scenario, manifest.scenario_folder(about, run.path))
    return replace(_with_latency(found, loaded), notes=tuple(notes))


def predicted(loaded: Loaded, fleet: Mapping[str, Any] | Fleet, out: str | Path) -> Run:
    """Run *loaded* in simulation on *fleet*, in the folder *out*."""
    changes = on_fleet(fleet if isinstance(fleet, Fleet) else Fleet.model_validate(fleet))
    return execute(replace(load(loaded.scenario.plain(), changes), folder=loaded.folder), out)


def _with_latency(found: Calibration, loaded: Loaded) -> Calibration:
    with tempfile.TemporaryDirectory() as scratch:
        tried = 0

        def at(latency_s: float) -> Calibration:
            nonlocal tried
            tried += 1
            here = replace(found, latency_s=latency_s)
            return replace(here, predicted_s=period_s(predicted(loaded, here.plain(), Path(scratch) / str(tried))))

        low, high = at(0.0), at(found.period_s)
        if low.predicted_s >= found.period_s:
            return low
        for _ in range(STEPS):
            middle = at((low.latency_s + high.latency_s) / 2)
            low, high = (middle, high) if middle.predicted_s < found.period_s else (low, middle)
        return min((low, high), key=lambda each: abs(each.predicted_s - found.period_s))


def _tasks(run: Run) -> Frame:
    """Return the training tasks of *run* whose nodes told what they took, but for the first round's."""
    tasks: Frame = run.tasks
    tasks = tasks[(tasks.kind == "train") & (tasks.outcome == "arrived")]
    found = tasks.merge(run.worked.drop(columns=["client"]), on="message")
    found = found[found["round"] > found["round"].min()]
    if found.empty:
        raise RunError(f"{run.path}: no node told what its tasks took, so there is nothing to fit to.")
    return found


def _compute(table: Frame) -> tuple[float, Seconds, list[str]]:
    """Return the speed in GFLOP/s, what any task takes besides, and what could not be told."""
    flops, work, cpu = (table[name].to_numpy(dtype=np.float64) for name in ("flops", "work_s", "cpu_s"))
    used, notes = (flops > 0) & (work > 0), list[str]()
    if not used.any():
        raise RunError("no task of the run took any operations, so that the speed of its nodes cannot be told.")
    flops, work = flops[used], work[used]
    besides = float(np.median(cpu[used] - work))
    if flops.max() < SPREAD * flops.min():
        notes.append(
            f"All tasks are of about one size ({flops.min():.3g} to {flops.max():.3g} FLOPs), so what is fixed of a task cannot be told"
            f" from what grows with it: all of it is taken to grow."
        )
        fixed, each = 0.0, float(np.median(work / flops))
    else:
        lines: FloatArray = np.stack([1 / work, flops / work], axis=1)
        scale = np.abs(lines).max(axis=0)
        fixed, each = (float(value) for value in nnls(lines / scale, np.ones(len(work)))[0] / scale)
        if not each:
            notes.append("Larger tasks took no longer than smaller ones: what a task takes is its process, and its speed is a bound.")
            each = float(np.median(work / flops)) / 10
    return 1e-9 / each, besides + fixed, notes


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
