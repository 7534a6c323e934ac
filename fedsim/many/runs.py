"""Many runs side by side in processes of one thread each, as many as memory holds. What is done is read; what broke is run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from fedsim.core import pinned
from fedsim.core.children import command, environment
from fedsim.core.errors import RunError
from fedsim.many.asked import safe
from fedsim.many.memory import Room
from fedsim.many.worker import POINT, RUN
from fedsim.record import manifest
from fedsim.record.leaving import Interrupted
from fedsim.scenario.load import Loaded
from fedsim.score.run import Run

GRACE_S = 10.0
"""How long a worker may take to leave its run's folder readable before it is killed."""
DIVERGED = ("Training diverged", " of the global model became ", "the loss became ")
"""What errors of runs say whose numbers broke, one of them: the same again, whoever runs it again."""

Told = Callable[[int, int, str], None]
"""Hears how many runs are done, of how many so far known, and which was the last."""


T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Asked:
    """A run that is wanted: *name* is its folder's, *points* are rounds whose models are to be there; *must*, else it is run again."""

    name: str
    loaded: Loaded
    points: tuple[int, ...] = ()
    must: bool = False
    watched: Mapping[str, Any] | None = None
    """Who watches it besides, and may prune it: a table that says in ``by`` which function makes a watcher of it."""
    stands: Callable[[Run], bool] | None = None
    """Whether a run that is done or pruned already is what it would come to again; a done one is, unless somebody says otherwise."""

    def lacks(self, folder: Path) -> bool:
        """Return whether the run in *folder* must have models of its rounds, and has not all of them."""
        return self.must and not all((folder / POINT.format(r)).is_file() for r in self.points)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: done; pruned; diverged; failed otherwise; refused, where its scenario was; unfinished. *error* says why."""

    status: str
    error: str = ""
    run: Run | None = None

    @property
    def done(self) -> bool:
        """Return whether the run has scores."""
        return self.status == "done" and self.run is not None


Heard = Callable[[Asked, Outcome], None]


@dataclass(eq=False)
class _Worker:
    """A process that answers requests, one at a time; started when it is first asked, and again where it died."""

    process: subprocess.Popen[str] | None = None
    everywhere: bool = False
    """Whether the process began with its arithmetic pinned; it is another process where a run wants the other."""
    closed: bool = False

    def ask(self, request: dict[str, Any], *, everywhere: bool) -> dict[str, str]:
        """Return the answer to *request*; that it failed, where the process went instead."""
        if self.closed:
            raise RunError("the crew is gone.")
        if self.process is not None and self.everywhere is not everywhere and self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.gone()
        if self.process is None or self.process.poll() is not None:
            self.process, self.everywhere = _started(everywhere), everywhere
        try:
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if line := self.process.stdout.readline():
                return json.loads(line)
        except (BrokenPipeError, ValueError):  # It died while we spoke, or was told to end.
            pass
        code = self.process.wait()
        if self.closed:
            raise RunError("the crew is gone.")
        how = f"by signal {-code}; the system may have run out of memory" if code < 0 else f"with code {code}"
        return {"status": "failed", "error": f"its process ended {how}."}

    @property
    def pid(self) -> int | None:
        """Return the number of its process, where there is one."""
        return None if self.process is None else self.process.pid

    def end(self) -> None:
        self.closed = True
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()  # It reads this as the end.

    def gone(self) -> None:
        if self.process is not None:
            try:
                self.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()


def _diverged(error: str) -> bool:
    return any(words in error for words in DIVERGED)


def _started(everywhere: bool) -> subprocess.Popen[str]:
    # A group of its own: Ctrl-C is for us.
    given = pinned.pinned(environment()) if everywhere else environment()
    return subprocess.Popen(
        command("fedsim.many.worker"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=given, process_group=0, text=True,
        encoding="utf-8",
    )  # fmt: skip


@dataclass
class Crew:
    """Workers, and the folder in which their runs stand. Use it in a ``with``: nobody outlives it.

    At the moment *until* (of ``time.monotonic``), if there is one, what has not begun never does, and what goes is interrupted.
    """

    folder: Path
    jobs: int
    told: Told | None = None
    _idle: list[_Worker] = field(default_factory=list[_Worker])
    _all: list[_Worker] = field(default_factory=list[_Worker])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _hearing: threading.Lock = field(default_factory=threading.Lock)
    done: int = 0
    known: int = 0
    read: int = 0
    until: float | None = None
    heard: Heard | None = None
    """Hears what came of each run, by one thread at a time; what it raises ends all."""
    room: Room = field(default_factory=Room)
    everywhere: bool = False
    """Whether workers begin with their arithmetic pinned; a run says itself what it wants, and another process is started where need be."""

    def __enter__(self) -> Self:
        # They import while the caller looks at the scenario.
        self._all = [_Worker(_started(self.everywhere), self.everywhere) for _ in range(self.jobs)]
        self._idle = list(self._all)
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        for worker in self._all:
            worker.end()
        for worker in self._all:
            worker.gone()
        if kind is KeyboardInterrupt:  # Of those that say something, what they say stands.
            raise Interrupted(f"interrupted; {safe(self.done, self.folder)}. The same command goes on from there.") from None

    def runs(self, asked: Sequence[Asked]) -> list[Outcome]:
        """Return what came of each of *asked*, in their order. Longest first is the caller's to see to."""
        self.known += len(asked)
        return self._side_by_side(asked, self._run, Outcome("unfinished", "time was up."))

    def done_by(self, function: str, requests: Sequence[dict[str, Any]]) -> list[str]:
        """Let *function* (``package.module:name``) see to each of *requests*; return what went wrong, empty where nothing did.

        A request says in ``out`` which run's folder it is about.
        """
        self.known += len(requests)
        return self._side_by_side([{"what": function, **request} for request in requests], self._ask, "time was up.")

    def _side_by_side(self, items: Sequence[T], work: Callable[[T, _Worker], R], unfinished: R) -> list[R]:
        def one(item: T) -> R:
            with self._lock:
                worker = self._idle.pop()
            try:
                return work(item, worker)
            finally:
                with self._lock:
                    self._idle.append(worker)

        left_s = None if self.until is None else self.until - time.monotonic()
        if left_s is not None and left_s <= 0:
            return [unfinished] * len(items)
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = {pool.submit(one, item): i for i, item in enumerate(items)}
            found: dict[int, R] = {}
            try:
                for each in as_completed(waiting, left_s):
                    found[waiting[each]] = each.result()
            except TimeoutError:
                self._give_up(list(waiting))
                wait(waiting)
                found |= {i: each.result() for each, i in waiting.items() if not each.cancelled() and each.exception() is None}
            except BaseException:  # Ctrl-C: what has not begun never does, and what goes is told to end.
                for each in waiting:
                    each.cancel()
                self.__exit__()
                raise
        return [found.get(i, unfinished) for i in range(len(items))]

    def _give_up(self, waiting: Sequence[Future[Any]]) -> None:
        """Cancel what has not begun, and tell what goes to end, which leaves its folder readable."""
        for each in waiting:
            each.cancel()
        self.__exit__()

    def _run(self, asked: Asked, worker: _Worker) -> Outcome:
        if worker.closed:  # Before a folder is cleared for a run that will not be.
            raise RunError("the crew is gone.")
        folder, before = self._place(asked)
        if before is not None:
            self.read += 1
        else:
            with self.room.held(worker.pid):
                answer = worker.ask({
                    "what": RUN, "scenario": asked.loaded.scenario.plain(), "folder": str(asked.loaded.folder), "out": str(folder),
                    "points": list(asked.points), "watched": asked.watched,
                }, everywhere=asked.loaded.scenario.engine.everywhere)  # fmt: skip
            run = Run(folder) if answer["status"] in ("done", "pruned") else None
            diverged = answer["status"] == "failed" and _diverged(answer["error"])
            before = Outcome("diverged" if diverged else answer["status"], answer["error"], run)
        if self.heard is not None:
            try:
                with self._hearing:
                    self.heard(asked, before)
            except BaseException:
                for each in self._all:  # No other run begins.
                    each.end()
                raise
        self._tell(asked.name)
        return before

    def _ask(self, request: dict[str, Any], worker: _Worker) -> str:
        answer = worker.ask(request, everywhere=self.everywhere)
        self._tell(Path(request["out"]).name)
        return answer["error"]

    def _tell(self, name: str) -> None:
        with self._lock:
            self.done += 1
            if self.told:
                self.told(self.done, self.known, name)

    def _place(self, asked: Asked) -> tuple[Path, Outcome | None]:
        """Return the folder for a run; and its outcome, where it has one already. One of a run that broke is cleared."""
        folder, standing, outcome = find(self.folder, asked)
        if standing == "running":
            raise RunError(f"{folder}: another process is at this run. Wait for it, or name another folder (--out, or in Python out=).")
        if standing == "broken":
            shutil.rmtree(folder)
        return folder, outcome


Standing = Literal["free", "running", "there", "broken"]


def find(root: Path, asked: Asked) -> tuple[Path, Standing, Outcome | None]:
    """Return the folder of the run *asked* for below *root*, how it stands, and its outcome where that is there.

    A folder of another scenario's run keeps its name, and ours has a number. Changes nothing.
    """
    digest = asked.loaded.scenario.digest
    for number in range(1, 1_000_000):
        folder = root / (asked.name if number == 1 else f"{asked.name}.{number}")
        if not os.path.lexists(folder):
            return folder, "free", None
        try:
            run = Run(folder)
            about = run.manifest
        except RunError:  # Not ours, or not readable: left alone.
            continue
        if about.get("scenario_digest") != digest or manifest.scenario_folder(about, folder) != asked.loaded.folder.resolve():
            continue
        if run.status == "running":
            return folder, "running", None
        if run.status == "done" and not asked.lacks(folder) and (asked.stands is None or asked.stands(run)):
            return folder, "there", Outcome("done", run=run)
        if run.status == "pruned" and asked.stands is not None and asked.stands(run):
            return folder, "there", Outcome("pruned", str(about["error"]), run)
        if run.status == "failed" and _diverged(str(about.get("error", ""))):
            return folder, "there", Outcome("diverged", str(about["error"]))
        return folder, "broken", None
    raise RunError(f"{root / asked.name}: too many runs of this name; clear the folder {root}.")


@dataclass
class Reader:
    """A crew that runs nothing: what is not there is unfinished."""

    folder: Path
    heard: Heard | None = None
    done: int = 0
    read: int = 0

    def runs(self, asked: Sequence[Asked]) -> list[Outcome]:
        """Return what came of each of *asked*, in their order."""
        found = [find(self.folder, each)[2] or Outcome("unfinished", "it has not run.") for each in asked]
        for each, outcome in zip(asked, found, strict=True):
            if outcome.status != "unfinished":
                self.done, self.read = self.done + 1, self.read + 1
                if self.heard is not None:
                    self.heard(each, outcome)
        return found
