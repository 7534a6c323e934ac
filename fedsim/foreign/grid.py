"""The grid that a foreign ServerApp is given: Flower's own manners around the virtual one. Knows polls and threads; knows no app."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim.core.errors import RunError
from fedsim.core.types import Seconds
from fedsim.flower import compat_app
from fedsim.sim.grid import VirtualGrid

POLLS = 100_000
"""How often in a row a server may ask for replies while nothing at all is on its way, before it is told that none will come."""


class AppGrid(Grid):
    """A Grid over *inner*, *pushed* being told of each push: ``pull_messages`` returns at once, with what is there, as on a SuperLink.

    A server that asks for the same again at the very instant, without having slept, is moved to the next arrival: there would be no
    other way on.
    Threads of the app's own take turns.
    """

    def __init__(self, inner: VirtualGrid, pushed: Callable[[], None]) -> None:
        self.inner, self._pushed = inner, pushed
        self._lock = threading.RLock()
        self._empty_s: Seconds = -1.0  # When a pull last found nothing,
        self._lacking: set[str] = set()  # and what pulls of that instant asked for in vain.
        self._polls = 0
        self._flying: set[str] = set()
        self._run = compat_app.empty_run()

    def set_run(self, run: object) -> None:
        """Take the run that Flower would set; nothing here depends on it."""

    @property
    def run(self) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a run that has a number."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message, for servers written before ``Message`` had a public constructor."""
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def sleep(self, duration_s: Seconds) -> None:
        """Let virtual time pass, while no thread of the app's own is in a call."""
        with self._lock:
            self.inner.sleep(duration_s)

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients available now, as node ids, ascending."""
        with self._lock:
            return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send *messages*, each as it is now, and return their ids."""
        with self._lock:
            ids = list(self.inner.push_messages(messages))
            self._flying |= set(ids)
            self._pushed()
            return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies among *message_ids* that are there. Raises RunError where none is ever coming, and it is asked on and on."""
        with self._lock:
            wanted, now = list(message_ids), self.inner.now
            replies = self.inner.pull(wanted, 0.0)
            if not replies and now == self._empty_s and (not wanted or not self._lacking.isdisjoint(wanted)):
                replies = self.inner.pull(wanted, enough=1)
            if self._empty_s != self.inner.now:
                self._empty_s, self._lacking = self.inner.now, set()
            self._lacking = set[str]() if replies else self._lacking | set(wanted)
            self._flying -= {reply.metadata.reply_to_message_id for reply in replies}
            self._polls = 0 if replies or self._flying & set(wanted) else self._polls + 1
            if self._polls > POLLS:
                raise RunError(
                    f"the ServerApp asked {POLLS:,} times in a row for replies to {len(wanted):,} messages of which none is on its way (at"
                    f" {now:,.0f} s): all were pulled before, or never sent."
                )
            return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send *messages* and return the replies that arrive within *timeout* virtual seconds, sorted by client."""
        with self._lock:
            return self.inner.send_and_receive(messages, timeout=timeout)
