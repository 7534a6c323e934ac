"""The command line: words in, words out. What a run is and does is elsewhere.

Exit 0: done. 2: the scenario or the arguments are wrong. 1: the run failed. 130: interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.warned import spare_dependencies

BEGAN_S = time.perf_counter()
spare_dependencies()  # Before the first of them comes in.

import typer  # noqa: E402
from click.exceptions import Abort, UsageError  # noqa: E402

from fedsim import cli_compare, cli_export, cli_live, cli_real, cli_size, cli_sweep  # noqa: E402
from fedsim.cli_words import (  # noqa: E402
    AsJson,
    Budget,
    RunFolder,
    ScenarioFile,
    Seed,
    Set,
    as_line,
    budget_s,
    end,
    errors,
    loaded_from,
    opened,
    reported,
)  # fmt: skip

app = typer.Typer(
    name="fedsim",
    help=(  # \b keeps a block as it is.
        "Federated learning on a virtual clock, with the model really trained.\n\n"
        "A scenario file (TOML) says who the clients are, what data and devices they have, how they train, and which"
        " Flower strategy aggregates. Start with:\n\n\b\n"
        "  fedsim check scenarios/quickstart.toml   what would it cost?\n"
        "  fedsim run scenarios/quickstart.toml     run it\n"
        "  fedsim compare SCENARIO --with KEY=VALUE which is better?\n"
        "  fedsim sweep SWEEP                       which of many?\n"
        "  fedsim study batch-size SCENARIO         which batch size?\n"
        "  fedsim list                              what can a scenario name?"
    ),
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

studies = typer.Typer(help="Run a scenario many times, varied by a plan, and say what follows.", no_args_is_help=True)
app.add_typer(studies, name="study")


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print versions and exit.")] = False) -> None:
    if version:
        from fedsim.record.manifest import versions

        print(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise SystemExit(0)


@app.command()
def run(
    scenario: Annotated[
        Path, typer.Argument(metavar="SCENARIO|APP", help="A scenario file (.toml); or a Flower app's folder, its .fab file, or @NAME/APP.")
    ],
    settings: Set = None,
    seed: Seed = None,
    fleet: Annotated[
        Path | None,
        typer.Option(metavar="FLEET", help="A fleet file (.toml): the clients of a Flower app; of a scenario, their devices and links."),
    ] = None,
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", metavar="'KEY=VALUE ...'", help="A Flower app's run config, as in 'flwr run'.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run each kind of an app's messages once, and take that for what it costs.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder; new or empty. Default runs/NAME-SEED.")
    ] = None,
    budget: Budget = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Run a scenario, or any Flower app on a fleet: progress while it goes, a summary at the end, a run folder with a report."""
    with errors():
        from fedsim.live.terminal import progress

        within_s, an_app = budget_s(budget), scenario.is_dir() or scenario.suffix == ".fab" or str(scenario).startswith("@")
        if run_config or measure or an_app or (fleet is not None and scenario.suffix != ".toml"):
            if budget is not None:
                raise ScenarioError("--budget: goes with scenarios; nobody knows where a round of an app ends.")
            done = _run_app(scenario, fleet, settings, seed, out, run_config or [], measure=measure, silent=quiet or as_json)
        else:
            loaded = loaded_from(scenario, settings, seed, fleet)
            with progress(loaded.scenario, silent=quiet or as_json) as watch:
                from fedsim.running import execute

                done = execute(loaded, out, watch, budget_s=within_s)
        reported(done, as_json, BEGAN_S)


@app.command()
def check(
    scenario: ScenarioFile,
    settings: Set = None,
    seed: Seed = None,
    as_json: AsJson = False,
    wall_s: Annotated[
        float, typer.Option("--wall-s", min=0.0, metavar="SECONDS", help="Wall time for rounds on the virtual clock.")
    ] = 10.0,
    dry: Annotated[bool, typer.Option("--dry", help="Train nothing, not even a few rounds to see how long a run takes here.")] = False,
) -> None:
    """Check a scenario and foretell its cost: builds the world, plays its rounds on the virtual clock, prints what would happen.

    Time and bytes are foretold without training. How long the run takes on this computer is not: for that the first rounds are really
    trained, for some seconds, and thrown away.
    """
    with errors():
        from fedsim import show

        loaded = loaded_from(scenario, settings, seed)
        from fedsim import apart

        if apart.needed(loaded.scenario) and scenario.is_file():  # What is timed must be what will run.
            raise SystemExit(apart.again())
        from fedsim.preview import preview
        from fedsim.trial import UNTIMED, timed

        imports_s = time.perf_counter() - BEGAN_S
        with show.rehearsing(loaded.scenario, silent=as_json) as watch:
            foretold = preview(loaded, wall_s=wall_s, watch=watch)
            if watch and not dry:
                watch(0, 0)
            wall = UNTIMED if dry else timed(loaded, foretold, imports_s=imports_s)
        if as_json:
            print(as_line({**foretold.plain(), **wall.plain()}))
        else:
            show.preview(foretold, wall)


@app.command("list")
def list_kinds(
    noun: Annotated[
        str | None,
        typer.Argument(metavar="[NOUN|SECTION]", help="source, model, strategy, ...; training, clients, server, ...; or all."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what a scenario can name: an overview; of one noun each kind with its settings, of a section each key, in words."""
    with errors():
        from fedsim import listing

        if as_json:
            print(as_line(listing.plain(noun)))
        else:
            listing.kinds(noun)


@app.command("show")
def show_run(run: RunFolder, as_json: AsJson = False) -> None:
    """Show a run: what it was, how it ended, what it cost."""
    with errors():
        from fedsim import show

        found = opened(run)
        if as_json:
            print(as_line(show.summary_line(found)))
        else:
            show.summary(found)


@app.command()
def verify(
    run: RunFolder,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Run code of its own that was recorded elsewhere.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a run again from its own manifest and compare the digests; exit 1 when they differ."""
    with errors():
        from fedsim import show
        from fedsim.live.terminal import progress
        from fedsim.record.manifest import machine
        from fedsim.scenario.load import recorded
        from fedsim.session import verify as again

        old = opened(run)
        with tempfile.TemporaryDirectory() as scratch:
            if "app" in old.manifest:
                from fedsim.foreign.verifying import verify as again_app

                with show.following(old.name, silent=quiet or as_json) as follow:
                    difference = again_app(run, Path(scratch) / "run", follow, trust=trust)
            else:
                scenario, _ = recorded(old.manifest["scenario"])
                with progress(scenario, silent=quiet or as_json) as watch:
                    difference = again(run, Path(scratch) / "run", watch, trust=trust)
        if as_json:
            print(as_line({"run": str(run), "verified": difference is None, "digest": old.digest, "difference": difference}))
        if difference is not None:
            raise RunError(f"{run}: differs. First: {difference}.")
        if not as_json:
            there = old.manifest["machine"].get("processor", "")
            moved = f"same bits as on {there}" if there != machine()["processor"] else "verified"
            print(f"{run}: {moved}, digest {old.digest[:16]}... again.")


@studies.command("batch-size")
def batch_size(
    scenario: ScenarioFile,
    batches: Annotated[
        str | None, typer.Option(metavar="B,B,...", help="Sizes, full, dynamic. Default 1 to 1024, full, and dynamic.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="SCORE=X", help="What counts as learned, like accuracy=0.9. Default the scenario's stop.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", help="Seeds, from the scenario's own on. Default 3.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A look: 3 sizes, 2 rates, 1 seed, 5 rounds.")] = False,
    stretch: Annotated[
        float | None, typer.Option(metavar="X", help="A run to the target takes at most X times the scenario's rounds. Default 4.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Processes, of one thread each. Default one per core.")] = None,
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The study's folder. Default runs/NAME.study.")] = None,
    budget: Budget = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Measure what the batch size does: memory, speed, gradients, generalisation, time to a target; beside the textbook's table.

    Each size is run at a rate tuned for it, at the scenario's own rate, for equal epochs, equal steps, and to a target. The runs
    stand in the study's folder; called again, the study goes on from what is done there.
    """
    with errors():
        from fedsim import show
        from fedsim.studies import studied

        loaded = loaded_from(scenario, settings, seed)
        with show.studying(loaded.scenario.name, silent=quiet or as_json) as told:
            found = studied(
                loaded, batches=batches, target=target, seeds=seeds, quick=quick, stretch=stretch, jobs=jobs, out=out, budget=budget,
                told=told,
            )  # fmt: skip
        from fedsim.studies import table

        if as_json:
            print(as_line(table.summary(found)))
        else:
            table.show(found)


@app.command()
def report(run: RunFolder, as_json: AsJson = False) -> None:
    """Write the HTML report of a run (again), and print its path."""
    with errors():
        from fedsim.report.page import write_report

        page = write_report(opened(run))
        print(as_line({"run": str(run), "report": str(page)}) if as_json else page)


@app.command()
def advise(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO|RUN", help="A scenario file, run once for it, or a run that was watched.")],
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder of the run that is made; new or empty.")] = None,
    budget: Budget = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Advise which batch size, how many clients and which learning rate to try next, and say how sure that is."""
    with errors():
        from fedsim import show
        from fedsim.advising import is_run, watched
        from fedsim.live.terminal import progress
        from fedsim.score.advice import advice

        within_s = budget_s(budget)
        if is_run(scenario):
            run = opened(scenario)
        else:
            from fedsim.scenario.load import parse_overrides

            loaded = loaded_from(scenario, settings, seed)
            with progress(loaded.scenario, silent=quiet or as_json) as watch:
                run = watched(scenario, parse_overrides(settings or []), seed, out, watch, within_s)
        found = advice(run)
        if as_json:
            print(as_line({"run": str(run.path), "advice": [dataclasses.asdict(hint) for hint in found]}))
        else:
            show.advice(run, found)


@app.command()
def schema(fleet: Annotated[bool, typer.Option("--fleet", help="That of fleet files.")] = False) -> None:
    """Print the JSON Schema of scenario files, or of fleet files, for editors that complete and check TOML."""
    with errors():
        from fedsim.scenario.jsonschema import fleet_schema, json_schema

        print(json.dumps(fleet_schema() if fleet else json_schema(), indent=2))


cli_compare.add(app)
cli_size.add(app)
cli_sweep.add(app)
cli_export.add(app)
cli_live.add(app)
cli_real.add(app)


def main() -> None:
    """Run the command line."""
    for name in ("SIGTERM", "SIGHUP"):  # A polite kill, or a closed terminal, leaves the folder as readable as Ctrl-C does.
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup asks us to go on.
            signal.signal(number, _interrupt)
    try:
        app(sys.argv[1:] or ["--help"], prog_name="fedsim", standalone_mode=False)
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "fedsim"
        end(f"{usage(error.format_message())} '{command} --help' shows what it takes.", 2)
    except Abort:
        end("interrupted.", 130)


def usage(said: str) -> str:
    """Return what the parser of arguments *said*, on one line: no sentence or suggestion twice, and an end to the last one.

    >>> usage("No such command 'chek'. Did you mean 'check', 'schema'? (Did you mean one of: 'check', 'schema'?)")
    "No such command 'chek'. Did you mean 'check', 'schema'?"
    >>> usage("No such option '--sead'. (Did you mean one of: '--seed', '--set'?)"), usage("Got unexpected extra argument (foo)")
    ("No such option '--sead'. Did you mean one of: '--seed', '--set'?", 'Got unexpected extra argument (foo).')
    """
    line = re.sub(r" \((Did you mean [^)]*|Possible options: [^)]*)\)", r" \1", " ".join(said.split()))
    told = list(dict.fromkeys(re.split(r"(?<=[.?]) +", line)))
    hints = [each for each in told if each.startswith("Did you mean")]
    whole = " ".join(each for each in told if each not in hints[1:])
    return whole if whole.endswith((".", "?")) else f"{whole}."


def _run_app(
    app: Path, fleet: Path | None, settings: list[str] | None, seed: int | None, out: Path | None, words: list[str], *,
    measure: bool, silent: bool,
) -> Any:  # fmt: skip
    """Run the Flower app in the folder *app* on a fleet."""
    from fedsim import show
    from fedsim.foreign.session import asked, execute
    from fedsim.scenario.load import parse_overrides

    found, loaded = asked(app, fleet, parse_overrides(settings or []), seed, words)
    with show.following(f"{found.name}-{loaded.fleet.name}", silent=silent) as watch:
        return execute(found, loaded, out, watch, measure=measure)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


