"""A federation whose clients get their examples over time: order, arrivals, drift and labels put together.

Each client's stream is a function of (key, client) alone. Examples are copied only where drift alters them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeAlias, cast

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import FloatArray, IntArray
from fedsim.data.federation import TEST_CLIENTS, Federation
from fedsim.data.source import Examples, Pool
from fedsim.data.stream import Recent, Stream
from fedsim.data.stream.arrivals import Arrivals, AtStart, Replayed
from fedsim.data.stream.change import Alters, Selects
from fedsim.data.stream.drift import Onset, Schedule, Timing
from fedsim.data.stream.labelling import Labelling
from fedsim.data.stream.order import Order
from fedsim.data.stream.trace import Listed

PROBED = 100
"""Clients of which one must get something, or the scenario is refused."""

Known: TypeAlias = Sequence[float] | Mapping[str, Sequence[float]]
"""Times of drifts that a scenario declares: for all clients, or by client (its number as text, as TOML has keys)."""


def known_of(known_s: Known, client: int) -> Sequence[float] | None:
    """Return the declared drift times of *client*; None where nothing is declared of it.

    >>> known_of([5.0], 3), known_of({"3": [5.0]}, 3), known_of({"3": [5.0]}, 4)
    ([5.0], [5.0], None)
    """
    return known_s.get(str(client)) if isinstance(known_s, Mapping) else known_s


@dataclass(frozen=True, slots=True)
class Drift:
    """What changes, and when for whom. One of *selects* and *alters* is None."""

    timing: Timing
    selects: Selects | None = None
    alters: Alters | None = None


@dataclass(frozen=True, slots=True)
class PoolStamps:
    """The time stamps of a pool's training examples, by client. Shapes: times_s (n,). See ``stamps_of``."""

    times_s: FloatArray
    federation: Federation

    def of(self, client: int) -> FloatArray:
        """Return the stamps of what *client* trains on, in the order of the data."""
        return self.times_s[self.federation.train(client)]


@dataclass(frozen=True, slots=True)
class ClientStreams:
    """The streams of a federation; see ``attach``. *base* is the federation without them.

    *items* is how many arrivals a client has, None for as many as it trains on; the first *stored* come at time 0.
    *known_s* are the times of true drifts that somebody knows of recorded data; what a client does not live to see, a
    drift before its first item or after its last, is none of its own.
    """

    base: Federation
    arrivals: Arrivals
    order: Order
    labelling: Labelling
    drift: Drift | None
    items: int | None
    stored: int
    known_s: Known | None = None
    _recent: Recent = field(default_factory=Recent, compare=False, repr=False)

    def of(self, client: int) -> Stream:
        """Return the stream of *client*."""
        return self._recent.get(client, self._make)

    def _make(self, client: int) -> Stream:
        arrived_s, places, concepts = self._arrive(client)
        if self.drift is not None:
            changes_s = self.drift.timing.changes_s(client, arrived_s)
        elif self.known_s is not None:
            changes_s = np.array(known_of(self.known_s, client) or (), dtype=np.float64)
            changes_s = changes_s[(changes_s > arrived_s[0]) & (changes_s <= arrived_s[-1])] if len(arrived_s) else changes_s[:0]
        else:
            begins = np.flatnonzero(np.diff(concepts)) + 1
            changes_s = arrived_s[begins] if self.order.tasks > 1 else np.empty(0)
            changes_s = np.unique(changes_s[changes_s > arrived_s[:1]]) if len(changes_s) else changes_s
        positions = np.arange(len(places)) if self.drift is not None and self.drift.alters is not None else places
        return Stream(arrived_s, self.labelling.times(client, arrived_s), positions, concepts, changes_s)

    def _arrive(self, client: int) -> tuple[FloatArray, IntArray, IntArray]:
        """Return when each item comes, where in the base's data it lies, and its concept. Shapes: all (n,)."""
        held = self._read(client)
        chosen, concepts = self.order.items(client, held, lambda: self._labels(client, held))
        count = len(chosen) if self.items is None else self.items
        stored = min(self.stored, count)
        with np.errstate(over="ignore"):
            arrived_s = np.concatenate([np.zeros(stored), self.arrivals.times(client, count - stored)])
        if not np.isfinite(arrived_s[-1:]).all():
            raise ScenarioError(
                f"stream.arrivals: item {count - 1} of client {client} would come at {arrived_s[-1]} s. Let them come sooner."
            )
        if self.drift is not None and self.drift.selects is not None:
            labels = self._labels(client, held)[chosen]
            whole = self.drift.timing.whole(client, arrived_s)
            which, concepts = self.drift.selects.pick(client, labels, whole)
            there = which >= 0  # An arrival that finds nothing does not happen.
            return arrived_s[there], held[chosen[which[there]]], concepts[there]
        n = min(len(arrived_s), len(chosen))
        arrived_s, places, concepts = arrived_s[:n], held[chosen[:n]], concepts[:n]
        if self.drift is not None:
            concepts = np.rint(self._amounts(client, arrived_s)).astype(np.int64)
        return arrived_s, places, concepts

    def _amounts(self, client: int, arrived_s: FloatArray) -> FloatArray:
        assert self.drift is not None and self.drift.alters is not None
        if self.drift.alters.whole:
            return self.drift.timing.whole(client, arrived_s).astype(np.float64)
        return self.drift.timing.amounts(client, arrived_s)

    def _read(self, client: int) -> IntArray:
        """Return the positions that *client* reads, in the order of the data as it meets them."""
        held = self.base.train(client)
        if not self.order.shares:
            return held
        assert self.base.pooled is not None
        own = self.base.validation(client) if self.base.kept_back else held[:0]
        everything = np.delete(np.arange(len(self.base.pooled), dtype=np.int64), own)
        return np.roll(everything, -int(np.searchsorted(everything, held[0])))

    def _labels(self, client: int, held: IntArray) -> IntArray:
        base = self.base
        return (base.examples(client) if base.pooled is None else base.pooled).y[held]

    # Where drift alters examples, each client's are made for it: a Generator.

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example's features."""
        return self.base.shape

    @property
    def outputs(self) -> int:
        """Return the number of classes."""
        return self.base.outputs

    def sizes(self, clients: IntArray) -> IntArray:
        """Return how many examples each of *clients* holds, kept back ones included. Shapes: (n,) -> (n,)."""
        return self.base.held(clients)

    def client(self, client: int) -> Examples:
        """Return what *client* trains on, in the order of arrival and as it arrives, then what never does, then the rest.

        What never arrives, and what is kept back for evaluation, is as it was before any drift.
        """
        return self.altered(client, self.base.examples(client) if self.base.pooled is None else self.base.pooled)

    def altered(self, client: int, base: Examples) -> Examples:
        """Return the same, of the examples *base* that are the client's, or the pool's, before any drift."""
        assert self.drift is not None and self.drift.alters is not None
        arrived_s, places, _ = self._arrive(client)
        train, kept = self.base.train(client), self.base.validation(client)
        kept = kept if len(train) < len(self.base.positions(client)) else kept[:0]  # A single example is both.
        rest = np.concatenate([np.setdiff1d(train, places), kept])
        everything = np.concatenate([places, rest])
        amounts = np.concatenate([self._amounts(client, arrived_s), np.zeros(len(rest))])
        return self.drift.alters.alter(client, everything, Examples(base.x[everything], base.y[everything]), amounts)


def drift_of(change: Selects | Alters, schedule: Schedule, onset: Onset, key: Key) -> Drift:
    """Return the drift of *change* by *schedule* and *onset*. Raises ScenarioError when their concepts do not fit."""
    known, passed = change.concepts, schedule.concepts
    if known and passed > known:
        raise ScenarioError(
            f"stream.drift.schedule: passes through {passed} concepts, and stream.drift.change has only {known}."
        )
    timing = Timing(schedule, onset, passed or known or 2, key)
    if hasattr(change, "pick"):
        return Drift(timing, selects=cast(Selects, change))
    if not (hasattr(change, "alter") and hasattr(change, "whole")):
        raise ScenarioError(
            f"stream.drift.change.kind: returned a {type(change).__name__}, which has neither pick nor alter and whole."
        )
    return Drift(timing, alters=cast(Alters, change))


def stamps_of(pool: Pool, kept: IntArray, federation: Federation) -> PoolStamps | None:
    """Return the time stamps of *federation*, whose training part is *kept* of *pool*; None where there are none."""
    if pool.times_s is None:
        return None
    partition, times_s = federation.partition, pool.times_s[kept]
    assert partition is not None
    back = np.flatnonzero(np.diff(times_s[partition.order]) < 0.0) + 1
    client = np.searchsorted(partition.offsets, back, side="right") - 1
    if len(inside := client[back > partition.offsets[client]]):  # Between two clients time may go back.
        raise ScenarioError(
            f"data.partition: client {inside[0]} gets examples that are out of time order, since the file is sorted within"
            " each of its own clients only. Take { kind = 'natural' }, or sort the file by time."
        )
    return PoolStamps(times_s, federation)


def attach(
    base: Federation,
    arrivals: Arrivals,
    order: Order,
    labelling: Labelling,
    drift: Drift | None = None,
    items: int | None = None,
    stored: int = 0,
    known_s: Known | None = None,
) -> Federation:
    """Return *base* with streams. Raises ScenarioError for parts that do not go together, and when nothing ever comes."""
    alters = drift is not None and drift.alters is not None
    if drift is not None and order.tasks > 1:
        raise ScenarioError("stream.order.kind: already says which concept comes when. Leave out stream.drift, or take another order.")
    if order.shares and (base.pooled is None or alters):
        why = "its clients make their own" if base.pooled is None else "this drift alters them for each client"
        raise ScenarioError(f"stream.order.kind = 'offset': lets clients share examples, and {why}. Try 'as_is'.")
    if drift is not None and isinstance(arrivals, AtStart):
        raise ScenarioError("stream.drift: all examples are there at time 0, so nothing can change. Name other stream.arrivals.")
    if isinstance(arrivals, Replayed) and (stored or not order.keeps or (drift is not None and drift.selects is not None)):
        what = "stream.stored" if stored else "stream.order.kind" if not order.keeps else "stream.drift.change.kind"
        raise ScenarioError(f"{what}: 'stamps' replays the data in their own order and times. Leave it out, or take other arrivals.")
    if known_s is not None:
        _check_known(known_s, base.count, "stream.drift" if drift is not None else "stream.order.kind" if order.tasks > 1 else "")
    files = {**base.files, **arrivals.files} if isinstance(arrivals, Listed) else base.files
    base = replace(base, files=files)
    streams = ClientStreams(base, arrivals, order, labelling, drift, items, stored, known_s)
    if not any(len(streams.of(client)) for client in range(min(base.count, PROBED))):
        raise ScenarioError(
            f"stream: none of the first {min(base.count, PROBED)} clients ever gets an example. Look at stream.arrivals"
            " (times, and the clients that a trace names), and at the classes that stream.order or stream.drift lets come."
        )
    if known_s:
        _check_reached(known_s, streams, base.count)
    if drift is None or drift.alters is None:
        return replace(base, streams=streams)
    if base.hindsight:
        parts = [streams.altered(client, examples) for client, examples in enumerate(_tested(base))]
        test = Examples(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
    else:
        n = len(base.test)
        test = drift.alters.alter(0, np.arange(n), base.test, np.zeros(n))
    return replace(
        base, pooled=None, partition=None, generator=streams, test_fraction=0.0, test=test, streams=streams, arranged=True
    )


def _tested(base: Federation) -> Iterator[Examples]:
    """Yield the examples of each client that the test in hindsight of *base* is made of: they are there, and slow to make again."""
    clients, end = min(base.count, TEST_CLIENTS), 0
    for size in base.held(np.arange(clients)).tolist():
        begin, end = end, end + size
        yield Examples(base.test.x[begin:end], base.test.y[begin:end]) if base.pooled is None else base.pooled


def _check_known(known_s: Known, clients: int, already: str) -> None:
    """Refuse declared drift times that cannot be: out of order, of no client, or where the drifts are ours."""
    if already:
        raise ScenarioError(f"stream.drifts_s: {already} says already when concepts change. Leave one of the two out.")
    of_each = {f".{client}": times for client, times in known_s.items()} if isinstance(known_s, Mapping) else {"": known_s}
    for key, times in of_each.items():
        if key and not (key[1:].isascii() and key[1:].isdecimal() and key[1:] == str(int(key[1:])) and int(key[1:]) < clients):
            raise ScenarioError(f"stream.drifts_s{key}: there is no such client. Their numbers are 0 to {clients - 1}.")
        for earlier, later in pairwise(times):
            if later <= earlier:
                raise ScenarioError(f"stream.drifts_s{key}: {later:g} comes after {earlier:g}. Sort the times, and name each once.")


def _check_reached(known_s: Known, streams: ClientStreams, clients: int) -> None:
    """Refuse declared drift times of which no client lives to see one: they are in another unit, or from another start."""
    named = [int(client) for client, times in known_s.items() if times] if isinstance(known_s, Mapping) else list(range(clients))
    looked = [streams.of(client) for client in named[:PROBED]]
    if looked and not any(len(stream.changes_s) for stream in looked):
        spans = [(float(stream.arrived_s[0]), float(stream.arrived_s[-1])) for stream in looked if len(stream)]
        when = f"they are from {min(a for a, _ in spans):.6g} s to {max(b for _, b in spans):.6g} s" if spans else "they are empty"
        raise ScenarioError(
            f"stream.drifts_s: none of the times lies within a client's stream; {when}. Times are virtual seconds since the start"
            f" of the run."
        )
