"""Mail: what a message carries, and how far each one has come. Knows no clock of its own: whoever moves a message says when."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from flwr.app import Message, RecordDict

from fedsim.client.kept import Kept
from fedsim.client.program import Finished, Order, Program, reply_metrics
from fedsim.core.errors import RunError, must
from fedsim.core.types import Seconds
from fedsim.cost.failures import Fault
from fedsim.flower import compat, compat_lazy, records
from fedsim.flower.records import Size
from fedsim.learn.work import Task
from fedsim.sim.leaving import Absences, away_s
from fedsim.sim.rows import Outcome, TaskRow

if TYPE_CHECKING:
    from fedsim.sim.fleet import Fleet

NEVER = -1.0
ANSWERED = {
    "missed": (records.NODE_UNAVAILABLE, "the node is not available any more"),
    "crashed": (records.CLIENT_CRASHED, "ClientApp stopped responding."),
    "raised": (records.CLIENT_RAISED, "the app answered with nothing"), "garbled": (records.UNKNOWN, "the reply cannot be read"),
}  # fmt: skip
"""Code and reason of the error that a server hears of a fault, by the fault's ``answer``; of ``never`` it hears nothing."""
UNAVAILABLE = "the node is not available"
"""The failure of a message to a client that is not there."""

Stage = Literal["sent", "held", "computing", "returning", "arrived", "settled"]
"""How far a message is. sent: on its way to the client. held: there, until its turn comes and its trigger holds. computing: worked
on. returning: its answer is on the wire. arrived: the answer is at the server. settled: its row is written."""

AFTER: dict[Stage, tuple[Stage, ...]] = {
    "sent": ("held", "arrived"), "held": ("computing",), "computing": ("returning", "arrived"), "returning": ("arrived",), "arrived": (),
    "settled": (),
}  # fmt: skip
"""What may come after a stage; a run's end settles whatever there is. Arrived at once: nobody was there, or there was nothing to do."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What the messages of one push carry: read once, however many clients it goes to.

    *kind* is Flower's message type. *order* is None when our client cannot read it; *failure* then says why. *up* is the size of an answer.
    """

    content: RecordDict
    kind: str
    round: int
    version: int
    down: Size
    up: Size
    order: Order | None
    failure: str
    edge: int = -1
    """Whose model it is, where an edge made it of the server's version."""
    edge_round: int = 0


@dataclass(slots=True)
class Delivery:
    """One message on its way: a plain record, so that a process could be started again from where it is.

    Each change of *stage* is a method. *abandoned* says that nobody waits for the reply any more, *failure* why there will be none.
    """

    id: str
    client: int
    message: Message
    parcel: Parcel
    sent_s: Seconds
    stage: Stage = "sent"
    reached: bool = True
    received_s: Seconds = NEVER
    started_s: Seconds = NEVER
    computed_s: Seconds = NEVER
    arrived_s: Seconds = NEVER
    task: Task | None = None
    ticket: int | None = None
    nth: int = -1
    """Which of its client's own tasks of this kind it makes, from 0; -1 while nobody knows."""
    examples: int = 0
    flops: float = 0.0
    steps: int = 0
    waited_s: Seconds = 0.0
    batch_size: int = 0
    failure: str = ""
    abandoned: bool = False
    kept: Kept | None = None
    """What the client kept once the task had begun; None unless that leaves more behind than its reply."""
    finished: Finished | None = None
    measured_up: Size | None = None
    """The size of the answer, where that is known only once it is computed."""
    program: Program | None = None
    """What its client does with it, where that is at hand."""
    leaves_s: Seconds = math.inf
    """When its client leaves, where that ends what it works on then."""
    fault: Fault | None = None
    """What goes wrong with the task, known once it has begun."""
    cause: str = ""
    """Why its client failed."""
    stopped_s: Seconds = NEVER
    works_s: Seconds = NEVER
    """How long its client works on it, known once it has begun."""
    code: int | None = None
    """Flower's code of the error in the place of a reply, where a fault is why."""
    life: int = 0
    """How often its client had lost all that it kept when it began."""
    lost: bool = False
    """Whether nothing will ever be heard of it."""
    absent: Callable[[int, Seconds, Seconds], Absences] | None = None
    """Says when a client was away between two moments; None where nobody ever is while it has a message."""
    discarded: str = ""
    """Why its reply does not count though no deadline was missed: ``paced.ENOUGH`` or ``paced.ABANDONED``."""
    number: int = 0
    """Which message it is, in the order of sending, from 1."""

    def __post_init__(self) -> None:
        self.number = int(self.id[1:])

    @property
    def up(self) -> Size:
        """Return the size of the answer."""
        return self.parcel.up if self.measured_up is None else self.measured_up

    @property
    def round(self) -> int:
        """Return the server's round that sent it."""
        return self.parcel.round

    @property
    def kind(self) -> str:
        """Return Flower's message type."""
        return self.parcel.kind

    @property
    def planned(self) -> Task:
        """Return what is to be done. Raises RunError while nobody knows."""
        if self.task is None:
            raise RunError(f"message {self.id} to client {self.client} was {self.stage} and has no task. This is a defect of fedsim.")
        return self.task

    @property
    def answered(self) -> bool:
        """Return whether its answer was put on the wire."""
        return self.computed_s != NEVER

    @property
    def wanted(self) -> bool:
        """Return whether somebody will want its numbers: its sender, or the client itself."""
        return self.kept is not None or not (self.abandoned or self.lost or self.fault is not None)

    def lose(self) -> None:
        """Answer at once that nobody is there."""
        self.fail(UNAVAILABLE)
        self.reached, self.arrived_s = False, self.sent_s
        self._go("arrived")

    def receive(self, now: Seconds) -> None:
        """Take that the message is at its client."""
        self.received_s = now
        self._go("held")

    def start(self, now: Seconds) -> None:
        """Take that its client acts on it."""
        self.started_s = now
        self._go("computing")

    def plan(self, task: Task, flops: float, steps: int, waited_s: Seconds = 0.0, batch_size: int = 0) -> None:
        """Take what is to be done, and what it costs."""
        self.task, self.nth, self.examples = task, task.number, task.examples
        self.flops, self.steps, self.waited_s, self.batch_size = flops, steps, waited_s, batch_size

    def measure(self, nth: int, examples: int, flops: float, up: Size) -> None:
        """Take which of its client's tasks it is, and what came of it: for a task whose cost shows only once it is computed."""
        self.nth, self.examples, self.flops, self.measured_up = nth, examples, flops, up

    def answer(self, now: Seconds) -> None:
        """Take that the work is done and the answer on its way."""
        self.computed_s = now
        self._go("returning")

    def arrive(self, now: Seconds) -> None:
        """Take that the answer, or the word that there is none, is at the server."""
        self.arrived_s = now
        self._go("arrived")

    def go(self, received_s: Seconds, computed_s: Seconds, arrived_s: Seconds) -> None:
        """Take that it went all the way by itself, and was acted on as soon as it was there: ``receive`` to ``arrive`` at once."""
        if self.stage != "sent":
            must(False, f"message {self.id} to client {self.client} went from {self.stage} all the way")
        self.received_s, self.started_s, self.computed_s, self.arrived_s = received_s, received_s, computed_s, arrived_s
        self.stage = "arrived"

    def fail(self, why: str) -> None:
        """Take that there is no reply but an error, and *why*."""
        self.failure = why

    def stop(self, now: Seconds, worked_s: Seconds) -> None:
        """Take that its client stops working on it *now*, by its fault, which leaves undone what *worked_s* would have taken besides."""
        fault = self.fault
        if fault is None:
            raise RunError(f"message {self.id} to client {self.client} was stopped by nothing. This is a defect of fedsim.")
        self.cause, self.stopped_s = fault.cause, now
        done = fault.after_s / worked_s if worked_s else 1.0
        if done < 1.0:
            self.flops, self.steps, self.waited_s = self.flops * done, int(self.steps * done), self.waited_s * done

    def hear(self) -> None:
        """Take that an error stands in the place of its reply, by its fault."""
        if self.fault is not None:
            self.cause = self.fault.cause
            self.code, self.failure = ANSWERED[self.fault.answer]

    def drop(self, now: Seconds, cause: str = "") -> None:
        """Take that nothing will ever be heard of it, from *now* on, and the *cause*; its fault's unless given."""
        self.lost = True
        if cause:
            self.cause, self.stopped_s = cause, now

    def abandon(self) -> None:
        """Take that nobody waits for the reply any more."""
        self.abandoned = True

    def settle(self, outcome: Outcome, loss: float | None = None, result: str = "", now: Seconds = math.inf) -> TaskRow:
        """Seal its fate, *now*, and return the row that tells it."""
        must(self.stage != "settled", f"message {self.id} to client {self.client} has its fate already")
        self.stage = "settled"
        down = self.parcel.down if self.reached else _NOTHING
        up = self.up if self.answered else _NOTHING  # What was never sent weighs nothing.
        parcel = self.parcel
        return TaskRow(  # By place: names take half as long again, and there is one for each message of a run.
            self.id, self.client, self.nth, parcel.kind, parcel.round, parcel.version, outcome,
            self.sent_s, self.received_s, self.started_s, self.computed_s, self.arrived_s, self.examples, self.steps, self.flops,
            down.payload, down.framing + up.back, up.payload, up.framing, loss, result, self.failure, self.waited_s, self.batch_size,
            down.resent + up.back_resent, up.resent, self.cause, self.stopped_s, self.discarded if outcome == "late" else "",
            parcel.edge_round, *self._away(now),
        )  # fmt: skip

    def _away(self, now: Seconds) -> tuple[Seconds, ...]:
        """Return for how long of the way down, of waiting, of its work and of the way up its client was away; *now* it is all over."""
        last = self.stopped_s if self.stopped_s >= 0 else self.arrived_s if self.arrived_s >= 0 else now
        absences = () if self.absent is None else self.absent(self.client, self.sent_s, last)
        if not absences:
            return ()
        begins = (self.sent_s, self.received_s, self.started_s, self.computed_s)
        ends = (self.received_s, self.started_s, self.computed_s, self.arrived_s)
        return tuple(
            away_s(absences, begin, end if end >= 0 else last) if begin >= 0 else 0.0 for begin, end in zip(begins, ends, strict=True)
        )

    def _go(self, stage: Stage) -> None:
        if stage not in AFTER[self.stage]:
            must(False, f"message {self.id} to client {self.client} went from {self.stage} to {stage}")
        self.stage = stage


_NOTHING = Size(0, 0)

@dataclass(frozen=True, slots=True)
class Made:
    """By which *edge* a model was made, of which *version* of the server's, and in which of the edge's rounds it is sent, from 0."""

    edge: int
    version: int
    edge_round: int


@dataclass(slots=True)
class Read:
    """The *parcels* of one push, by content and type; the content is kept alive, so that no other gets its id.

    Messages that are all there before the first is read are *still*: nobody's code runs between them, and what they carry stays.
    *made* says of which *version* and in which of its rounds an edge made what they carry: such a model is no version of the server's.
    """

    parcels: dict[tuple[int, str], tuple[RecordDict, Parcel]] = field(default_factory=dict[tuple[int, str], tuple[RecordDict, Parcel]])
    still: bool = False
    made: Made | None = None


class Mail:
    """Makes deliveries of messages, numbered in the order of sending, and of models, numbered in the order of first meeting."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._starts = fleet, records.StartCache(fleet.coding)
        self.sent = 0
        """How many messages were sent so far."""

    @property
    def newest(self) -> int:
        """Return the number of the newest model sent, -1 before the first."""
        return self._starts.newest

    def delivery(self, message: Message, now: Seconds, read: Read) -> Delivery:
        """Return *message*, as it is *now*, as a delivery; *read* holds what was read in this push. Raises RunError."""
        self.sent += 1
        message_id = f"m{self.sent:09d}"
        before, kind, node = compat_lazy.addressed(message)
        if before:  # Pushed before: its replies must not come under this one's name.
            message = compat.with_metadata(message.content, copy.copy(message.metadata))
        compat_lazy.set_message_id(message, message_id)
        # Strategies put one content into all messages of a round: it is read and copied once, until it changes.
        return Delivery(message_id, records.client_of(node), message, self.parcel(message, kind, read), now)

    def parcel(self, message: Message, kind: str, read: Read) -> Parcel:
        """Return what *message*, of a *kind*, carries as it is now."""
        content = message.content
        same = (id(content), kind)
        held = read.parcels.get(same)
        if held is None or not (read.still or records.unchanged(content, held[1].content)):
            held = read.parcels[same] = (content, self._parcel(message, kind, read.made))
        return held[1]

    def _parcel(self, message: Message, kind: str, made: Made | None) -> Parcel:
        content = records.snapshot(message.content)
        version = self._starts.version(next(iter(content.array_records.values()), None)) if made is None else made.version
        order, up, failure = None, records.Size(0, 0), ""
        if kind not in records.KINDS:
            failure = f"our client takes messages of type {' and '.join(records.KINDS)} only"
        else:
            order = records.order_of(message, self._starts, self._fleet.job)
            names = reply_metrics(order.job, self._fleet.scores, self._fleet.client(0).tells)
            training = order.job.kind == "train"
            extra = self._fleet.extra_metrics if training else ()
            forms, coding = self._fleet.forms if training else {}, self._fleet.coding
            up = records.reply_size(coding.up.forms(forms) if coding else forms, (*names, *extra))
        over = self._fleet.overhead
        down = records.size_of(content, records.DOWN).over(over)
        own = (-1, 0) if made is None else (made.edge, made.edge_round)
        return Parcel(content, kind, records.round_of(content), version, down, up.over(over) if up.total else up, order, failure, *own)
