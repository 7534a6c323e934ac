"""What commands share: arguments that many take, errors as one line and an exit code, runs opened and told. Knows no command."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

from fedsim.core.errors import RunError, ScenarioError, reason
from fedsim.core.warned import spare_dependencies

spare_dependencies()  # Before the first of them comes in.

import typer  # noqa: E402

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario file (.toml).")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart-7.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. training.optimizer.lr=0.05. Repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Override the scenario's seed.")]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="10m", help="Wall time. Then it ends in order, exit 130, and what is done is safe.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON at the end, and nothing else.")]


def reported(done: Any, as_json: bool, began_s: float) -> None:
    """Write the report of a run that is done, and print its summary; the command began at *began_s*, by ``time.perf_counter``."""
    from fedsim import show
    from fedsim.report.page import write_report

    ran_s = time.perf_counter()
    try:
        write_report(done)
    except OSError as error:
        raise RunError(
            f"{error.filename or done.path}: the report cannot be written ({error.strerror}); the run is done, and safe in {done.path}."
        ) from None
    if as_json:
        print(as_line(show.summary_line(done)))
    else:
        now_s, rounds_s = time.perf_counter(), float(done.manifest["wall_s"])
        show.summary(done, {"start": max(0.0, ran_s - began_s - rounds_s), "rounds": rounds_s, "report": now_s - ran_s})


def budget_s(budget: str | None) -> float | None:
    """Return the seconds of *budget*; None where there is none. Raises ScenarioError for what is no span of time."""
    from fedsim.many.asked import span

    return None if budget is None else span(budget, "--budget", "10m, 90s or 2h, of wall time")


def opened(folder: Path) -> Any:
    """Return the run in *folder*; naming a folder that holds none is the arguments' fault, not the run's."""
    from fedsim.record import manifest
    from fedsim.score.run import load

    try:
        there = (folder / manifest.FILE).is_file()
    except OSError as error:  # A name that is too long for any folder.
        raise ScenarioError(f"{str(folder)[:60]}...: {error.strerror}.") from None
    if not there:
        raise ScenarioError(manifest.none_in(folder))
    return load(folder)


def loaded_from(scenario: Path, settings: list[str] | None, seed: int | None, fleet: Path | None = None) -> Any:
    from fedsim.scenario.load import load, parse_overrides

    asked = parse_overrides(settings or [])
    if fleet is not None:
        from fedsim.scenario.fleet import load_fleet, on_fleet

        asked = {**on_fleet(load_fleet(fleet).fleet), **asked}
    return load(scenario, asked, seed)


@contextmanager
def errors() -> Generator[None]:
    """Turn errors into one line and an exit code."""
    try:
        yield
    except ScenarioError as error:
        end(str(error), 2)
    except RunError as error:
        end(str(error), 1)
    except KeyboardInterrupt as stopped:
        end(str(stopped) or "interrupted.", 130)
    except BrokenPipeError:  # The reader of our output has left: 'fedsim list | head'.
        sys.stderr.close()
        raise SystemExit(0) from None
    except OSError as error:  # A folder that cannot be written, a full disk.
        end(f"{error.filename or 'on disk'}: {error.strerror or error}.", 1)
    except Exception as error:  # Nobody foresaw it: still one line, and the story where it can be read.
        end(_defect(error), 1)


def _defect(error: Exception) -> str:
    """Return the line about an error that nobody foresaw, its traceback written to a file."""
    said = f"{reason(error)}: fedsim did not foresee this. "
    try:
        with tempfile.NamedTemporaryFile("w", prefix="fedsim-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
        return f"{said}The whole story is in {file.name}; please report it."
    except OSError:
        return said


def as_line(table: Any) -> str:
    """Return *table* as JSON that every reader takes: what is no number, or no finite one, is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(table), allow_nan=False)


def end(line: str, code: int) -> NoReturn:
    with suppress(OSError):  # The terminal may be closed.
        print(f"fedsim: {' '.join(line.splitlines())}", file=sys.stderr)
    raise SystemExit(code)
