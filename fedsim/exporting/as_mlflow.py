"""A run as an MLflow file store: one experiment, one run, its scenario as params, its scores as metrics. Writes by MLflow's own client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedsim.exporting.curves import began_s, curves, flat
from fedsim.exporting.exporters import Exporter, exporters, library, surrounded
from fedsim.score.run import Run

STATUS = {"done": "FINISHED", "failed": "FAILED"}
BATCH_PARAMS, BATCH_METRICS, LONGEST = 100, 1000, 6000
"""What MLflow takes at once, and how long a param may be."""


def register() -> None:
    """Register it."""
    exporters.register("mlflow")(
        lambda: Exporter("a file store: params, metrics by round", mlflow, (("mlflow", "mlflow-skinny", "mlflow"),))
    )


def mlflow(run: Run, folder: Path, place: Path) -> Sequence[str]:
    """Write *run* into a file store: metrics are ``scope/name``, step is the round, timestamp when the run was started plus virtual time.

    ``mlflow ui --backend-store-uri PLACE`` shows it. The manifest is its artifact.
    """
    with surrounded(MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true"):
        made = _written(run, folder, place)
    artifacts = folder / "artifacts" / made / "artifacts"  # By hand: MLflow would write to where the folder is going to be.
    artifacts.mkdir(parents=True)
    (artifacts / "manifest.json").write_text(json.dumps(run.manifest, indent=2) + "\n", encoding="utf-8")
    return [f"mlflow ui --backend-store-uri {place} shows it. Moved elsewhere, it does not find its artifact: MLflow keeps whole paths."]


def _written(run: Run, folder: Path, place: Path) -> str:
    """Write all but the artifact, and return the id that MLflow gave the run."""
    tracking, entities = library("mlflow.tracking", "mlflow-skinny"), library("mlflow.entities", "mlflow-skinny")
    client, began = tracking.MlflowClient(tracking_uri=folder.absolute().as_uri()), began_s(run)
    about = run.manifest
    experiment = client.create_experiment("fedsim", artifact_location=(place / "artifacts").as_uri())
    tags = {"status": run.status, "digest": str(about["digest"] or ""), **{f"version.{n}": v for n, v in about["versions"].items()}}
    made = client.create_run(experiment, start_time=_ms(began), run_name=run.name, tags=tags).info.run_id
    params = [entities.Param(key, value[:LONGEST]) for key, value in flat(about["scenario"]).items()]
    for start in range(0, len(params), BATCH_PARAMS):
        client.log_batch(made, params=params[start : start + BATCH_PARAMS])
    metrics = [
        entities.Metric(_key(f"{point.scope}/{point.name}"), point.value, _ms(began + point.now_s), point.round) for point in curves(run)
    ]
    for start in range(0, len(metrics), BATCH_METRICS):
        client.log_batch(made, metrics=metrics[start : start + BATCH_METRICS])
    if run.status != "running":
        client.set_terminated(made, STATUS.get(run.status, "KILLED"), _ms(began + max([float(about["virtual_s"]), *run.metrics.now_s])))
    return made


def _key(name: str) -> str:
    """Return *name* with what MLflow takes of it: letters, digits, and some signs.

    >>> _key("classes 0,1/accuracy")
    'classes 0-1/accuracy'
    """
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "-" for letter in name)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
