"""A Grid around any other, virtual or a SuperLink's, on which arrays travel encoded: the strategy sees plain ones on both ways.

Knows no codec by name, and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.codec import Coding
from fedsim.core.types import Params
from fedsim.flower import compat, records


class Coded(Grid):
    """*inner* with *coding* on its arrays. Whatever else it has is *inner*'s."""

    def __init__(self, inner: Grid, coding: Coding) -> None:
        self._inner, self._coding = inner, coding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    def set_run(self, *args: Any, **kwargs: Any) -> None:
        """Hand the run on."""
        self._inner.set_run(*args, **kwargs)

    @property
    def run(self) -> Any:
        """Return the run of the grid inside."""
        return self._inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Return a message as the grid inside makes it."""
        return self._inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of the grid inside."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send *messages*, encoded, and return their ids."""
        return self._inner.push_messages(self._encoded(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, decoded."""
        return [self._decoded(reply) for reply in self._inner.pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send *messages*, encoded, and return their replies, decoded."""
        return [self._decoded(reply) for reply in self._inner.send_and_receive(self._encoded(messages), timeout=timeout)]

    def _encoded(self, messages: Iterable[Message]) -> list[Message]:
        """Return *messages* with encoded arrays; those that share a content go on sharing one."""
        made: dict[int, tuple[RecordDict, RecordDict, RecordDict]] = {}
        found: list[Message] = []
        for message in messages:
            content = message.content
            if id(content) not in made or not records.unchanged(content, made[id(content)][1]):
                made[id(content)] = (content, records.snapshot(content), recoded(content, self._coding.sent_down))
            found.append(compat.with_metadata(made[id(content)][2], message.metadata))
        return found

    def _decoded(self, reply: Message) -> Message:
        return reply if reply.has_error() else compat.with_metadata(recoded(reply.content, self._coding.got_up), reply.metadata)


def coded(grid: Grid, coding: Coding | None) -> Grid:
    """Return *grid*, with *coding* where there is any."""
    return grid if coding is None else Coded(grid, coding)


def recoded(content: RecordDict, code: Callable[[Params], Params]) -> RecordDict:
    """Return *content* with *code* done to each of its array records."""
    found = RecordDict()
    for name, record in content.items():
        found[name] = compat.array_record(code(records.params_of(record))) if isinstance(record, ArrayRecord) else record
    return found
