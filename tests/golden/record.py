"""Records the golden digests anew: those of every x86-64 machine, then this machine type's: ``python tests/golden/record.py``.

Say why in the commit. Other types' native digests stay as they are on record, also where they have moved: record there, too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from play import played
from test_golden import GOLDEN, RECORD, here

from fedsim.record.manifest import machine


def main() -> None:
    """Play the golden scenarios and write their digests."""
    before, digests = json.loads(Path(GOLDEN).read_text()), played()
    seen = before.get("seen_on", []) if before["digests"] == digests else []  # Where else they were the same.
    golden = {"versions": here(), "seen_on": sorted({*seen, machine()["processor"]}), "digests": digests}
    Path(GOLDEN).write_text(json.dumps(golden, indent=2) + "\n")
    # By the test itself: a process in which much was traced before, as under pytest, is what it compares with.
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("test_golden.py")), "-k", "native"]
    subprocess.run(command, check=True, env={**os.environ, RECORD: "1"})


if __name__ == "__main__":
    main()
