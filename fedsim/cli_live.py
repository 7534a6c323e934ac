"""Commands about runs that another process makes: ``fedsim watch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim.cli_words import AsJson, as_line, end, errors, opened
from fedsim.core.errors import ScenarioError
from fedsim.record import manifest

CODES = {"done": 0, "interrupted": 130}
"""Exit codes by how a run ended; 1 in any other case."""


def add(app: typer.Typer) -> None:
    """Add the commands of this file to *app*."""
    app.command()(watch)


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/quickstart-7, that goes or has ended.")],
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No panel: the summary at the end alone.")] = False,
) -> None:
    """Follow a run from another terminal until it has ended, then print its summary; of a run that has ended, that at once.

    Exit code: as the run's own. 0: done. 1: it failed, or was killed. 130: it was interrupted, or you stopped watching; the run goes on.
    """
    with errors():
        from fedsim import show

        found = _followed(run, silent=quiet or as_json)
        if as_json:
            print(as_line(show.summary_line(found)))
        else:
            show.summary(found)
        if found.status != "done":
            end(_ended(found), CODES.get(found.status, 1))


def _followed(folder: Path, *, silent: bool) -> Any:
    """Return the run in *folder* once it has ended, its panel shown until then unless *silent*."""
    if not folder.exists():
        raise ScenarioError(manifest.none_in(folder, "; a run has no folder before its world is built"))
    found = opened(folder)
    if found.status != "running":
        return found
    from fedsim.live.following import looks, teller_of
    from fedsim.live.terminal import shown
    from fedsim.score.run import load

    try:
        if silent:
            for _ in looks(folder):
                pass
            return load(folder)
        teller = teller_of(found.manifest)
        with shown(teller) as tell:
            for *before, now in looks(folder):
                for where in before:
                    teller.remember(where)
                tell(now)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"no longer watched; {folder} goes on.") from None
    return load(folder)


def _ended(run: Any) -> str:
    """Return in a line how a *run* ended that is not done."""
    reached = run.final.get("rounds", 0)
    if run.status == "killed":
        return f"{run.path}: was killed after round {reached}, so that it could not end in order; what was recorded until then is there."
    error = run.manifest.get("error", "")
    return f"{run.path}: {run.status}{f': {error}' if error and error != run.status else ''}"
