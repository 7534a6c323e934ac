"""WallGrid: Flower's Grid on real nodes and on real time, to a strategy what the virtual one is: the same clients, the same order.

Node ids are random and replies come as they come; clients are numbers, and replies are handed over sorted by them, so that named draws
choose the same clients as in simulation and float sums have one order. Tells every message's fate as the simulator does.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.core.types import Params, Seconds
from fedsim.data.stream import Streams
from fedsim.flower import compat, records
from fedsim.real.clock import RunClock, Window
from fedsim.real.fates import Letter, Post, row_of, tested
from fedsim.real.roll import Roll, Told
from fedsim.real.wire import Wire
from fedsim.sim.heard import Said, heard_of
from fedsim.sim.invariants import Invariants
from fedsim.sim.mail import UNAVAILABLE
from fedsim.sim.paced import Paced
from fedsim.sim.rows import STREAM_ENDED, Overseer, RoundRow, WorkRow
from fedsim.sim.versions import Versions
from fedsim.sim.watched import Head, Made, examined_of, noise_of, steps_of
from fedsim.strategy.pacing import Pacing


@dataclass(frozen=True, slots=True)
class Terms:
    """What a grid holds to: how many clients there are, the digest of their scenario, and how long their nodes are waited for.

    *streams* are the clients', where there are any: what they predict is told with what they do not know. *trained* names the arrays
    that are parameters, where noise between clients is watched. *pacing* says how long, and for how many, rounds wait.
    """

    clients: int
    scenario_digest: str
    wait_s: float
    streams: Streams | None = None
    trained: Sequence[str] = ()
    pacing: Pacing | None = None


UNTOLD = (
    "What only nodes know of their tasks is told when the run is over, and is not here: their own moments, steps, FLOPs and processor"
    " time, and what was predicted and watched there."
)
"""What a reader must know of a run that did not come to its end, or did not yet."""


class WallGrid(Grid):
    """The nodes of *inner*, Flower's own grid, as clients 0 to n - 1, on *clock*.

    *observer* hears of every message's fate when that is sealed, as far as a server knows, and all of it at the end.

    Replies that come late are never applied, and what a node says of its own times is asked when the run is over.
    """

    def __init__(self, inner: Grid, terms: Terms, observer: Overseer, clock: RunClock, post: Post) -> None:
        self._wire, self._terms, self._observer, self._clock, self._post = Wire(inner), terms, observer, clock, post
        self._roll = Roll(self._wire, clock, terms.clients, terms.scenario_digest)
        self.invariants, self._versions, self._paced = Invariants(), Versions(observer), Paced(terms.pacing)
        self._open: dict[str, Letter] = {}  # By the SuperLink's id: what was sent, and did not come back yet.
        self._ready: dict[str, Letter] = {}  # What came back, and nobody took yet.
        self._fates: list[Letter] = []  # In the order in which they were sealed.
        self._ended: set[int] = set()  # Clients that said that their stream had ended.
        self._over: Seconds | None = None
        self._heard = False  # Nodes have told what they know.
        self.strangers: list[int] = []
        """Nodes that were sent messages, and that there are not."""
        self.arrived = 0
        """How many replies a strategy was given so far."""

    # -- what a run asks of its ground --------------------------------------------------------------------------

    def open(self) -> Grid:
        """Return the grid, once each client has a node. Raises RunError where that cannot be."""
        self._roll.call(self._terms.wait_s)
        return self

    @property
    def now(self) -> Seconds:
        """Return the seconds since the run began; those at its end once it is over."""
        return self._clock.now if self._over is None else self._over

    @property
    def asked(self) -> int:
        """Return how many messages were sent so far."""
        return self._post.sent

    @property
    def exhausted(self) -> bool:
        """Return whether every client has said that its stream has ended."""
        return len(self._ended) == self._terms.clients

    @property
    def notes(self) -> Sequence[str]:
        """Return what a reader must know of how it went."""
        return (*self._roll.notes, *self._paced.notes, *([UNTOLD] if self._roll.mates and not self._heard else ()))

    def described(self) -> Mapping[str, Any]:
        """Return what a manifest says of the ground: who was there."""
        mates = sorted(self._roll.mates.items())
        return {
            "ground": "flower",
            "promise": "Times are a real clock's: no second run has this digest. Its parameters (model.content) can be the same.",
            "time_scale": self._clock.scale, "query_bytes": {"down": self._roll.down_bytes, "up": self._roll.up_bytes},
            "nodes": [{"client": client, "node": mate.node, "host": mate.present.host, "examples": mate.present.examples,
                       "versions": mate.present.versions} for client, mate in mates],
        }  # fmt: skip

    def wait_for_others(self, duration_s: Seconds) -> None:
        """Let *duration_s* real seconds pass, as Flower would; what it waits for is nodes."""
        time.sleep(duration_s)

    def aggregated(self, *, made: bool) -> None:
        """Take that the strategy has aggregated what it was handed, and whether that *made* a model."""
        self._versions.aggregated(self.now, made=made)

    def finish(self, *, broken: bool = False) -> None:
        """Tell the fate of every message, with what the nodes tell of their times unless the run is *broken*."""
        if self._over is not None:
            return
        if not broken:
            self._look()
        told = Told() if broken else self._roll.told()
        if not broken:
            self._heard = True
            self._look()
        self._over = self._clock.now
        self.invariants.at(self._over, "the end of the run")
        for letter in [*self._ready.values(), *self._open.values()]:
            letter.settle("failed" if letter.failure else "in flight")
            self._fates.append(letter)
        self._open, self._ready = {}, {}
        self._tell(told)
        self._versions.finish()
        if not broken:
            self.invariants.finished()

    def close(self) -> None:
        """Let go of nothing: nodes are not ours, and nobody is waited for any more."""

    # -- Flower's Grid ------------------------------------------------------------------------------------------

    def set_run(self, run: Any) -> None:
        """Hand the run on."""
        self._wire.inner.set_run(run)

    @property
    def run(self) -> Any:
        """Return the run of the grid inside."""
        return self._wire.inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message; kept for strategies written before ``Message`` had a public constructor."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients whose nodes are there now, as node ids, ascending."""
        return [records.node_of(client) for client in self._roll.there()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send *messages*, each as it is now, and return their ids."""
        return [letter.wire_id for letter in self._push(messages)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies among *message_ids* that are there."""
        wanted = list(message_ids)
        self._look()
        return self._answered([self._ready.pop(each) for each in wanted if each in self._ready])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send *messages* and return the replies that come within *timeout* seconds of the run, sorted by client.

        Those that come later are recorded as late, and never applied.
        """
        sent = self._push(messages)
        if not sent:
            return []
        started, wait = sent[0].sent_s, self._paced.wait(sent[0].kind, len(sent))
        limit = wait.until_s if timeout is None else min(timeout, wait.until_s)
        limit = None if math.isinf(limit) else limit
        ready = self._gathered([letter.wire_id for letter in sent], limit, usable=wait.enough)
        ended = self.now
        counted = self._paced.over(wait, limit, sent, ready, ended)
        missed = [letter for letter in sent if letter.arrived_s < 0]
        for letter in missed:
            letter.abandoned, letter.discarded = True, counted.why
        for letter in counted.beyond:
            letter.discarded = counted.why
            letter.settle("late")
        self._sealed(counted.beyond)
        replies = self._answered(counted.taken)
        failed, lost = sum(reply.has_error() for reply in replies), len(missed) + len(counted.beyond)
        self._observer.round(RoundRow(
            sent[0].round, sent[0].kind, started, ended, len(sent), len(counted.taken) - failed, failed, lost, counted.abandoned,
        ))  # fmt: skip
        self._observer.settled(())  # The next row may be minutes away.
        return replies

    # -- real time ----------------------------------------------------------------------------------------------

    def pull(self, message_ids: Iterable[str], timeout: Seconds | None = None, *, enough: int | None = None) -> list[Message]:
        """Wait until all of *message_ids* are answered, or *enough* of them, or *timeout* is over; return the replies, sorted by client."""
        return self._answered(self._gathered(list(message_ids), timeout, enough))

    def sleep(self, duration_s: Seconds) -> None:
        """Let *duration_s* of the run pass."""
        time.sleep(self._clock.real(duration_s))

    # -- inside -------------------------------------------------------------------------------------------------

    def _push(self, messages: Iterable[Message]) -> list[Letter]:
        there, mates = set(self._roll.there()), self._roll.mates
        letters = self._post.letters(messages, self.now)
        sent: list[tuple[Letter, Message]] = []
        for letter in letters:
            self._versions.sent(self._post.newest, letter.sent_s)
            if letter.client in there:
                outgoing = compat.with_metadata(letter.message.content, copy.copy(letter.message.metadata))
                outgoing.metadata.dst_node_id = mates[letter.client].node
                sent.append((letter, outgoing))
                continue
            if letter.client not in mates:
                self.strangers.append(records.node_of(letter.client))
            letter.wire_id = letter.id
            letter.lose(UNAVAILABLE, Message(Error(records.NODE_UNAVAILABLE, UNAVAILABLE), reply_to=letter.message))
            self._ready[letter.wire_id] = letter
        sent_wall_s = time.time()
        ids = self._wire.push([message for _, message in sent])
        for (letter, _), each in zip(sent, ids, strict=True):
            letter.wire_id, letter.sent_wall_s = each, sent_wall_s
            self._open[each] = letter
            self.invariants.sent(down=letter.down.total)
        return letters

    def _gathered(
        self, ids: list[str], timeout: Seconds | None, enough: int | None = None, *, usable: int | None = None
    ) -> list[Letter]:  # fmt: skip
        """Wait for replies to *ids*, *enough* of them, or *usable* that are no errors, and take those that are there."""
        until_s = math.inf if timeout is None else time.monotonic() + self._clock.real(timeout)
        wanted = [each for each in dict.fromkeys(ids) if each in self._ready or each in self._open]
        while True:
            self._look()
            there = [each for each in wanted if each in self._ready]
            left_s = until_s - time.monotonic()
            full = usable is not None and sum(not self._ready[each].failure for each in there) >= usable
            if full or len(there) >= min(len(wanted), len(wanted) if enough is None else enough) or left_s <= 0:
                return [self._ready.pop(each) for each in there]
            time.sleep(min(self._wire.poll_s, left_s))

    def _look(self) -> None:
        """Take what has come in: what somebody waits for is ready, and what nobody does is late."""
        late: list[Letter] = []
        for each, reply in self._wire.pull(self._open).items():
            if each not in self._open:
                continue
            letter = self._open.pop(each)
            letter.arrive(self.now, time.time(), reply)
            self.invariants.sent(up=letter.up.total, down=letter.up.back)
            if letter.abandoned:
                letter.settle("failed" if letter.failure else "late")
                late.append(letter)
            else:
                self._ready[each] = letter
        self._sealed(late)

    def _sealed(self, letters: list[Letter]) -> None:
        """Take that the fate of *letters* is sealed, and tell the observer what is known of it by now."""
        self._fates += letters
        if letters:
            self._observer.settled([row_of(letter, None, self._clock, 0.0, self.now) for letter in letters])

    def _answered(self, ready: list[Letter]) -> list[Message]:
        """Return the replies to *ready*, sorted by client: float sums depend on order."""
        ready.sort(key=lambda letter: (letter.client, letter.id))
        replies: list[Message] = []
        said: list[Said] = []
        trained: dict[int, list[tuple[Letter, Message]]] = {}  # By version, where that is watched.
        starts: dict[int, Params] = {}
        try:
            for letter in ready:
                letter.check()
                reply = letter.taken()
                if letter.failure == STREAM_ENDED:
                    self._ended.add(letter.client)
                if letter.kind == "train" and not letter.failure:
                    self._versions.handed(letter.number, self.now)
                    if self._terms.trained:
                        trained.setdefault(letter.version, []).append((letter, reply))
                        starts[letter.version] = self._post.start(letter)
                self.arrived += not letter.failure
                if not letter.failure:
                    said.append(Said(letter.kind, letter.number, letter.client, letter.round, letter.version, records.told(reply.content)))
                letter.settle("failed" if letter.failure else "arrived")
                replies.append(reply)
        finally:  # What broke the run, and what was not looked at any more, get their fate at its end.
            self._ready |= {letter.wire_id: letter for letter in ready[len(replies) :]}
            self._sealed(ready[: len(replies)])
        for row in heard_of(said, self.now):
            self._observer.heard(row)
        for version in sorted(trained):
            self._noise(trained[version], starts[version])
        weights = [letter.examples for letter in ready if not letter.failure]
        if weights:
            self.invariants.weights(ready[0].round, weights)
        return replies

    def _noise(self, trained: Sequence[tuple[Letter, Message]], start: Params) -> None:
        """Tell the observer signal and noise between the clients that *trained* one version, *start*, where there are several."""
        made = [Made(self._post.read(reply.content.array_records.values()), letter.examples) for letter, reply in trained]
        at = trained[0][0].round, trained[0][0].version, self.now
        if (row := noise_of(at, start, made, self._terms.trained)) is not None:
            self._observer.noise(row)

    def _tell(self, told: Told) -> None:
        """Tell the observer the fate of all messages, in the order in which they were sealed, and what nodes told of them."""
        for letter in self._fates:
            entry = told.entries.get(letter.wire_id)
            if entry is not None and letter.arrived_s >= 0:
                self._roll.windows.setdefault(letter.client, []).append(
                    Window(entry.computed_wall_s - letter.arrived_wall_s, entry.received_wall_s - letter.sent_wall_s)
                )
        ahead = {client: self._roll.ahead_s(client) for client in sorted({letter.client for letter in self._fates} & {*self._roll.mates})}
        until: dict[int, Seconds] = {}  # By client: up to when its drifts are on record.
        for letter in self._fates:
            entry = told.entries.get(letter.wire_id)
            row = row_of(letter, entry, self._clock, ahead.get(letter.client, 0.0), self.now)
            self.invariants.settled(row, self._post.newest)
            own = letter.client in self._roll.mates and self._roll.mates[letter.client].present.own_data
            if letter.wire_id in told.predicted and self._terms.streams is not None and not own:
                before = until.get(letter.client, -math.inf)
                until[letter.client] = max(before, row.started_s)
                self._observer.tested(tested(row, told.predicted[letter.wire_id], self._terms.streams.of(letter.client), before))
            self._observer.task(row)
            if entry is not None:
                self._observer.worked(WorkRow(letter.id, letter.client, entry.cpu_s, entry.work_s))
            if entry is not None and (seen := told.watched.get(letter.wire_id)) is not None:
                head = Head(letter.number, letter.client, entry.number, letter.round, letter.version)
                self._observer.watched(steps_of([(head, seen)]))
                if (examined := examined_of(letter.id, head, seen)) is not None:
                    self._observer.examined(examined)
