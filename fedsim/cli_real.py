"""Commands around real Flower clients: an app's folder, a deployment, a fleet fitted to one, and simulation beside deployment."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli_words import AsJson, Budget, ScenarioFile, Seed, Set, as_line, budget_s, errors, loaded_from, opened, reported
from fedsim.core.errors import ScenarioError
from fedsim.record.leaving import Interrupted

Nodes = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="SuperNodes, a client each: clients.count = N. Default the scenario's own.")
]


def add(app: typer.Typer) -> None:
    """Add the commands of this file to *app*."""
    for command in (init, deploy, calibrate, validate):
        app.command()(command)


def init(
    flower: Annotated[Path, typer.Option("--flower", metavar="DIR", help="The app's folder; new or empty.")],
    scenario: Annotated[Path | None, typer.Option(metavar="SCENARIO", help="A scenario file (.toml). Default: the quickstart.")] = None,
    nodes: Annotated[
        int, typer.Option(min=0, metavar="N", help="SuperNodes that take part. Default: as many as the scenario has clients.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Make the folder of a Flower app from a scenario: for real clients, with 'flwr run DIR'."""
    with errors():
        from fedsim.real.folder import init_app

        files = init_app(flower, scenario, nodes)
        if as_json:
            print(as_line({"folder": str(flower), "files": [str(file) for file in files]}))
        else:
            print(f"{flower}: {', '.join(files)}. {flower / 'README.md'} says how it is run.")


def deploy(
    scenario: ScenarioFile,
    nodes: Nodes = None,
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder; new or empty. Default runs/NAME-SEED.")
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt everything, and let in only the nodes of this deployment.")] = False,
    port: Annotated[int | None, typer.Option(metavar="PORT", help="The SuperLink's. Default a free one.")] = None,
    time_scale: Annotated[
        float, typer.Option("--time-scale", metavar="X", help="Seconds of the clients' streams in a real one. Default 1.")
    ] = 1.0,
    printed: Annotated[
        bool, typer.Option("--print", help="Start nothing: print what to type on real machines, TLS and authentication included.")
    ] = False,
    as_compose: Annotated[bool, typer.Option("--compose", help="With --print: a docker compose file instead.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Run a scenario on real Flower clients: a SuperLink and SuperNodes on this machine, or what to type on others.

    What it starts it also ends, whatever happens. The run folder is that of 'fedsim run', with wall times.
    """
    began_s = time.perf_counter()
    with errors():
        from fedsim.real.asked import Asked, check, check_scale

        words = [*(settings or []), *([] if nodes is None else [f"clients.count={nodes}"])]
        asked = Asked(loaded_from(scenario, words, seed), scenario, settings or [], seed, out, port, tls, time_scale)
        if as_compose and not printed:
            raise ScenarioError("--compose: goes with --print.")
        if printed:
            from fedsim.real import printed as words_for

            check_scale(time_scale)
            text = (words_for.compose if as_compose else words_for.blocks)(scenario, asked.words_elsewhere(), asked.nodes, port)
            print(as_line({"nodes": asked.nodes, "form": "compose" if as_compose else "blocks", "text": text}) if as_json else text)
            return
        check(asked)
        from fedsim.live.terminal import progress
        from fedsim.real.local import deployed

        first = f"starting a SuperLink and {asked.nodes} SuperNodes"
        with progress(asked.loaded.scenario, silent=quiet or as_json, clock="wall", first=first) as watch:
            done = deployed(asked, watch)
        reported(done, as_json, began_s)


def calibrate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of deployed runs of the same nodes.", show_default=False)],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The fleet file to write. Default fleet.toml in the first RUN.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit devices, links and Flower's transport to deployed runs, and write a fleet file: for 'fedsim run SCENARIO --fleet FILE'.

    Runs that differ in local work, and in batch size, tell what a task takes anyway from what it takes for each step and operation.
    """
    with errors():
        from fedsim import show_real
        from fedsim.real.calibration import calibrated
        from fedsim.report.page import toml

        found, file = calibrated(*(opened(run).path for run in runs)), out or runs[0] / "fleet.toml"
        file.write_text(toml(found.plain()) + "\n", encoding="utf-8")
        if as_json:
            print(as_line({**dataclasses.asdict(found), "fleet": str(file)}))
        else:
            show_real.calibration(found, file)


def validate(
    scenario: ScenarioFile,
    nodes: Nodes = None,
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder; new or empty. Default runs/NAME.validate.")] = None,
    budget: Budget = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not say what is going on.")] = False,
) -> None:
    """Simulate a scenario and deploy it, and say whether they agree: parameters, bytes, and the time of a round. Exit 1 where they do not.

    The time is foretold from other, shorter deployments: less local work, more, and larger batches.
    """
    with errors():
        from fedsim import show_real
        from fedsim.real.asked import Asked
        from fedsim.real.validation import validated

        words = [*(settings or []), *([] if nodes is None else [f"clients.count={nodes}"])]
        loaded = loaded_from(scenario, words, seed)
        asked = Asked(loaded, scenario, words, seed)
        folder = out or Path("runs") / f"{loaded.scenario.name}.validate"
        found = validated(asked, folder, within(budget_s(budget), show_real.steps(silent=quiet or as_json), folder))
        if as_json:
            print(as_line(found.plain()))
        else:
            show_real.validation(found)
        if not found.agrees:
            raise SystemExit(1)


def within(budget_s: float | None, told: Callable[[str], None], folder: Path) -> Callable[[str], None]:
    """Return *told*, which hears what is done next, as one that lets nothing begin after *budget_s* of wall time."""
    until_s = math.inf if budget_s is None else time.monotonic() + budget_s

    def tell(words: str) -> None:
        if time.monotonic() > until_s:
            raise Interrupted(f"interrupted before {words}, at the end of its budget of wall time; runs until then are safe in {folder}.")
        told(words)

    return tell
