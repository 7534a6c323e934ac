"""The processes that compute a foreign ClientApp's messages: a fixed number, each started anew when the app brings it down.

Which process computes what, and when, changes nothing that comes back, as long as the app keeps what it keeps in its Context. Nothing
outlives the run: a process ends when its line does.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.types import interpreter_flags
from fedsim.flower import compat_app
from fedsim.foreign.wire import Ask, Load, Plain, Ready, Recent, Told, receive, send

GRACE_S = 5.0
"""How long a process whose line has ended may take before it is killed."""
AHEAD = 3
"""Messages that a process has at hand: it need not wait for the run between two."""


@dataclass(frozen=True, slots=True)
class Content:
    """What messages of one push carry, numbered, and pickled once."""

    number: int
    form: Plain
    pickled: bytes

    @classmethod
    def of(cls, number: int, form: Plain) -> Content:
        """Return *form* as the content of that *number*."""
        return cls(number, form, pickle.dumps(form, protocol=pickle.HIGHEST_PROTOCOL))


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    end: socket.socket
    recent: Recent = field(default_factory=Recent)
    asked: deque[Ask] = field(default_factory=deque[Ask])
    ready: bool = False


class Pool:
    """*count* processes that have loaded what *load* says, whose words go to the file *said*."""

    def __init__(self, load: Load, count: int) -> None:
        self._load, self._number = load, 0
        self.said = tempfile.TemporaryFile()
        self._waiting: dict[int, tuple[Ask, Content]] = {}  # By ticket, in the order of asking: no process has them yet.
        self._contents: dict[int, Content] = {}
        self._done: dict[int, Told] = {}
        self._forgotten: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._start()
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> list[int]:
        """Return the process ids."""
        return [worker.process.pid for worker in self._workers]

    def wait_ready(self) -> None:
        """Wait until one process has loaded the app. Raises ScenarioError where it cannot."""
        while not any(worker.ready for worker in self._workers):
            self._hear()

    def ask(
        self, content: Content, metadata: Any, node: int, node_config: Mapping[str, Any], state: bytes, seed: int, times: int = 1
    ) -> int:
        """Take a message to be computed, and return its ticket."""
        self._number += 1
        ask = Ask(self._number, content.number, None, metadata, node, dict(node_config), state, seed, times)
        self._waiting[self._number] = (ask, content)
        self._deal()
        return self._number

    def result(self, ticket: int) -> Told:
        """Return what came of *ticket*, waiting for it."""
        while ticket not in self._done:
            self._hear()
        return self._done.pop(ticket)

    def forget(self, ticket: int) -> None:
        """Take that nobody wants *ticket* any more."""
        if self._waiting.pop(ticket, None) is None and self._done.pop(ticket, None) is None:
            self._forgotten.add(ticket)

    def close(self) -> None:
        """End every process, whatever it is doing, and wait until it is gone."""
        for worker in self._workers:
            worker.end.close()
        for worker in self._workers:
            try:
                worker.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers.clear()
        self._selector.close()

    def words(self) -> bytes:
        """Return what the app's processes printed so far."""
        self.said.seek(0)
        return self.said.read()

    def _deal(self) -> None:
        """Give waiting messages to processes that have few at hand, the idlest first."""
        while self._waiting:
            worker = min((w for w in self._workers if w.ready), key=lambda w: len(w.asked), default=None)
            if worker is None or len(worker.asked) >= AHEAD:
                return
            ticket = next(iter(self._waiting))
            ask, content = self._waiting.pop(ticket)
            self._contents[ticket] = content
            self._give(worker, ask, content)

    def _give(self, worker: _Worker, ask: Ask, content: Content) -> None:
        known = worker.recent.seen(content.number)
        worker.asked.append(ask)
        with suppress(OSError):  # It is gone: that is heard, and dealt with, in its turn.
            send(worker.end, ask if known is not None else replace(ask, form=content.pickled))

    def _hear(self) -> None:
        """Wait until a process says something, and take it in."""
        self._deal()
        for key, _ in self._selector.select():
            worker: _Worker = key.data
            try:
                said = receive(worker.end)
            except (EOFError, OSError):
                self._fell(worker)
                continue
            if isinstance(said, Ready):
                if said.refusal:
                    raise ScenarioError(said.refusal)
                worker.ready = True
            else:
                self._took(worker.asked.popleft(), said)
        self._deal()

    def _took(self, ask: Ask, told: Told) -> None:
        self._contents.pop(ask.number, None)
        if ask.number in self._forgotten:
            self._forgotten.discard(ask.number)
        else:
            self._done[ask.number] = told

    def _fell(self, worker: _Worker) -> None:
        """Take that *worker* is gone: the message that it had is answered with an error, the others go to whoever comes in its place."""
        self._selector.unregister(worker.end)
        worker.end.close()
        try:
            code = worker.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by {_signal(-code)}"
        if not worker.ready:
            last = (self.words().decode(errors="replace").strip().splitlines() or [""])[-1][:160]
            raise ScenarioError(
                f"tool.flwr.app.components.clientapp = {self._load.reference!r}: its process {how} while it was loaded."
                f"{f' It said: {last}' if last else ''}"
            )
        self._workers.remove(worker)
        if worker.asked:
            ask = worker.asked.popleft()
            self._took(ask, Told(ask.number, code=compat_app.CRASHED, reason=f"the ClientApp's process {how}"))
        again = {ask.number: (ask, self._contents[ask.number]) for ask in worker.asked}
        self._waiting = {**again, **self._waiting}
        self._start()

    def _start(self) -> None:
        """Start a process; it finds modules where this one does."""
        mine, theirs = socket.socketpair()
        with theirs:
            environment = {
                **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(str(Path(place or ".").absolute()) for place in sys.path),
            }  # fmt: skip
            try:
                # -P: the working directory must not stand before everything else. A group of its own: Ctrl-C is for us.
                process = subprocess.Popen(
                    [sys.executable, *interpreter_flags(), "-P", "-m", "fedsim.foreign.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, env=environment,
                    process_group=0,
                )  # fmt: skip
            except OSError as error:
                mine.close()
                raise RunError(f"a process for the ClientApp could not be started ({error.strerror}).") from None
            except BaseException:
                mine.close()
                raise
        worker = _Worker(process, mine)
        self._workers.append(worker)
        self._selector.register(mine, selectors.EVENT_READ, worker)
        with suppress(OSError):
            send(mine, self._load)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
