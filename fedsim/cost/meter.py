"""The meter: from the moments and sizes of messages to seconds by phase, joules and grams. Knows no journal and moves no clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core.types import BoolArray, FloatArray, IntArray, Seconds
from fedsim.cost import radio
from fedsim.cost.carbon import J_PER_KWH, Intensity
from fedsim.cost.energy import Energy
from fedsim.cost.network import Network, downs_s, pieces, ups_s
from fedsim.cost.radio import Way

JOULE = 2.0**-20
"""What joules are whole multiples of, some millionth: then float64 sums them exactly, in whatever order, up to 2**33 J (2.4 MWh)."""
GRAM = 2.0**-30
"""The same of grams."""


@dataclass(frozen=True, slots=True)
class Moments:
    """When messages were sent, received, begun, computed and back, in virtual seconds; NaN for what never happened. Shapes: all (n,).

    *waited_s* is how much of the work waited for mini-batches. Of those *open* the run's end came first: what had begun goes on to there.
    *stopped_s* is when a client stopped for good, crashed or gone, NaN where it did not; None: nobody did. *away_s* is for how long of the
    way down, of waiting, of work and of the way up each client was away; None: nobody was.
    """

    sent_s: FloatArray
    received_s: FloatArray
    started_s: FloatArray
    computed_s: FloatArray
    arrived_s: FloatArray
    waited_s: FloatArray
    open: BoolArray
    stopped_s: FloatArray | None = None
    away_s: tuple[FloatArray, FloatArray, FloatArray, FloatArray] | None = None


@dataclass(frozen=True, slots=True)
class Spans:
    """From when to when each phase of each message went on, as far as it came; empty where it never began. Shapes: all (n,)."""

    down: tuple[FloatArray, FloatArray]
    waiting: tuple[FloatArray, FloatArray]
    work: tuple[FloatArray, FloatArray]
    up: tuple[FloatArray, FloatArray]
    loading_s: FloatArray
    away_s: tuple[FloatArray, ...]

    @property
    def lasted_s(self) -> tuple[FloatArray, ...]:
        """Return how long each of the four phases went on while the client was there. Shapes: (n,) each."""
        phases = (self.down, self.waiting, self.work, self.up)
        return tuple(np.maximum(0.0, end - begin - away_s) for (begin, end), away_s in zip(phases, self.away_s, strict=True))

    @property
    def compute_s(self) -> FloatArray:
        """Return how long each device computed: its work while it was there, less what that waited for mini-batches. Shapes: (n,)."""
        return np.maximum(0.0, self.lasted_s[2] - self.loading_s)


def spans(moments: Moments, end_s: Seconds) -> Spans:
    """Return what went on from when to when, in a run that ended at *end_s*.

    A phase goes on until the next thing that happened to the message, or its reply or an error was there; to the end of the run, or until
    its client stopped for good, where that came first. What is known of no moment at all took no time.

    >>> nan, f = np.nan, lambda value: np.array([value])
    >>> cut = spans(Moments(f(0.0), f(2.0), f(3.0), f(nan), f(nan), f(0.5), np.array([True])), end_s=5.0)
    >>> cut.compute_s.tolist(), cut.up[1] - cut.up[0]
    ([1.5], array([0.]))
    >>> gone = Moments(f(0.0), f(2.0), f(3.0), f(nan), f(63.0), f(0.0), np.array([False]), stopped_s=f(4.0))
    >>> spans(gone, end_s=99.0).compute_s.tolist()
    [1.0]
    """
    last = np.where(moments.open & np.isnan(moments.arrived_s), end_s, moments.arrived_s)
    if moments.stopped_s is not None:  # What the server hears of it, and when, is nothing that its device did.
        last = np.where(np.isnan(moments.stopped_s), last, moments.stopped_s)
    steps = (moments.sent_s, moments.received_s, moments.started_s, moments.computed_s)
    nexts = (moments.received_s, moments.started_s, moments.computed_s, moments.arrived_s)
    found: list[tuple[FloatArray, FloatArray]] = []
    for begin, then in zip(steps, nexts, strict=True):
        until = np.where(np.isnan(then), last, then)
        took = ~np.isnan(begin) & ~np.isnan(until) & (until > begin)
        start = np.where(np.isnan(begin), 0.0, begin)
        found.append((start, np.where(took, until, start)))
    down, waiting, work, up = found
    away_s = moments.away_s or (np.zeros(len(moments.sent_s)),) * 4
    return Spans(down, waiting, work, up, np.minimum(moments.waited_s, np.maximum(0.0, work[1] - work[0] - away_s[2])), away_s)


@dataclass(frozen=True, slots=True)
class Charged:
    """What messages cost their clients: joules by phase, seconds of computing, and grams (NaN where nobody asked). Shapes: all (n,)."""

    compute_j: FloatArray
    down_j: FloatArray
    up_j: FloatArray
    idle_j: FloatArray
    compute_s: FloatArray
    grams: FloatArray


@dataclass(frozen=True, slots=True)
class Meter:
    """Charges messages by an energy *model*, over the links of *network*; and in grams, where an *intensity* is given.

    *brought* says that messages are brought as soon as they are sent; else (``transport``) a radio is on only as long as the client's own
    link takes, and the rest is waiting for somebody to look.
    """

    kind: str
    model: Energy
    network: Network
    intensity: Intensity | None = None
    brought: bool = True

    @property
    def constants(self) -> dict[str, float]:
        """Return every number that joules and grams rest on."""
        return {**self.model.constants, **(self.intensity.constants if self.intensity else {})}

    def charge(self, clients: IntArray, moments: Moments, down_bytes: IntArray, up_bytes: IntArray, end_s: Seconds) -> Charged:
        """Return what messages to *clients* cost, each by itself: whoever else is charged with it moves no bit. Shapes: all (n,).

        Of a transfer that the run's end cut off, or its client when it left, so much was sent as the client's own link carries in that
        time, piece by piece where its rate goes with time.
        """
        went = spans(moments, end_s)
        lasted = went.lasted_s
        over = moments.open if moments.stopped_s is None else moments.open | ~np.isnan(moments.stopped_s)
        down_s, down_share = self._radio("down", clients, down_bytes, went, over & np.isnan(moments.received_s))
        up_s, up_share = self._radio("up", clients, up_bytes, went, over & np.isnan(moments.arrived_s))
        waits = (lasted[0] - down_s, lasted[1], lasted[3] - up_s, went.loading_s)
        idle_s = waits[0] + waits[1] + waits[2] + waits[3]
        model = self.model
        compute_j = _whole(model.compute_j(clients, went.compute_s), went.compute_s > 0, JOULE)
        down_j = _whole(model.down_j(clients, down_bytes * down_share, down_s), down_bytes > 0, JOULE)
        up_j = _whole(model.up_j(clients, up_bytes * up_share, up_s), up_bytes > 0, JOULE)
        idle_j = _whole(model.idle_j(clients, idle_s), idle_s > 0, JOULE)
        grams = np.full(len(clients), np.nan)
        if self.intensity is not None:
            began, ended = went.down[0], np.maximum.reduce([went.down[1], went.waiting[1], went.work[1], went.up[1]])
            parts = ((compute_j, went.work), (down_j, went.down), (up_j, went.up), (idle_j, (began, ended)))
            grams = np.zeros(len(clients))
            for joules, (begin, end) in parts:
                grams = grams + joules * self.intensity.mean(begin, end) / J_PER_KWH
            grams = _whole(grams, grams > 0, GRAM)
        return Charged(compute_j, down_j, up_j, idle_j, went.compute_s, grams)

    def _radio(self, way: Way, clients: IntArray, sizes: IntArray, went: Spans, cut: BoolArray) -> tuple[FloatArray, FloatArray]:
        """Return how long each radio was on for *sizes* bytes one *way*, and which share of them went over it; *cut* were cut off."""
        at = 0 if way == "down" else 3
        (begin, end), lasted, away_s = (went.down, went.up)[way == "up"], went.lasted_s[at], went.away_s[at]
        varies = pieces(self.network) is not None
        own_s = lasted if varies else downs_s(self.network, clients, sizes) if way == "down" else ups_s(self.network, clients, sizes)
        share = np.where(cut & (own_s > 0), np.minimum(1.0, lasted / np.where(own_s > 0, own_s, 1.0)), 1.0)
        if varies:
            own_s = own_s.copy()
            for i in np.flatnonzero((lasted > 0) & (cut | (not self.brought))).tolist():
                # It had not begun while its client was away: that comes first.
                which = self.network, way, int(clients[i]), int(sizes[i]), float(begin[i] + away_s[i]), float(end[i])
                if cut[i]:
                    own_s[i], share[i] = radio.went(*which)
                else:
                    own_s[i] = radio.took_s(*which)
        return (lasted if self.brought else np.minimum(lasted, own_s)), share


def _whole(values: FloatArray, came: BoolArray, unit: float) -> FloatArray:
    """Return *values* as whole multiples of *unit*, and 0 where nothing *came*: what never happened costs nothing."""
    return np.where(came, np.rint(values / unit) * unit, 0.0)
