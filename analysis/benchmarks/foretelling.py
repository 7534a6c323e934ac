"""Does a fleet that was fitted to small deployments foretell others: another model, more local work, other rounds, another count of nodes?

``python -m analysis.benchmarks.foretelling`` deploys on this machine (7 minutes; it wants to be quiet), and prints a table.
``--traces`` foretells again from the traces that lie beside (``traces/``: the deployed runs' manifests and journals), and deploys nothing;
``--keep`` puts what was deployed there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import fedsim
from fedsim.real.calibration import calibrated, on, period_s, round_s
from fedsim.record import journal, manifest
from fedsim.scenario.build import build
from fedsim.scenario.load import Loaded, recorded

SCENARIO = Path(__file__).parents[2] / "scenarios/quickstart.toml"
TRACES = Path(__file__).with_name("traces")
BASE: dict[str, Any] = {"server.strategy": {"kind": "FedAvg"}, "server.rounds": 4}
FITTED: dict[str, tuple[int, dict[str, Any]]] = {
    "little-work": (2, {"training.epochs": 1.5}), "more-work": (2, {"training.epochs": 75}),
    "larger-batches": (2, {"training.epochs": 75, "training.batch_size": 40}), "more-than-cores": (3, {"training.epochs": 1.5}),
}  # fmt: skip
"""Nodes, and what is set; each with the quickstart's 64 hidden units."""
FORETOLD: dict[str, tuple[int, dict[str, Any]]] = {
    "quickstart": (2, {"server.rounds": 6}),
    "wide": (2, {"server.rounds": 6, "model": {"kind": "mlp", "hidden": [512]}, "training.epochs": 12}),
    "wide-on-three": (3, {"server.rounds": 5, "model": {"kind": "mlp", "hidden": [512]}, "training.epochs": 6}),
    "deep": (2, {"server.rounds": 5, "model": {"kind": "mlp", "hidden": [256, 256]}, "training.epochs": 30, "training.batch_size": 32}),
}
"""Nodes, and what is set."""


def main() -> None:
    """Deploy, or read the traces; fit, foretell, print."""
    words = argparse.ArgumentParser()
    words.add_argument("--traces", action="store_true")
    words.add_argument("--keep", action="store_true")
    words.add_argument("--out", type=Path, default=Path("runs/foretelling"), help="deployed runs; those there are not repeated")
    words = words.parse_args()
    place = TRACES if words.traces else words.out
    if not words.traces:
        for name, (nodes, changes) in {**FITTED, **FORETOLD}.items():
            if not (place / name).exists():
                print(f"deploying {name} ...", flush=True)
                fedsim.deploy(SCENARIO, nodes, overrides={**BASE, **changes}, out=place / name)
    if words.keep:
        keep(place)
    print(table(place))


def table(place: Path) -> str:
    """Return, as Markdown, what the runs in *place* give that are fitted to, and how the others are foretold by it."""
    found = calibrated(*(place / name for name in FITTED))
    lines = [
        f"{found.gflops:.3g} GFLOP/s, {1e6 * found.step_s:.0f} us a step, {found.overhead_s:.3g} s a message, {found.latency_s:.3g} s on"
        f" the way, {found.server_s:.3g} s at the server, {found.cores or 0:.3g} cores for tasks", f"{found.crowd}", "",
        "| run | foretold, s a round | observed | error |", "|---|---|---|---|",
        *(f"| {Path(fit.run).name} (fitted to) | {fit.predicted_s:.2f} | {fit.period_s:.2f} | {fit.predicted_s / fit.period_s - 1:+.1%} |"
          for fit in found.fits),
    ]  # fmt: skip
    for name in FORETOLD:
        told_s, seen_s = foretold(place / name, found.plain())
        lines.append(f"| {name} | {told_s:.2f} | {seen_s:.2f} | {told_s / seen_s - 1:+.1%} |")
    return "\n".join([*lines, *found.notes])


def foretold(deployed: Path, fleet: dict[str, Any]) -> tuple[float, float]:
    """Return what a round takes on *fleet*, in the scenario of the run *deployed*, and what it took there, in seconds."""
    run = fedsim.load(deployed)
    loaded = Loaded(recorded(run.manifest["scenario"])[0], manifest.scenario_folder(run.manifest, run.path))
    return round_s(build(on(loaded, fleet))), period_s(run)


def keep(place: Path) -> None:
    """Put the manifests and journals of the runs in *place* among the traces."""
    shutil.rmtree(TRACES, ignore_errors=True)
    for name in (*FITTED, *FORETOLD):
        (TRACES / name).mkdir(parents=True)
        shutil.copy(place / name / journal.FILE, TRACES / name / journal.FILE)
        about = {**manifest.read(place / name), "folder": os.path.relpath(SCENARIO.parent, TRACES / name)}  # Wherever the clone lies.
        (TRACES / name / manifest.FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
