"""The command that searches the keys of a scenario: ``fedsim sweep``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli_words import AsJson, Set, as_line, errors


def add(app: typer.Typer) -> None:
    """Add the command of this file to *app*."""
    app.command()(sweep)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP|FOLDER", help="A sweep's file (.toml); or its folder, which goes on.")],
    pareto: Annotated[
        str | None, typer.Option(metavar="MEASURE,...", help="Measures whose Pareto front is wanted, like accuracy,bytes_up.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="SCORE=X", help="What counts as learned, like accuracy=0.9. Default the scenario's stop.")
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="10m", help="Wall time; what is done then is safe, and the same goes on.")] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", help="Processes, of one thread each, while memory lasts. Default one per core.")
    ] = None,
    only_read: Annotated[bool, typer.Option("--read", help="Run nothing: table and page of what is done.")] = False,
    settings: Set = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="The first of the seeds.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The sweep's folder. Default runs/NAME.sweep.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No plan, and no progress display.")] = False,
) -> None:
    """Search the keys of a scenario: a grid, a list, random draws, or optuna's samplers and pruners; each variant with all seeds.

    A sweep's file, like scenarios/sweeps/learning-rates.toml:

    \b
      scenario = "quickstart.toml"      # seen from this file
      seeds = 3                         # or a list; each variant runs with all
      measure = "final accuracy"        # or several, in a list
      \\[search]
      kind = "optuna"                   # or grid (all), list (\\[\\[points]]), random
      trials = 20                       # of random and optuna
      sampler = { kind = "tpe" }        # gp, qmc, nsga2, nsga3, random
      pruner = { kind = "median" }      # hyperband, percentile, ...
      \\[keys]
      "training.optimizer.lr" = { low = 0.01, high = 1.0, log = true }
      "training.epochs" = { low = 1, high = 5, integer = true }
      "model.hidden" = [[32], [64, 64]]
      \\[\\[together.batch]]                # keys that move together
      "training.batch_size" = 10
      "clients.count" = 50

    Ranges of a grid say step = 0.1, or points = 5. Each run stands in a folder of its own, runs/NAME.sweep/VARIANT-SEED. Called again,
    after a kill too, the sweep goes on from what is done. Failed variants are listed. A table, sweep.csv, runs.csv, and sweep.html.

    \b
    fedsim sweep scenarios/sweeps/learning-rates.toml --pareto accuracy,bytes_up
    fedsim sweep runs/learning-rates.sweep --read
    """
    with errors():
        from fedsim import show
        from fedsim.scenario.load import parse_overrides
        from fedsim.sweeping import swept

        def said(line: str) -> None:
            print(line, file=sys.stderr)

        silent = quiet or as_json
        with show.studying(file.stem, silent=silent) as told:
            found = swept(
                file, pareto=[word.strip() for word in (pareto or "").split(",") if word.strip()], target=target, budget=budget,
                overrides=parse_overrides(settings or []), seed=seed, jobs=jobs, out=out, only_read=only_read, told=told,
                said=None if silent else said,
            )  # fmt: skip
        from fedsim.sweeping import table

        if as_json:
            print(as_line(table.summary(found)))
        else:
            table.show(found)
