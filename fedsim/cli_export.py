"""The command that writes a run in a form that another program reads: ``fedsim export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli_words import AsJson, RunFolder, as_line, errors, opened
from fedsim.core.errors import ScenarioError


def add(app: typer.Typer) -> None:
    """Add the command of this file to *app*."""
    app.command()(export)


def export(
    run: RunFolder,
    to: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="csv, parquet, tensorboard, mlflow, wandb-offline, perfetto, ro-crate; or an installed one."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where; new or empty. Default RUN/export/FORM, renewed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run in a form that another program reads: tables, curves, a trace of its time, or a described archive.

    A run that goes on, or was interrupted, is exported as far as it is recorded. Some forms take a package that is an extra.
    """
    with errors():
        from fedsim.exporting import export as exported
        from fedsim.exporting.exporters import exporters

        if to is None:
            raise ScenarioError(f"--to: say which form. There are {', '.join(exporters)}.")
        found = exported(opened(run), to, out)
        if as_json:
            files = [str(path) for path in found.files]
            print(as_line({"to": to, "folder": str(found.folder), "files": files, "notes": list(found.notes)}))
            return
        size = sum(path.stat().st_size for path in found.files)
        from fedsim.report.units import megabytes

        files = "1 file" if len(found.files) == 1 else f"{len(found.files):,} files"
        print(f"{found.folder}: {files}, {megabytes(size)}.")
        for note in found.notes:
            print(note)
