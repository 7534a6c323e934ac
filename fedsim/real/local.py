"""A scenario on real clients of this machine: the app run, followed by its run folder, and everything taken down again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.core.errors import RunError
from fedsim.core.machine import ALONE
from fedsim.real import commands
from fedsim.real.asked import Asked, check
from fedsim.real.deployment import Deployment, deployment
from fedsim.real.folder import write_app
from fedsim.record import manifest
from fedsim.record.leaving import Interrupted, Patience
from fedsim.scenario.build import build
from fedsim.score.run import Run
from fedsim.session import Progress, Watch

LOOK_S = 0.3
"""How often the run folder is looked at."""
LEAVE_S = 20.0
"""How long a run's server may take to leave its folder readable, once it is asked to."""
SAID = "fedsim: "
"""How a line of the run's server begins, where it is ours."""
LOGS = "deploy"
"""Where, in a run folder, the logs of SuperLink and SuperNodes lie."""


def deployed(asked: Asked, watch: Watch | None = None) -> Run:
    """Run *asked* on a SuperLink and SuperNodes of this machine, and return the run, read from its folder.

    Raises ScenarioError before anything is started, RunError where the run breaks, Interrupted after Ctrl-C; whatever happens,
    everything that was started has ended by then, and the folder says how far the run came.
    """
    check(asked)
    with ALONE:
        build(asked.loaded)  # What is wrong with the scenario is told here, in its own words, and not by a process far away.
    with _private() as place:
        follower = _Follower(asked, _place_of(asked), watch)
        patience = Patience()
        try:
            with patience.watching():
                follower.go(place, patience)
        finally:
            follower.keep_logs(place)
    if patience.kept:
        raise Interrupted(f"interrupted; the run is done, and safe in {follower.folder}.")
    return Run(follower.folder)


@dataclass
class _Follower:
    """One deployed run while it goes, as its launcher sees it."""

    asked: Asked
    folder: Path
    watch: Watch | None
    told: tuple[Any, ...] = ()
    counted: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def go(self, place: Path, patience: Patience) -> None:
        """Deploy, follow, take down; say in the folder what only the launcher knows."""
        asked = self.asked
        app, config = place / "app", place / "run.toml"
        write_app(app, asked.loaded)
        words = {**asked.words(), "out": str(self.folder), **({"scenario": str(asked.source.resolve())} if asked.source else {})}
        config.write_text("".join(f"{name} = {commands.toml(value)}\n" for name, value in words.items()), encoding="utf-8")
        configs = [
            {"partition-id": node, "num-partitions": asked.nodes, "state-dir": str(place / f"state-{node}")} for node in range(asked.nodes)
        ]
        try:
            with deployment(place, configs, port=asked.port, tls=asked.tls, private=True) as here:
                try:
                    self._follow(here, app, config)
                except BaseException as broken:
                    patience.leaving = True
                    self._ask_to_leave(here)
                    self._settle(here, broken)
                    raise
                patience.leaving = True
                self._settle(here, None)
        except KeyboardInterrupt:
            raise Interrupted(self._words_of_interruption()) from None
        except RunError as broken:
            if not self.status():
                raise
            raise RunError(f"{broken} What was recorded until then is in {self.folder}.") from broken

    def status(self) -> str:
        """Return how the run in the folder stands; empty where there is none yet."""
        try:
            return manifest.status(manifest.read(self.folder))
        except RunError:
            return ""

    def _follow(self, here: Deployment, app: Path, config: Path) -> None:
        """Run the app, and tell the watcher how far it is, until it has ended."""
        run = here.run(app, config)
        while run not in here.processes.ended:
            here.look(LOOK_S)
            if (status := self._tell()) in ("done", "failed", "interrupted", "killed"):
                break  # Its process is a matter of seconds; Flower's command, which asks for logs, of some more.
        else:
            status = self._tell()
        if status == "done":
            self.counted = here.counters(run)
            return
        if status in ("failed", "interrupted"):
            raise RunError(str(manifest.read(self.folder).get("error", "the run failed.")))
        if status:
            raise RunError("the process of the run's server was killed.")
        said = [line.removeprefix(SAID) for line in here.processes.said(run).splitlines() if line.startswith(SAID)]
        raise RunError(said[-1] if said else f"the run's server never began{here.words(run)}")

    def _tell(self) -> str:
        """Tell the watcher what the manifest says, where that is news; return the status."""
        try:
            about = manifest.read(self.folder)
        except RunError:
            return ""
        status, final = manifest.status(about), about["final"]
        news = (about["virtual_s"], json.dumps(final))
        if self.watch and news != self.told:
            scores = {name: value for name, value in final.items() if name not in ("rounds", "scored_round")}
            rounds = self.asked.loaded.scenario.server.rounds
            reached = int(final.get("rounds", 0))
            self.watch(Progress(
                reached, rounds, about["virtual_s"], about["bytes_down"], about["bytes_up"], scores,
                scored=int(final.get("scored_round", reached)),
            ))  # fmt: skip
            self.told = news
        return status

    def _ask_to_leave(self, here: Deployment) -> None:
        """Ask the run's server to leave its folder readable, and wait until it has, a while."""
        asked = False
        until = time.monotonic() + LEAVE_S
        while self.status() == "running" and time.monotonic() < until:
            if not asked:
                with suppress(RunError, KeyError):
                    here.processes.signal(int(manifest.read(self.folder)["process"]["pid"]), signal.SIGINT)
                asked = True
            time.sleep(LOOK_S / 3)

    def _settle(self, here: Deployment, broken: BaseException | None) -> None:
        """Write into the manifest what only the launcher knows: how it ended, which nodes went, what the SuperLink counted."""
        try:
            about = manifest.read(self.folder)
        except RunError:
            return
        if isinstance(broken, KeyboardInterrupt) and about["status"] != "done":
            about |= {"status": "interrupted", "error": f"interrupted after round {about['final'].get('rounds', 0)}"}
        elif broken is not None and about["status"] in ("running", "interrupted"):
            about |= {"status": "failed", "error": str(broken)}
        notes = [
            f"SuperNode {node} went while the run was under way: it {ended.how}." for node, ended in sorted(here.gone.items())
        ]  # fmt: skip
        traffic = self.counted.get("network-traffic", {})
        about["notes"] = [*about["notes"], *notes]
        if self.asked.source is None:  # A table has no file: its paths are seen from where it was given, as in a simulation.
            here_from = self.asked.loaded.folder.resolve()
            about |= {"folder": os.path.relpath(here_from, self.folder.resolve()), "origin": manifest.origin(here_from)}
        about["deployment"] = {
            "nodes": self.asked.nodes, "tls": self.asked.tls, "time_scale": self.asked.time_scale, "cores": os.cpu_count(),
            "gone": {str(node): ended.how for node, ended in sorted(here.gone.items())},
            **({"superlink_bytes_in": traffic["inbound-bytes"], "superlink_bytes_out": traffic["outbound-bytes"]} if traffic else {}),
        }  # fmt: skip
        with suppress(OSError):
            manifest.write(self.folder, about)

    def _words_of_interruption(self) -> str:
        if not self.status():
            return "interrupted before the run began; nothing was left running."
        about = manifest.read(self.folder)
        return f"{about.get('error', 'interrupted')}; what was recorded until then is safe in {self.folder}."

    def keep_logs(self, place: Path) -> None:
        """Put the logs of SuperLink and SuperNodes into the run folder, where there is one."""
        if self.folder.is_dir() and (self.folder / manifest.FILE).is_file():
            with suppress(OSError):
                shutil.copytree(place / "logs", self.folder / LOGS, dirs_exist_ok=True)


def _place_of(asked: Asked) -> Path:
    """Return the folder that the run's server is going to take, absolute: it stands elsewhere."""
    if asked.out is not None:
        return Path(asked.out).absolute()
    stem = (Path("runs") / f"{asked.loaded.scenario.name}-{asked.loaded.scenario.seed}").absolute()
    numbered = (stem if number == 1 else stem.with_name(f"{stem.name}.{number}") for number in range(1, 1_000_000))
    return next(folder for folder in numbered if not os.path.lexists(folder))


@contextmanager
def _private() -> Generator[Path]:
    """Make a folder that only we can read, gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="fedsim-deploy-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
