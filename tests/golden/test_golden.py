"""Golden digests: small scenarios of each kind. When one changes, the commit message says why.

They are played with ``engine.reproducible = "everywhere"`` (``play.py``), so one file serves all machines; three of them natively, too.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
from play import SCENARIOS, played

from fedsim.record.manifest import machine, versions

GOLDEN = Path(__file__).with_name("golden.json")
NATIVE = Path(__file__).with_name("native.json")
"""Of the machine types that were at hand, by whatever kernels each has."""
RECORDED: list[dict[str, Any]] = json.loads(NATIVE.read_text())
NATIVELY = ("dirichlet-mlp", "late-cnn", "private-leaf")
RECORD = "FEDSIM_RECORD"
"""Set where what is found is to be written down (record.py)."""


def here() -> dict[str, str]:
    """Return the versions of what does arithmetic, or draws."""
    found = versions()
    return {name: found[name] for name in ("torch", "numpy", "flwr")}


def test_golden_digests_stay() -> None:
    """Those that are promised everywhere are the ones on record, on every x86-64 machine, whichever versions of torch and numpy it has."""
    golden = json.loads(GOLDEN.read_text())
    if platform.machine() != "x86_64":
        pytest.skip(f"promised on x86-64, and this is {platform.machine()}")
    found = played()

    assert [] == [name for name in SCENARIOS if golden["digests"][name] != found[name]], f"recorded with {golden['versions']}"


@pytest.mark.parametrize("name", NATIVELY)
def test_a_native_digest_stays(name: str, go: Any) -> None:
    """The digest is the one that was recorded for this machine type, its own kernels and all."""
    this = {**machine(), **here()}
    digests = next((each["digests"] for each in RECORDED if each["machine"] == this), None)
    if digests is None and RECORD not in os.environ:
        pytest.skip(f"recorded on {[each['machine']['processor'] for each in RECORDED]}, and this is {this}; record.py adds it")
    run = go(SCENARIOS[name])
    if RECORD in os.environ:
        before = json.loads(NATIVE.read_text())
        kept = [each for each in before if each["machine"] != this]
        now = {**next((each["digests"] for each in before if each["machine"] == this), {}), name: [run.digest, run.metrics_digest]}
        NATIVE.write_text(json.dumps([*kept, {"machine": this, "digests": now}], indent=2) + "\n")
        return

    assert digests is not None
    assert digests[name] == [run.digest, run.metrics_digest]
