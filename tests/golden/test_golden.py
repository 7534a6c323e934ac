"""Golden digests: small scenarios of each kind. When one changes, the commit message says why.

They are played in a process that is held to arithmetic which every x86-64 machine has (``play.py``), so one file serves all.
"""

import json
import platform
from pathlib import Path

import pytest
from play import SCENARIOS, played

from fedsim.record.manifest import machine, versions

GOLDEN = Path(__file__).with_name("golden.json")


def here() -> dict[str, str]:
    """Return the versions of what does arithmetic, or draws."""
    found = versions()
    return {name: found[name] for name in ("torch", "numpy", "flwr")}


def test_golden_digests_stay() -> None:
    """The digests are those that were recorded; where a kind of machine is new, record.py adds it to those that agree."""
    golden = json.loads(GOLDEN.read_text())
    if platform.machine() != "x86_64":
        pytest.skip(f"recorded on x86-64, and this is {platform.machine()}")
    if golden["versions"] != here():
        pytest.skip(f"recorded with {golden['versions']}, which constraints.txt pins")
    found = played()
    moved = [name for name in SCENARIOS if golden["digests"][name] != found[name]]
    if moved and machine()["processor"] not in golden["seen_on"]:
        pytest.skip(f"seen on {golden['seen_on']} only: here {moved} differ. Run tests/golden/record.py, and look into why")

    assert [] == moved
