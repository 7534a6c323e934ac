"""A run as an offline run of Weights & Biases: written by its own client, which asks no network and no account. ``wandb sync`` sends it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsim.exporting.curves import curves
from fedsim.exporting.exporters import Exporter, exporters, library, surrounded
from fedsim.score.run import Run


def register() -> None:
    """Register it."""
    exporters.register("wandb-offline")(
        lambda: Exporter("an offline run, to be sent by 'wandb sync'", wandb_offline, (("wandb", "wandb", "wandb"),))
    )


def wandb_offline(run: Run, folder: Path, place: Path) -> Sequence[str]:
    """Write the scores of *run* as ``scope/name``, a step per round, with round and virtual seconds as metrics to draw them against."""
    wandb: Any = library("wandb", "wandb")
    about, rows = run.manifest, dict[int, dict[str, float]]()
    for point in curves(run):
        row = rows.setdefault(point.round, {"round": point.round})
        row |= {f"{point.scope}/{point.name}": point.value, "virtual_s": max(point.now_s, row.get("virtual_s", 0.0))}
    settings = wandb.Settings(mode="offline", console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
    with surrounded(WANDB_MODE="offline", WANDB_DIR=str(folder), WANDB_CACHE_DIR=str(folder / ".cache"), WANDB_ERROR_REPORTING="false"):
        made = wandb.init(project="fedsim", name=run.name, dir=str(folder), config=about["scenario"], settings=settings, notes=run.status)
        made.define_metric("*", step_metric="round")
        for number in sorted(rows):
            made.log(rows[number], step=number)
        made.summary.update({"status": run.status, "digest": about["digest"] or "", **about["final"]})
        made.finish(exit_code=0 if run.status == "done" else 1)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return [f"'wandb sync {place}/wandb/offline-run-*' sends it, once you are logged in."]
