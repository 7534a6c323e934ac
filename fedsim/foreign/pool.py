"""The processes that compute a foreign ClientApp's messages: a fixed number, each started anew when the app brings it down.

Which process computes what, and when, changes nothing that comes back, as long as the app keeps what it keeps in its Context. Nothing
outlives the run: a process ends when its line does.
"""

from __future__ import annotations

import mmap
import os
import pickle
import selectors
import socket
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from fedsim.core.children import command, ended, environment
from fedsim.core.errors import RunError, ScenarioError
from fedsim.flower import compat_app
from fedsim.foreign.wire import NUMBER, Ask, Load, Plain, Ready, Recent, Told, receive, send
from fedsim.learn.engine.shared import blank

GRACE_S = 5.0
"""How long a process whose line has ended may take before it is killed."""
AHEAD, MANY = 3, 32
"""Messages that a process has at hand, so that it need not wait for the run between two; and where they take no time."""
FAST_S = 0.002
"""A message that takes less takes no time: what is said of it costs as much."""
STUMBLES = 3
"""How often in a row processes may fall between two messages, before the next one gets the blame."""


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
    at: mmap.mmap
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
        self._ahead, self._stumbles = AHEAD, 0
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
        """Take a message to be computed, and return its ticket. It is begun once there are many, at the next ``deal`` or ``result``."""
        self._number += 1
        ask = Ask(self._number, content.number, None, metadata, node, dict(node_config), state, seed, times)
        self._waiting[self._number] = (ask, content)
        if len(self._waiting) % MANY == 0:
            self.deal()
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
            worker.at.close()
        self._workers.clear()
        self._selector.close()

    def words(self) -> bytes:
        """Return what the app's processes printed so far."""
        self.said.seek(0)
        return self.said.read()

    def deal(self) -> None:
        """Give waiting messages to processes that have few at hand, the idlest first; each gets its own in one go."""
        ready = [worker for worker in self._workers if worker.ready]
        if not self._waiting or not ready:
            return
        dealt: dict[int, list[Ask]] = {i: [] for i in range(len(ready))}
        while self._waiting:
            i = min(dealt, key=lambda i: len(ready[i].asked))
            worker = ready[i]
            if len(worker.asked) >= self._ahead:
                break
            ticket = next(iter(self._waiting))
            ask, content = self._waiting.pop(ticket)
            self._contents[ticket] = content
            worker.asked.append(ask)
            known = worker.recent.seen(content.number) is not None
            dealt[i].append(ask if known else replace(ask, form=content.pickled))
        for i, asks in dealt.items():
            if asks:
                with suppress(OSError):  # It is gone: that is heard, and dealt with, in its turn.
                    send(ready[i].end, asks)

    def _hear(self) -> None:
        """Wait until a process says something, and take it in."""
        self.deal()
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
                for told in said:
                    self._took(worker.asked.popleft(), told)
                self._ahead, self._stumbles = MANY if said[-1].wall_s < FAST_S else AHEAD, 0

    def _took(self, ask: Ask, told: Told) -> None:
        self._contents.pop(ask.number, None)
        if ask.number in self._forgotten:
            self._forgotten.discard(ask.number)
        else:
            self._done[ask.number] = told

    def _fell(self, worker: _Worker) -> None:
        """Take that *worker* is gone: the message that it was at is answered with an error, the others go to whoever comes in its place."""
        self._selector.unregister(worker.end)
        worker.end.close()
        try:
            code = worker.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        how = ended(code)
        if not worker.ready:
            last = (self.words().decode(errors="replace").strip().splitlines() or [""])[-1][:160]
            raise ScenarioError(
                f"tool.flwr.app.components.clientapp = {self._load.reference!r}: its process {how} while it was loaded."
                f"{f' It said: {last}' if last else ''}"
            )
        self._workers.remove(worker)
        at = NUMBER.unpack(worker.at[: NUMBER.size])[0]
        worker.at.close()
        guilty = next((ask for ask in worker.asked if ask.number == at), None)
        self._stumbles = 0 if guilty else self._stumbles + 1
        if guilty is None and worker.asked and self._stumbles > STUMBLES:
            guilty = worker.asked[0]
        if guilty is not None:
            worker.asked.remove(guilty)
            self._took(guilty, Told(guilty.number, code=compat_app.CRASHED, reason=f"the ClientApp's process {how}"))
        again = {ask.number: (ask, self._contents[ask.number]) for ask in worker.asked}
        self._waiting = {**again, **self._waiting}
        self._start()

    def _start(self) -> None:
        """Start a process; it finds modules where this one does."""
        with ExitStack() as theirs_to_close, ExitStack() as mine_on_failure:
            mine, theirs = socket.socketpair()
            theirs_to_close.enter_context(theirs)
            mine_on_failure.enter_context(mine)
            block = blank()
            theirs_to_close.callback(os.close, block)
            os.ftruncate(block, NUMBER.size)
            try:  # A group of its own: Ctrl-C is for us.
                process = subprocess.Popen(
                    command("fedsim.foreign.worker", str(theirs.fileno()), str(block)),
                    pass_fds=[theirs.fileno(), block], stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said,
                    env=environment(), process_group=0,
                )  # fmt: skip
            except OSError as error:
                raise RunError(f"a process for the ClientApp could not be started ({error.strerror}).") from None
            worker = _Worker(process, mine, mmap.mmap(block, NUMBER.size))
            mine_on_failure.pop_all()
        self._workers.append(worker)
        self._selector.register(mine, selectors.EVENT_READ, worker)
        with suppress(OSError):
            send(mine, self._load)
