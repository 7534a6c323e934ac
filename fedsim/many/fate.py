"""What a process that runs scenarios tells its parent of an error, in a word and in the error's own. Knows no run, and no pipe."""

from __future__ import annotations

from fedsim.core.errors import RunError, ScenarioError
from fedsim.record.leaving import Pruned


def fate(error: BaseException) -> dict[str, str] | None:
    """Return what is told of *error*: refused, failed or pruned, and why; None where that is for whoever asks to say.

    >>> fate(RunError("the disk is full")), fate(ValueError("x"))
    ({'status': 'failed', 'error': 'the disk is full'}, None)
    """
    for kind, status in ((ScenarioError, "refused"), (RunError, "failed"), (Pruned, "pruned")):
        if isinstance(error, kind):
            return {"status": status, "error": str(error)}
    return None
