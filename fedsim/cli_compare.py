"""Commands that set runs beside each other: ``fedsim compare`` and ``fedsim runs``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli_words import AsJson, Seed, Set, as_line, errors
from fedsim.core.errors import ScenarioError


def add(app: typer.Typer) -> None:
    """Add the commands of this file to *app*."""
    for command in (compare, runs):
        app.command()(command)


def compare(
    what: Annotated[
        list[Path], typer.Argument(metavar="SCENARIO|RUN...", help="Scenario files (.toml); or folders of runs that are done.")
    ],
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="'KEY=VALUE,...'",
            help="A variant of the one scenario: its keys, in TOML, with commas between. Repeatable. A table takes the old one's place.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", help="Seeds, from the scenario's own on. Default 5.")] = None,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="5 seeds, and 10, 20, 40 where these do not decide; about 5 % false verdicts.")
    ] = False,
    budget: Annotated[str | None, typer.Option(metavar="10m", help="With --until-decided: wall time; then it is not decided.")] = None,
    matters: Annotated[
        float, typer.Option(metavar="X", help="The smallest difference that matters, in the deciding measure's unit. Default 0.")
    ] = 0.0,
    by: Annotated[
        str | None, typer.Option(metavar="MEASURE", help="What decides, like 'final accuracy' (the default) or virtual_s_to_target.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="SCORE=X", help="What counts as learned, like accuracy=0.9. Default the scenarios' stop.")
    ] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Compare what is not on the same luck: other data, another fleet. Marked.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Processes, of one thread each. Default one per core.")] = None,
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of runs and page. Default runs/NAME.compare; of runs, no page.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Compare scenarios, variants of one, or runs: on the same luck, seed by seed, with a verdict that knows its noise.

    The first is what the others are held against. Runs stand in the comparison's folder; called again, it goes on from what is done.

    \b
    fedsim compare scenarios/quickstart.toml --with training.optimizer.lr=0.1
    fedsim compare scenarios/quickstart.toml --until-decided --budget 10m \\
      --with 'server.strategy={kind="FedProx",fraction_train=0.2,proximal_mu=0.1}'
    fedsim compare runs/mine-7 runs/mine-8 runs/theirs-7 runs/theirs-8
    """
    with errors():
        from fedsim import show
        from fedsim.comparing import compared, table
        from fedsim.scenario.load import parse_overrides

        name = what[0].stem if what[0].suffix == ".toml" else "compare"
        with show.studying(name, silent=quiet or as_json) as told:
            found = compared(
                *what, variants=variants or (), seeds=seeds, until_decided=until_decided, budget=budget, matters=matters, by=by,
                target=target, unpaired=unpaired, overrides=parse_overrides(settings or []), seed=seed, jobs=jobs, out=out, told=told,
            )  # fmt: skip
        if as_json:
            print(as_line(table.summary(found)))
        else:
            table.show(found)


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look. Default runs.", show_default=False)] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, the newest first: how each stands, how far it came, and what it came to.

    Those of studies, comparisons and validations, which stand in a folder of their own, too.
    """
    with errors():
        from fedsim.record.listed import listed

        if not folder.is_dir():
            raise ScenarioError(f"{folder}: is no folder. fedsim run SCENARIO makes runs; name a folder that holds some.")
        found = listed(folder)
        if as_json:
            print(as_line({"runs": [dataclasses.asdict(each) for each in found]}))
        else:
            from fedsim import show_runs

            show_runs.runs(found, folder)
