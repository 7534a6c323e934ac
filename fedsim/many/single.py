"""One run for a parent that watches it: ``python -m fedsim.many.single``, in a process that began with its arithmetic pinned.

What is asked comes as a line of JSON on standard input; where the run is goes out as lines on standard output, and after each the parent
says whether to go on. It ends when its input does: the run is then interrupted, and its folder says so.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedsim.apart import MODEL, RAISE
from fedsim.core import pinned
from fedsim.core.errors import RunError, ScenarioError, reason
from fedsim.core.progress import Progress
from fedsim.core.warned import spare_dependencies

if TYPE_CHECKING:
    from fedsim.score.run import Run

EVERY_S = 0.5
"""How often the parent is told how many tasks are computed of those that are due."""


def main() -> None:
    """Do what the parent asks, and answer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    spare_dependencies()
    parent = _Parent()
    said = {"status": "interrupted"}
    with suppress(KeyboardInterrupt):
        said = answer(parent, json.loads(parent.asked.get()))
    for number in (signal.SIGINT, signal.SIGTERM):  # The folder is left: all that is to be done is to say so.
        signal.signal(number, signal.SIG_IGN)
    parent.printed()
    with suppress(OSError):
        parent.tell(said)
    os._exit(0)  # Nothing is left to do, whatever a reader's code has left behind.


def answer(parent: _Parent, request: Mapping[str, Any]) -> dict[str, str]:
    """Run what *request* asks for; return where it is, or what it raised."""
    from fedsim.many.fate import fate

    try:
        if wrong := pinned.unpinned():
            raise RunError(f"a process was to begin with its arithmetic pinned, and did not ({wrong}). This is a defect of fedsim.")
        return {"status": "done", "folder": str(_run(parent, request).path)}
    except KeyboardInterrupt as stopped:
        return fate(stopped) or {"status": "interrupted", "error": str(stopped)}
    except Exception as error:  # What nobody foresaw: the parent tells the story.
        return fate(error) or {"status": "broken", "error": reason(error), "story": traceback.format_exc()}


def _run(parent: _Parent, request: Mapping[str, Any]) -> Run:
    from fedsim.scenario.load import Loaded
    from fedsim.scenario.schema import Scenario
    from fedsim.session import execute

    loaded = Loaded(Scenario.model_validate(request["scenario"]), Path(request["folder"]), request["asks"])
    left_s = None if request["until_s"] is None else request["until_s"] - time.monotonic()
    return execute(loaded, request["out"], parent.watch if request["watched"] else None, budget_s=left_s)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class _Parent:
    """The line to the parent. What a reader's code prints is told there too, since it is the parent's to print."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self.asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._latest: Progress | None = None
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(writing)
        self._relay = threading.Thread(target=self._print, args=(reading,), daemon=True)
        self._relay.start()
        for work in (self._read, self._count):
            threading.Thread(target=work, daemon=True).start()

    def tell(self, words: Mapping[str, Any]) -> None:
        """Send *words*."""
        with self._lock:
            self._out.write(json.dumps(words) + "\n")
            self._out.flush()

    def printed(self) -> None:
        """Have all told that was printed."""
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os.dup2(2, 1)  # The last that writes there: whoever reads finds the end.
        self._relay.join(1.0)

    def watch(self, where: Progress) -> None:
        """Tell the parent where the run is, and wait until it says to go on. Raises what it says to raise."""
        told = {
            name: getattr(where, name)
            for name in ("round", "rounds", "now_s", "down_bytes", "up_bytes", "scored", "tasks", "counts")
        }  # fmt: skip
        self._latest = where
        self.tell({"progress": {**told, "scores": dict(where.scores), "said": list(where.said)}})
        while True:
            heard = json.loads(self.asked.get())
            if heard["say"] == RAISE:
                raise _raised(heard["type"], heard["words"])
            if heard["say"] != MODEL:
                return
            self._show(where)

    def _show(self, where: Progress) -> None:
        import numpy as np
        from safetensors.numpy import save

        with tempfile.NamedTemporaryFile(prefix="fedsim-", suffix=".safetensors", delete=False) as file:  # The parent deletes it.
            file.write(save({name: np.asarray(array, order="C") for name, array in where.model.items()}))
        self.tell({"model": file.name, "names": list(where.model)})

    def _read(self) -> None:
        for line in sys.stdin:
            self.asked.put(line)
        os.kill(os.getpid(), signal.SIGTERM)  # The parent has no more use for us, or is gone.

    def _count(self) -> None:
        before = (0, 0)
        with suppress(OSError):
            while True:
                time.sleep(EVERY_S)
                now = (0, 0) if self._latest is None else self._latest.under_way()
                if now != before:
                    self.tell({"under_way": now})
                    before = now

    def _print(self, reading: int) -> None:
        with os.fdopen(reading, encoding="utf-8", errors="replace") as lines, suppress(OSError):
            for line in lines:
                self.tell({"printed": line})


def _raised(kind: str, words: str) -> BaseException:
    """Return what whoever watches raised, by its name and words: one of a stranger's is known by these alone."""
    from fedsim.record.leaving import Pruned, Spent

    ours = {each.__name__: each for each in (KeyboardInterrupt, Pruned, Spent, RunError, ScenarioError)}
    return ours.get(kind, type(kind, (Exception,), {}))(words)


if __name__ == "__main__":
    main()
