"""A deployed run that is done, and its scenario, read from its folder: for whoever simulates it again. Runs nothing."""

from __future__ import annotations

from pathlib import Path

from fedsim.core.errors import RunError
from fedsim.record import manifest
from fedsim.scenario.load import Loaded, recorded
from fedsim.score.run import Run


def deployed_run(path: str | Path, wanted: str) -> tuple[Run, Loaded]:
    """Return the run in *path* and its scenario. Raises RunError where it was simulated, is not done, or not of this version's words.

    *wanted* is what it was wanted for, as in "only one that is done can be ...".
    """
    run = Run(Path(path))
    about = run.manifest
    if about.get("ground") != "flower":
        raise RunError(f"{run.path}: is a simulated run; what can be {wanted} is one on real clients (fedsim deploy).")
    if about["status"] != "done":
        raise RunError(f"{run.path}: is {about['status']}; only a deployed run that is done can be {wanted}.")
    scenario, strange = recorded(about["scenario"])
    if strange:
        raise RunError(f"{run.path}: this version does not know {', '.join(strange)} of its scenario.")
    return run, Loaded(scenario, manifest.scenario_folder(about, run.path))
