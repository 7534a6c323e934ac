"""A run as an RO-Crate: its folder's files, and beside them who made what, of what, with which software. Hand-written JSON-LD.

RO-Crate 1.1 (w3id.org/ro/crate/1.1), as the profile Process Run Crate 0.5 wants it (w3id.org/ro/wfrun/process/0.5).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedsim.exporting.curves import began_s
from fedsim.exporting.exporters import BELOW, Exporter, exporters
from fedsim.record import journal
from fedsim.report.page import toml
from fedsim.score.run import Run

CRATE, PROFILE = "https://w3id.org/ro/crate/1.1", "https://w3id.org/ro/wfrun/process/0.5"
CONTEXT = [f"{CRATE}/context", "https://w3id.org/ro/terms/workflow-run/context"]
FILE, SCENARIO = "ro-crate-metadata.json", "scenario.toml"
FORMATS = {
    ".json": "application/json", ".toml": "application/toml", ".html": "text/html", ".log": "text/plain", ".txt": "text/plain",
    ".sqlite": "application/vnd.sqlite3", ".safetensors": "application/octet-stream",
}  # fmt: skip
KNOWN = {
    "manifest.json": "The manifest: scenario, seed, digests, versions, how the run ended.",
    journal.FILE: "Every row of the run: tasks, rounds, scores, what each client told (SQLite).",
    "model.safetensors": "The final parameters.",
    "report.html": "The report, a page that needs no network.",
    "flower.log": "What Flower logged.",
    SCENARIO: "The scenario that was run.",
}
STATES = {"done": "CompletedActionStatus", "running": "ActiveActionStatus"}


def register() -> None:
    """Register it."""
    exporters.register("ro-crate")(lambda: Exporter("an RO-Crate: the run's files, described", ro_crate))


def ro_crate(run: Run, folder: Path, place: Path) -> None:
    """Copy the files of *run* into *folder*, and describe them in ``ro-crate-metadata.json``, each with its size and SHA-256."""
    about = run.manifest
    copied = _copied(run.path, folder, place)
    (folder / SCENARIO).write_text(toml(about["scenario"]) + "\n", encoding="utf-8")
    results = [_file(folder, name) for name in sorted(copied)]
    scenario = _file(folder, SCENARIO)
    data = [
        {"@id": f"#data-{i}", "@type": "CreativeWork", "name": name, "description": "Data that the run read; not in here.", "sha256": mark}
        for i, (name, mark) in enumerate(about["files"].items())
    ]
    software = [
        {"@id": f"#{name}", "@type": "SoftwareApplication", "name": name, "version": number, "softwareVersion": number}
        for name, number in about["versions"].items()
    ]
    ours = next((each for each in software if each["name"] == "fedsim-online"), None) or {
        "@id": "#fedsim-online", "@type": "SoftwareApplication", "name": "fedsim-online", "version": "unknown",
    }  # fmt: skip
    others = [each for each in software if each is not ours]
    ours = {**ours, "url": "https://pypi.org/project/fedsim-online/", "softwareRequirements": [_ref(each) for each in others]}
    digests = [
        {"@id": f"#{name}", "@type": "PropertyValue", "propertyID": name, "name": name.replace("_", " "), "value": about[name]}
        for name in ("digest", "metrics_digest", "scenario_digest") if about.get(name)
    ]  # fmt: skip
    action = _action(run, ours, [scenario, *data], results)
    began = _date(run)
    root = {
        "@id": "./", "@type": "Dataset", "name": f"{run.name}, seed {about['seed']}",
        "description": f"A run of the federated learning simulator fedsim: scenario {run.name}, seed {about['seed']}, {run.status}.",
        "datePublished": began.date().isoformat(), "license": {"@id": "#license"}, "conformsTo": {"@id": PROFILE},
        "hasPart": [_ref(each) for each in (scenario, *results)], "mentions": [_ref(action)],
        "identifier": [_ref(each) for each in digests],
    }  # fmt: skip
    graph = [
        {"@id": FILE, "@type": "CreativeWork", "conformsTo": {"@id": CRATE}, "about": {"@id": "./"}},
        root,
        {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {"@id": "#license", "@type": "CreativeWork", "name": "Not stated", "description": "The run does not say what its license is."},
        action, scenario, *results, *data, ours, *others, *digests,
    ]  # fmt: skip
    (folder / FILE).write_text(json.dumps({"@context": CONTEXT, "@graph": graph}, indent=2) + "\n", encoding="utf-8")


def _copied(source: Path, folder: Path, place: Path) -> list[str]:
    """Copy every file of the run but exports and what is hidden, and return their names.

    Of the journal what it holds at one moment, also while a run goes.
    """
    names: list[str] = []
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        hidden = any(part.startswith(".") for part in inside.parts) or path.is_relative_to(place) or path.is_relative_to(folder)
        if not path.is_file() or inside.parts[0] == BELOW or hidden or path.name.startswith(f"{journal.FILE}-"):
            continue
        to = folder / inside
        to.parent.mkdir(parents=True, exist_ok=True)
        if str(inside) == journal.FILE:
            with journal.reading(source) as file, closing(sqlite3.connect(to)) as copy:
                file.backup(copy)
        else:
            shutil.copyfile(path, to)
        names.append(inside.as_posix())
    return names


def _file(folder: Path, name: str) -> dict[str, Any]:
    """Return what is said of a file."""
    path = folder / name
    with path.open("rb") as file:
        mark = hashlib.file_digest(file, "sha256").hexdigest()
    found: dict[str, Any] = {
        "@id": name, "@type": "File", "name": name, "contentSize": str(path.stat().st_size), "sha256": mark,
        "encodingFormat": FORMATS.get(path.suffix, "application/octet-stream"),
    }  # fmt: skip
    return found | ({"description": KNOWN[name]} if name in KNOWN else {})


def _action(run: Run, ours: Mapping[str, Any], read: list[dict[str, Any]], made: list[dict[str, Any]]) -> dict[str, Any]:
    about, began = run.manifest, _date(run)
    ended = began + timedelta(seconds=float(about["wall_s"]))
    action: dict[str, Any] = {
        "@id": "#run", "@type": "CreateAction", "name": f"fedsim run of {run.name}", "instrument": _ref(ours),
        "startTime": began.isoformat(timespec="seconds"),
        "actionStatus": f"http://schema.org/{STATES.get(run.status, 'FailedActionStatus')}",
        "object": [_ref(each) for each in read], "result": [_ref(each) for each in made],
        "description": f"{float(about['virtual_s']):.3f} s of {'the run' if about.get('ground') else 'virtual'} time.",
    }  # fmt: skip
    if run.status != "running":
        action["endTime"] = ended.isoformat(timespec="seconds")
    return action | ({"error": about["error"]} if about.get("error") else {})


def _date(run: Run) -> datetime:
    return datetime.fromtimestamp(began_s(run), UTC)


def _ref(entity: Mapping[str, Any]) -> dict[str, str]:
    return {"@id": str(entity["@id"])}
