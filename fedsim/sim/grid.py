"""VirtualGrid: Flower's Grid on virtual time. The strategy is the driver; there are no threads.

Timing runs ahead; the numbers in a reply are computed when the reply is handed over, whole cohorts at a time.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Generator, Iterable, Sequence

import numpy as np
import simpy
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.client.program import News, Reply, reply_metrics
from fedsim.core.errors import RunError, door, must
from fedsim.core.types import Seconds
from fedsim.flower import compat, records
from fedsim.flower.apps import Mod, with_mods
from fedsim.learn.engine import Engine
from fedsim.learn.work import Result
from fedsim.sim.invariants import Invariants
from fedsim.sim.patience import Patience
from fedsim.sim.rows import STREAM_ENDED, Observer, Outcome, PredictionRow, RoundRow
from fedsim.sim.world import Delivery, Fleet, Parcel, World

CLIENT_RAISED, NODE_UNAVAILABLE = 2, 5
"""Flower's ErrorCode of the same names."""


class VirtualGrid(Grid):
    """A federation of ``fleet.federation.count`` virtual clients behind Flower's Grid interface.

    *writable* replies may be written to by the strategy; read-only ones share the engine's memory.
    """

    def __init__(
        self, fleet: Fleet, engine: Engine, observer: Observer, *, mods: Sequence[Mod] = (), writable: bool = True
    ) -> None:
        compat.set_identity()
        self._fleet, self._engine, self._observer = fleet, engine, observer
        self._mods, self._writable = list(mods), writable
        self.invariants = Invariants()
        self._world = World(fleet, engine, self._arrived, self.invariants)
        self._clients = np.arange(fleet.federation.count)
        self._messages = 0
        self._inbox: dict[str, Delivery] = {}
        self._flying: dict[str, Delivery] = {}
        self._open: dict[str, Delivery] = {}  # Everything sent whose fate is not sealed.
        self._waiters: dict[str, _Waiter] = {}
        self._nodes: tuple[Seconds, list[int]] | None = None
        self._available = np.ones(0, dtype=np.bool_)
        self.patience = Patience(len(self._clients))
        self._starts = records.StartCache()
        self._contexts: dict[int, Context] = {}
        self._told_until: dict[int, Seconds] = {}  # By client: up to when its drifts are on record.
        self.arrived = 0
        """Replies that a strategy was given."""
        self.strangers: list[int] = []
        """Nodes that were sent messages, and that there are not."""
        self.exhausted = False
        """Whether every client has come to the end of its stream."""
        self._ended = 0  # Clients below this number have.
        self._late: list[Delivery] = []  # What arrived late, and leaves something behind that has not been told.

    # -- Flower's Grid ------------------------------------------------------------------------------------------

    @property
    def asked(self) -> int:
        """Return how many messages were sent so far."""
        return self._messages

    def set_run(self, run: object) -> None:
        """Take the run that Flower would set; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return what ``set_run`` was given."""
        return getattr(self, "_run", None)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message; kept for strategies written before ``Message`` had a public constructor."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients available now, as node ids, ascending."""
        return list(self._nodes_now())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send *messages*, each as it is now, and return their ids."""
        parcels: dict[tuple[int, str], tuple[RecordDict, Parcel]] = {}
        return [self._push(message, parcels) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies among *message_ids* that are there; with none there, those of the next arrival.

        Advancing to it is what lets a server that polls make progress on a clock that only events move.
        """
        wanted = list(message_ids)
        if not any(message_id in self._inbox for message_id in wanted):
            flying = [message_id for message_id in wanted if message_id in self._flying]
            if flying:
                self._wait(_Waiter(self._world.env, flying, enough=1))
        ready = [self._inbox.pop(message_id) for message_id in wanted if message_id in self._inbox]
        return self._hand_over(ready)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send *messages* and return the replies that arrive within *timeout* virtual seconds, sorted by client.

        A reply at the very deadline is in time. Those that come later are recorded as late, and never applied.
        """
        ready, row = self._exchange(messages, timeout)
        if row is None:
            return []
        replies = self._hand_over(ready)
        failed = sum(reply.has_error() for reply in replies)
        self._observer.round(dataclasses.replace(row, arrived=len(replies) - failed, failed=failed))
        return replies

    def rehearse(self, messages: Iterable[Message], *, timeout: float | None = None) -> None:
        """Let *messages* and their replies travel as ``send_and_receive`` would, and compute nothing."""
        ready, row = self._exchange(messages, timeout)
        for delivery in ready:
            self._settle(delivery, "failed" if delivery.failure else "arrived")
        if row is not None:
            self._observer.round(row)

    # -- virtual time -------------------------------------------------------------------------------------------

    @property
    def now(self) -> Seconds:
        """Return the virtual time."""
        return float(self._world.env.now)

    def sleep(self, duration_s: Seconds) -> None:
        """Wait at least *duration_s*, and until who is available changes; raise RunError when it never will."""
        change = self._fleet.availability.next_change(self._clients, self.now)
        self.patience.looked(self.now, self._nodes_now(), change)
        self._world.env.run(until=max(change, self.now + duration_s))
        self.invariants.at(self.now, "a sleep")

    def skip_to(self, at_s: Seconds) -> None:
        """Let virtual time pass until *at_s*, if that is still to come; for rehearsals, which look ahead."""
        if at_s > self.now:
            self._world.env.run(until=at_s)
            self.invariants.at(self.now, "a look ahead")

    def finish(self, *, broken: bool = False) -> None:
        """Settle what has no fate yet, and check that no byte is missing, unless the run is *broken* anyway."""
        self.invariants.at(self.now, "the end of the run")
        if not broken:  # Those on their way have begun, and have predicted.
            self._late += [d for d in self._open.values() if d.abandoned and d.kept is not None]
            self._tell_late()
        for delivery in [*self._late, *self._open.values()]:
            if delivery.ticket is not None:
                self._engine.discard(delivery.ticket)
        for delivery in list(self._open.values()):
            self._settle(delivery, "failed" if delivery.failure else "in flight")
        if not broken:
            self.invariants.finished()

    # -- inside -------------------------------------------------------------------------------------------------

    def _exchange(self, messages: Iterable[Message], timeout: float | None) -> tuple[list[Delivery], RoundRow | None]:
        """Send *messages*, wait, abandon what has not arrived; return what has, and the row of this round so far."""
        started = self.now
        ids = list(self.push_messages(messages))
        if not ids:
            return [], None
        first = self._flying.get(ids[0]) or self._inbox[ids[0]]
        self._wait(_Waiter(self._world.env, [message_id for message_id in ids if message_id in self._flying]), timeout)
        ready = [self._inbox.pop(message_id) for message_id in ids if message_id in self._inbox]
        if len(ready) == len(ids) and all(delivery.failure == STREAM_ENDED for delivery in ready):
            # Those asked may be a sample: only now is it worth looking at everybody.
            while self._ended < len(self._clients) and self._world.ended(self._ended):
                self._ended += 1
            self.exhausted = self._ended == len(self._clients)
        missed = [self._flying[message_id] for message_id in ids if message_id in self._flying]
        for delivery in missed:
            delivery.abandoned = True
            self._world.forget(delivery)
        return ready, RoundRow(first.round, first.kind, started, self.now, len(ids), len(ready), 0, len(missed))

    def _push(self, message: Message, parcels: dict[tuple[int, str], tuple[RecordDict, Parcel]]) -> str:
        self._messages += 1
        self.patience.asked()
        message_id = f"m{self._messages:09d}"
        if message.metadata.message_id:  # Pushed before: its replies must not come under this one's name.
            message = compat.with_metadata(message.content, copy.copy(message.metadata))
        compat.set_message_id(message, message_id)
        # Strategies put one content into all messages of a round: it is read and copied once, until it changes.
        content, same = message.content, (id(message.content), message.metadata.message_type)
        if same not in parcels or not records.unchanged(content, parcels[same][1].content):
            parcels[same] = (content, self._parcel(message))  # Kept alive, so that no other content gets its id.
        parcel = parcels[same][1]
        delivery = Delivery(message_id, records.client_of(message.metadata.dst_node_id), message, parcel, self.now)
        self._open[message_id] = delivery
        if not self._reachable(delivery.client):
            delivery.failure, delivery.reached = "the node is not available", False
            delivery.arrived_s = self.now
            self._inbox[message_id] = delivery
            return message_id
        self._flying[message_id] = delivery
        self.invariants.sent(down=parcel.down.total)
        self._world.send(delivery)
        return message_id

    def _parcel(self, message: Message) -> Parcel:
        content = records.snapshot(message.content)
        version = self._starts.version(next(iter(content.array_records.values()), None))
        order, up, failure = None, records.Size(0, 0), ""
        if message.metadata.message_type not in records.KINDS:
            failure = f"our client takes messages of type {' and '.join(records.KINDS)} only"
        else:
            order = records.order_of(message, self._starts, self._fleet.job)
            names = reply_metrics(order.job, self._fleet.scores, self._fleet.client(0).tells)
            training = order.job.kind == "train"
            extra = self._fleet.extra_metrics if training else ()
            up = records.reply_size(self._fleet.forms if training else {}, (*names, *extra))
        return Parcel(content, records.round_of(content), version, records.size_of(content), up, order, failure)

    def _nodes_now(self) -> list[int]:
        """Return the node ids of who is available now: worked out once per instant, for everyone."""
        if self._nodes is None or self._nodes[0] != self.now:
            self._available = self._fleet.availability.available(self._clients, self.now)
            self._nodes = (self.now, (self._clients[self._available] + records.NODE_OFFSET).tolist())
        return self._nodes[1]

    def _reachable(self, client: int) -> bool:
        if not 0 <= client < len(self._clients):
            self.strangers.append(records.node_of(client))
            return False
        self._nodes_now()
        return bool(self._available[client])

    def _arrived(self, delivery: Delivery) -> None:
        self.invariants.at(self.now, f"the arrival of {delivery.id}")
        if delivery.computed_s >= 0:
            self.invariants.sent(up=delivery.parcel.up.total)
        del self._flying[delivery.id]
        if delivery.abandoned:
            self._settle(delivery, "late")
            if delivery.kept is not None:
                self._late.append(delivery)
            return
        self._inbox[delivery.id] = delivery
        if waiter := self._waiters.pop(delivery.id, None):
            waiter.arrived()

    def _wait(self, waiter: _Waiter, timeout: float | None = None) -> None:
        if not waiter.ids:
            return
        self._waiters = dict.fromkeys(waiter.ids, waiter)
        env = self._world.env
        until = waiter.done if timeout is None else env.any_of([waiter.done, env.process(_deadline(env, timeout))])
        env.run(until=until)
        self._waiters = {}
        self.invariants.at(self.now, "the end of a wait")

    def _hand_over(self, ready: list[Delivery]) -> list[Message]:
        """Fill *ready* replies with numbers, and return them sorted by client: float sums depend on order."""
        ready.sort(key=lambda delivery: (delivery.client, delivery.id))
        computed = [delivery for delivery in ready if not delivery.failure]
        tickets = [delivery.ticket for delivery in computed if delivery.ticket is not None]
        others = [d.ticket for d in [*self._late, *self._flying.values()] if d.ticket is not None and self._is_read(d)]
        results = dict(zip(tickets, self._engine.collect(tickets, others), strict=True))
        replies: list[Message] = []
        self._tell_late()
        for delivery in ready:
            if delivery.failure or delivery.ticket is None:
                code = CLIENT_RAISED if delivery.reached else NODE_UNAVAILABLE
                replies.append(Message(Error(code, delivery.failure), reply_to=delivery.message))
                self._settle(delivery, "failed")
                continue
            result = results[delivery.ticket]
            self._check(delivery, result)
            finished = self._world.finish(delivery, result)
            if finished.news is not None:
                self._told(delivery, finished.news)
            reply = self._fill(delivery, finished.reply)
            if reply.has_error():  # A mod refused.
                delivery.failure = reply.error.reason or "a mod refused"
                self._settle(delivery, "failed")
            else:
                loss = result.metrics.get("train_loss", result.metrics.get("loss"))
                self._settle(delivery, "arrived", loss, records.digest_of_reply(reply) if self._mods else result.digest)
            replies.append(reply)
        weights = [d.task.examples for d in computed if d.task and not d.failure]
        if weights:
            self.invariants.weights(computed[0].round, weights)
        return replies

    def _check(self, delivery: Delivery, result: Result) -> None:
        assert delivery.task is not None
        wrong = [name for name, value in result.metrics.items() if not math.isfinite(value)]
        if wrong:
            job = delivery.task.job
            delivery.failure = f"{wrong[0]} became {result.metrics[wrong[0]]}"
            raise RunError(
                f"round {delivery.round}: {wrong[0]} of client {delivery.client} became {result.metrics[wrong[0]]}"
                f" (its task {delivery.task.number}, {len(delivery.task.positions)} examples). Training diverged;"
                f" try a smaller training.optimizer.lr (now {job.lr:g})."
            )

    def _is_read(self, delivery: Delivery) -> bool:
        """Return whether somebody will want the numbers of *delivery*."""
        return not delivery.abandoned or delivery.kept is not None

    def _tell_late(self) -> None:
        """Tell what came of tasks whose replies were late: what they predicted is known, whoever waited for them."""
        late, self._late = self._late, []
        tickets = [delivery.ticket for delivery in late if delivery.ticket is not None]
        for delivery, result in zip(late, self._engine.collect(tickets), strict=True):
            finished = self._world.finish(delivery, result)
            if finished.news is not None:
                self._told(delivery, finished.news)

    def _told(self, delivery: Delivery, news: News) -> None:
        """Tell the observer what was tested before training, and where a detector signalled drift."""
        assert self._fleet.federation.streams is not None
        stream = self._fleet.federation.streams.of(delivery.client)
        before = self._told_until.get(delivery.client, -math.inf)
        self._told_until[delivery.client] = max(before, delivery.started_s)  # Late tasks may be told of after later ones.
        lived = (stream.changes_s > before) & (stream.changes_s <= delivery.started_s)
        self._observer.tested(
            PredictionRow(
                client=delivery.client, message=delivery.id, round=delivery.round, version=delivery.parcel.version,
                now_s=delivery.started_s, items=news.items, arrived_s=stream.arrived_s[news.items],
                labelled_s=stream.labelled_s[news.items], y=news.y, prediction=news.prediction, loss=news.loss,
                concepts=stream.concepts[news.items], alarms=news.alarms, drifts_s=stream.changes_s[lived],
            )
        )  # fmt: skip

    def _fill(self, delivery: Delivery, answer: Reply) -> Message:
        assert delivery.task is not None

        def app(message: Message, context: Context) -> Message:
            return compat.reply_to(message, records.reply_content(answer, writable=self._writable))

        mods = self._mods if delivery.task.job.kind == "train" else []
        if mods:  # They read the content, which must be as it was sent; a reply takes no more than the metadata.
            sent = compat.with_metadata(delivery.parcel.content, delivery.message.metadata)
            names = ", ".join(str(getattr(mod, "__name__", mod)) for mod in mods)
            with door(f"client {delivery.client} in round {delivery.round}", f"a client mod ({names}) raised", wrong=RunError):
                reply = with_mods(mods, app)(sent, self._context(delivery.client))
        else:
            reply = app(delivery.message, _NO_CONTEXT)
        if not reply.has_error():
            size = records.size_of(reply.content)
            foretold = delivery.parcel.up
            must(size == foretold, f"{delivery.id}: {foretold} bytes were foretold, {size} encoded")
        compat.set_message_id(reply, delivery.id.replace("m", "r"))
        return reply

    def _context(self, client: int) -> Context:
        if client not in self._contexts:
            self._contexts[client] = Context(
                run_id=1, node_id=records.node_of(client), node_config={"partition-id": client},
                state=RecordDict(), run_config={},
            )  # fmt: skip
        return self._contexts[client]

    def _settle(self, delivery: Delivery, outcome: Outcome, loss: float | None = None, result: str = "") -> None:
        if delivery.arrived_s < 0 and delivery.computed_s >= 0:
            self.invariants.sent(up=delivery.parcel.up.total)  # On the wire, though it never arrives.
        del self._open[delivery.id]
        row = delivery.row(outcome, loss, result)
        self.arrived += outcome == "arrived"
        self.invariants.settled(row, self._starts.newest)
        self._observer.task(row)


class _Waiter:
    """Counts arrivals down to the one that ends a wait."""

    def __init__(self, env: simpy.Environment, ids: list[str], enough: int | None = None) -> None:
        self.ids, self.done = ids, env.event()
        self._left = len(ids) if enough is None else enough

    def arrived(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.done.succeed()


def _deadline(env: simpy.Environment, timeout: float) -> Generator[simpy.Event, None, None]:
    yield env.timeout(timeout)
    yield env.timeout(0)  # After whatever else happens at this instant: a reply at the deadline is in time.


_NO_CONTEXT = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
