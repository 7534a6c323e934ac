"""What tests of foreign apps share: the apps under ``apps/``, unmodified Flower apps of our own making, and a small fleet for them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim

APPS = Path(__file__).parent / "apps"
collect_ignore = ["apps"]


def fleet_table(**more: Any) -> dict[str, Any]:
    """Return five phones of which training takes a while; *more* replaces whole keys."""
    return {
        "name": "phones", "seed": 7,
        "clients": {
            "count": 5, "compute": {"kind": "lognormal", "gflops": 5.0, "overhead_s": 1.0},
            "network": {"kind": "lognormal", "down_mbps": 6.0, "up_mbps": 2.0},
        },
        "compute": {"train": {"seconds_per_example": 0.05}, "evaluate": {"flops_per_example": 1e7}},
        "engine": {"workers": 1},
        **more,
    }  # fmt: skip


@pytest.fixture
def fleet() -> Callable[..., dict[str, Any]]:
    """Return the fleet as a table, with keys replaced."""
    return fleet_table


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., fedsim.Run]:
    """Return what runs one of our apps, by name or folder, on the small fleet."""
    count = iter(range(100))

    def go(app: str | Path, /, fleet: dict[str, Any] | None = None, **more: Any) -> fedsim.Run:
        return fedsim.run_app(APPS / app, fleet or fleet_table(), out=tmp_path / f"run{next(count)}", **more)

    return go


@pytest.fixture
def app_of(tmp_path: Path) -> Callable[..., Path]:
    """Return what writes an app: a copy of quickstart-numpy, with files of its package replaced."""

    def make(name: str = "mine", /, **files: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(APPS / "quickstart-numpy", folder, ignore=shutil.ignore_patterns("__pycache__"))
        for stem, text in files.items():
            place = folder / "pyproject.toml" if stem == "pyproject" else folder / "numpyexample" / f"{stem}.py"
            place.write_text(textwrap.dedent(text))
        return folder

    return make
