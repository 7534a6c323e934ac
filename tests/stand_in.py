"""The process of a run as ``apart`` starts it, with a stand-in for the run that imports no torch: its scenario's name says what it does."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.core.progress import Progress
from fedsim.many import single
from fedsim.record.leaving import Interrupted


class Done:
    """What is asked of a run that is over."""

    path = Path("nowhere")


def run(parent: Any, request: Mapping[str, Any]) -> Any:
    """Tell of a round every 10 ms until somebody ends it; or be killed, or break in a way that nobody foresaw."""
    number, name = 0, request["scenario"]["name"]
    try:
        while name == "endless" or number < 2:
            parent.watch(Progress(number, 10, 1.0 * number, 1, 2, {"accuracy": 0.5}))
            number += 1
            time.sleep(0.01)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted after round {number}; what was recorded until then is safe.") from None
    if name == "killed":
        os.kill(os.getpid(), 9)
    if name == "unforeseen":
        raise ZeroDivisionError("nobody saw this coming")
    return Done


if __name__ == "__main__":
    single._run = run  # pyright: ignore[reportPrivateUsage]
    single.main()
