"""Records the golden digests anew, for this machine type: ``python tests/golden/record.py``. Say why in the commit."""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import test_golden  # noqa: E402
from conftest import tiny_table  # noqa: E402

import fedsim  # noqa: E402

digests: dict[str, list[str]] = {}
for name, overrides in test_golden.SCENARIOS.items():
    with tempfile.TemporaryDirectory() as folder:
        run = fedsim.run(tiny_table(), overrides=overrides, out=f"{folder}/run")
        digests[name] = [run.digest, run.metrics_digest]
        print(name, run.final, run.tasks.outcome.value_counts().to_dict())
test_golden.GOLDEN.write_text(json.dumps({"machine": test_golden.here(), "digests": digests}, indent=2) + "\n")
