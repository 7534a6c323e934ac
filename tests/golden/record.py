"""Records the golden digests anew, the same on every x86-64 machine: ``python tests/golden/record.py``. Say why in the commit."""

import json
from pathlib import Path

from play import played
from test_golden import GOLDEN, here

from fedsim.record.manifest import machine


def main() -> None:
    """Play the golden scenarios and write their digests."""
    before, digests = json.loads(Path(GOLDEN).read_text()), played()
    seen = before.get("seen_on", []) if before["digests"] == digests else []  # Where else they were the same.
    golden = {"versions": here(), "seen_on": sorted({*seen, machine()["processor"]}), "digests": digests}
    Path(GOLDEN).write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    main()
