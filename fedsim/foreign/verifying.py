"""Running the run of an app again from its own manifest. Knows run folders; runs what ``session`` runs."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from fedsim.core.errors import RunError, reason
from fedsim.foreign.app import find
from fedsim.foreign.session import Watch, execute
from fedsim.record import digest, manifest
from fedsim.scenario.fleet import Fleet, LoadedFleet
from fedsim.score.compare import difference
from fedsim.score.run import Run


def verify(path: str | Path, scratch: str | Path, watch: Watch | None = None, *, trust: bool = False) -> str | None:
    """Run the app's run in *path* again, in the folder *scratch*; return None when all agrees, else what differs first.

    Raises RunError when it cannot be compared: it never finished, the app is gone or has changed since, or it was recorded elsewhere
    and *trust* is not given: its code would run.
    """
    old = Run(Path(path))
    about = old.manifest
    if about["status"] != "done":
        raise RunError(f"{path}: is {old.status}; only a run that is done can be verified.")
    if about["digest_format"] != digest.FORMAT:
        raise RunError(f"{path}: cannot be verified, because its digest is {about['digest_format']!r}, and ours {digest.FORMAT!r}.")
    folder, recorded = manifest.scenario_folder(about, Path(path)), about["app"]
    if not trust and about.get("origin") != manifest.origin(folder):
        raise RunError(
            f"{path}: would run code that was not recorded here: the Flower app in {recorded['folder']}. Look at it, then say --trust"
            f" (in Python: trust=True)."
        )
    app = find(recorded["folder"], recorded["run_config"])
    before, now = recorded["files"], app.files
    if changed := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
        raise RunError(f"{path}: cannot be verified, because {', '.join(changed[:5])} of the app changed since the run (or is gone).")
    try:
        fleet = Fleet.model_validate(about["fleet"])
    except ValidationError as error:
        raise RunError(f"{path}: its fleet cannot be read ({reason(error)}).") from None
    return difference(old, execute(app, LoadedFleet(fleet, folder), scratch, watch))
