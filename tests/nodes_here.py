"""A SuperLink's grid and its nodes in this process, for tests: random ids, replies in any order, faults on demand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid

from fedsim.flower import compat, records

IDS = [991, 77, 50_000_000_000, 12, 600, 18, 4, 333]


def through_wire(state: RecordDict) -> RecordDict:
    """Return *state* as it is after a SuperNode kept it: through protobuf."""
    return recorddict_from_proto(recorddict_to_proto(state))


class NodesHere(Grid):
    """Nodes of *app* that answer at once, in a context of their own each, called from one client number to the next by *configs*.

    *fault* may give another reply to a message (with the number of that node's messages so far), or None for silence.
    """

    def __init__(
        self, app: ClientApp, run_config: Mapping[str, Any], configs: Iterable[Mapping[str, Any]],
        fault: Callable[[int, int, Message, Message], Message | None] = lambda node, count, message, reply: reply,
    ) -> None:  # fmt: skip
        compat.set_identity()
        self.app, self.run_config, self.fault = app, dict(run_config), fault
        self.contexts: dict[int, Context] = {}
        for node, config in zip(IDS, configs, strict=False):
            self.join(node, config)
        self.sent: list[Message] = []
        self.counts: dict[int, int] = {}
        self._replies: dict[str, Message] = {}
        self._luck = random.Random(3)

    def join(self, node: int, config: Mapping[str, Any]) -> None:
        """Let a node come."""
        self.contexts[node] = Context(5, node, dict(config), RecordDict(), dict(self.run_config))

    def leave(self, node: int) -> None:
        """Let a node go, and what it kept in its state with it."""
        del self.contexts[node]

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return self._luck.sample(list(self.contexts), len(self.contexts))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        node, number = message.metadata.dst_node_id, f"w{len(self.sent)}"
        compat.set_message_id(message, number)
        self.sent.append(compat.with_metadata(records.snapshot(message.content), message.metadata))  # Strategies write into what they sent.
        self.counts[node] = self.counts.get(node, 0) + 1
        if node not in self.contexts:
            self._replies[number] = Message(Error(5, "Node Unavailable"), reply_to=message)
            return number
        context = self.contexts[node]
        answer = self.app(message, context)
        compat.set_message_id(answer, f"r{number}")
        reply = self.fault(node, self.counts[node], message, answer)
        if node in self.contexts:
            context.state = through_wire(context.state)
        if reply is not None:
            self._replies[number] = reply
        return number

    def deliver(self, reply: Message) -> None:
        """Let a *reply* that was held back come now."""
        self._replies[reply.metadata.reply_to_message_id] = reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        there = [each for each in dict.fromkeys(message_ids) if each in self._replies]
        return [self._replies.pop(each) for each in self._luck.sample(there, len(there))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError
