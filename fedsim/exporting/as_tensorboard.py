"""A run as TensorBoard's event files: a curve per score, a folder per scope. Writes by TensorBoard's own writer; knows no table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsim.exporting.curves import began_s, curves
from fedsim.exporting.exporters import Exporter, exporters, library
from fedsim.report.page import toml
from fedsim.score.run import Run


def register() -> None:
    """Register it."""
    exporters.register("tensorboard")(
        lambda: Exporter("event files: scores against rounds", tensorboard, (("tensorboard", "tensorboard", "tensorboard"),))
    )


def tensorboard(run: Run, folder: Path, _: Path) -> None:
    """Write the scores of *run*: step is the round, and wall time when the run was started plus virtual time ("relative" is virtual time).

    Scopes (central, federated, training, clients, cost) are runs beside each other, so that curves of one name share a figure. The scenario
    is a text of the run "scenario".
    """
    writers = library("tensorboard.summary.writer.event_file_writer", "tensorboard")
    events = library("tensorboard.compat.proto.event_pb2", "tensorboard")
    summaries = library("tensorboard.compat.proto.summary_pb2", "tensorboard")
    texts = library("tensorboard.plugins.text.summary_v2", "tensorboard")
    began, open_ = began_s(run), dict[str, Any]()
    try:
        for point in curves(run):
            if point.scope not in open_:
                open_[point.scope] = writers.EventFileWriter(str(folder / point.scope.replace("/", "-")))
            value = summaries.Summary.Value(tag=point.name, simple_value=point.value)
            open_[point.scope].add_event(
                events.Event(wall_time=began + point.now_s, step=point.round, summary=summaries.Summary(value=[value]))
            )
        open_["scenario"] = writers.EventFileWriter(str(folder / "scenario"))
        said = texts.text_pb("scenario", f"```\n{toml(run.manifest['scenario'])}\n```")
        open_["scenario"].add_event(events.Event(wall_time=began, step=0, summary=said))
    finally:
        for writer in open_.values():
            writer.close()
