"""The command that says what to deploy: ``fedsim size``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli_words import AsJson, ScenarioFile, Seed, Set, as_line, errors, loaded_from


def add(app: typer.Typer) -> None:
    """Add the command of this file to *app*."""
    app.command()(size)


def size(
    scenario: ScenarioFile,
    target: Annotated[
        str | None, typer.Option(metavar="SCORE=X", help="What counts as learned, like accuracy=0.9. Default the scenario's stop.")
    ] = None,
    deadline: Annotated[str | None, typer.Option(metavar="6h", help="By when, in virtual time.")] = None,
    clients: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="How many a round asks. Default around the scenario's own number.")
    ] = None,
    timeouts: Annotated[
        str | None, typer.Option(metavar="S,S,...", help="Seconds that a round waits. Default by when half to all replies are there.")
    ] = None,
    least: Annotated[
        str | None, typer.Option(metavar="bytes|time", help="What is best has the least of this. Default bytes; without a target, time.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", help="Seeds, from the scenario's own on. Default 3.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="10m", help="Wall time after which the search ends.")] = None,
    wall_s: Annotated[float, typer.Option("--wall-s", min=0.1, metavar="SECONDS", help="Wall time of one dry run at most.")] = 20.0,
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Processes, of one thread each. Default one per core.")] = None,
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder of runs and table. Default runs/NAME.size.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Say what to deploy: how many clients a round is to ask, how long to wait for them, and what that comes to.

    Looks at many settings in dry runs, and trains with the few that matter. Without a target nothing is trained: a model and data of which
    only the sizes are known will do, [model] kind = "sized" and source kind "counted".

    \b
    fedsim size scenarios/stragglers.toml --target accuracy=0.9 --deadline 10m
    fedsim size phones.toml --timeouts 30,60,120,600
    """
    with errors():
        from fedsim import show
        from fedsim.sizing import sized, table

        loaded = loaded_from(scenario, settings, seed)
        with show.studying(loaded.scenario.name, silent=quiet or as_json) as told:
            found = sized(
                loaded, target=target, deadline=deadline, clients=clients, timeouts=timeouts, least=least, seeds=seeds, budget=budget,
                wall_s=wall_s, jobs=jobs, out=out, told=told,
            )  # fmt: skip
        if as_json:
            print(as_line(table.summary(found)))
        else:
            table.show(found)
