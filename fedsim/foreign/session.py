"""Running a Flower app on a fleet: its processes, its server on virtual time, and an ordinary run folder, whatever happens."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.core import own
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.machine import ALONE
from fedsim.core.types import Params
from fedsim.core.warned import Heard, hearing
from fedsim.flower import compat
from fedsim.foreign.app import BUNDLE, CONFIG, App, find, is_app
from fedsim.foreign.clients import AppClients, AppDesk, AppPost, Costs
from fedsim.foreign.grid import AppGrid
from fedsim.foreign.pool import Pool
from fedsim.foreign.server import Served, params_of, serve
from fedsim.foreign.wire import Load, records
from fedsim.record.composed import Reached, Setup, composed
from fedsim.record.going import Going
from fedsim.record.journal import MetricRow
from fedsim.record.place import check_place
from fedsim.scenario.fleet import Devices, Fleet, LoadedFleet, devices, load_fleet
from fedsim.score.run import Run
from fedsim.sim.crew import Crew
from fedsim.sim.grid import VirtualGrid
from fedsim.sim.invariants import Invariants
from fedsim.sim.links import laid

SAID = "app.log"
"""What the app printed, its server first."""
PROMISE = (
    "On one machine type the digest is the same for a second run, and for any engine.workers, as long as the app draws from global"
    " generators (or its own seeds) and keeps what a client keeps in its Context."
)
"""What a digest of an app promises."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where a run of an app is, for whoever watches it."""

    round: int
    messages: int
    now_s: float
    scores: Mapping[str, float]


Watch = Callable[[Where], None]


def run_app(
    app: str | Path,
    fleet: str | Path | Mapping[str, Any] | Fleet,
    *,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    run_config: Sequence[str] | Mapping[str, Any] = (),
    measure: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Run the Flower app *app*, unmodified, on the virtual clients of *fleet*, and return the run, read from its folder.

    It is a folder, the file of a bundle, or ``@publisher/name`` of one that is installed.

    *overrides* sets keys of the fleet by dotted name, *run_config* the app's (``{"lr": 0.1}``, or words as ``flwr run`` takes them).
    With *measure* each kind of message is run once for the clock of this machine, and that figure stands in the place of what the
    fleet declares; the manifest marks it. *out* is the run's folder (``runs/APP-FLEET-SEED`` otherwise). Raises ScenarioError before
    anything runs, RunError when the run breaks; its folder then says how far it came, as it does after Ctrl-C.
    """
    return execute(find(app, run_config), load_fleet(fleet, overrides, seed), out, watch, measure=measure)


def asked(
    app: Path, fleet: Path | None, overrides: Mapping[str, Any], seed: int | None, run_config: Sequence[str]
) -> tuple[App, LoadedFleet]:
    """Return the app and the fleet that a command line asks for. Raises ScenarioError."""
    if fleet is None:
        if app.is_dir() and not is_app(app):
            raise ScenarioError(f"{app}: is a folder, and no Flower app (it has no {CONFIG}). A scenario is a .toml file.")
        is_one = app.is_dir() or app.suffix == BUNDLE or str(app).startswith("@")
        what = "is a Flower app" if is_one else "is run as a Flower app, by --run-config or --measure"
        raise ScenarioError(f"{app}: {what}; say on which clients: --fleet FLEET.toml, like scenarios/fleets/phones.toml.")
    return find(app, run_config), load_fleet(fleet, overrides, seed)


def execute(app: App, loaded: LoadedFleet, out: str | Path | None = None, watch: Watch | None = None, *, measure: bool = False) -> Run:
    """Run *app* on a loaded fleet; see ``run_app``."""
    name = f"{app.name}-{loaded.fleet.name}"
    check_place(name, loaded.fleet.seed, out)
    key = Key(loaded.fleet.seed)
    load = Load([place or "." for place in sys.path], app.client, str(app.folder), key.fold("client", "load").seed64(), app.run_config)
    with ALONE:
        with own.beside(loaded.folder):
            having = devices(loaded)
            costs = Costs(loaded, having)
        pool = Pool(load, loaded.fleet.engine.processes)
        session = _Session(app, loaded, having, costs, pool, key, watch, measure)
        try:
            session.go(name, out)
        finally:
            session.going.close()
            if hasattr(session, "grid"):
                session.grid.close()
            pool.close()
            pool.said.close()
    return Run(session.going.folder)


@dataclass
class _Session:
    """One run of an app while it goes, and what ends up in the folder whichever way it ends."""

    app: App
    loaded: LoadedFleet
    having: Devices
    costs: Costs
    pool: Pool
    key: Key
    watch: Watch | None
    measure: bool
    began: float = field(default_factory=time.time)
    round: int = 0
    scores: dict[str, float] = field(default_factory=dict[str, float])
    central: set[str] = field(default_factory=set[str])
    served: Served = field(default_factory=Served)
    heard: Heard = field(default_factory=Heard)
    final: Params = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.going = Going(self, late=True)

    def go(self, name: str, out: str | Path | None) -> None:
        """Run to the end, and leave a folder that is readable whatever happens."""
        self.files = self.app.files
        self.pool.wait_ready()  # Before there is a folder: an app that cannot be loaded leaves none.
        self.going.go(name, self.loaded.fleet.seed, out)

    def drive(self) -> None:
        """Run the app's server to its end."""
        self._serve()
        self.grid.finish()

    def where(self) -> str:
        """Return nothing: an app's server has rounds or none, as it likes."""
        return ""

    def settle(self) -> None:
        """Settle what was under way when the run broke."""
        if hasattr(self, "grid"):
            self.grid.finish(broken=True)

    def last(self) -> tuple[Params, Mapping[str, Any]]:
        """Return what the server ended with, or sent last."""
        self.final = self.served.ended or self._last()
        self.round = max(self.round, self.post.latest_round if hasattr(self, "post") else 0)
        return self.final, {}

    def metric(self, server_round: int, scope: str, name: str, value: float) -> None:
        """Record a score that the server told."""
        sent = self.grid.invariants
        self.going.journal.metric(MetricRow(server_round, self.grid.now, scope, name, value, sent.down_bytes, sent.up_bytes))
        if scope == "central":
            self.central.add(name)
        if scope == "central" or name not in self.central:  # Of one name the server's own score counts.
            self.scores[name] = value

    def over(self, server_round: int) -> None:
        """Take that a round is over."""
        self.round = max(self.round, server_round)
        self.going.tell()
        if self.watch:
            self.watch(Where(self.round, self.grid.asked, self.grid.now, dict(self.scores)))

    def _serve(self) -> None:
        fleet, invariants = self.loaded.fleet, Invariants()
        post = self.post = AppPost(self.having.overhead)
        clients = AppClients(self.pool, self.costs, self.key.fold("app"), fleet.clients.count, post, measuring=self.measure)
        desk = AppDesk(clients, self.going.journal, invariants)
        having = self.having
        crew = Crew(
            fleet.clients.count, having.availability, having.network, clients, post, desk, having.transport, laid(having.server)
        )
        self.grid = VirtualGrid.of(crew, self.going.journal, invariants)
        folder = self.going.folder
        with (
            compat.log_to(folder / "flower.log"), hearing() as self.heard, (folder / SAID).open("w", encoding="utf-8") as said,
            redirect_stdout(said), compat.cheap_collections(),
        ):  # fmt: skip
            serve(self.app, AppGrid(self.grid, self.pool.deal), self.key.fold("app"), self, self.served)

    def _last(self) -> Params:
        """Return the arrays that were sent last, where the server did not say what it ended with."""
        form = self.post.last if hasattr(self, "post") else ()
        if not form:
            return {}
        return params_of(next(iter(records(form).array_records.values()))) or {}

    def tidy(self) -> None:
        """Write what the app's processes printed beneath what its server did, and leave no empty file."""
        path, words = self.going.folder / SAID, self.pool.words()
        if words:
            with path.open("ab") as file:
                file.write(words)
        elif path.is_file() and not path.stat().st_size:
            path.unlink()

    def manifest(self, status: str, error: str = "") -> dict[str, Any]:
        """Return what the manifest says."""
        grid, journal, fleet = getattr(self, "grid", None), self.going.opened, self.loaded.fleet
        sent, done = grid.invariants if grid else None, journal if status == "done" else None
        measured = {kind: cost.model_dump(exclude_none=True) for kind, cost in self.costs.measured.items()}
        table = fleet.plain()
        table["compute"] = {**table["compute"], **measured}
        app = {
            "name": self.app.name, "version": self.app.version, "folder": str(self.app.folder), "serverapp": self.app.server,
            "clientapp": self.app.client, "run_config": self.app.run_config, "files": self.files,
        }  # fmt: skip
        strategy = ", ".join(self.served.strategies) or "ServerApp"
        scenario = {  # What readers of any run look at, in the words of a scenario.
            "name": f"{self.app.name}-{fleet.name}", "seed": fleet.seed, "data": {"source": {"kind": "app"}}, "clients": table["clients"],
            "model": {"kind": "app"}, "server": {"strategy": {"kind": strategy}, "rounds": max(1, self.round)},
            "compute": table["compute"],
        }  # fmt: skip
        marked = {name: value for name, value in app.items() if name != "folder"}
        mark = hashlib.sha256(json.dumps([{**table, "engine": {}}, marked], sort_keys=True).encode()).hexdigest()
        about = composed(self.going.folder, Setup(
            scenario=scenario, scenario_digest=mark, folder=self.loaded.folder, seed=fleet.seed,
            model={
                "shape": [], "outputs": 0, "parameters": int(sum(array.size for array in self.final.values())),
                "arrays": list(self.final), "training_flops_per_example": 0.0,
            },
            executor={"kind": "app", "device": "cpu", "workers": fleet.engine.processes},
            hindsight=False, classes=[], clients=[], files={},
        ), Reached(
            status=status, error=error, digest=done.digest.value if done else None,
            metrics_digest=done.metrics_digest.value if done else None, final={**self.scores, "rounds": self.round},
            virtual_s=grid.now if grid else 0.0, down_bytes=sent.down_bytes if sent else 0, up_bytes=sent.up_bytes if sent else 0,
            wasted_bytes=journal.wasted_bytes if journal else 0, notes=[*self._notes(status), *self.heard.lines("while it ran")],
            privacy=None,
        ), self.began)  # fmt: skip
        return {**about, "promise": PROMISE, "app": app, "fleet": table}

    def _notes(self, status: str) -> list[str]:
        notes = [
            f"compute.{kind}: measured on this machine ({', '.join(f'{k} = {v:.3g}' for k, v in cost.model_dump().items() if _figure(v))})."
            for kind, cost in self.costs.measured.items()
        ]
        notes += self.served.clock.notes() if self.served.clock else []
        if status == "done" and not self.final:
            notes.append("What arrays the ServerApp ended with is not known: it sent none, and no strategy of Flower's returned any.")
        return notes


def _figure(value: Any) -> bool:
    return isinstance(value, float)
