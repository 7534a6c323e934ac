"""Deployments that were observed, and whose traces lie beside the benchmarks, are foretold by a fleet that was fitted to others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from analysis.benchmarks.foretelling import FITTED, FORETOLD, TRACES, foretold
from fedsim.real.calibration import Calibration, calibrated

BOUND = 0.10


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    """The fleet that the small deployments give."""
    return calibrated(*(TRACES / name for name in FITTED))


@pytest.mark.parametrize("name", FORETOLD)
def test_another_deployment_is_foretold(name: str, fitted: Calibration) -> None:
    """Another model, other local work, other rounds: a round takes what was foretold, within 10 %, more nodes than cores too."""
    told_s, seen_s = foretold(TRACES / name, fitted.plain())

    assert told_s == pytest.approx(seen_s, rel=BOUND)


def test_teeth_what_a_step_takes_is_no_speed(fitted: Calibration, tmp_path: Path) -> None:
    """Fitted to small tasks alone, as if all they take were speed, a wide model is foretold wrong."""
    alone = calibrated(TRACES / "little-work")
    told_s, seen_s = foretold(TRACES / "wide", alone.plain())
    slow = dataclasses.replace(fitted, overhead_s=2 * fitted.overhead_s)

    assert told_s > (1 + BOUND) * seen_s
    assert foretold(TRACES / "quickstart", slow.plain())[0] > (1 + BOUND) * foretold(TRACES / "quickstart", fitted.plain())[1]
