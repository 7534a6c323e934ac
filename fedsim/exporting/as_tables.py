"""Every table of a run as CSV, or as Parquet, with units of all columns beside. Knows tables, and no run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.types import Frame
from fedsim.exporting.columns import TABLES, Meaning, meanings
from fedsim.exporting.exporters import Exporter, exporters, library
from fedsim.record import manifest
from fedsim.score.run import Run

COLUMNS, MANIFEST = manifest.TABLES, manifest.FILE


def register() -> None:
    """Register both."""
    exporters.register("csv")(lambda: Exporter("one CSV file for each table, and columns.json with units", csv))
    exporters.register("parquet")(
        lambda: Exporter("one Parquet file for each table, units in the fields", parquet, (("pyarrow", "pyarrow", "parquet"),))
    )


def csv(run: Run, folder: Path, _: Path) -> None:
    """Write each table that has rows. Floats read back to the last bit, an empty cell is NaN, lists have spaces between numbers."""
    told: dict[str, Any] = {}
    for name, frame, columns in tables(run):
        lists = [column for column in frame.columns if isinstance(frame[column].iloc[0], np.ndarray)]
        plain = frame.assign(**{column: [" ".join(map(str, each.tolist())) for each in frame[column]] for column in lists})
        plain.to_csv(folder / f"{name}.csv", index=False)
        told[name] = _told(frame, columns)
    _beside(run, folder, told)


def parquet(run: Run, folder: Path, _: Path) -> None:
    """Write each table that has rows as Parquet, with what is written beside in the metadata of each field too."""
    pa, pq = library("pyarrow", "pyarrow"), library("pyarrow.parquet", "pyarrow")
    told: dict[str, Any] = {}
    for name, frame, columns in tables(run):
        table = pa.Table.from_pandas(frame, preserve_index=False)
        fields = [
            table.schema.field(i).with_metadata(dict(zip(("unit", "meaning"), columns[table.schema.field(i).name], strict=True)))
            for i in range(table.num_columns)
        ]
        about = {"run": run.name, "digest": str(run.manifest["digest"] or ""), **(table.schema.metadata or {})}
        pq.write_table(table.cast(pa.schema(fields, metadata=about)), folder / f"{name}.parquet", compression="zstd")
        told[name] = _told(frame, columns)
    _beside(run, folder, told)


def tables(run: Run) -> Iterator[tuple[str, Frame, Mapping[str, Meaning]]]:
    """Yield each table that has rows: its name, its rows, and unit and meaning of each column."""
    for name, table in TABLES.items():
        frame = table(run)
        if len(frame):
            yield name, frame, meanings(name, frame)


def _told(frame: Frame, columns: Mapping[str, Meaning]) -> dict[str, Any]:
    return {"rows": len(frame), "columns": {name: {"unit": unit, "meaning": meaning} for name, (unit, meaning) in columns.items()}}


def _beside(run: Run, folder: Path, told: Mapping[str, Any]) -> None:
    """Write what the columns are, and the manifest."""
    (folder / COLUMNS).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(run.manifest, indent=2) + "\n", encoding="utf-8")
