"""A foreign ClientApp as the world's clients: messages are computed in processes, and the clock waits for what it needs of them.

How long a message takes is what the fleet declares; how large the answer is shows once it is computed. What a client keeps (the state
of its Context) goes from message to message, in the order in which the client acts on them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Error, Message, RecordDict

from fedsim.client.program import Unable
from fedsim.core import own
from fedsim.core.errors import RunError, ScenarioError, door
from fedsim.core.keys import Key
from fedsim.core.registry import Registry, load_object
from fedsim.core.types import Seconds
from fedsim.cost.network import Overhead
from fedsim.flower import compat, compat_app, records
from fedsim.flower.records import Size
from fedsim.foreign.pool import Content, Pool
from fedsim.foreign.wire import Plain, Told, digest, plain
from fedsim.foreign.wire import records as made
from fedsim.scenario.fleet import Cost, Devices, LoadedFleet
from fedsim.sim.heard import Said, heard_of, said_in
from fedsim.sim.invariants import Invariants
from fedsim.sim.ledger import Ledger
from fedsim.sim.mail import Delivery, Parcel, Read
from fedsim.sim.rows import Observer

OTHERS = {"train": 0, "evaluate": 1 << 22, "query": 1 << 23}
"""Where a client's tasks are numbered from, by category, when a device model draws per task."""
EXAMPLES = ("num-examples", "num_examples", "fitres.num_examples", "evaluateres.num_examples")
"""Where a reply says how many examples it is of: today's apps, and what Flower makes of legacy ones."""


class Costs:
    """How long messages take on a fleet, by what it declares, or by what is measured where it is asked to."""

    def __init__(self, loaded: LoadedFleet, devices: Devices) -> None:
        self._fleet, self._devices = loaded.fleet, devices
        self.measured: dict[str, Cost] = {}
        """What was measured, by kind of message."""
        self._functions: dict[str, Callable[..., Any]] = {}
        with own.beside(loaded.folder):
            for kind, cost in loaded.fleet.compute.items():
                if cost.function is not None:
                    self._functions[cost.function] = load_object(cost.function, at=f"compute.{kind}.function")

    def declared(self, kind: str) -> bool:
        """Return whether the fleet says what a message of *kind* costs."""
        return self._fleet.cost(kind) is not None

    def measure(self, kind: str, wall_s: Seconds, examples: int | None) -> None:
        """Take that a message of *kind* took *wall_s* here."""
        self.measured[kind] = (
            Cost(seconds_per_example=wall_s / examples, measured=True) if examples else Cost(seconds=wall_s, measured=True)
        )

    def took(self, client: int, kind: str, nth: int, examples: int | None) -> tuple[Seconds, float]:
        """Return how long *client*'s *nth* task of *kind* takes, and its operations. Raises RunError where nobody says it."""
        cost = self.measured.get(kind) or self._fleet.cost(kind)
        if cost is None:
            raise RunError(
                f"compute.{kind}: missing. The app sent a {kind!r} message, and the fleet does not say what that takes. Give"
                f" compute.{kind} = {{ seconds_per_example = ... }}, or measure it with --measure."
            )
        if cost.function is not None:
            return self._called(cost.function, client, kind, nth, examples), 0.0
        if cost.seconds is not None:
            flops = cost.seconds * self._speed()
        elif examples is None and (cost.seconds_per_example or cost.flops_per_example):
            raise RunError(
                f"compute.{kind}: is per example, and client {client}'s reply says no number of examples ('num-examples' in a"
                f" MetricRecord). Give compute.{kind} = {{ seconds = ... }}, or a function."
            )
        else:
            each = cost.flops_per_example if cost.flops_per_example is not None else (cost.seconds_per_example or 0.0) * self._speed()
            flops = each * (examples or 0)
        return self._devices.compute.seconds(client, OTHERS[kind.partition(".")[0]] + nth, flops), flops

    def _speed(self) -> float:
        gflops = self._fleet.gflops
        if gflops is None:
            raise ScenarioError("on_gflops: missing. Seconds are of a device of some speed, and clients.compute has no gflops.")
        return gflops * 1e9

    def _called(self, name: str, client: int, kind: str, nth: int, examples: int | None) -> Seconds:
        at = f"compute.{kind}.function = {name!r}"
        with door(at, wrong=RunError):
            found = Registry("cost").call(
                self._functions[name], {}, client=client, kind=kind, task=nth, examples=examples
            )
            seconds = float(found)
        if not 0.0 <= seconds < math.inf:
            raise RunError(f"{at}: gave {found!r} s for client {client}; it must be >= 0 and finite.")
        return seconds


@dataclass(slots=True)
class _Turn:
    """One message at its client: the ticket of its computing, and what came of it."""

    content: Content
    ticket: int = -1
    told: Told = field(default_factory=lambda: Told(0))
    reply: RecordDict | None = None


class AppClients:
    """*count* clients of an app whose messages *pool* computes; what they cost, *costs* says. *measuring* runs each kind once beside."""

    def __init__(self, pool: Pool, costs: Costs, key: Key, count: int, post: AppPost, *, measuring: bool = False) -> None:
        self._pool, self._costs, self._key, self._count, self._post, self._measuring = pool, costs, key, count, post, measuring
        self._states: dict[int, bytes] = {}
        self._began: dict[tuple[int, str], int] = {}
        self._turns: dict[str, _Turn] = {}
        self._with: dict[int, int] = {}  # By client: how many messages it was sent that it has not begun.
        self._early: dict[int, Delivery] = {}  # By client: what is computed before its turn.

    @property
    def foresight(self) -> None:
        """Return that nothing knows beforehand what an app's clients take."""

    def sent(self, delivery: Delivery) -> None:
        """Take that *delivery* is on its way: it is computed at once where its client has nothing before it."""
        client = delivery.client
        self._turns[delivery.id] = _Turn(self._post.content)
        before = self._with.get(client, 0)
        self._with[client] = before + 1
        if not before:
            self._submit(delivery)
            self._early[client] = delivery

    def ready_s(self, delivery: Delivery, now: Seconds) -> Seconds:
        """Return *now*: an app's clients act on what comes."""
        return now

    def begin(self, delivery: Delivery, now: Seconds) -> Seconds:
        """Take in what was computed, waiting for it, and return how long it takes by what is declared. Raises Unable for an error reply."""
        client, turn, kind = delivery.client, self._turns[delivery.id], delivery.kind
        self._with[client] -= 1
        early = self._early.pop(client, None)
        if early is not None and early is not delivery:  # It was overtaken on its way: it must see what this one leaves.
            self._pool.forget(self._turns[early.id].ticket)
            self._turns[early.id].ticket = -1
        if turn.ticket < 0:
            self._submit(delivery)
        if self._measuring and kind not in self._costs.measured:
            self._measure(delivery)
        turn.told = told = self._pool.result(turn.ticket)
        nth = self._began.get((client, kind), 0)
        self._began[client, kind] = nth + 1
        if told.state is not None:
            self._states[client] = told.state
        if told.code >= 0:
            delivery.measure(nth, 0, 0.0, Size(0, 0))
            raise Unable(told.reason or "the ClientApp answered with an error")
        examples = examples_of(told.form)
        seconds, flops = self._costs.took(client, kind, nth, examples)
        turn.reply = made(told.form)
        delivery.measure(nth, examples or 0, flops, records.size_of(turn.reply, records.UP).over(self._post.overhead))
        return seconds

    def ended(self, client: int, now: Seconds) -> bool:
        """Return False: what reaches an app's client never ends by itself."""
        return False

    def abandon(self, delivery: Delivery) -> None:
        """Wait for *delivery* no more; its client acts on it all the same."""
        delivery.abandon()

    def taken(self, delivery: Delivery) -> tuple[Told, RecordDict | None]:
        """Return what came of *delivery*, and the content of the reply where there is one, and forget it."""
        turn = self._turns.pop(delivery.id, None)
        return (Told(0), None) if turn is None else (turn.told, turn.reply)

    def leave(self) -> None:
        """Let go of what is not begun: the run is over."""
        for turn in self._turns.values():
            if turn.ticket >= 0:
                self._pool.forget(turn.ticket)
        self._turns.clear()

    def _submit(self, delivery: Delivery, times: int = 1) -> int:
        client, kind, turn = delivery.client, delivery.kind, self._turns[delivery.id]
        nth = self._began.get((client, kind), 0)
        seed = self._key.fold("client", client, kind, nth).seed64()
        turn.ticket = self._pool.ask(
            turn.content, delivery.message.metadata, records.node_of(client),
            {"partition-id": client, "num-partitions": self._count}, self._states.get(client, b""), seed, times,
        )  # fmt: skip
        return turn.ticket

    def _measure(self, delivery: Delivery) -> None:
        """Compute *delivery* once to warm up and once for the clock of this machine, and forget what comes of it."""
        turn = self._turns[delivery.id]
        ticket = turn.ticket
        told = self._pool.result(self._submit(delivery, times=2))
        turn.ticket = ticket
        if told.code < 0:
            self._costs.measure(delivery.kind, told.wall_s, examples_of(told.form))


class AppPost:
    """Makes deliveries of an app's messages, numbered in the order of sending, and of models, in the order of first meeting.

    *overhead* is what the protocols of links add.
    """

    def __init__(self, overhead: Overhead | None = None) -> None:
        self.overhead = overhead
        self.sent = 0
        self.latest_round = 0
        """The latest round that a message told of."""
        self.last: Plain = ()
        """The content of the last message with arrays that was sent."""
        self._parcel: Parcel | None = None
        self._content = Content(0, (), b"")
        self._versions: dict[str, int] = {}
        self._arrays: tuple[Any, str] = ((), "")

    @property
    def newest(self) -> int:
        """Return the number of the newest model sent, -1 before the first."""
        return len(self._versions) - 1

    @property
    def content(self) -> Content:
        """Return what the latest delivery carries, as a process takes it."""
        return self._content

    def delivery(self, message: Message, now: Seconds, read: Read) -> Delivery:
        """Return *message*, as it is *now*, as a delivery. Messages in a row that carry the same share a parcel. Raises RunError."""
        self.sent += 1
        message_id = f"m{self.sent:09d}"
        if not message.has_content():
            raise RunError(f"the ServerApp sent an error to node {message.metadata.dst_node_id}; messages to clients carry a content.")
        if message.metadata.message_id:  # Pushed before: its replies must not come under this one's name.
            message = compat.with_metadata(message.content, copy.copy(message.metadata))
        compat.set_message_id(message, message_id)
        form, kind = plain(message.content), message.metadata.message_type
        kind = kind if kind.partition(".")[0] in OTHERS else f"query.{kind}"  # The legacy server's own.
        group = message.metadata.group_id
        if self._parcel is None or (form, kind) != (self._content.form, self._parcel.kind):
            self._content = Content.of(self._content.number + 1, form)
            round_number = records.round_of(message.content) or (int(group) if group.isdecimal() else 0)
            self.latest_round = max(self.latest_round, round_number)
            version = self._version(form)
            down = records.size_of(message.content, records.DOWN).over(self.overhead)
            self._parcel = Parcel(
                message.content, kind, round_number, version, down, Size(0, 0), None, ""
            )
            if kind.partition(".")[0] != "query" and any(record[1] == "a" for record in form):
                self.last = form
        return Delivery(message_id, records.client_of(message.metadata.dst_node_id), message, self._parcel, now)

    def _version(self, form: Plain) -> int:
        arrays = next((record[2] for record in form if record[1] == "a"), None)
        if arrays is None:
            return self.newest
        if arrays != self._arrays[0]:
            self._arrays = (arrays, digest(form, arrays_only=True))
        return self._versions.setdefault(self._arrays[1], len(self._versions))


class AppDesk:
    """Hands the replies of an app's clients over, and tells *observer* the fate of each message."""

    def __init__(self, clients: AppClients, observer: Observer, invariants: Invariants) -> None:
        self.ledger = Ledger(observer, invariants)
        self._clients, self._observer = clients, observer

    def late(self, delivery: Delivery) -> None:
        """Tell the fate of a delivery that nobody waited for."""
        self._clients.taken(delivery)
        self.ledger.settle(delivery, "late")

    def answered(self, ready: list[Delivery], flying: Iterable[Delivery], now: Seconds) -> list[Message]:
        """Return the replies to *ready*, sorted by client: float sums depend on order."""
        replies: list[Message] = []
        said: list[Said] = []
        for delivery in sorted(ready, key=lambda one: (one.client, one.id)):
            told, content = self._clients.taken(delivery)
            if delivery.failure or content is None:
                code = told.code if told.code >= 0 else compat_app.UNAVAILABLE
                reply = Message(Error(code, delivery.failure), reply_to=delivery.message)
                self.ledger.settle(delivery, "failed")
            else:
                reply = compat.reply_to(delivery.message, content)
                self.ledger.settle(delivery, "arrived", _loss(told.form), digest(told.form))
                said.append(said_in(delivery, records.told(content)))
                if delivery.kind.partition(".")[0] == "train":
                    self.ledger.versions.handed(delivery.number, now)
            compat.set_message_id(reply, delivery.id.replace("m", "r"))
            replies.append(reply)
        for row in heard_of(said, now):
            self._observer.heard(row)
        return replies

    def finish(self, *, broken: bool = False) -> None:
        """Settle what has no fate yet."""
        self._clients.leave()
        self.ledger.finish()


def examples_of(form: Plain) -> int | None:
    """Return how many examples a reply says that it is of; None where it does not."""
    for _, kind, items in form:
        for key, value in items if kind != "a" else ():
            if key in EXAMPLES and isinstance(value, int | float) and not isinstance(value, bool):
                return max(0, int(value))
    return None


def _loss(form: Plain) -> float | None:
    """Return the loss that a reply tells, where it tells one that is a number."""
    found = {key: value for _, kind, items in form if kind == "m" for key, value in items}
    for name in ("train_loss", "train-loss", "loss", "eval_loss", "eval-loss", "evaluateres.loss"):
        if isinstance(found.get(name), int | float) and math.isfinite(found[name]):
            return float(found[name])
    return None
