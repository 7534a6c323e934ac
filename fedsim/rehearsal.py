"""The rounds of a scenario on the virtual clock, nothing trained: all of them where wall time allows, else a sample.

Where clients come and go by the time of day, rounds of one hour are not like those of another. What is not rehearsed one
after the other is therefore sampled over the virtual time that it will take, and walked through by what the samples say.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ConfigRecord

from fedsim.core.types import FloatArray, Seconds
from fedsim.data.arriving import Arriving
from fedsim.data.replay.policies import sorts_by_class
from fedsim.flower import compat, compat_steps, records
from fedsim.flower.aggregated import Watched
from fedsim.flower.decode import coded
from fedsim.flower.rounds import Course, rounds
from fedsim.scenario.build import Parts
from fedsim.sim.fleet import Fleet
from fedsim.sim.grid import VirtualGrid
from fedsim.sim.rows import EdgeRow, EnergyRow, ExaminedRow, HeardRow, NoiseRow, PredictionRow, RoundRow, StepRow, TaskRow, VersionRow
from fedsim.timekeeping import Timekeeper, Work
from fedsim.walking import Room, by_phase, walk

Watch = Callable[[int, int], None]
"""Hears how many rounds are rehearsed, and of how many; again and again while it goes."""

IN_A_ROW = 0.6
"""Share of the wall time that is for rounds one after the other, from the first on; the rest is for samples."""
LOOKS_SHARE = 0.1
"""Share of the wall time for which clients' streams are looked at, and again for which their labels are counted."""
SAMPLES, EACH = 48, 2
"""Moments of virtual time at which rounds are sampled at most, and how many rounds at each."""
FEWEST = 4
"""Samples below which none are taken."""
REPLICAS, BAND = 100, (0.05, 0.95)
"""How often the samples are drawn again for the interval, and which share of the outcomes it leaves out on each side."""
WIDER, SLACK = 1.5, 0.01
"""The interval is so much wider than the outcomes are: they come from the same few samples. Tried on cycles of many kinds."""


@dataclass(frozen=True, slots=True)
class Foretold:
    """What all rounds would cost: *rehearsed* of them took place on the virtual clock, *sampled* of these ahead of time.

    *low_s* and *high_s* are where the virtual time most likely lies; both are *virtual_s* where every round was rehearsed,
    and NaN where too few were. *ends*: after the last of *rounds* every stream has ended. *stopped* is which of the times and bytes that
    [stop] names is spent then; empty where neither is. *alarms*: what these, or a controller, change in a client's training is not in it,
    since nothing is trained.
    """

    rounds: int
    rehearsed: int
    sampled: int
    ends: bool
    virtual_s: Seconds
    low_s: Seconds
    high_s: Seconds
    slowest_round_s: Seconds
    asked: float
    missed: float
    down_bytes: float
    up_bytes: float
    alarms: bool
    work: Work = field(default_factory=Work)
    """What the training tasks of the rehearsed rounds come to."""
    stopped: str = ""
    edges: tuple[float, float] | None = None
    """Bytes of a round between the server and its edges, down and up, where there are any."""
    paced: tuple[str, ...] = ()
    """What is to be said of rounds that were abandoned, or in which nobody was in time."""

    @property
    def whole(self) -> bool:
        """Return whether every round was rehearsed, one after the other."""
        return self.rehearsed - self.sampled == self.rounds

    @property
    def exact(self) -> bool:
        """Return whether this is what a run comes to: every round was rehearsed, and nothing changes how long tasks take."""
        return self.whole and not self.alarms


@dataclass(slots=True)
class _Heard:
    """Counts what a rehearsal's rounds asked and missed; *also* hears each row of a task, a round or an edge."""

    asked: int = 0
    missed: int = 0
    batches: int = 0
    also: Callable[[TaskRow | RoundRow | EdgeRow], None] | None = None

    def task(self, row: TaskRow) -> None:
        if self.also:
            self.also(row)

    def tested(self, row: PredictionRow) -> None:
        raise AssertionError("a rehearsal tests nothing")

    def version(self, row: VersionRow) -> None:
        pass

    def watched(self, row: StepRow) -> None:
        raise AssertionError("a rehearsal trains nothing")

    def examined(self, row: ExaminedRow) -> None:
        raise AssertionError("a rehearsal trains nothing")

    def noise(self, row: NoiseRow) -> None:
        raise AssertionError("a rehearsal trains nothing")

    def heard(self, row: HeardRow) -> None:
        raise AssertionError("a rehearsal has no replies")

    def energy(self, row: EnergyRow) -> None:
        raise AssertionError("a rehearsal charges nothing")

    def edge(self, row: EdgeRow) -> None:
        if self.also:
            self.also(row)

    def round(self, row: RoundRow) -> None:
        if self.also:
            self.also(row)
        if row.kind == "train":
            self.asked, self.missed, self.batches = self.asked + row.asked, self.missed + row.missed, self.batches + 1


@dataclass
class _Stage:
    """A dry world in which rounds are rehearsed. *rows* has one row per round: when it began, and what it took (COLUMNS)."""

    parts: Parts
    rows: list[tuple[float, ...]] = field(default_factory=list[tuple[float, ...]])

    def __post_init__(self) -> None:
        parts, self.heard, self.engine = self.parts, _Heard(), Timekeeper()
        self.grid = VirtualGrid(_unlabelled(parts.fleet), self.engine, self.heard, dry=True)
        watched = Watched(parts.scenario.server.strategy["kind"], parts.first)
        strategy = compat_steps.name_draws(watched.around(compat_steps.asks_only(parts.strategy.strategy)), parts.key)
        course = Course(sys.maxsize, parts.scenario.server.round_timeout_s, records.job_config(parts.job), ConfigRecord())
        self._rounds = rounds(strategy, coded(self.grid, parts.fleet.coding), compat.array_record(parts.first), course)

    def play(self) -> None:
        """Rehearse one more round."""
        grid, sent, heard = self.grid, self.grid.invariants, self.heard
        before = (grid.now, heard.asked, heard.missed, sent.down_bytes, sent.up_bytes)
        next(self._rounds)
        after = (grid.now, heard.asked, heard.missed, sent.down_bytes, sent.up_bytes)
        self.rows.append((before[0], *(b - a for a, b in zip(before, after, strict=True))))

    @property
    def spent(self) -> str:
        """Return which of the times and bytes that [stop] names is spent; empty where neither is."""
        stop, sent = self.parts.scenario.stop, self.grid.invariants
        return stop.spent(self.grid.now, sent.down_bytes + sent.up_bytes) if stop else ""

    @property
    def over(self) -> bool:
        """Return whether a run would end here, whatever it has learned."""
        return self.grid.exhausted or bool(self.spent)

    def likely(self, asked: int) -> int:
        """Return how many of the *asked* rounds there are likely to be, by how much of what [stop] names those so far have spent."""
        stop, sent = self.parts.scenario.stop, self.grid.invariants
        share = stop.share(self.grid.now, sent.down_bytes + sent.up_bytes) if stop else 0.0
        return min(asked, math.ceil(len(self.rows) / share)) if share else asked

    @property
    def table(self) -> FloatArray:
        """Return the rows. Shapes: (rounds, 6): began at, lasted, asked, missed, bytes down, bytes up."""
        return np.array(self.rows, dtype=np.float64)


def _unlabelled(fleet: Fleet) -> Fleet:
    """Return *fleet* without targets, where no memory looks at them: making a client's examples takes longest of all."""
    if fleet.federation.pooled is not None or fleet.online is None or sorts_by_class(fleet.online.replay):
        return fleet
    return replace(fleet, federation=replace(fleet.federation, unlabelled=True))


def rehearse(parts: Parts, *, wall_s: float, rounds: int | None = None, watch: Watch | None = None) -> Foretold:
    """Return what the rounds of *parts* would cost, rehearsing for about *wall_s* of wall time, and one round at least.

    *rounds* is how many are rehearsed one after the other at most; all that there is time for unless given.
    Raises RunError when the strategy waits for clients that never come.
    """
    stage = _Stage(parts)
    try:
        told, sent = _rehearsed(stage, wall_s, rounds, watch), stage.grid.invariants
        told = replace(told, paced=tuple(stage.grid.paced.notes))
        if parts.fleet.edges is None:
            return told
        return replace(told, edges=(sent.edge_down_bytes / told.rehearsed, sent.edge_up_bytes / told.rehearsed))
    finally:
        stage.grid.close()


def lasting(parts: Parts) -> FloatArray:
    """Return what each round of *parts* takes, in virtual seconds, all of them rehearsed. Raises RunError as ``rehearse`` does.

    Shapes: -> (rounds,). A task whose length depends on its own numbers takes the most that it may.
    """
    stage = _Stage(parts)
    try:
        _play(stage)
        return stage.table[:, 1]
    finally:
        stage.grid.close()


def told(parts: Parts, *, wall_s: float, also: Callable[[TaskRow | RoundRow | EdgeRow], None]) -> int:
    """Rehearse the rounds of *parts* one after the other for about *wall_s*, all that there is time for; return how many.

    *also* hears each row of a task, a round or an edge, those on the wire at the end too. Raises RunError as ``rehearse`` does.
    """
    stage = _Stage(parts)
    stage.heard.also = also
    try:
        _play(stage, wall_s)
        stage.grid.finish(broken=True)
        return len(stage.rows)
    finally:
        stage.grid.close()


def _play(stage: _Stage, wall_s: float = math.inf) -> None:
    began = time.monotonic()
    with compat.log_to(None), compat.virtual_sleep(stage.grid.wait_for_others), compat.cheap_collections():
        while len(stage.rows) < stage.parts.scenario.server.rounds and not stage.over and time.monotonic() - began < wall_s:
            stage.play()


def _rehearsed(stage: _Stage, wall_s: float, rounds: int | None, watch: Watch | None) -> Foretold:
    parts, asked, began = stage.parts, stage.parts.scenario.server.rounds, time.monotonic()
    within, streams = min(asked, rounds or asked), parts.federation.streams is not None
    stage.grid.patience.ends_wall_s = began + 2.0 * wall_s  # One round may well take longer than what is left for all.
    share = 1.0 if streams else IN_A_ROW  # Streams cannot be looked at ahead: what comes depends on what has come.
    row, sampled, span_s, coming = 0, 0, 0.0, None
    with compat.log_to(None), compat.virtual_sleep(stage.grid.wait_for_others), compat.cheap_collections():
        while row < within and not stage.over:
            spent_s = time.monotonic() - began
            # All of them, if they will be done by the end of the time: better than samples of them.
            if row and spent_s > share * wall_s and spent_s / row * stage.likely(within) > wall_s:
                break
            stage.play()
            row += 1
            if watch:
                watch(row, stage.likely(asked))
        in_a_row_s, every = stage.grid.now, row == asked or stage.over
        if not every and not streams:
            each_s = float(stage.table[row // 2 :, 1].mean())  # The later half: a first wait may be long, and comes once.
            span_s = _span_s(parts, each_s * (stage.likely(asked) - row))
            left_s = wall_s - (time.monotonic() - began)
            affordable = int(left_s / max(1e-9, (time.monotonic() - began) / row))
            sampled = _sample(stage, span_s, min(SAMPLES, affordable // EACH), watch, asked)
        elif not every:
            coming = Arriving.of(parts.federation, LOOKS_SHARE * wall_s)
    if every:
        return _all(stage, row)
    told = _extrapolated(stage, row, sampled, asked, in_a_row_s, span_s)
    if coming is None:
        return told
    if told.virtual_s > coming.done_s:
        told = _until(told, coming.done_s, row, in_a_row_s)
    # Whose stream has ended answers, and sends no parameters; the rest was told from rounds in which more of them did.
    before = coming.going(float(stage.table[row // 2, 0]), in_a_row_s)
    after = coming.going(in_a_row_s, max(told.virtual_s, in_a_row_s))
    sent = float(stage.table[:, 5].sum())
    return replace(told, up_bytes=sent + (told.up_bytes - sent) * min(1.0, after / before if before else 1.0))


def _all(stage: _Stage, rounds: int) -> Foretold:
    grid, sent, heard, spent = stage.grid, stage.grid.invariants, stage.heard, stage.spent
    grid.finish(broken=True)  # Replies that are on the wire when the run ends have been sent.
    batches, alarms = max(1, heard.batches), _alarms(stage.parts)
    low_s = high_s = np.nan if alarms else grid.now
    return Foretold(
        rounds, rounds, 0, grid.exhausted, grid.now, low_s, high_s, float(stage.table[:, 1].max()),
        heard.asked / batches, heard.missed / batches, sent.down_bytes, sent.up_bytes, alarms,
        stage.engine.work, spent,
    )  # fmt: skip


def _alarms(parts: Parts) -> bool:
    """Return whether an alarm, a policy's batch size or the server's controller changes how long a client trains."""
    reaction = None if parts.fleet.online is None else parts.fleet.online.reaction
    if parts.controller is not None and set(parts.controller.changes) - {"lr_factor"}:
        return True
    if parts.fleet.sizing is not None and parts.fleet.sizing.policy.needs:
        return True
    return reaction is not None and (reaction.replay_share is not None or reaction.keep_share < 1.0)


def _span_s(parts: Parts, guess_s: Seconds) -> Seconds:
    """Return over which stretch of virtual time to look ahead: a cycle where one is known and matters, else all of it."""
    period_s = float(getattr(parts.fleet.availability, "period_s", 0.0))
    return period_s if 0.0 < period_s < 4.0 * guess_s else 1.5 * guess_s


def _sample(stage: _Stage, span_s: Seconds, samples: int, watch: Watch | None, asked: int) -> int:
    """Rehearse rounds at moments spread over the *span_s* to come; return how many."""
    if samples < FEWEST or span_s <= 0.0:
        return 0
    from_s, before = stage.grid.now, len(stage.rows)
    shifts = np.random.default_rng(0).uniform(size=samples)  # Within its piece each, or a short cycle might go unseen.
    for at_s in (from_s + span_s * (np.arange(samples) + shifts) / samples).tolist():
        stage.grid.sleep(max(0.0, at_s - stage.grid.now))
        for _ in range(EACH):
            stage.play()
            if watch:
                watch(len(stage.rows), asked)
    return len(stage.rows) - before


def _extrapolated(stage: _Stage, row: int, sampled: int, asked: int, now_s: Seconds, span_s: Seconds) -> Foretold:
    """Return what *asked* rounds cost, when *row* were rehearsed in a row, up to *now_s*, and *sampled* ahead of them.

    There are fewer where [stop] names a time, or bytes, that are spent sooner.
    """
    table, left, stop = stage.table, asked - row, stage.parts.scenario.stop
    done = table[:row].sum(axis=0)[1:]
    room = Room(*stop.left(now_s, done[3] + done[4])) if stop else Room()
    draw = np.random.default_rng(0)
    if sampled:
        picks = np.concatenate([[np.arange(len(table))], draw.integers(0, len(table), (REPLICAS, len(table)))])
        tables = np.stack([by_phase(table[pick], span_s) for pick in picks])
        sums, counts = walk(tables, now_s, left, span_s, room)
    else:  # The later half: how it began need not be how it goes on.
        late = table[row // 2 : row, 1:]
        picks = np.concatenate([[np.arange(len(late))], draw.integers(0, len(late), (REPLICAS, len(late)))])
        means = late[picks].mean(axis=1)
        counts = room.rounds(means, left)
        sums = counts[:, None] * means
    rest = sums[0]
    less, more = WIDER * np.abs(np.quantile(sums[1:, 0], BAND) - rest[0]) + SLACK * rest[0]
    if row + sampled <= FEWEST:
        less = more = np.nan
    played, total = row + round(counts[0]), done + rest
    _, called, missed, down_bytes, up_bytes = total
    within = table[:, 0] <= now_s + rest[0]  # Samples may lie beyond the end.
    return Foretold(
        played, row + sampled, sampled, False, now_s + rest[0], now_s + rest[0] - np.minimum(less, rest[0]), now_s + rest[0] + more,
        float(table[within, 1].max()), called / played, missed / played, down_bytes, up_bytes, _alarms(stage.parts),
        stage.engine.work, stop.spent(now_s + rest[0], down_bytes + up_bytes) if stop else "",
    )  # fmt: skip


def _until(told: Foretold, end_s: Seconds, row: int, now_s: Seconds) -> Foretold:
    """Return *told* for fewer rounds: as many as begin before the last example comes, at *end_s*; a run ends with its streams.

    The last rounds may come a little sooner, since what is left over may hold no trigger, or last a little longer.
    """
    round_s = (told.virtual_s - now_s) / (told.rounds - row)
    if round_s <= 0.0:  # Rounds that take no virtual time: nothing tells how many there will be.
        return told
    left = max(1, min(told.rounds - row, round(max(0.0, end_s - now_s) / round_s)))
    slack_s = 2.0 * max(round_s, told.slowest_round_s)
    low_s, high_s = (np.nan, np.nan) if told.low_s != told.low_s else (max(now_s, end_s - slack_s), max(now_s, end_s) + slack_s)
    part = (row + left) / told.rounds
    return replace(
        told, rounds=row + left, ends=True, stopped="", virtual_s=max(now_s, end_s), low_s=low_s, high_s=high_s,
        down_bytes=told.down_bytes * part, up_bytes=told.up_bytes * part,
    )  # fmt: skip
