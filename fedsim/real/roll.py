"""The roll: which of a SuperLink's nodes is which client. Node ids are random; a query to each, before round 1, tells."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.client.program import News
from fedsim.core.errors import RunError
from fedsim.core.state import State
from fedsim.flower import records
from fedsim.real import diary, news
from fedsim.real.clock import RunClock, Window, ahead_of
from fedsim.real.diary import BEGIN, END, QUERY, RECORD, Begin, Entry, Present
from fedsim.real.wire import Wire

LOOK_S = 1.0
"""How old what is known of the nodes that are there may be, in real seconds."""
LATER_S = 60.0
"""How long a server waits for a node that comes later, and for what nodes tell when the run is over."""
SILENT_S = 15.0
"""How long a server waits for nodes that do not say who they are, once each client has one: a SuperLink lists the dead for a while."""
GONE = (3, 4, 5)
"""Flower's ErrorCodes of messages and nodes that are not there any more."""


@dataclass(frozen=True, slots=True)
class Mate:
    """A node that takes part: what it said when the roll was called, and how its clock may differ from ours, by that."""

    node: int
    present: Present
    window: Window


@dataclass(frozen=True, slots=True)
class Told:
    """What nodes tell when the run is over, by the SuperLink's message id: their diaries, what was predicted, what was *watched*."""

    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    predicted: dict[str, News] = field(default_factory=dict[str, News])
    watched: dict[str, State] = field(default_factory=dict[str, State])


@dataclass
class Roll:
    """Who takes part in a run of *count* clients, told by *wire*. *digest* is that of the scenario, which must be theirs too."""

    wire: Wire
    clock: RunClock
    count: int
    digest: str
    mates: dict[int, Mate] = field(default_factory=dict[int, Mate])
    """By client: the node it is now."""
    clients: dict[int, int] = field(default_factory=dict[int, int])
    """By node: its client; those that are gone too."""
    windows: dict[int, list[Window]] = field(default_factory=dict[int, list[Window]])
    """By client: what is known of its clock."""
    notes: list[str] = field(default_factory=list[str])
    down_bytes: int = 0
    up_bytes: int = 0
    """What the queries themselves put on the wire."""
    _there: list[int] = field(default_factory=list[int])
    _looked_s: float = float("-inf")
    _refused: set[int] = field(default_factory=set[int])

    def call(self, wait_s: float) -> None:
        """Wait until each client has a node, *wait_s* real seconds at most. Raises RunError naming who is missing, double or strange."""
        until_s = time.monotonic() + wait_s
        asked: dict[str, tuple[int, float]] = {}
        said, whole_s = "", float("inf")
        while True:
            known = {*self.clients, *(node for node, _ in asked.values()), *self._refused}
            asked |= self._ask([node for node in self.wire.nodes() if node not in known])
            for each, reply in self.wire.pull(asked).items():
                node, sent_s = asked.pop(each)
                if reply.has_error() and reply.error.code in GONE:
                    said = reply.error.reason or ""
                    self._refused.add(node)
                else:
                    self._answered(node, reply, sent_s)
            now_s = time.monotonic()
            if len(self.mates) == self.count:
                whole_s = min(whole_s, now_s)
                if not asked or now_s > whole_s + SILENT_S:
                    break
            elif now_s > until_s:
                raise RunError(self._missing(wait_s, len(asked), said))
            time.sleep(self.wire.poll_s)
        self._refused |= {node for node, _ in asked.values()}
        self._there, self._looked_s = sorted(self.clients), time.monotonic()

    def there(self) -> list[int]:
        """Return the clients whose nodes are there now, ascending; a node that came since is asked who it is first."""
        if time.monotonic() - self._looked_s > LOOK_S:
            self._there = self.wire.nodes()
            if fresh := [node for node in self._there if node not in self.clients and node not in self._refused]:
                self._welcome(fresh)
            self._looked_s = time.monotonic()
        there = set(self._there)
        return sorted(client for client, mate in self.mates.items() if mate.node in there)

    def told(self, wait_s: float = LATER_S) -> Told:
        """Return what each node tells of its tasks; who tells nothing is named in the notes, and so is what nodes have to note."""
        there = self.there()
        ids = self._push([_query(self.mates[client].node, ConfigRecord({"ask": END})) for client in there])
        asked, found, noted = dict(zip(ids, there, strict=True)), Told(), dict[str, list[int]]()

        def heard(each: str, reply: Message) -> None:
            self._came(reply)
            if not reply.has_error():
                found.entries.update({entry.message: entry for entry in diary.entries_of(_record(reply))})
                predicted, watched = (news.told(_record(reply, name)) for name in (news.NEWS, news.WATCHED))
                found.predicted.update({message: news.news_of(state) for message, state in predicted.items()})
                found.watched.update(watched)
                for note in diary.notes_of(reply.content):
                    noted.setdefault(note, []).append(asked[each])
                del asked[each]

        self.wire.wait(ids, time.monotonic() + wait_s, heard)
        silent = sorted({*asked.values(), *(client for client in self.mates if client not in there)})
        if silent:
            self.notes.append(f"{_clients(silent)} did not tell what tasks took when the run was over: these have no times of their own.")
        self.notes += [f"On {_clients(sorted(clients))}: {note}" for note, clients in sorted(noted.items())]
        return found

    def ahead_s(self, client: int) -> float:
        """Return how far the clock of *client* is ahead of ours, in real seconds, and note where it is, or where it jumped."""
        ahead_s, jumped = ahead_of(self.windows.get(client, []))
        if jumped:
            self.notes.append(
                f"The clock of client {client} jumped while the run went: the moments that it tells are held between those that the server"
                f" saw."
            )
        elif ahead_s:
            way = "ahead of" if ahead_s > 0 else "behind"
            self.notes.append(f"The clock of client {client} is {abs(ahead_s):.1f} s {way} the server's.")
        return ahead_s

    def _welcome(self, nodes: Iterable[int]) -> None:
        """Ask *nodes* that came while the run went who they are; they take the place of those that went."""
        asked = self._ask(nodes)

        def heard(each: str, reply: Message) -> None:
            node, sent_s = asked[each]
            try:
                self._answered(node, reply, sent_s, under_way=True)
            except RunError as error:  # Whoever comes is no reason to stop.
                self._refused.add(node)
                self.notes.append(f"A node that came after {self.clock.now:.0f} s takes no part: {error}")

        self.wire.wait(asked, time.monotonic() + LATER_S, heard)

    def _ask(self, nodes: Iterable[int], ahead_s: float = 0.0) -> dict[str, tuple[int, float]]:
        """Ask *nodes* who they are, and return by the message's id which node it went to, and when, since 1970."""
        listed = list(nodes)
        begin = Begin(self.clock.began_wall_s + ahead_s, self.clock.scale, self.count, self.digest)
        said = ConfigRecord({"ask": BEGIN, **diary.record_of(begin)})
        sent_s = time.time()
        return {each: (node, sent_s) for each, node in zip(self._push([_query(n, said) for n in listed]), listed, strict=True)}

    def _push(self, queries: list[Message]) -> list[str]:
        self.down_bytes += sum(records.size_of(query.content, records.DOWN).total for query in queries)
        return self.wire.push(queries)

    def _came(self, reply: Message) -> None:
        if not reply.has_error():
            size = records.size_of(reply.content, records.UP)
            self.up_bytes, self.down_bytes = self.up_bytes + size.total, self.down_bytes + size.back

    def _answered(self, node: int, reply: Message, sent_wall_s: float, *, under_way: bool = False) -> None:
        """Take what *node* says of itself; where the run is *under_way*, in the place of the node that its client was. Raises RunError."""
        self._came(reply)
        if reply.has_error():
            raise RunError(f"node {node} cannot take part: {reply.error.reason}")
        present = diary.present_of(_record(reply))
        client = present.client
        if not 0 <= client < self.count:
            raise RunError(f"node {node} says partition-id = {client}; the run has {self.count} clients, 0 to {self.count - 1}.")
        before = self.mates.get(client)
        if before is not None and not under_way:
            raise RunError(
                f"nodes {before.node} and {node} both say partition-id = {client} ({before.present.host} and {present.host}): each client"
                f" is one node. Give each SuperNode a partition-id of its own."
            )
        if before is not None:
            self.notes.append(f"client {client} came back as another node after {self.clock.now:.0f} s.")
        window = Window(present.clock_wall_s - time.time(), present.clock_wall_s - sent_wall_s)
        self.windows.setdefault(client, []).append(window)
        self.mates[client], self.clients[node] = Mate(node, present, window), client
        ahead_s, _ = ahead_of([window])
        if ahead_s:  # Its stream runs by the server's clock: it is told when the run began, by its own.
            self.wire.wait(self._ask([node], ahead_s), time.monotonic() + LATER_S, lambda _each, reply: self._came(reply))

    def _missing(self, wait_s: float, silent: int, said: str) -> str:
        missing = [client for client in range(self.count) if client not in self.mates]
        which = f"partition-id {', '.join(map(str, missing[:10]))}{', ...' if len(missing) > 10 else ''}"
        why = f"; {silent} nodes are there and did not say who they are" if silent else f" ({said})" if said else ""
        return (
            f"after {wait_s:g} s {len(self.mates)} of {self.count} nodes were there; missing: {which}{why}. Start a SuperNode for each, or"
            f" say nodes = {len(self.mates) or 1}; wait-s says how long the server waits."
        )


def _query(node: int, record: ConfigRecord) -> Message:
    return Message(RecordDict({RECORD: record}), node, QUERY)


def _record(reply: Message, name: str = RECORD) -> Mapping[str, Any]:
    found = reply.content.config_records.get(name)
    if found is None and name != RECORD:  # There was nothing of the kind.
        return {}
    if found is None:
        raise RunError(f"a node answered a query without a record {RECORD!r}: it runs another app, or another version of this one.")
    return cast(Mapping[str, Any], found)


def _clients(numbers: list[int]) -> str:
    return f"client {numbers[0]}" if len(numbers) == 1 else f"clients {', '.join(map(str, numbers))}"
