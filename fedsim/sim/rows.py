"""What the simulator tells whoever listens: plain rows, in the order in which things become certain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedsim.core.types import FloatArray, IntArray, Seconds
from fedsim.core.values import quick

Outcome = Literal["arrived", "late", "failed", "in flight"]
"""arrived: handed to the strategy. late: after the deadline, or never, discarded. failed: an error reply. in flight: the
run ended first."""


STREAM_ENDED = "the client's stream has ended"
"""The failure of a message that came when its client had nothing left to train on."""


@quick
@dataclass(frozen=True, slots=True)
class TaskRow:
    """One message to a client and all that came of it; times are virtual seconds, -1.0 for what never happened.

    *number* counts the client's own tasks of this *kind*; *version* is that of the model it was sent. Bytes are what
    was put on the wire, framing apart; of the framing, so many were *resent*, lost on the way before. *result* is the SHA-256 of what
    the strategy was given, *failure* the reason why it was given an error; both are empty otherwise. *waited_s* is how long its steps
    waited for mini-batches to be loaded, *batch_size* what the client's policy chose; both are 0 where there is no loader, and no policy.
    *cause* says why its client failed, and *stopped_s* when it stopped working on it: *steps* and *flops* are then what was done by then,
    to the share of its time. Of the way down, of waiting, of the work and of the way up its client was away for *down_away_s* and so on:
    what it was at paused, or had not begun. *discarded* says why a late reply does not count where no deadline was missed: its server had
    'enough', or 'abandoned' the round. Bytes of a transfer that broke off count in full, as do those that are on their way when a run
    ends. Behind an edge all moments are those between edge and client, *version* is the server's that the edge was sent, and *edge_round*
    says which of the edge's own rounds it was, from 0.
    """

    message: str
    client: int
    number: int
    kind: str
    round: int
    version: int
    outcome: Outcome
    sent_s: Seconds
    received_s: Seconds
    started_s: Seconds
    computed_s: Seconds
    arrived_s: Seconds
    examples: int
    steps: int
    flops: float
    down_bytes: int
    down_framing_bytes: int
    up_bytes: int
    up_framing_bytes: int
    loss: float | None
    result: str
    failure: str
    waited_s: Seconds = 0.0
    batch_size: int = 0
    down_resent_bytes: int = 0
    up_resent_bytes: int = 0
    cause: str = ""
    stopped_s: Seconds = -1.0
    discarded: str = ""
    edge_round: int = 0
    down_away_s: Seconds = 0.0
    waiting_away_s: Seconds = 0.0
    work_away_s: Seconds = 0.0
    up_away_s: Seconds = 0.0

    @property
    def wire_bytes(self) -> int:
        """Return all bytes that this message and its reply put on the wire."""
        return self.down_bytes + self.down_framing_bytes + self.up_bytes + self.up_framing_bytes


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One batch of messages that a strategy waited for: who was asked, who answered in time, and when.

    *abandoned* says why nothing of it counts, where a pacing says so; empty otherwise.
    """

    round: int
    kind: str
    started_s: Seconds
    ended_s: Seconds
    asked: int
    arrived: int
    failed: int
    missed: int
    abandoned: str = ""


@dataclass(frozen=True, slots=True)
class EdgeRow:
    """What passed between the server and one edge in a round: a model down, and one up; times are virtual seconds, -1.0 for never.

    *answered_s* is when the edge put its model on the link, once it had *played* so many rounds of *asked* messages each. *messages* (n,)
    are the numbers of those that it sent to its clients. Bytes as in TaskRow, and not those of clients. No digest covers these rows.
    """

    round: int
    kind: str
    edge: int
    version: int
    outcome: Outcome
    sent_s: Seconds
    received_s: Seconds
    answered_s: Seconds
    arrived_s: Seconds
    played: int
    asked: int
    down_bytes: int
    down_framing_bytes: int
    up_bytes: int
    up_framing_bytes: int
    messages: IntArray

    @property
    def wire_bytes(self) -> int:
        """Return all bytes that went over the link between the server and the edge."""
        return self.down_bytes + self.down_framing_bytes + self.up_bytes + self.up_framing_bytes


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of the server's model, numbered as in TaskRow: made at *now_s* of the version before, and the results *merged* into it.

    *merged* (n,) are the numbers of the messages whose training results it took in. The first version is there when it is first
    sent. The digest does not cover these rows.
    """

    version: int
    now_s: Seconds
    merged: IntArray


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """What a client predicted before one training task: one entry per example. Shapes: (n,), but for the last two.

    *items* are numbers in the client's stream; *concepts* the true ones, which no client knows. *version* is the model
    that was received. *alarms* (a,) are the items after whose labels its detector signalled drift, at *now_s*;
    *drifts_s* (d,) the true times of the drifts since the client's last such row, which no client knows either.
    """

    client: int
    message: str
    round: int
    version: int
    now_s: Seconds
    items: IntArray
    arrived_s: FloatArray
    labelled_s: FloatArray
    y: IntArray
    prediction: IntArray
    loss: FloatArray
    concepts: IntArray
    alarms: IntArray
    drifts_s: FloatArray


@dataclass(frozen=True, slots=True)
class StepRow:
    """What was watched of training tasks that were handed over together, an entry per watched step. Shapes: all (k,).

    *messages* are the numbers of the messages, *numbers* count the client's own tasks. From *steps* on it is ``learn.work.STEP_COLUMNS``.
    No digest covers these rows.
    """

    messages: IntArray
    clients: IntArray
    numbers: IntArray
    rounds: IntArray
    versions: IntArray
    steps: IntArray
    loss: FloatArray
    gradient: FloatArray
    update: FloatArray
    lr: FloatArray
    batch: IntArray


@dataclass(frozen=True, slots=True)
class ExaminedRow:
    """A training task at whose start gradients of *examples* examples were taken one by one.

    *signal* estimates |G|^2 of them and *trace* tr(Sigma); *batch* is the size of its first mini-batch. No digest covers these rows.
    """

    message: str
    client: int
    number: int
    round: int
    version: int
    batch: int
    examples: int
    signal: float
    trace: float


@dataclass(frozen=True, slots=True)
class NoiseRow:
    """Signal and noise of the updates that *clients* clients made of one version and that were handed over together.

    *signal* estimates |G|^2 and *trace* tr(Sigma), G being the mean update and Sigma the covariance of one client's; *counted* is how many
    clients of equal weight the mean is as good as. As clients computed them, before mods and codecs. No digest covers these rows.
    """

    round: int
    version: int
    now_s: Seconds
    clients: int
    counted: float
    signal: float
    trace: float


@dataclass(frozen=True, slots=True)
class WorkRow:
    """What a real node's processor took for a message: *cpu_s* in all, its process's start included, of which the task took *work_s*.

    No digest covers these rows.
    """

    message: str
    client: int
    cpu_s: Seconds
    work_s: Seconds


@dataclass(frozen=True, slots=True)
class EnergyRow:
    """What messages cost the devices of their clients, an entry per message, once their fates are known. Shapes: all (k,).

    Joules at work, receiving, sending, and while a message waited; *grams* of CO2 are NaN where no intensity is given. *messages* are the
    numbers of the messages. No digest covers these rows.
    """

    messages: IntArray
    compute_j: FloatArray
    down_j: FloatArray
    up_j: FloatArray
    idle_j: FloatArray
    grams: FloatArray


@dataclass(frozen=True, slots=True)
class HeardRow:
    """What clients told of themselves in replies of one *kind* that were handed over together, an entry per reply. Shapes: (k,).

    *names* are the k' names of their metrics, as JSON, and *told* (k' * k,) the values, a name's own in a row; NaN where a reply has none
    of the name. As the strategy was given them, after mods. *messages* are the numbers of the messages. No digest covers these rows.
    """

    kind: str
    now_s: Seconds
    names: str
    messages: IntArray
    clients: IntArray
    rounds: IntArray
    versions: IntArray
    told: FloatArray


@dataclass(frozen=True, slots=True)
class DevicesRow:
    """What *clients* are from the beginning, whether they are ever asked or not: how fast, and how many examples they *held* to train on.

    Shapes: all (n,). *gflops* are effective speeds. No digest covers this row.
    """

    clients: IntArray
    gflops: FloatArray
    held: IntArray


class Observer(Protocol):
    """Hears every row, in order. What it does with them moves nothing in the simulation."""

    def task(self, row: TaskRow) -> None:
        """Hear that a task's fate is sealed."""
        ...

    def tested(self, row: PredictionRow) -> None:
        """Hear what a client predicted before it trained."""
        ...

    def version(self, row: VersionRow) -> None:
        """Hear of a version of the model, and what it took in."""
        ...

    def watched(self, row: StepRow) -> None:
        """Hear what was watched of training tasks."""
        ...

    def examined(self, row: ExaminedRow) -> None:
        """Hear of signal and noise within a client."""
        ...

    def noise(self, row: NoiseRow) -> None:
        """Hear of signal and noise between clients."""
        ...

    def heard(self, row: HeardRow) -> None:
        """Hear what clients told of themselves."""
        ...

    def energy(self, row: EnergyRow) -> None:
        """Hear what messages cost the devices of their clients."""
        ...

    def edge(self, row: EdgeRow) -> None:
        """Hear what passed between the server and an edge."""
        ...

    def round(self, row: RoundRow) -> None:
        """Hear that a batch of replies was handed over."""
        ...


class Overseer(Observer, Protocol):
    """Hears of real nodes too."""

    def settled(self, rows: Sequence[TaskRow]) -> None:
        """Hear what a server knows of tasks whose fate is sealed, before their nodes tell the rest, and ``task`` all of it."""
        ...

    def worked(self, row: WorkRow) -> None:
        """Hear what a node's processor took for a message."""
        ...
