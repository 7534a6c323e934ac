"""What is fitted to a deployed run: a fleet that was planted is found again, and what cannot be told is said."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.core.errors import RunError
from fedsim.real.calibration import calibrated, period_s, predicted
from fedsim.scenario.load import load

GFLOPS, STEP_S, OVERHEAD_S, LATENCY_S, SERVER_S = 0.04, 0.002, 1.5, 0.35, 0.2
CORES = 1.5
"""Of two: what else runs takes the rest."""
PLANTED: dict[str, Any] = {
    "name": "planted", "clients": {
        "count": 4, "compute": {"kind": "constant", "gflops": GFLOPS, "step_s": STEP_S, "overhead_s": OVERHEAD_S},
        "network": {"kind": "constant", "down_mbps": 10_000.0, "up_mbps": 10_000.0, "latency_s": LATENCY_S},
    },
    "transport": {"node_poll_s": 3.0, "reply_poll_s": 0.5, "server_poll_s": 0.2, "server_s": SERVER_S, "cores": CORES},
}  # fmt: skip
SMALL: dict[str, Any] = {"clients.count": 4, "server.rounds": 6, "data.partition": {"kind": "dirichlet", "alpha": 0.5}}


def deployed(run: fedsim.Run, *, tells: bool = True) -> Path:
    """Make of a simulated *run* one that says that its nodes were real, and what their processors took by the planted fleet."""
    about = json.loads((run.path / "manifest.json").read_text())
    about |= {"ground": "flower", "nodes": [{"host": "here"}] * 4, "deployment": {"cores": 2}}
    (run.path / "manifest.json").write_text(json.dumps(about))
    with sqlite3.connect(run.path / "journal.sqlite") as file:
        for row in run.tasks.itertuples():
            if tells:
                work_s = row.flops / (1e9 * GFLOPS) + row.steps * STEP_S
                file.execute("INSERT INTO worked VALUES (?, ?, ?, ?)", (row.message, int(row.client), work_s + OVERHEAD_S, work_s))
    return run.path


def test_a_planted_fleet_is_found_again(tiny: Any, tmp_path: Path) -> None:
    """What runs of other work and other batches took on a known fleet gives that fleet, and foretells another model's rounds."""
    more = {"more": {"training.epochs": 20}, "wider": {"training.epochs": 20, "training.batch_size": 40}}
    runs = [
        deployed(predicted(load(tiny({**SMALL, **changes})), PLANTED, tmp_path / name)) for name, changes in {"small": {}, **more}.items()
    ]
    found = calibrated(*runs)

    assert found.notes == ()
    assert found.gflops == pytest.approx(GFLOPS, rel=0.01)
    assert found.step_s == pytest.approx(STEP_S, rel=0.01)
    assert found.overhead_s == pytest.approx(OVERHEAD_S, rel=0.02)
    assert found.server_s == pytest.approx(SERVER_S, abs=0.01)
    assert found.cores == pytest.approx(CORES, rel=0.01)
    assert all(fit.predicted_s == pytest.approx(fit.period_s, rel=0.02) for fit in found.fits)
    other = load(tiny({**SMALL, "clients.count": 3, "training.epochs": 40, "model": {"kind": "mlp", "hidden": [512]}}))
    real, told = (period_s(predicted(other, fleet, tmp_path / name)) for name, fleet in (("r", PLANTED), ("t", found.plain())))
    assert told == pytest.approx(real, rel=0.02)
    alone = calibrated(runs[0])  # Tasks of one size: what is fixed of them is taken for speed, and the note says so.
    assert "about one size" in alone.notes[0]
    assert alone.gflops < GFLOPS / 2
    assert period_s(predicted(other, alone.plain(), tmp_path / "alone")) > 1.1 * real


def test_what_cannot_be_told_is_said(tiny: Any, tmp_path: Path) -> None:
    """Tasks of one size say nothing of what is fixed; a simulated run, a short one and a silent one are refused by name."""
    alike = {**SMALL, "data.partition": {"kind": "iid"}}
    simulated = predicted(load(tiny(alike)), PLANTED, tmp_path / "alike")
    with pytest.raises(RunError, match="simulated"):
        calibrated(simulated.path)
    assert any("about one size" in note for note in calibrated(deployed(simulated)).notes)
    with pytest.raises(RunError, match="no node told"):
        calibrated(deployed(predicted(load(tiny(alike)), PLANTED, tmp_path / "silent"), tells=False))
    with pytest.raises(RunError, match="has 2 rounds"):
        calibrated(deployed(predicted(load(tiny({**alike, "server.rounds": 2})), PLANTED, tmp_path / "short")))
