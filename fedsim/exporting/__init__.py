"""``fedsim.export``: a run folder in a form that another program reads. Whole or not at all; what a form is, its own file says."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedsim.core.errors import RunError, door
from fedsim.exporting import as_mlflow, as_perfetto, as_ro_crate, as_tables, as_tensorboard, as_wandb
from fedsim.exporting.exporters import BELOW, Exporter, exporter, exporters
from fedsim.record.leaving import spoken
from fedsim.record.place import ELSEWHERE, check_place
from fedsim.score.run import Run, load

__all__ = ["Exported", "Exporter", "export", "exporters"]

for _module in (as_mlflow, as_perfetto, as_ro_crate, as_tables, as_tensorboard, as_wandb):
    _module.register()


@dataclass(frozen=True, slots=True)
class Exported:
    """Where an export is: its *folder*, the *files* in it, sorted, and *notes* on what a reader must know of it."""

    folder: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def export(run: Run | str | Path, to: str, out: str | Path | None = None) -> Exported:
    """Write *run* (a run, or its folder) in the form *to*, and return where: in *out* (new or empty), or ``RUN/export/TO``.

    Forms: csv, parquet, tensorboard, mlflow, wandb-offline, perfetto, ro-crate, and those of installed packages. A run that is going, or
    was interrupted or killed, is exported as far as it is recorded, and a note says so. An export in its default place takes that of
    before's. Raises ScenarioError where there is no such form, its package is not installed, or *out* holds something; RunError where the
    folder cannot be read.

    >>> import fedsim
    >>> fedsim.export("tests/recorded/quickstart", "csv", tmp / "tables").files[0].name
    'clients.csv'
    """
    found = run if isinstance(run, Run) else load(run)
    made = exporter(to)
    place = found.path / BELOW / to.replace(":", ".") if out is None else Path(out)
    if out is not None:
        check_place(found.name, 0, out)
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"{place}: cannot be written ({spoken(error)}). Name another folder ({ELSEWHERE}).") from None
    try:
        with door(f"--to {to}", wrong=RunError):  # Another program's writer, or a stranger's.
            notes = [*_state(found), *(made.write(found, draft, place.absolute()) or ())]
        _moved(draft, place)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(draft)
        raise
    files = tuple(sorted(path for path in place.rglob("*") if path.is_file()))
    if not files:
        raise RunError(f"--to {to}: wrote nothing.")
    return Exported(place, files, tuple(notes))


def _state(run: Run) -> list[str]:
    """Return what must be said of a run that is not done."""
    status = run.status
    if status == "done":
        return []
    said = "is still going" if status == "running" else "failed" if status == "failed" else f"was {status}"
    return [f"{run.path}: {said}; this is what was recorded until then."]


def _moved(draft: Path, place: Path) -> None:
    """Let *draft* take *place*: by renaming, so that a reader finds the export of before, or this one, or for a moment none."""
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    if place.exists():
        os.rename(place, old)
    try:
        os.rename(draft, place)
    except OSError:
        if old.exists():
            os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)
