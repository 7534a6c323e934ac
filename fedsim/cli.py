"""The command line: words in, words out. What a run is and does is elsewhere.

Exit 0: done. 2: the scenario or the arguments are wrong. 1: the run failed. 130: interrupted.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from click.exceptions import Abort, UsageError

from fedsim.core.errors import RunError, ScenarioError

app = typer.Typer(
    name="fedsim",
    help=(  # \b keeps a block as it is.
        "Federated learning on a virtual clock, with the model really trained.\n\n"
        "A scenario file (TOML) says who the clients are, what data and devices they have, how they train, and which"
        " Flower strategy aggregates. Start with:\n\n\b\n"
        "  fedsim check scenarios/quickstart.toml   what would it cost?\n"
        "  fedsim run scenarios/quickstart.toml     run it\n"
        "  fedsim list                              what can a scenario name?"
    ),
    add_completion=False,
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


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print versions and exit.")] = False) -> None:
    if version:
        from fedsim.record.manifest import versions

        print(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise SystemExit(0)


@app.command()
def run(
    scenario: ScenarioFile,
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder; new or empty. Default runs/NAME-SEED.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Run a scenario: progress while it goes, a summary at the end, a run folder with a report."""
    with _errors():
        from fedsim import show

        loaded = _load(scenario, settings, seed)
        with show.progress(loaded.scenario, silent=quiet or as_json) as watch:
            from fedsim.session import execute

            done = execute(loaded, out, watch)
        from fedsim.record.report import write_report

        write_report(done)
        if as_json:
            print(json.dumps(show.summary_line(done)))
        else:
            show.summary(done)


@app.command()
def check(scenario: ScenarioFile, settings: Set = None, seed: Seed = None, as_json: AsJson = False) -> None:
    """Check a scenario and foretell its cost: builds the world, runs time without training, prints what would happen."""
    with _errors():
        from fedsim import show

        loaded = _load(scenario, settings, seed)
        from fedsim.preview import preview

        foretold = preview(loaded)
        if as_json:
            print(json.dumps(foretold.plain()))
        else:
            show.preview(foretold)


@app.command("list")
def list_kinds(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="source, partition, model, strategy, ...")] = None,
) -> None:
    """List what a scenario can name, with its settings: all kinds, or those of one."""
    with _errors():
        from fedsim import show

        show.kinds(kind)


@app.command("show")
def show_run(run: RunFolder, as_json: AsJson = False) -> None:
    """Show a run: what it was, how it ended, what it cost."""
    with _errors():
        from fedsim import show
        found = _opened(run)
        if as_json:
            print(json.dumps(show.summary_line(found)))
        else:
            show.summary(found)


@app.command()
def verify(run: RunFolder, quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False) -> None:
    """Run a run again from its own manifest and compare the digests; exit 1 when they differ."""
    with _errors():
        from fedsim import show
        from fedsim.scenario.schema import Scenario
        from fedsim.session import verify as again

        old = _opened(run)
        scenario = Scenario.model_validate(old.manifest["scenario"])
        with tempfile.TemporaryDirectory() as scratch, show.progress(scenario, silent=quiet) as watch:
            difference = again(run, Path(scratch) / "run", watch)
        if difference is not None:
            raise RunError(f"{run}: differs. First: {difference}.")
        print(f"{run}: verified, digest {old.digest[:16]}... again.")


@app.command()
def report(run: RunFolder) -> None:
    """Write the HTML report of a run (again), and print its path."""
    with _errors():
        from fedsim.record.report import write_report

        print(write_report(_opened(run)))


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors that complete and check TOML."""
    with _errors():
        from fedsim.scenario.jsonschema import json_schema

        print(json.dumps(json_schema(), indent=2))


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _interrupt)  # A polite kill leaves the folder as readable as Ctrl-C does.
    try:
        app(sys.argv[1:] or ["--help"], prog_name="fedsim", standalone_mode=False)
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "fedsim"
        said = " ".join(dict.fromkeys(re.split(r"(?<=[.?]) +", " ".join(error.format_message().split()))))
        _end(f"{said} '{command} --help' shows what it takes.", 2)
    except Abort:
        _end("interrupted.", 130)


def _opened(folder: Path) -> Any:
    """Return the run in *folder*; naming a folder that holds none is the arguments' fault, not the run's."""
    from fedsim.record import manifest
    from fedsim.record.runs import load

    if not (folder / manifest.FILE).is_file():
        raise ScenarioError(f"{folder}: not a run folder (it has no {manifest.FILE}).")
    return load(folder)


def _load(scenario: Path, settings: list[str] | None, seed: int | None) -> Any:
    from fedsim.scenario.load import load, parse_overrides

    return load(scenario, parse_overrides(settings or []), seed)


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


def _end(line: str, code: int) -> NoReturn:
    print(f"fedsim: {' '.join(line.splitlines())}", file=sys.stderr)
    raise SystemExit(code)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


