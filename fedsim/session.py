"""Running a scenario: build its parts, let Flower's strategy drive them on virtual time, leave a run folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fedsim import apart
from fedsim.core.errors import RunError
from fedsim.core.machine import ALONE
from fedsim.core.progress import Progress, Watch
from fedsim.core.types import Params
from fedsim.core.warned import Heard, hearing, log_to
from fedsim.data.source import changed
from fedsim.flower import compat, compat_lazy, compat_steps, records
from fedsim.flower.aggregated import Watched, bared
from fedsim.flower.decode import coded
from fedsim.flower.rounds import Control, Course, drive, starts_itself
from fedsim.learn import kernels
from fedsim.learn.controllers import Changes, rises
from fedsim.learn.engine.executors import Executor
from fedsim.learn.engine.queue import Queue
from fedsim.learn.stopping import Patience as Plateau
from fedsim.record import digest, manifest
from fedsim.record.composed import Reached, composed
from fedsim.record.going import Going
from fedsim.record.journal import Journal, MetricRow
from fedsim.record.leaving import Interrupted, Spent, Steps
from fedsim.record.model import save_model
from fedsim.record.place import check_place
from fedsim.scenario import held
from fedsim.scenario.between import refuse_real
from fedsim.scenario.build import Parts, build, opened
from fedsim.scenario.described import described
from fedsim.scenario.everywhere import REAL, refuse
from fedsim.scenario.floor import floor_unseen
from fedsim.scenario.hollow import check_trains
from fedsim.scenario.load import Loaded, recorded
from fedsim.scenario.stop import Stop
from fedsim.score.compare import difference
from fedsim.score.noise import lost
from fedsim.score.run import Run
from fedsim.sim.grid import VirtualGrid
from fedsim.sim.ground import Ground
from fedsim.sim.rows import DevicesRow
from fedsim.strategy.privacy import privacy_of

Lay = Callable[[Parts, Queue, Journal], Ground]
"""Makes the ground that a run takes place on: its parts, what computes here, and who hears of every message."""


CHECKPOINT_WALL_S = 60.0
"""How stale the saved model of a run that is going may be, where saving is cheap."""
CHECKPOINT_SHARE = 0.05
"""The most of a run's wall time that saving its model on the way may take."""


TOLD = 100_000
"""Of so many clients at most the journal tells what each of them is: larger fleets cost nothing until they are touched."""


UNKNOWN = (
    "clients are real, and what goes wrong with them, what their links carry, and what a server takes, is their own; a run on virtual time"
    " goes by it."
)
UNMETERED = "clients.energy: nothing was counted, because the clients are real; a run on virtual time, or a retraced one, counts."


def virtual(parts: Parts, queue: Queue, journal: Journal) -> Ground:
    """Return the virtual ground: clients that are simulated."""
    grid, fleet = VirtualGrid(parts.fleet, queue, journal, mods=parts.strategy.mods, writable=parts.strategy.writable), parts.fleet
    if fleet.federation.count <= TOLD:
        clients = np.arange(fleet.federation.count)
        journal.devices(DevicesRow(clients, fleet.compute.gflops(clients), fleet.federation.sizes(clients)))
    return grid


def execute(
    loaded: Loaded, out: str | Path | None = None, watch: Watch | None = None, lay: Lay = virtual, budget_s: float | None = None
) -> Run:
    """Run a loaded scenario, on the ground that *lay* makes; see ``fedsim.run``.

    Where its bits are to be the same on every machine, and this process was not started for that, another one runs it (``apart``).
    """
    if lay is not virtual:
        refuse(loaded.scenario, REAL)
        refuse_real(loaded.scenario)
    if apart.needed(loaded.scenario):
        return apart.execute(loaded, out, watch, budget_s)
    check_place(loaded.scenario.name, loaded.scenario.seed, out)
    if loaded.scenario.engine.everywhere:
        kernels.check()
    until_s = math.inf if budget_s is None else time.monotonic() + budget_s
    with ALONE, opened(loaded) as executor:  # First: workers start while we build.
        parts = build(loaded)
        check_trains(loaded.scenario, parts.model, parts.federation)
        return played(parts, loaded, executor, out, watch, lay, until_s)


def played(
    parts: Parts, loaded: Loaded, executor: Executor, out: str | Path | None = None, watch: Watch | None = None, lay: Lay = virtual,
    until_s: float = math.inf,
) -> Run:  # fmt: skip
    """Run what *parts* of *loaded* are built already, computed by *executor*; see ``execute``. What a strategy keeps is then changed.

    *until_s* is when its wall time is spent, on the clock of ``time.monotonic``.
    """
    session = _Session(parts, loaded, Queue(parts.engine, executor), watch, lay, until_s)
    try:
        session.going.go(loaded.scenario.name, loaded.scenario.seed, out)
    finally:
        session.close()
    return Run(session.going.folder)


def verify(path: str | Path, scratch: str | Path, watch: Watch | None = None, *, trust: bool = False) -> str | None:
    """Run the run in *path* again, in the folder *scratch*; return None when all agrees, else what differs first.

    Raises RunError when it cannot be compared: it never finished, its data files have changed since, this version does not
    know a key of its scenario, or it names code of its own and was recorded elsewhere, and *trust* is not given.
    """
    old = Run(Path(path))
    about = old.manifest
    if about["status"] != "done":
        raise RunError(f"{path}: is {old.status}; only a run that is done can be verified.")
    if about.get("ground"):
        raise RunError(
            f"{path}: ran on real clients, or retraced them (ground = {about['ground']!r}): no second run has such times. Run its scenario"
            f" here, and compare the parameters (model.content in the manifests)."
        )
    if about.get("digest_format", digest.FORMAT) != digest.FORMAT:  # Of before there was another, nobody said.
        raise RunError(f"{path}: cannot be verified, because its digest is {about['digest_format']!r}, and ours {digest.FORMAT!r}.")
    scenario, strange = recorded(about["scenario"])
    if strange:
        raise RunError(f"{path}: cannot be verified, because this version does not know {', '.join(strange)} of its scenario.")
    folder = manifest.check_trust(about, Path(path), trust=trust)
    if gone := changed(manifest.found_from(folder, about["files"])):
        raise RunError(f"{path}: cannot be verified, because {', '.join(gone)} changed since the run (or is gone).")
    len(old.tasks)  # Read before the second run, which may take hours: where there are no rows to compare it with, that is told now.
    try:
        return difference(old, execute(Loaded(scenario, folder), scratch, watch))
    except Interrupted:  # Its own words name the folder of the second run, which is going to be deleted.
        raise Interrupted(f"interrupted; {path} is as it was.") from None


@dataclass
class _Session:
    """One run while it goes: the strategy's callbacks, and what ends up in the folder whichever way it ends."""

    parts: Parts
    loaded: Loaded
    queue: Queue
    watch: Watch | None
    lay: Lay
    until_s: float = math.inf
    began: float = field(default_factory=time.time)
    round: int = 0
    enough: bool = False
    stopped: str = ""
    values: list[float] = field(default_factory=list[float])
    scores: dict[str, float] = field(default_factory=dict[str, float])
    scored: int = 0
    kept: float = field(default_factory=time.monotonic)
    pause_s: float = field(default_factory=lambda: CHECKPOINT_WALL_S)
    heard: Heard = field(default_factory=Heard)
    latest: Params = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.latest, self.setup = self.parts.scored(self.parts.first), described(self.parts, self.loaded)
        self.rests = (remark,) if self.setup.rests and (remark := kernels.remark(self.setup.rests)) else ()
        table = self.loaded.scenario.server.strategy
        self.watched = Watched(table["kind"], self.parts.first)
        self.privacy = privacy_of(self.parts.strategy.strategy, float(table.get("noise_multiplier", 0.0)))
        self.counts = "version" if starts_itself(self.parts.strategy.strategy) else "round"
        self.going = Going(self)

    def drive(self) -> None:
        """Run to the end, on the ground."""
        self.ground = self.lay(self.parts, self.queue, self.going.journal)
        if self.lay is virtual:  # Real nodes may have data of their own.
            manifest.whole(self.going.folder / held.FILE, json.dumps(held.held(self.parts.federation)))
        self._drive()
        self.ground.finish()

    def where(self) -> str:
        """Return the round that the run is in."""
        return f"round {self.round + 1}"

    def settle(self) -> None:
        """Settle what was under way when the run broke."""
        if (ground := getattr(self, "ground", None)) is not None:
            ground.finish(broken=True)

    def last(self) -> tuple[Params, Mapping[str, Any]]:
        """Return the latest model, and what the server keeps besides."""
        return self.latest, self.parts.extras.state if self.parts.extras else {}

    def tidy(self) -> None:
        """Leave the folder as it is: all in it is in order."""

    def close(self) -> None:
        """Open the circles that the parts of a run go in, so that they, examples and all, end with it, and wait for no collector."""
        bared(self.parts.strategy.strategy)
        self.going.close()
        if (ground := getattr(self, "ground", None)) is not None:
            ground.close()

    def _drive(self) -> None:
        scenario, parts, folder = self.loaded.scenario, self.parts, self.going.folder
        strategy = self.watched.around(parts.strategy.strategy)
        strategy = compat_steps.keep_types(self.privacy.around() if self.privacy else strategy, parts.first)
        strategy = compat_steps.name_draws(strategy, parts.key, self._heard)
        with (
            compat.log_to(folder / "flower.log"), log_to(folder / "torch.log", "torch", WARNING), hearing() as self.heard,
            compat.virtual_sleep(self.ground.wait_for_others),
            compat.cheap_collections(), compat.exact_distances(), compat_lazy.lazily(parts.strategy.strategy),
        ):  # fmt: skip
            control = None if parts.controller is None else Control(parts.controller, parts.job, self._steered)
            server = scenario.server
            course = Course(server.rounds, server.round_timeout_s, records.job_config(parts.job), ConfigRecord(), control)
            grid = coded(self.ground.open(), parts.fleet.coding)
            drive(strategy, grid, compat.array_record(parts.first), course, self._evaluate, lambda: self.enough)

    def _heard(self, step: str, server_round: int, result: Any) -> None:
        if step == "aggregate_train":
            self.ground.aggregated(made=result[0] is not None)
        metrics = {"aggregate_train": lambda: result[1], "aggregate_evaluate": lambda: result}.get(step, lambda: None)()
        scope = "training" if step == "aggregate_train" else "federated"
        for name, value in self.watched.numbers(metrics, server_round, step):
            self._record(server_round, scope, name, value)

    def _steered(self, server_round: int, changes: Changes) -> None:
        """Record what the controller asked for after *server_round*."""
        for name, value in changes.items():
            self._record(server_round, "controller", name, value)

    def _evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Score the model in *arrays*: takes no virtual time, and knows when it is enough."""
        scenario = self.loaded.scenario
        self.round = server_round
        self.latest = self.parts.scored(records.params_of(arrays))
        if stop := scenario.stop:
            sent = self.ground.invariants
            self.stopped = stop.spent(self.ground.now, sent.down_bytes + sent.up_bytes)
            if stop.noise_floor and lost(self.going.journal.signals, stop.noise_floor):
                self.stopped = stop.learned
        last = server_round == scenario.server.rounds or self.ground.exhausted or bool(self.stopped)
        if server_round % scenario.evaluate.every and not last:
            self._tell()
            self._check_budget()
            return None
        self.scores, self.scored = self.queue.test(self.latest), server_round
        for name, value in self.scores.items():
            if name == "loss" and not math.isfinite(value):  # Any other score may be undefined.
                if not server_round:
                    raise RunError(
                        f"round 0: {name} of the global model is {value} before anything was trained. Look at what the model puts out, at"
                        f" the objective, and at how large the features are."
                    )
                if self.watched.made_nan:
                    raise RunError(f"round {server_round}: {name} of the global model became {value}: {self.watched.made_nan}.")
                raise RunError(
                    f"round {server_round}: {name} of the global model became {value}. Training diverged; try a"
                    f" smaller training.optimizer.lr (now {self.parts.job.lr:g})."
                )
            self._record(server_round, "central", name, value)
        self._tell()
        for group in scenario.evaluate.by_classes or ():
            for name, value in self.parts.engine.test_classes(self.latest, group).items():
                self._record(server_round, f"classes {','.join(map(str, group))}", name, value)
        if stop and stop.metric and self._reached(stop, self.scores[stop.metric]):
            self.stopped = stop.learned
        self.enough = self.enough or self.ground.exhausted or bool(self.stopped)
        if not last and not self.enough:
            self._check_budget()
        return MetricRecord(dict(self.scores))

    def _check_budget(self) -> None:
        """Leave, where the wall time is spent: a run that a clock on the wall ends is not done, since no second one ends there."""
        if time.monotonic() > self.until_s:
            raise Spent("its budget of wall time")

    def _reached(self, stop: Stop, value: float) -> bool:
        """Take the metric that *stop* is of, and return whether it is reached."""
        self.values.append(-value if rises(str(stop.metric), stop.goal) else value)
        if stop.plateau is None:
            return stop.holds(value)
        return Plateau(stop.plateau, stop.least or 0.0).stops(self.values)

    def _record(self, server_round: int, scope: str, name: str, value: float) -> None:
        sent = self.ground.invariants
        self.going.journal.metric(
            MetricRow(server_round, self.ground.now, scope, name, value, sent.down_bytes, sent.up_bytes)
        )

    def _tell(self) -> None:
        self.going.tell()
        self._checkpoint()
        if self.watch:
            sent = self.ground.invariants
            self.watch(Progress(
                self.round, self.loaded.scenario.server.rounds, self.ground.now, sent.down_bytes, sent.up_bytes, dict(self.scores),
                self.watched.said, self.scored, self.ground.arrived, self.counts, self.queue.under_way, self.latest,
            ))  # fmt: skip

    def _checkpoint(self) -> None:
        """Save the model now and then, a small share of the time, so that a kill costs no more than what came since."""
        began = time.monotonic()
        if began - self.kept > self.pause_s:
            Steps().take("", lambda: save_model(self.going.folder, self.latest))
            self.kept = time.monotonic()
            self.pause_s = max(CHECKPOINT_WALL_S, (self.kept - began) / CHECKPOINT_SHARE)

    def _scored_before(self) -> dict[str, int]:
        """Return the round that the scores are of, where it is not the last."""
        return {} if self.scored == self.round else {"scored_round": self.scored}

    def _warnings(self, status: str) -> list[str]:
        """Return what went so wrong that a reader must hear of it, though nothing broke."""
        if status != "done":
            return []
        if strangers := self.ground.strangers:
            many, nodes = len(strangers) > 1, f"{records.node_of(0)} to {records.node_of(self.parts.fleet.federation.count - 1)}"
            went = (
                f"{len(strangers)} messages went to nodes that are not there, first to"
                if many
                else "A message went to a node that is not there,"
            )
            return [f"{went} {strangers[0]}: nodes are {nodes} (grid.get_node_ids())."]
        if self.ground.arrived:
            return [] if self.stopped else floor_unseen(self.loaded.scenario, len(self.going.journal.signals))
        server = self.loaded.scenario.server
        by = f"server.round_timeout_s = {server.round_timeout_s:g} is" if server.pacing is None else "what server.pacing waits is"
        if self.ground.exhausted and self.ground.asked:
            return ["Every stream had ended before one reply came, so nothing was learned: no example came with its label (stream.labels)."]
        if not self.ground.asked:
            return ["Not one client was ever asked, so nothing was learned: server.strategy's configure_train returned no messages."]
        return [
            f"Not one reply arrived in time, so nothing was learned: {by} too short"
            f" for what clients do, or wait for (fedsim check tells how long a round takes)."
        ]

    def _unheeded(self) -> list[str]:
        """Return what of the scenario is not gone by where clients are real."""
        ground, fleet = getattr(self, "ground", None), self.parts.fleet
        if self.lay is virtual or ground is None:
            return []
        asked = {"clients.failures": fleet.failures, "clients.overhead": fleet.overhead, "server.link": fleet.server,
                 "clients.cells": fleet.cells, "server.aggregation": fleet.aggregation,
                 "clients.leaving": fleet.leaving != "finish" or None}  # fmt: skip
        ignored = [name for name, table in asked.items() if table is not None]
        metered = fleet.energy is None or "energy" in ground.described()
        return [*([] if metered else [UNMETERED]), *([f"{', '.join(ignored)}: {UNKNOWN}"] if ignored else [])]

    def manifest(self, status: str, error: str = "") -> dict[str, Any]:
        """Return what the manifest says."""
        parts = self.parts
        ground, journal = getattr(self, "ground", None), self.going.opened  # Neither is there for the first one.
        sent, done = ground.invariants if ground else None, journal if status == "done" else None
        return composed(self.going.folder, self.setup, Reached(
            status=status, error=error, digest=done.digest.value if done else None,
            metrics_digest=done.metrics_digest.value if done else None, stopped=self.stopped,
            final={**self.scores, "rounds": self.round, **self._scored_before()},
            virtual_s=ground.now if ground else 0.0, down_bytes=sent.down_bytes if sent else 0, up_bytes=sent.up_bytes if sent else 0,
            wasted_bytes=journal.wasted_bytes if journal else 0,
            notes=[
                *self.rests, *parts.notes, *parts.engine.notes, *self.watched.notes, *(self.privacy.notes if self.privacy else ()),
                *self._warnings(status), *(ground.notes if ground else ()), *self._unheeded(),
                *self.heard.lines("while it ran", parts.warned),
            ],
            privacy=self.privacy.section() if self.privacy else None,
            ground=ground.described() if ground else {},
        ), self.began)  # fmt: skip
