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
CORES, CROWD_FACTOR = 1.5, 1.3
"""Of two, since what else runs takes the rest; and what three or more at once cost each other."""
PLANTED: dict[str, Any] = {
    "name": "planted", "clients": {
        "count": 4, "compute": {"kind": "constant", "gflops": GFLOPS, "step_s": STEP_S, "overhead_s": OVERHEAD_S},
        "network": {"kind": "constant", "down_mbps": 10_000.0, "up_mbps": 10_000.0, "latency_s": LATENCY_S},
    },
    "transport": {"node_poll_s": 3.0, "reply_poll_s": 0.5, "server_poll_s": 0.2, "server_s": SERVER_S, "cores": CORES, "crowd_from": 3,
                  "crowd_factor": CROWD_FACTOR},
}  # fmt: skip
SMALL: dict[str, Any] = {"clients.count": 4, "server.rounds": 6, "data.partition": {"kind": "dirichlet", "alpha": 0.5}}


def deployed(run: fedsim.Run, *, tells: bool = True) -> Path:
    """Make of a simulated *run* one that says that its nodes were real, and what their processors took by the planted fleet."""
    about = json.loads((run.path / "manifest.json").read_text())
    about |= {"ground": "flower", "nodes": [{"host": "here"}] * 4, "deployment": {"cores": 2}}
    (run.path / "manifest.json").write_text(json.dumps(about))
    with sqlite3.connect(run.path / "journal.sqlite") as file:
        for row, used_s in zip(run.tasks.itertuples(), used(run.tasks), strict=True):
            if tells:
                work_s = row.flops / (1e9 * GFLOPS) + row.steps * STEP_S
                slower = used_s / (work_s + OVERHEAD_S)
                file.execute("INSERT INTO worked VALUES (?, ?, ?, ?)", (row.message, int(row.client), used_s, work_s * slower))
    return run.path


def used(tasks: Any) -> list[float]:
    """Return the seconds that each of *tasks* had a core: of k at once each has a share of CORES / k."""
    moments = sorted({*tasks.started_s, *tasks.computed_s})
    found = [0.0] * len(tasks)
    for since, until in zip(moments, moments[1:], strict=False):
        there = [i for i, row in enumerate(tasks.itertuples()) if row.started_s <= since and until <= row.computed_s]
        for i in there:
            found[i] += (until - since) * min(1.0, CORES / len(there))
    return found


def test_a_planted_fleet_is_found_again(tiny: Any, tmp_path: Path) -> None:
    """What runs of other work, other batches and another count took on a known fleet gives that fleet, and another model's rounds."""
    two: dict[str, Any] = {"clients.count": 2}
    asked = {
        "small": two, "more": {**two, "training.epochs": 20}, "wider": {**two, "training.epochs": 20, "training.batch_size": 40},
        "crowd": {"training.epochs": 20},
    }  # fmt: skip
    runs = [deployed(predicted(load(tiny({**SMALL, **changes})), PLANTED, tmp_path / name)) for name, changes in asked.items()]
    found = calibrated(*runs)

    assert found.notes == ()
    assert found.gflops == pytest.approx(GFLOPS, rel=0.01)
    assert found.step_s == pytest.approx(STEP_S, rel=0.01)
    assert found.overhead_s == pytest.approx(OVERHEAD_S, rel=0.02)
    assert found.server_s == pytest.approx(SERVER_S, abs=0.01)
    assert found.cores == pytest.approx(CORES, rel=0.01)
    assert found.crowd is not None
    assert found.crowd.begins == 3
    assert found.crowd.factor == pytest.approx(CROWD_FACTOR, rel=0.02)
    assert all(fit.predicted_s == pytest.approx(fit.period_s, rel=0.02) for fit in found.fits)
    other = load(tiny({**SMALL, "clients.count": 3, "training.epochs": 40, "model": {"kind": "mlp", "hidden": [512]}}))
    real, told = (period_s(predicted(other, fleet, tmp_path / name)) for name, fleet in (("r", PLANTED), ("t", found.plain())))
    assert told == pytest.approx(real, rel=0.02)
    apart = calibrated(*runs[:3])  # Who has seen no crowd knows of none, and says so.
    assert "more of them" in apart.notes[0].lower()
    assert period_s(predicted(other, apart.plain(), tmp_path / "apart")) < 0.9 * real
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
