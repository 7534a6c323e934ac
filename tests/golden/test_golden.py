"""Golden digests: small scenarios of each kind. When one changes, the commit message says why.

They are played in a process that is held to arithmetic which every x86-64 machine has (``play.py``), so one file serves all.
"""

import json
import platform
from pathlib import Path
from typing import Any

import pytest
from play import SCENARIOS, played

from fedsim.record.manifest import machine, versions

GOLDEN = Path(__file__).with_name("golden.json")
NATIVE = json.loads(Path(__file__).with_name("native.json").read_text())
"""Of one machine type, by whatever kernels it has: until golden.json has been seen on another than where it was recorded."""


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


@pytest.mark.parametrize("name", NATIVE["digests"])
def test_a_native_digest_stays(name: str, go: Any) -> None:
    """The digest is the one that was recorded for this machine type, its own kernels and all."""
    if NATIVE["machine"] != {**machine(), **here()}:
        pytest.skip(f"recorded on another machine type: {NATIVE['machine']}")
    run = go(SCENARIOS[name])

    assert NATIVE["digests"][name] == [run.digest, run.metrics_digest]
