"""Running a Flower app on a fleet: its processes, its server on virtual time, and an ordinary run folder, whatever happens."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.core import own
from fedsim.core.errors import FedsimError, RunError, ScenarioError, reason
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
from fedsim.learn.work import digest_of
from fedsim.record import manifest
from fedsim.record.composed import Reached, Setup, composed
from fedsim.record.journal import FILE as JOURNAL
from fedsim.record.journal import Journal, MetricRow
from fedsim.record.leaving import Patience, Steps, spoken
from fedsim.record.model import MODEL_FILE, save_model
from fedsim.record.place import check_place, take_place
from fedsim.scenario.fleet import Devices, Fleet, LoadedFleet, devices, load_fleet
from fedsim.score.run import Run
from fedsim.sim.crew import Crew
from fedsim.sim.grid import VirtualGrid
from fedsim.sim.invariants import Invariants

SAID = "app.log"
"""What the app printed, its server first."""
MANIFEST_WALL_S = 2.0
"""How stale the manifest of a run that is going may be."""
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
            having = devices(loaded.fleet)
            costs = Costs(loaded, having)
        pool = Pool(load, loaded.fleet.engine.processes)
        session = _Session(app, loaded, having, costs, pool, key, watch, measure)
        try:
            session.go(name, out)
        finally:
            if hasattr(session, "grid"):
                session.grid.close()
            pool.close()
            pool.said.close()
    return Run(session.folder)


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
    folder: Path = Path()
    began: float = field(default_factory=time.time)
    reached: int = 0
    scores: dict[str, float] = field(default_factory=dict[str, float])
    central: set[str] = field(default_factory=set[str])
    told: float = 0.0
    served: Served = field(default_factory=Served)
    heard: Heard = field(default_factory=Heard)
    final: Params = field(default_factory=dict[str, Any])

    def go(self, name: str, out: str | Path | None) -> None:
        """Run to the end, and leave a folder that is readable whatever happens."""
        self.files = self.app.files
        self.pool.wait_ready()  # Before there is a folder: an app that cannot be loaded leaves none.
        status, error = "failed", ""
        patience = Patience()
        with patience.watching():
            self.folder = take_place(name, self.loaded.fleet.seed, out, self._first)
            try:
                self.journal = Journal(self.folder)
                self._serve()
                self.grid.finish()
                status = "done"
            except KeyboardInterrupt:
                status, error = "interrupted", f"interrupted after round {self.reached}"
                raise KeyboardInterrupt(f"{error}; what was recorded until then is safe in {self.folder}.") from None
            except BaseException as broken:  # A server, a client's reply, a disk: not ours to foresee, ours to report.
                error = self._told(broken)
                if isinstance(broken, FedsimError) and broken.__cause__ is None:
                    raise
                if isinstance(broken, OSError | sqlite3.Error):
                    raise RunError(f"{error} What was recorded until then is in {self.folder}.") from broken
                raise type(broken if isinstance(broken, FedsimError) else RunError())(f"{error}{self._story()}") from broken
            finally:
                patience.leaving = True
                self._leave(status, error)
        if patience.kept and status == "done":
            raise KeyboardInterrupt(f"interrupted; the run is done, and safe in {self.folder}.")

    def metric(self, server_round: int, scope: str, name: str, value: float) -> None:
        """Record a score that the server told."""
        sent = self.grid.invariants
        self.journal.metric(MetricRow(server_round, self.grid.now, scope, name, value, sent.down_bytes, sent.up_bytes))
        if scope == "central":
            self.central.add(name)
        if scope == "central" or name not in self.central:  # Of one name the server's own score counts.
            self.scores[name] = value

    def round(self, server_round: int) -> None:
        """Take that a round is over."""
        self.reached = max(self.reached, server_round)
        if time.monotonic() - self.told > MANIFEST_WALL_S:  # So that a run that is killed has said how far it came.
            with suppress(OSError):
                manifest.write(self.folder, self._manifest("running"))
            self.told = time.monotonic()
        if self.watch:
            self.watch(Where(self.reached, self.grid.asked, self.grid.now, dict(self.scores)))

    def _serve(self) -> None:
        fleet, invariants = self.loaded.fleet, Invariants()
        post = self.post = AppPost()
        clients = AppClients(self.pool, self.costs, self.key.fold("app"), fleet.clients.count, post, measuring=self.measure)
        desk = AppDesk(clients, self.journal, invariants)
        crew = Crew(fleet.clients.count, self.having.availability, self.having.network, clients, post, desk, self.having.transport)
        self.grid = VirtualGrid.of(crew, self.journal, invariants)
        with (
            compat.log_to(self.folder / "flower.log"), hearing() as self.heard, (self.folder / SAID).open("w", encoding="utf-8") as said,
            redirect_stdout(said), compat.cheap_collections(),
        ):  # fmt: skip
            serve(self.app, AppGrid(self.grid, self.pool.deal), self.key.fold("app"), self, self.served)

    def _first(self, folder: Path) -> None:
        self.folder = folder
        manifest.write(folder, self._manifest("running"))

    def _told(self, broken: BaseException) -> str:
        if isinstance(broken, FedsimError):
            return str(broken)
        if isinstance(broken, sqlite3.Error):
            return f"{self.folder / JOURNAL}: cannot be written ({broken})."
        if isinstance(broken, OSError) and broken.filename:
            return f"{broken.filename}: {spoken(broken)}."
        return f"{reason(broken)}."

    def _story(self) -> str:
        file = self.folder / "traceback.txt"
        told = Steps().take("", lambda: manifest.whole(file, traceback.format_exc()))
        return f" (the whole story is in {file})" if told else ""

    def _leave(self, status: str, error: str) -> None:
        """Leave the folder as readable as can be: each step by itself, what a reader needs first, tidying last."""
        steps, journal, grid = Steps(), getattr(self, "journal", None), getattr(self, "grid", None)
        if grid is not None and status != "done":
            steps.take("what was under way could not be settled", lambda: grid.finish(broken=True))
        self.final = self.served.ended or self._last()
        self.reached = max(self.reached, self.post.latest_round if hasattr(self, "post") else 0)
        if journal is not None:
            journal.seal(self.final)
            if not steps.take(f"{self.folder / JOURNAL}: its last rows could not be written", journal.flush) and status == "done":
                status, error = "failed", steps.lost[-1]
        saved = bool(self.final) and steps.take(
            f"{self.folder / MODEL_FILE}: the model could not be written; all else is in the run folder",
            lambda: save_model(self.folder, self.final),
        )
        steps.take("", self._words)
        about = self._manifest(status, error)
        about["model"] |= {"content": digest_of(self.final)} if saved else {}
        last = {**about, "notes": [*about["notes"], *steps.lost]}
        written = steps.take(f"{self.folder / manifest.FILE}: could not be written", lambda: manifest.write(self.folder, last))
        if journal is not None:
            steps.take("", journal.close)
        if not written:
            raise RunError(f"{next(said for said in steps.lost if manifest.FILE in said)} What was recorded is safe in {self.folder}.")
        if status == "failed" and error in steps.lost:
            raise RunError(error)

    def _last(self) -> Params:
        """Return the arrays that were sent last, where the server did not say what it ended with."""
        form = self.post.last if hasattr(self, "post") else ()
        if not form:
            return {}
        return params_of(next(iter(records(form).array_records.values()))) or {}

    def _words(self) -> None:
        """Write what the app's processes printed beneath what its server did, and leave no empty file."""
        path, words = self.folder / SAID, self.pool.words()
        if words:
            with path.open("ab") as file:
                file.write(words)
        elif path.is_file() and not path.stat().st_size:
            path.unlink()

    def _manifest(self, status: str, error: str = "") -> dict[str, Any]:
        grid, journal, fleet = getattr(self, "grid", None), getattr(self, "journal", None), self.loaded.fleet
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
            "model": {"kind": "app"}, "server": {"strategy": {"kind": strategy}, "rounds": max(1, self.reached)},
            "compute": table["compute"],
        }  # fmt: skip
        marked = {name: value for name, value in app.items() if name != "folder"}
        mark = hashlib.sha256(json.dumps([{**table, "engine": {}}, marked], sort_keys=True).encode()).hexdigest()
        about = composed(self.folder, Setup(
            scenario=scenario, scenario_digest=mark, folder=self.loaded.folder, seed=fleet.seed,
            model={
                "shape": [], "outputs": 0, "parameters": int(sum(array.size for array in self.final.values())),
                "arrays": list(self.final), "training_flops_per_example": 0.0,
            },
            executor={"kind": "app", "device": "cpu", "workers": fleet.engine.processes},
            hindsight=False, classes=[], clients=[], files={},
        ), Reached(
            status=status, error=error, digest=done.digest.value if done else None,
            metrics_digest=done.metrics_digest.value if done else None, final={**self.scores, "rounds": self.reached},
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
