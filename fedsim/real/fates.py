"""Letters: messages to real clients, what each carries, how far it came, and the row that tells it. Moves no message."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message

from fedsim.client.program import News
from fedsim.codec import Coding
from fedsim.core.errors import RunError
from fedsim.core.types import Params, Seconds
from fedsim.data.stream import Stream
from fedsim.flower import compat, records
from fedsim.flower.records import Size
from fedsim.real.clock import RunClock
from fedsim.real.diary import Entry
from fedsim.sim.rows import Outcome, PredictionRow, TaskRow

NEVER = -1.0
_NOTHING = Size(0, 0)


@dataclass(slots=True)
class Letter:
    """One message to a client, and what came of it. *id* counts the run's messages; *wire_id* is the SuperLink's.

    What it *carried*, and the *arrays* in it as they were sent, are let go of when its fate is sealed: a model each round, that nobody
    else may hold any more.
    """

    id: str
    client: int
    carried: Message | None
    kind: str
    round: int
    version: int
    down: Size
    sent_s: Seconds
    arrays: ArrayRecord | None = None
    sent_wall_s: float = 0.0
    wire_id: str = ""
    arrived_s: Seconds = NEVER
    arrived_wall_s: float = 0.0
    up: Size = _NOTHING
    failure: str = ""
    abandoned: bool = False
    discarded: str = ""
    outcome: Outcome = "in flight"
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    digest: str = ""
    _reply: Message | None = None

    @property
    def message(self) -> Message:
        """Return what was sent. Raises RunError once its fate is sealed."""
        if self.carried is None:
            raise RunError(f"message {self.id} to client {self.client} was asked for after its end. This is a defect of fedsim.")
        return self.carried

    @property
    def number(self) -> int:
        """Return which message it is, in the order of sending, from 1."""
        return int(self.id[1:])

    @property
    def examples(self) -> int:
        """Return how many examples the reply weighs as much as."""
        return int(self.metrics.get("num-examples", 0))

    def lose(self, why: str, reply: Message) -> None:
        """Take that nobody is there to send it to, and *why*; *reply* says so."""
        self.down, self.failure, self.arrived_s, self._reply = _NOTHING, why, self.sent_s, reply

    def arrive(self, now: Seconds, wall_s: float, reply: Message) -> None:
        """Take that *reply* came *now*."""
        self.arrived_s, self.arrived_wall_s, self._reply = now, wall_s, reply
        if reply.has_error():
            self.failure = reply.error.reason or f"error {reply.error.code}"
            return
        self.up = records.size_of(reply.content, records.UP)
        self.metrics = {
            name: float(value)
            for record in reply.content.metric_records.values() for name, value in record.items() if isinstance(value, int | float)
        }  # fmt: skip

    def taken(self) -> Message:
        """Return the reply as a strategy is given it: from the client, and not from the node that it happens to be."""
        if self._reply is None:
            raise RunError(f"message {self.id} to client {self.client} was taken before it came. This is a defect of fedsim.")
        reply, self._reply = self._reply, None
        compat.set_source(reply, records.node_of(self.client))
        if not reply.has_error() and "metrics" in reply.content:
            self.digest = records.digest_of_reply(reply)
        return reply

    def check(self) -> None:
        """Raise RunError where a number in the reply is none."""
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                self.failure = f"{name} became {value}"
                raise RunError(
                    f"round {self.round}: {name} of client {self.client} became {value}. Training diverged; try a smaller"
                    f" training.optimizer.lr."
                )

    def settle(self, outcome: Outcome) -> None:
        """Seal its fate."""
        self.outcome, self._reply, self.carried, self.arrays = outcome, None, None, None


class Post:
    """Makes letters of messages, numbered in the order of sending, and of models, numbered in the order of first meeting."""

    def __init__(self, coding: Coding | None = None) -> None:
        self._coding, self._starts = coding, records.StartCache(coding)
        self.sent = 0
        """How many messages were sent so far."""

    @property
    def newest(self) -> int:
        """Return the number of the newest model sent, -1 before the first."""
        return self._starts.newest

    def read(self, arrays: Iterable[ArrayRecord]) -> Params:
        """Return the parameters that *arrays* of a reply carry, as a strategy is given them."""
        came = {name: array for record in arrays for name, array in records.params_of(record).items()}
        return came if self._coding is None else self._coding.got_up(came)

    def start(self, letter: Letter) -> Params:
        """Return the parameters that the client of *letter* started from; none where it was sent none."""
        return {} if letter.arrays is None else self._starts.of(letter.arrays).params

    def letters(self, messages: Iterable[Message], now: Seconds) -> list[Letter]:
        """Return *messages*, as they are *now*; what carries the same is looked at once."""
        read: dict[int, tuple[ArrayRecord | None, int, int, Size]] = {}
        letters: list[Letter] = []
        for message in messages:
            content = message.content
            if id(content) not in read:
                arrays = next(iter(content.array_records.values()), None)
                version = self._starts.version(arrays)
                read[id(content)] = arrays, records.round_of(content), version, records.size_of(content, records.DOWN)
            arrays, number, version, size = read[id(content)]
            self.sent += 1
            client = records.client_of(message.metadata.dst_node_id)
            letters.append(Letter(f"m{self.sent:09d}", client, message, message.metadata.message_type, number, version, size, now, arrays))
        return letters


def row_of(letter: Letter, entry: Entry | None, clock: RunClock, ahead_s: float, now: Seconds) -> TaskRow:
    """Return the row that tells the fate of *letter*, with the times that its node tells in *entry*, by a clock *ahead_s* of ours.

    They are held between its sending and the coming of its reply, and what lasted at the node lasts as long.
    """
    received = started = computed = NEVER
    if entry is not None:
        latest = letter.arrived_s if letter.arrived_s >= 0 else now
        moments = [entry.received_wall_s, entry.started_wall_s, entry.computed_wall_s]
        moments = [clock.told(wall_s, ahead_s) for wall_s in moments]
        received, started, computed = _held(moments, letter.sent_s, latest)
        if entry.acted_s >= 0:  # To the client on its stream it began then: to the bit, so that it can be retraced.
            started = min(max(entry.acted_s, letter.sent_s), latest)
            received, computed = min(received, started), max(computed, started)
    loss = letter.metrics.get("train_loss", letter.metrics.get("loss"))
    arrived = letter.outcome == "arrived"
    return TaskRow(
        message=letter.id, client=letter.client, number=entry.number if entry else -1, kind=letter.kind, round=letter.round,
        version=letter.version, outcome=letter.outcome, sent_s=letter.sent_s, received_s=received, started_s=started, computed_s=computed,
        arrived_s=letter.arrived_s, examples=entry.examples if entry else letter.examples, steps=entry.steps if entry else 0,
        flops=entry.flops if entry else 0.0, down_bytes=letter.down.payload, down_framing_bytes=letter.down.framing + letter.up.back,
        up_bytes=letter.up.payload, up_framing_bytes=letter.up.framing, loss=loss if arrived else None,
        result=letter.digest if arrived else "", failure=letter.failure, batch_size=entry.batch_size if entry else 0,
        discarded=letter.discarded if letter.outcome == "late" else "",
    )  # fmt: skip


def tested(row: TaskRow, news: News, stream: Stream, before: Seconds) -> PredictionRow:
    """Return the row of what the client of *row* predicted on its *stream*, whose drifts are on record up to *before*."""
    lived = (stream.changes_s > before) & (stream.changes_s <= row.started_s)
    return PredictionRow(
        client=row.client, message=row.message, round=row.round, version=row.version, now_s=row.started_s, items=news.items,
        arrived_s=stream.arrived_s[news.items], labelled_s=stream.labelled_s[news.items], y=news.y, prediction=news.prediction,
        loss=news.loss, concepts=stream.concepts[news.items], alarms=news.alarms, drifts_s=stream.changes_s[lived],
    )  # fmt: skip


def _held(moments: list[Seconds], earliest: Seconds, latest: Seconds) -> list[Seconds]:
    """Return *moments*, moved as one to where they lie between *earliest* and *latest*; squeezed where they last longer than that.

    >>> _held([3.0, 4.0, 5.0], 0.0, 4.5), _held([-1.0, 0.0, 1.0], 0.0, 9.0), _held([0.0, 5.0, 10.0], 1.0, 3.0)
    ([2.5, 3.5, 4.5], [0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    """
    first, last = min(moments), max(moments)
    if last - first > latest - earliest:
        share = (latest - earliest) / (last - first) if math.isfinite(last - first) else 0.0
        return [earliest + (moment - first) * share for moment in moments]
    by = max(earliest - first, min(0.0, latest - last))
    return [min(latest, max(earliest, moment + by)) for moment in moments]
