"""A run in a process of its own, which began with its arithmetic pinned: the parent's half, which hears of it and reads its folder.

The whole run goes on there: build, clock, training, aggregation, evaluation. What that process is asked, ``many/single.py`` knows.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fedsim.core import pinned
from fedsim.core.children import command, ended, environment
from fedsim.core.errors import FedsimError, RunError, ScenarioError, reason
from fedsim.core.progress import Progress, Watch
from fedsim.core.types import Array, Params
from fedsim.record.leaving import Interrupted, Patience, Pruned
from fedsim.record.place import check_place
from fedsim.scenario.everywhere import check, check_kinds
from fedsim.scenario.load import Loaded
from fedsim.scenario.schema import Scenario
from fedsim.score.run import Run

CHILD = "fedsim.many.single"
GRACE_S = 10.0
"""How long the process may take to end once it has answered, before it is killed."""
GO, MODEL, RAISE = "go", "model", "raise"
"""What the parent says while it is told where the run is: go on; show the model; or raise what whoever watches raised."""


def needed(scenario: Scenario) -> bool:
    """Return whether *scenario* must run in another process than this one: its bits are promised everywhere, and ours are not pinned."""
    return scenario.engine.everywhere and bool(pinned.unpinned())


def again() -> int:
    """Run this process's own command line again in a pinned process, on the same terminal, and return its exit code."""
    try:
        return subprocess.run([*command("fedsim"), *sys.argv[1:]], env=pinned.pinned(environment()), check=False).returncode
    except KeyboardInterrupt:  # It has heard Ctrl-C too, and said so.
        return 130


def execute(loaded: Loaded, out: str | Path | None = None, watch: Watch | None = None, budget_s: float | None = None) -> Run:
    """Run *loaded* in a pinned process, and return the run, read from its folder; see ``fedsim.run``.

    *watch* is called here, after each round, while the run waits. Raises what the run raised there; RunError where that process died.
    """
    check(loaded.scenario)
    check_kinds(loaded.scenario)
    check_place(loaded.scenario.name, loaded.scenario.seed, out)
    request = {
        "scenario": loaded.scenario.plain(), "folder": str(loaded.folder), "asks": dict(loaded.asks),
        "out": None if out is None else str(out), "until_s": None if budget_s is None else time.monotonic() + budget_s,
        "watched": watch is not None,
    }  # fmt: skip
    with Patience().watching():
        child = _Child(watch)
        try:
            return child.answer(request)
        finally:
            child.end()


@dataclass(eq=False)
class _Child:
    """The process of a run, and what was heard of it. A line of JSON each way at a time; it ends when its standard input does."""

    watch: Watch | None
    raised: BaseException | None = None
    interrupted: bool = False
    under_way: tuple[int, int] = (0, 0)
    heard: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue[str])

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(  # A group of its own: Ctrl-C is ours to pass on, once.
            command(CHILD), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=pinned.pinned(environment()), process_group=0, text=True,
            encoding="utf-8",
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def answer(self, request: Mapping[str, Any]) -> Run:
        """Return the run that *request* asks for, once it is over."""
        self._say(request)
        told: dict[str, Any] = {}
        while True:
            try:
                if not (line := self.heard.get()):
                    break
                if "status" in (told := json.loads(line)):
                    break
                self._take(told)
            except KeyboardInterrupt:
                with suppress(OSError):  # It leaves its folder in order, and says so; unless somebody insists.
                    self.process.send_signal(signal.SIGKILL if self.interrupted else signal.SIGINT)
                self.interrupted = True
        if "status" in told:
            return self._came_to(told)
        code = self.process.wait()
        if self.interrupted:
            raise KeyboardInterrupt
        raise RunError(f"the process of the run {ended(code)}. What was recorded until then is in its folder ('fedsim runs' lists it).")

    def end(self) -> None:
        """See to it that it is gone."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()  # It reads this as the end.
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with suppress(OSError):
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with suppress(ValueError, OSError):  # Closed while it was read.
            for line in self.process.stdout:
                self.heard.put(line)
        self.heard.put("")

    def _say(self, words: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # It died: that is seen by what comes no more.
            self.process.stdin.write(json.dumps(words) + "\n")
            self.process.stdin.flush()

    def _take(self, told: Mapping[str, Any]) -> None:
        """Take what was *told* while the run goes."""
        if "printed" in told:
            print(told["printed"], end="", flush=True)
        elif "under_way" in told:
            self.under_way = tuple(told["under_way"])
        elif self.interrupted or self.watch is None:  # It has been told to end: no more is heard of it.
            return
        else:
            model = _Model(self._model)
            try:
                self.under_way = (0, 0)
                self.watch(Progress(**told["progress"], under_way=lambda: self.under_way, model=cast(Params, model)))
            except BaseException as error:
                self.raised = error
                self._say({"say": RAISE, "type": _kind(error), "words": _words(error)})
            else:
                self._say({"say": GO})
            finally:
                model.let_go()

    def _model(self) -> Params:
        """Return the model as it is now, which the run waits to show."""
        from safetensors.numpy import load

        self._say({"say": MODEL})
        while line := self.heard.get():
            told = json.loads(line)
            if "model" in told:
                path = Path(told["model"])
                found = load(path.read_bytes())
                path.unlink()
                return {name: found[name] for name in told["names"]}
            self._take(told)
        raise RunError("the process of the run died while it was to show its model.")

    def _came_to(self, told: Mapping[str, Any]) -> Run:
        """Return the run that is done; raise what it raised."""
        status, error = told["status"], str(told.get("error", ""))
        match status:
            case "done":
                return Run(Path(told["folder"]))
            case "refused":
                raise ScenarioError(error) from self.raised
            case "failed":
                raise RunError(error) from self.raised
            case "pruned":
                raise Pruned(error) from None
            case "interrupted":
                raise Interrupted(error) if error else KeyboardInterrupt
            case _:
                raise RuntimeError(error) from _ThereError(told.get("story", ""))


class _ThereError(Exception):
    """What happened in the process of the run, as its traceback tells it."""


class _Model(Mapping[str, Array]):
    """The model of a run that goes on in another process, which shows it when it is first looked at."""

    def __init__(self, show: Callable[[], Params]) -> None:
        self._show: Callable[[], Params] | None = show
        self._arrays: Params | None = None

    def let_go(self) -> None:
        """Take that the run goes on, and its model with it."""
        self._show = None

    @property
    def arrays(self) -> Params:
        """Return the arrays. Raises RunError once the run has gone on."""
        if self._arrays is None:
            if self._show is None:
                raise RunError("the model of a round is there to be looked at while watch is called, and the run has gone on.")
            self._arrays = self._show()
        return self._arrays

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def _kind(error: BaseException) -> str:
    """Return by which name what whoever watches raised is raised again in the run."""
    ours = isinstance(error, FedsimError) and error.__cause__ is not None  # What is ours throughout is said as it is.
    return "RunError" if ours else type(error).__name__


def _words(error: BaseException) -> str:
    if isinstance(error, FedsimError | KeyboardInterrupt):
        return str(error)
    return reason(error).partition(": ")[2]
