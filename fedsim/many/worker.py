"""A worker: a process that runs one scenario after the other, ``python -m fedsim.many.worker``, or asks a function. Knows no question.

A request is a line of JSON on its standard input, the answer one on its standard output. It ends when its input does: a run that is
under way is then interrupted, and its folder says so. Ctrl-C is the parent's business.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fedsim.core import lending
from fedsim.core.warned import spare_dependencies

RUN = "run"
"""What a request asks for that is a run; any other is the name of a function, which is given the request."""
POINT = "model-{}.safetensors"
"""What the model of a round is called, beside that of the end, in the folder of a run that was asked for it."""


def main() -> None:
    """Serve the parent until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a reader's code prints is no answer.
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked,), daemon=True).start()
    spare_dependencies()
    lending.lend()  # What one run compiled, traced and read is there for the next.
    try:
        import fedsim.session  # noqa: F401  # pyright: ignore[reportUnusedImport]  # Seconds, before the first request comes.

        while line := asked.get():
            _under_way.set()
            said = answer(json.loads(line))
            _under_way.clear()
            answers.write(json.dumps(said) + "\n")
            answers.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)


_under_way = threading.Event()


def _interrupt(*_: object) -> None:
    if not _under_way.is_set():  # Nothing to leave in order.
        os._exit(130)
    raise KeyboardInterrupt


def _read(asked: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        asked.put(line)
    asked.put("")
    os.kill(os.getpid(), signal.SIGTERM)  # The parent has no more use for us, or is gone.


def answer(request: Mapping[str, Any]) -> dict[str, str]:
    """Do what *request* asks: run its scenario, or ask a function. Return what went wrong, and how it went wrong; nothing, if nothing."""
    from fedsim.many.fate import fate

    try:
        if request["what"] == RUN:
            _run(request)
        else:
            _named(request["what"])(request)
    except KeyboardInterrupt as stopped:
        if (told := fate(stopped)) is None:
            raise
        return told
    except Exception as error:  # What nobody foresaw: of this run the parent is told, and goes on with the others.
        return fate(error) or {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"status": "done", "error": ""}


def _run(request: Mapping[str, Any]) -> None:
    """Run the scenario of *request* in the folder ``out``, and leave the models of the rounds ``points`` there too.

    Who is to watch it besides is ``watched``: a table that names in ``by`` the function which makes a watcher of it.
    """
    from fedsim.record.manifest import whole
    from fedsim.scenario.load import Loaded
    from fedsim.scenario.schema import Scenario
    from fedsim.session import Progress, execute

    out, points, watched = Path(request["out"]), set(request["points"]), request.get("watched")
    other = None if watched is None else _named(watched["by"])(watched)

    def watch(where: Progress) -> None:
        if where.round in points:
            import numpy as np
            from safetensors.numpy import save

            whole(out / POINT.format(where.round), save({name: np.asarray(a, order="C") for name, a in where.model.items()}))
        if other is not None:
            other(where)

    loaded = Loaded(Scenario.model_validate(request["scenario"]), Path(request["folder"]))
    execute(loaded, out, watch if points or other is not None else None)


def _named(words: str) -> Any:
    module, _, name = words.partition(":")
    return getattr(import_module(module), name)


if __name__ == "__main__":
    main()
