"""The clocks of a foreign server, and what waits on them: within, both are virtual in its own thread. Knows no grid, nothing of Flower's.

Virtual are ``time.sleep``, ``time.time`` and its kin; waits with a timeout that go through Python's own ``threading.Condition`` (``Event``,
``Condition``, ``Semaphore``, ``Barrier``, ``queue.Queue``, futures), ``queue.SimpleQueue``; timers of asyncio, and a ``select`` of nothing.
Where a thread of the app's own, or the world outside, could end a wait, that is on the host's clock, and noted. A lock's own timeout,
and what another loop than asyncio's waits for, is the host's too, and nobody sees it.
"""

from __future__ import annotations

import queue
import sched
import select
import selectors
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import thread as futures_thread
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from fedsim.core.errors import RunError
from fedsim.flower.compat import replaced

EPOCH_S = 1_767_225_600.0
"""What ``time.time()`` says at the start of a run on virtual time: the first of January 2026, so that two runs agree."""
READS = 1_000_000
"""How often a server may read a clock that stands still, before it is told so."""
WAITING = frozenset({"asyncio", "concurrent", "queue", "sched", "selectors", "threading"})
"""Modules of Python's own that wait, and read clocks, for whoever calls them."""


_POOLS = futures_thread._worker.__code__  # type: ignore[attr-defined]  # What a thread of a pool runs, which waits there when idle.
_SLEEP, _PAUSE_S = time.sleep, 0.001


@dataclass(eq=False)
class Clock:
    """A virtual clock of one thread: *now* tells it, *sleep* moves it. Callers whose module *real* names keep the host's."""

    now: Callable[[], float]
    sleep: Callable[[float], None]
    real: Callable[[str], bool]
    owner: threading.Thread | None = field(default_factory=threading.current_thread)
    before: list[threading.Thread] = field(default_factory=threading.enumerate)
    """The threads that were there when the server began."""
    waited: set[str] = field(default_factory=set[str])
    """What waited on the host's clock."""
    _seen: tuple[float, int] = (-1.0, 0)

    @contextmanager
    def host(self) -> Generator[None]:
        """Within, the clocks are the host's again."""
        before, self.owner = self.owner, None
        try:
            yield
        finally:
            self.owner = before

    def ours(self, depth: int = 2) -> bool:
        """Return whether the caller *depth* frames up, or whoever waits by it, is on virtual time."""
        if self.owner is None or threading.get_ident() != self.owner.ident:
            return False
        return self._apps(sys._getframe(depth))  # pyright: ignore[reportPrivateUsage]

    def told(self) -> float:
        """Return the virtual time. Raises RunError to whoever reads it without end while it stands still."""
        moment, (last, times) = self.now(), self._seen
        self._seen = moment, times + 1 if last == moment else 0
        if self._seen[1] > READS:
            raise RunError(
                f"the ServerApp reads a clock that stands still (over {READS:,} times): virtual time passes in grid calls and in"
                f" time.sleep. Let its loop sleep."
            )
        return moment

    def wait(self, what: str, seconds: float | None, plain: Callable[[float | None], Any], nothing: Any) -> Any:
        """Return what the wait for *what* comes to: *nothing*, after virtual *seconds*, where only this thread could end it.

        Where others could, it is the *plain* wait, on the host's clock; if that was in vain, the same time passes on the virtual one.
        Raises RunError for a wait without end that nobody can end.
        """
        if seconds is not None and seconds <= 0:
            return plain(seconds)
        if not self._alone():
            return self.outside(what, seconds, plain)
        if seconds is None:
            raise RunError(f"the ServerApp waits without a timeout ({what}), and there is no thread that could end it.")
        self.sleep(seconds)
        return nothing

    def outside(self, what: str, seconds: float | None, plain: Callable[[float | None], Any]) -> Any:
        """Return what the *plain* wait comes to, on the host's clock; if that was in vain, virtual time passes as well."""
        found = plain(seconds)
        if seconds is not None:
            self.waited.add(what)
            if not found:
                self.sleep(seconds)
        return found

    def elsewhere(self, what: str, depth: int = 2) -> None:
        """Take that somebody waits on the host's clock: noted where it is a thread that the app began."""
        if self.owner is not None and threading.current_thread() not in self.before:
            if self._apps(sys._getframe(depth)):  # pyright: ignore[reportPrivateUsage]
                self.waited.add(f"{what} in another thread")

    def notes(self) -> list[str]:
        """Return a line on each thing that waited on the host's clock."""
        return [
            f"{what}: waited on the host's clock, not only on the virtual one: a thread of the ServerApp's own, or something outside, could"
            f" have ended the wait. How long that takes is not the fleet's to say."
            for what in sorted(self.waited)
        ]

    def _apps(self, frame: FrameType | None) -> bool:
        while frame is not None and _top(frame) in WAITING:
            frame = frame.f_back
        return frame is not None and not self.real(_module(frame))

    def _alone(self) -> bool:
        """Return whether no thread could end a wait but this one; looked at twice, for one that is just about to work."""
        for pause_s in (_PAUSE_S, 0.0):
            if any(self._at_work(thread) for thread in threading.enumerate() if thread not in self.before):
                return False
            if len(threading.enumerate()) > len(self.before):
                _SLEEP(pause_s)
        return True

    def _at_work(self, thread: threading.Thread) -> bool:
        top = type(thread).__module__.partition(".")[0]
        if top not in sys.stdlib_module_names and self.real(top):
            return False  # A library's own, like tqdm's monitor.
        frame = sys._current_frames().get(thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
        while frame is not None and _module(frame) == __name__:
            frame = frame.f_back
        if frame is None or frame.f_code is not _POOLS:
            return True
        return "work_item" in frame.f_locals or not frame.f_locals["work_queue"].empty()  # Else a pool's thread that has nothing to do.


@contextmanager
def virtual_clock(now: Callable[[], float], sleep: Callable[[float], None], real: Callable[[str], bool]) -> Generator[Clock]:
    """Within, and in this thread, *now* is the time and *sleep* how it passes, but for modules that *real* names.

    ``datetime.now()`` stays as it is.
    """
    clock = Clock(now, sleep, real)

    def sleeping(plain: Callable[[float], None]) -> Callable[[float], None]:
        def asleep(seconds: float) -> None:
            if clock.ours():
                sleep(float(seconds))
            else:
                clock.elsewhere("time.sleep")
                plain(seconds)

        return asleep

    def reading(plain: Callable[[], Any], value: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: value() if clock.ours() else plain()

    clocks: dict[str, Callable[[], Any]] = {
        "time": lambda: EPOCH_S + clock.told(), "monotonic": clock.told, "perf_counter": clock.told,
        "time_ns": lambda: int((EPOCH_S + clock.told()) * 1e9), "monotonic_ns": lambda: int(clock.told() * 1e9),
        "perf_counter_ns": lambda: int(clock.told() * 1e9),
    }  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(replaced(time, "sleep", sleeping(time.sleep)))
        for name, value in clocks.items():
            stack.enter_context(replaced(time, name, reading(getattr(time, name), value)))
        for module, name in ((threading, "_time"), (queue, "time")):  # Taken from the module by name, when these were imported.
            stack.enter_context(replaced(module, name, time.monotonic))
        stack.enter_context(replaced(sched.scheduler.__init__, "__defaults__", (time.monotonic, time.sleep)))
        for place, name, value in _waits(clock):
            stack.enter_context(replaced(place, name, value))
        try:
            yield clock
        finally:
            clock.owner = None  # What was imported by name within goes on as the host's.


def _waits(clock: Clock) -> list[tuple[Any, str, Any]]:
    """Return where Python waits, by object and name, each with what waits there on *clock*."""
    plain_wait, plain_join = threading.Condition.wait, threading.Thread.join
    plain_select, plain_selector = select.select, selectors.DefaultSelector.select

    def wait(self: Any, timeout: float | None = None) -> bool:
        if clock.ours() and self._is_owned():  # One that is not owned, plain refuses in Python's words.
            return clock.wait(_called(sys._getframe(1)), timeout, lambda limit: plain_wait(self, limit), False)  # pyright: ignore[reportPrivateUsage]
        if timeout is not None:
            clock.elsewhere(_called(sys._getframe(1)))  # pyright: ignore[reportPrivateUsage]
        return plain_wait(self, timeout)

    def join(self: threading.Thread, timeout: float | None = None) -> None:
        if not clock.ours() or timeout is None or timeout <= 0:
            return plain_join(self, timeout)

        def ended(limit: float | None) -> bool:
            plain_join(self, limit)
            return not self.is_alive()

        if not ended(0):
            clock.outside("threading.Thread.join", timeout, ended)

    class SimpleQueue(queue.SimpleQueue[Any]):
        """Python's own, whose ``get`` waits on the clock."""

        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if not block or (timeout is not None and timeout < 0) or not self.empty() or not clock.ours():
                return super().get(block, timeout)
            plain = super().get

            def one(limit: float | None) -> tuple[Any] | None:
                try:
                    return (plain(True, limit),)
                except queue.Empty:
                    return None

            found = clock.wait("queue.SimpleQueue.get", timeout, one, None)
            if found is None:
                raise queue.Empty
            return found[0]

    def select_these(read: Any, write: Any, error: Any, timeout: float | None = None) -> Any:
        if read or write or error or timeout is None or timeout < 0 or not clock.ours():
            return plain_select(read, write, error, timeout)
        clock.sleep(timeout)
        return [], [], []

    def selected(self: Any, timeout: float | None = None) -> Any:
        if not clock.ours() or _top(sys._getframe(1)) != "asyncio":  # pyright: ignore[reportPrivateUsage]
            return plain_selector(self, timeout)
        if (ready := plain_selector(self, 0)) or (timeout is not None and timeout <= 0):
            return ready
        if len(self.get_map()) > 1:  # More than the end by which other threads wake the loop.
            return clock.outside("asyncio", timeout, lambda limit: plain_selector(self, limit))
        return clock.wait("asyncio", timeout, lambda limit: plain_selector(self, limit), [])

    return [
        (threading.Condition, "wait", wait), (threading.Thread, "join", join), (queue, "SimpleQueue", SimpleQueue),
        (select, "select", select_these), (selectors.DefaultSelector, "select", selected),
    ]  # fmt: skip


def _called(frame: FrameType | None) -> str:
    """Return what was called that waits: the last of Python's own functions on the way to *frame*."""
    name = "threading.Condition.wait"
    while frame is not None and _top(frame) in WAITING:
        name, frame = f"{_module(frame)}.{_qualified(frame)}", frame.f_back
    return name


def _qualified(frame: FrameType) -> str:
    mine = frame.f_locals.get("self")
    return f"{type(mine).__name__}.{frame.f_code.co_name}" if mine is not None else frame.f_code.co_name


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _top(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]
