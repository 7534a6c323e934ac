"""The command line: words in, words out. What a run is and does is elsewhere.

Exit 0: done. 2: the scenario or the arguments are wrong. 1: the run failed. 130: interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

from fedsim.core.errors import RunError, ScenarioError, reason
from fedsim.core.warned import spare_dependencies

spare_dependencies()  # Before the first of them comes in.

import typer  # noqa: E402
from click.exceptions import Abort, UsageError  # noqa: E402

app = typer.Typer(
    name="fedsim",
    help=(  # \b keeps a block as it is.
        "Federated learning on a virtual clock, with the model really trained.\n\n"
        "A scenario file (TOML) says who the clients are, what data and devices they have, how they train, and which"
        " Flower strategy aggregates. Start with:\n\n\b\n"
        "  fedsim check scenarios/quickstart.toml   what would it cost?\n"
        "  fedsim run scenarios/quickstart.toml     run it\n"
        "  fedsim study batch-size SCENARIO         which batch size?\n"
        "  fedsim list                              what can a scenario name?"
    ),
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario file (.toml).")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart-7.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. training.optimizer.lr=0.05. Repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Override the scenario's seed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON at the end, and nothing else.")]

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
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO|APP", help="A scenario file (.toml), or a Flower app's folder (--fleet).")],
    settings: Set = None,
    seed: Seed = None,
    fleet: Annotated[
        Path | None, typer.Option(metavar="FLEET", help="A fleet file (.toml): the clients of a Flower app; of a scenario, their devices and links.")
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
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Run a scenario, or any Flower app on a fleet: progress while it goes, a summary at the end, a run folder with a report."""
    with _errors():
        from fedsim import show

        if run_config or measure or scenario.is_dir():
            done = _run_app(scenario, fleet, settings, seed, out, run_config or [], measure=measure, silent=quiet or as_json)
        else:
            loaded = _load(scenario, settings, seed, fleet)
            with show.progress(loaded.scenario, silent=quiet or as_json) as watch:
                from fedsim.session import execute

                done = execute(loaded, out, watch)
        _reported(done, as_json)


@app.command()
def check(
    scenario: ScenarioFile,
    settings: Set = None,
    seed: Seed = None,
    as_json: AsJson = False,
    wall_s: Annotated[
        float, typer.Option("--wall-s", min=0.0, metavar="SECONDS", help="Wall time for rounds on the virtual clock.")
    ] = 10.0,
) -> None:
    """Check a scenario and foretell its cost: builds the world, runs time without training, prints what would happen."""
    with _errors():
        from fedsim import show

        loaded = _load(scenario, settings, seed)
        from fedsim.preview import preview

        with show.rehearsing(loaded.scenario, silent=as_json) as watch:
            foretold = preview(loaded, wall_s=wall_s, watch=watch)
        if as_json:
            print(_json(foretold.plain()))
        else:
            show.preview(foretold)


@app.command("list")
def list_kinds(
    noun: Annotated[
        str | None,
        typer.Argument(metavar="[NOUN|SECTION]", help="source, model, strategy, ...; training, clients, server, ...; or all."),
    ] = None,
) -> None:
    """List what a scenario can name: an overview; of one noun each kind with its settings, of a section each key, in words."""
    with _errors():
        from fedsim import listing

        listing.kinds(noun)


@app.command("show")
def show_run(run: RunFolder, as_json: AsJson = False) -> None:
    """Show a run: what it was, how it ended, what it cost."""
    with _errors():
        from fedsim import show

        found = _opened(run)
        if as_json:
            print(_json(show.summary_line(found)))
        else:
            show.summary(found)


@app.command()
def verify(
    run: RunFolder,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Run code of its own that was recorded elsewhere.")] = False,
) -> None:
    """Run a run again from its own manifest and compare the digests; exit 1 when they differ."""
    with _errors():
        from fedsim import show
        from fedsim.scenario.load import recorded
        from fedsim.session import verify as again

        old = _opened(run)
        with tempfile.TemporaryDirectory() as scratch:
            if "app" in old.manifest:
                from fedsim.foreign.verifying import verify as again_app

                with show.following(old.name, silent=quiet) as follow:
                    difference = again_app(run, Path(scratch) / "run", follow, trust=trust)
            else:
                scenario, _ = recorded(old.manifest["scenario"])
                with show.progress(scenario, silent=quiet) as watch:
                    difference = again(run, Path(scratch) / "run", watch, trust=trust)
        if difference is not None:
            raise RunError(f"{run}: differs. First: {difference}.")
        print(f"{run}: verified, digest {old.digest[:16]}... again.")


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
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Measure what the batch size does: memory, speed, gradients, generalisation, time to a target; beside the textbook's table.

    Each size is run at a rate tuned for it, at the scenario's own rate, for equal epochs, equal steps, and to a target. The runs
    stand in the study's folder; called again, the study goes on from what is done there.
    """
    with _errors():
        from fedsim import show
        from fedsim.studies import studied

        loaded = _load(scenario, settings, seed)
        with show.studying(loaded.scenario, silent=quiet or as_json) as told:
            found = studied(
                loaded, batches=batches, target=target, seeds=seeds, quick=quick, stretch=stretch, jobs=jobs, out=out, told=told
            )
        from fedsim.studies import table

        if as_json:
            print(_json(table.summary(found)))
        else:
            table.show(found)


@app.command()
def deploy(
    scenario: ScenarioFile,
    nodes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="SuperNodes, a client each: clients.count = N. Default the scenario's own.")
    ] = None,
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
    with _errors():
        from fedsim.deploy.asked import Asked, check, check_scale

        words = [*(settings or []), *([] if nodes is None else [f"clients.count={nodes}"])]
        asked = Asked(_load(scenario, words, seed), scenario, settings or [], seed, out, port, tls, time_scale)
        if as_compose and not printed:
            raise ScenarioError("--compose: goes with --print.")
        if printed:
            from fedsim.deploy import printed as words_for

            check_scale(time_scale)
            print((words_for.compose if as_compose else words_for.blocks)(scenario, asked.words_elsewhere(), asked.nodes))
            return
        check(asked)
        from fedsim import show
        from fedsim.deploy.local import deployed

        first = f"starting a SuperLink and {asked.nodes} SuperNodes"
        with show.progress(asked.loaded.scenario, silent=quiet or as_json, clock="wall", first=first) as watch:
            done = deployed(asked, watch)
        _reported(done, as_json)


@app.command()
def report(run: RunFolder) -> None:
    """Write the HTML report of a run (again), and print its path."""
    with _errors():
        from fedsim.report.page import write_report

        print(write_report(_opened(run)))


@app.command()
def advise(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO|RUN", help="A scenario file, run once for it, or a run that was watched.")],
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder of the run that is made; new or empty.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Advise which batch size, how many clients and which learning rate to try next, and say how sure that is."""
    with _errors():
        from fedsim import show
        from fedsim.advising import is_run, watched
        from fedsim.score.advice import advice

        if is_run(scenario):
            run = _opened(scenario)
        else:
            from fedsim.scenario.load import parse_overrides

            loaded = _load(scenario, settings, seed)
            with show.progress(loaded.scenario, silent=quiet or as_json) as watch:
                run = watched(scenario, parse_overrides(settings or []), seed, out, watch)
        found = advice(run)
        if as_json:
            print(_json({"run": str(run.path), "advice": [dataclasses.asdict(hint) for hint in found]}))
        else:
            show.advice(run, found)


@app.command()
def calibrate(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The fleet file to write. Default fleet.toml in the run's folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit devices, links and Flower's transport to a deployed run, and write a fleet file: for 'fedsim run SCENARIO --fleet FILE'."""
    with _errors():
        from fedsim import show
        from fedsim.deploy.calibrate import calibrated
        from fedsim.report.page import toml

        found, file = calibrated(_opened(run).path), out or run / "fleet.toml"
        file.write_text(toml(found.plain()) + "\n", encoding="utf-8")
        if as_json:
            print(_json({**dataclasses.asdict(found), "fleet": str(file)}))
        else:
            show.calibration(found, file)


@app.command()
def validate(
    scenario: ScenarioFile,
    nodes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="SuperNodes, a client each: clients.count = N. Default the scenario's own.")
    ] = None,
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder; new or empty. Default runs/NAME.validate.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not say what is going on.")] = False,
) -> None:
    """Simulate a scenario and deploy it, and say whether they agree: parameters, bytes, and the time of a round. Exit 1 where they do not.

    The time is foretold from another, smaller deployment that it is fitted to.
    """
    with _errors():
        from fedsim import show
        from fedsim.deploy.asked import Asked
        from fedsim.deploy.validate import validated

        words = [*(settings or []), *([] if nodes is None else [f"clients.count={nodes}"])]
        loaded = _load(scenario, words, seed)
        asked = Asked(loaded, scenario, words, seed)
        found = validated(asked, out or Path("runs") / f"{loaded.scenario.name}.validate", show.steps(silent=quiet or as_json))
        if as_json:
            print(_json(found.plain()))
        else:
            show.validation(found)
        if not found.agrees:
            raise SystemExit(1)


@app.command()
def init(
    flower: Annotated[Path, typer.Option("--flower", metavar="DIR", help="The app's folder; new or empty.")],
    scenario: Annotated[Path | None, typer.Option(metavar="SCENARIO", help="A scenario file (.toml). Default: the quickstart.")] = None,
    nodes: Annotated[
        int, typer.Option(min=0, metavar="N", help="SuperNodes that take part. Default: as many as the scenario has clients.")
    ] = 0,
) -> None:
    """Make the folder of a Flower app from a scenario: for real clients, with 'flwr run DIR'."""
    with _errors():
        from fedsim.deploy.folder import init_app

        files = init_app(flower, scenario, nodes)
        print(f"{flower}: {', '.join(files)}. {flower / 'README.md'} says how it is run.")


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors that complete and check TOML."""
    with _errors():
        from fedsim.scenario.jsonschema import json_schema

        print(json.dumps(json_schema(), indent=2))


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
        said = " ".join(dict.fromkeys(re.split(r"(?<=[.?]) +", " ".join(error.format_message().split()))))
        _end(f"{said} '{command} --help' shows what it takes.", 2)
    except Abort:
        _end("interrupted.", 130)


def _reported(done: Any, as_json: bool) -> None:
    """Write the report of a run that is done, and print its summary."""
    from fedsim import show
    from fedsim.report.page import write_report

    try:
        write_report(done)
    except OSError as error:
        raise RunError(
            f"{error.filename or done.path}: the report cannot be written ({error.strerror}); the run is done, and safe in {done.path}."
        ) from None
    if as_json:
        print(_json(show.summary_line(done)))
    else:
        show.summary(done)


def _opened(folder: Path) -> Any:
    """Return the run in *folder*; naming a folder that holds none is the arguments' fault, not the run's."""
    from fedsim.record import manifest
    from fedsim.score.run import load

    try:
        there = (folder / manifest.FILE).is_file()
    except OSError as error:  # A name that is too long for any folder.
        raise ScenarioError(f"{str(folder)[:60]}...: {error.strerror}.") from None
    if not there:
        raise ScenarioError(f"{folder}: not a run folder (it has no {manifest.FILE}).")
    return load(folder)


def _load(scenario: Path, settings: list[str] | None, seed: int | None, fleet: Path | None = None) -> Any:
    from fedsim.scenario.load import load, parse_overrides

    asked = parse_overrides(settings or [])
    if fleet is not None:
        from fedsim.scenario.fleet import load_fleet, on_fleet

        asked = {**on_fleet(load_fleet(fleet).fleet), **asked}
    return load(scenario, asked, seed)


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


@contextmanager
def _errors() -> Generator[None]:
    """Turn errors into one line and an exit code."""
    try:
        yield
    except ScenarioError as error:
        _end(str(error), 2)
    except RunError as error:
        _end(str(error), 1)
    except KeyboardInterrupt as stopped:
        _end(str(stopped) or "interrupted.", 130)
    except BrokenPipeError:  # The reader of our output has left: 'fedsim list | head'.
        sys.stderr.close()
        raise SystemExit(0) from None
    except OSError as error:  # A folder that cannot be written, a full disk.
        _end(f"{error.filename or 'on disk'}: {error.strerror or error}.", 1)
    except Exception as error:  # Nobody foresaw it: still one line, and the story where it can be read.
        _end(_defect(error), 1)


def _defect(error: Exception) -> str:
    """Return the line about an error that nobody foresaw, its traceback written to a file."""
    said = f"{reason(error)}: fedsim did not foresee this. "
    try:
        with tempfile.NamedTemporaryFile("w", prefix="fedsim-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
        return f"{said}The whole story is in {file.name}; please report it."
    except OSError:
        return said


def _json(table: Any) -> str:
    """Return *table* as JSON that every reader takes: what is no number, or no finite one, is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(table), allow_nan=False)


def _end(line: str, code: int) -> NoReturn:
    with suppress(OSError):  # The terminal may be closed.
        print(f"fedsim: {' '.join(line.splitlines())}", file=sys.stderr)
    raise SystemExit(code)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


