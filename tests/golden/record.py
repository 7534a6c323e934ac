"""Records the golden digests anew, for this machine type: ``python tests/golden/record.py``. Say why in the commit."""

import json
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Run the golden scenarios and write their digests."""
    here = Path(__file__).parent
    sys.path[:0] = [str(here.parent), str(here)]
    import test_golden
    from conftest import tiny_table

    import fedsim

    digests: dict[str, list[str]] = {}
    for name, overrides in test_golden.SCENARIOS.items():
        with tempfile.TemporaryDirectory() as folder:
            run = fedsim.run(tiny_table(), overrides=overrides, out=f"{folder}/run")
            digests[name] = [run.digest, run.metrics_digest]
            print(name, run.final, run.tasks.outcome.value_counts().to_dict())
    golden = {"machine": test_golden.here(), "digests": digests}
    test_golden.GOLDEN.write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    main()
