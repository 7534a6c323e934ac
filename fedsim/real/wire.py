"""Messages to a SuperLink and back, by the ids it gives them: sent, looked for, waited for. Knows no client and no strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim.core.errors import FedsimError, RunError, reason

POLL_S = 0.2
"""How often a server looks for replies, in real seconds; Flower's own grid looks every three."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What *inner*, Flower's grid, is to us. Whatever it raises is a RunError that says so."""

    inner: Grid
    poll_s: float = POLL_S

    def nodes(self) -> list[int]:
        """Return the ids of the nodes that are there, ascending."""
        return sorted(self._asked("asked for its nodes", lambda: list(self.inner.get_node_ids())))

    def push(self, messages: list[Message]) -> list[str]:
        """Send *messages* and return their ids. Raises RunError where one could not be sent."""
        if not messages:
            return []
        ids = self._asked("sent messages", lambda: list(self.inner.push_messages(messages)))
        if len(ids) != len(messages) or not all(ids):
            raise RunError(f"the SuperLink took {sum(map(bool, ids))} of {len(messages)} messages; its log says why.")
        return ids

    def pull(self, ids: Collection[str]) -> dict[str, Message]:
        """Return those replies to the messages *ids* that are there, by id."""
        if not ids:
            return {}
        replies: list[Message] = self._asked("asked for replies", lambda: list(self.inner.pull_messages(list(ids))))
        return {reply.metadata.reply_to_message_id: reply for reply in replies}

    def wait(self, ids: Iterable[str], until_s: float | None, heard: Callable[[str, Message], None]) -> None:
        """Look for replies to *ids* until all are there or the monotonic clock says *until_s*; *heard* is told of each as it comes."""
        waiting = dict.fromkeys(ids)
        while waiting:
            for each, reply in self.pull(waiting).items():
                if each in waiting:
                    del waiting[each]
                    heard(each, reply)
            if not waiting or (until_s is not None and time.monotonic() >= until_s):
                return
            time.sleep(self.poll_s if until_s is None else max(0.0, min(self.poll_s, until_s - time.monotonic())))

    def _asked(self, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except FedsimError:
            raise
        except Exception as error:  # Whatever Flower's transport raises.
            raise RunError(f"the SuperLink could not be {what}: {reason(error)}.") from error
