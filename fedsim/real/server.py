"""The server's side: a scenario's run on the nodes of a SuperLink. The session is the simulator's own; the ground is another."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from fedsim.core.errors import FedsimError
from fedsim.flower import compat_draws
from fedsim.learn.engine.queue import Queue
from fedsim.real.clock import RunClock
from fedsim.real.fates import Post
from fedsim.real.grid import Terms, WallGrid
from fedsim.real.words import RunWords
from fedsim.record.journal import Journal
from fedsim.report.page import write_report
from fedsim.scenario.build import Parts
from fedsim.score.run import Run
from fedsim.session import Progress, execute
from fedsim.sim.ground import Ground


def served(grid: Grid, context: Context, folder: Path) -> Run:
    """Run what *context* says, of the app in *folder*, on *grid*; return the run, read from its folder.

    Raises ScenarioError for what is wrong with the words or the scenario, before a node is asked; RunError when the run breaks.
    """
    compat_draws.keep_apart()
    words = RunWords.of(context.run_config, folder)
    loaded = words.loaded()

    def lay(parts: Parts, queue: Queue, journal: Journal) -> Ground:
        watched = parts.fleet.trained if parts.fleet.monitor is not None else ()
        terms = Terms(
            loaded.scenario.clients.count, loaded.scenario.digest, words.wait_s, parts.federation.streams, watched, parts.fleet.pacing
        )
        return WallGrid(grid, terms, journal, RunClock(words.time_scale), Post(parts.fleet.coding))

    try:
        run = execute(loaded, words.out, _say, lay)
    except FedsimError as error:
        print(f"fedsim: {error}", flush=True)
        raise
    report = write_report(run)
    print(f"fedsim: done; parameters {run.manifest['model']['content'][:16]}..., digest {run.digest[:16]}...", flush=True)
    print(f"fedsim: the run folder is {run.path.resolve()}, its report {report}", flush=True)
    return run


def _say(progress: Progress) -> None:
    """Print a line of how far the run is: Flower's own lines go to the run folder."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in progress.scores.items())
    print(f"fedsim: round {progress.round} of {progress.rounds} after {progress.now_s:.1f} s: {scores}", flush=True)
