"""A client on a stream: what one message makes it test, train on and remember.

Everything here follows from the stream, the clock and what the client remembers; numbers are the engine's. What the
client learns from them (its detector's alarms, what a policy was told) is in the parts that ``finish`` returns, and counts from the
client's next task on.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, cast

import numpy as np

from fedsim.client.detectors import Detector, Never
from fedsim.client.kept import Kept, Parts
from fedsim.client.offline import Offline
from fedsim.client.program import Finished, News, Order, next_task, reply_to
from fedsim.client.reactions import Reaction
from fedsim.core.errors import RunError, must
from fedsim.core.keys import Key
from fedsim.core.state import State
from fedsim.core.types import FloatArray, IntArray, Seconds
from fedsim.data.federation import Federation
from fedsim.data.replay import Arrivals, Replay
from fedsim.data.replay.memory import schedule
from fedsim.data.stream import Stream, Streams
from fedsim.data.stream.trigger import Trigger
from fedsim.learn.job import FULL
from fedsim.learn.pace import paced
from fedsim.learn.rehearsal import Layout, Live, Rehearsal
from fedsim.learn.work import Batches, Result, Task

AGAIN = 1 << 40
"""From where on the steps of a second draw per mini-batch are numbered, apart from the first."""


@dataclass(frozen=True, slots=True)
class Online:
    """What a scenario says about clients on streams: when they act, what they remember, how they train and notice."""

    trigger: Trigger
    replay: Replay
    rehearsal: Rehearsal
    detector: Detector = field(default_factory=Never)
    reaction: Reaction | None = None
    predict: Literal["received", "local"] = "received"
    weight: Literal["trained", "seen", "held"] = "trained"

    @property
    def chained(self) -> bool:
        """Return whether a task needs the numbers of the client's task before."""
        return bool(self.live or self.watching or self.predict == "local")

    @property
    def live(self) -> bool:
        """Return whether the engine lays the batches out."""
        return self.rehearsal.way.numeric or bool(self.replay.needs)

    @property
    def watching(self) -> bool:
        """Return whether there is a detector."""
        return not isinstance(self.detector, Never)

    @property
    def tells(self) -> bool:
        """Return whether clients tell the server how often their detectors signalled drift."""
        return self.watching and (self.reaction is None or self.reaction.tell)


@dataclass(frozen=True, slots=True)
class OnStream:
    """Client *number* on its stream. *root* is the root key, *keeps* as off streams; so are its evaluations."""

    number: int
    federation: Federation
    root: Key
    online: Online
    keeps: tuple[str, ...] = ()

    @property
    def chained(self) -> bool:
        """Return whether a training task needs the numbers of the client's task before."""
        return self.online.chained or bool(self.keeps)

    @property
    def leaves(self) -> bool:
        """Return that every task leaves what it predicted."""
        return True

    @property
    def tells(self) -> tuple[str, ...]:
        """Return that the server hears how often the detector signalled drift, where it is told."""
        return ("drift",) if self.online.tells else ()

    @property
    def stream(self) -> Stream:
        """Return the client's stream."""
        must(self.federation.streams is not None, "a client on a stream has one")
        return cast(Streams, self.federation.streams).of(self.number)

    def ready_s(self, order: Order, kept: Kept, now: Seconds) -> Seconds:
        """Return when the client acts on *order*, which is there *now*; infinity when its stream has ended."""
        return now if order.job.kind != "train" else self.online.trigger.ready_s(self.stream, kept.until_s, now)

    def ended(self, kept: Kept, now: Seconds) -> bool:
        """Return whether nothing is left to train on, now or ever."""
        return math.isinf(self.online.trigger.ready_s(self.stream, kept.until_s, now))

    def held(self, kept: Kept) -> tuple[int, int]:
        """Return how many examples are remembered, and how many may be."""
        replay = self.online.replay
        return len(replay.held(self._memory(kept))), replay.capacity

    def plan(self, order: Order, kept: Kept, now: Seconds = 0.0) -> tuple[Task, Kept]:
        """Return the task that *order* makes here *now*, and what the client keeps once that has begun."""
        if order.job.kind != "train":
            return Offline(self.number, self.federation, self.root).plan(order, kept, now)
        online, stream = self.online, self.stream
        count, key, after = next_task(self.number, self.root, kept, training=True)
        begin, end = stream.arrived(kept.until_s), stream.arrived(now)
        labelled = stream.labelled_s[:end]
        items = np.flatnonzero((labelled > kept.until_s) & (labelled <= now))
        if not len(items):
            raise RunError(
                f"stream.trigger: client {self.number} was to train at {now:g} s, when no new example had its label. A trigger"
                f" holds once there is one."
            )
        new = Arrivals(items, self.federation.targets(self.number, stream.positions[items]), stream.arrived_s[items])
        base = Task(
            self.number, count, order.job, order.start, stream.positions[items], key, test=stream.positions[begin:end],
            parts=kept.few("rehearsal", "local", *self.keeps),
        )  # fmt: skip
        if online.rehearsal.way.union:
            task, memory = self._union(base, new, kept, now)
        else:
            task, memory = self._batches(base, new, kept, now)
        after = dataclasses.replace(
            after, until_s=now, before_s=kept.until_s, seen=kept.seen + len(items), steps=kept.steps + task.steps
        ).having({"replay": memory})
        weight = {"trained": task.seen, "seen": after.seen, "held": max(1, len(online.replay.held(memory)))}[online.weight]
        rates = paced(task.job.lr, task.job.pace, task.sizes, order.when(kept, now), self._lr_scale(kept))
        return dataclasses.replace(task, weight=weight, rates=rates), after

    def finish(self, task: Task, result: Result, kept: Kept) -> Finished:
        """Return what *task* ends with; *kept* is what ``plan`` returned beside it."""
        if task.job.kind != "train":
            return Finished(reply_to(task, result))
        online, begin = self.online, self.stream.arrived(kept.before_s)
        items = np.arange(begin, begin + task.tested)
        parts: dict[str, State] = dict(result.parts)
        if online.predict == "local":
            parts["local"] = dict(result.params)
        none = np.zeros(0, dtype=np.int64)
        y, prediction = result.outputs.get("y", none), result.outputs.get("prediction", none)
        alarms = none
        if online.watching:
            more, alarms = self._watched(kept.having(parts), items, (prediction != y).astype(np.float64))
            parts |= more
        news = News(items, y, prediction, result.outputs.get("loss", np.zeros(0)), alarms)
        return Finished(reply_to(task, result, dict.fromkeys(self.tells, len(alarms))), parts, news)

    def _memory(self, kept: Kept) -> State:
        return kept.parts.get("replay") or self.online.replay.empty()

    def _lr_scale(self, kept: Kept) -> float:
        reaction, at = self.online.reaction, _alarm_step(kept)
        return 1.0 if reaction is None or at < 0 else float(reaction.lr_scale(np.array([kept.steps - at]))[0])

    def _share(self, kept: Kept) -> float | None:
        """Return the replay share that a reaction has set, None for none."""
        reaction = self.online.reaction
        return None if reaction is None or _alarm_step(kept) < 0 else reaction.replay_share

    @property
    def _key(self) -> Key:
        return self.root.fold("client", self.number, "replay")

    def _union(self, task: Task, new: Arrivals, kept: Kept, now: Seconds) -> tuple[Task, State]:
        replay = self.online.replay
        remembered = replay.draw(self._memory(kept), replay.capacity, self._key.fold("draw", kept.steps), now)  # All that is not too old.
        both = np.union1d(new.items, remembered.items)
        positions, mixing = np.sort(self.stream.positions[both]), task.job.mixing
        sources = None if mixing is None else self.federation.sources(self.number, positions, mixing.by)
        return dataclasses.replace(task, positions=positions, sources=sources), replay.add(self._memory(kept), new, self._key)

    def _batches(self, task: Task, new: Arrivals, kept: Kept, now: Seconds) -> tuple[Task, State]:
        replay, method, n = self.online.replay, self.online.rehearsal, len(new.items)
        fresh = task.job.sizes(n)
        epoch = min(len(fresh), math.ceil(task.job.read(n) / task.job.size(n)))
        begins = np.resize(np.cumsum(fresh[:epoch]) - fresh[:epoch], len(fresh))
        inserted = np.where(np.arange(len(fresh)) < epoch, fresh, 0)  # An example enters the memory once.
        way, before = method.way, self._memory(kept)
        count = method.replayed(n if task.job.batch_size == FULL else task.job.batch_size * task.job.accumulate, self._share(kept))
        live = partial(
            Live, method, replay, new, places=self.stream.positions[: self.stream.arrived(now)], key=self._key, first_step=kept.steps,
            now=now,
        )  # fmt: skip
        if replay.needs:
            held, memory = self._foretold(before, new, inserted)
            layout = Layout(begins, fresh, inserted, fresh + way.draws * np.minimum(count, held))
            looked = np.minimum(replay.candidates, held)
            candidates = way.draws * int(looked[looked > count].sum()) if count else 0
            parts = {**task.parts, "replay": before}
            rehearsing = live(layout, planned=None, held=None, candidates=candidates)
            return dataclasses.replace(task, rehearsing=rehearsing, parts=parts), memory
        covered, memory = int(inserted.sum()), before
        draws: list[list[IntArray]] = []
        for draw in range(max(1, way.draws)):
            drawn, memory = schedule(
                replay, before, new[:covered], inserted.tolist(), count if way.draws else 0, self._key, kept.steps + draw * AGAIN, now
            )
            draws.append([each.items for each in drawn])
        memory = replay.add(memory, new[covered:], self._key) if covered < n else memory
        planned = tuple(zip(*draws, strict=True))
        sizes = fresh + np.array([sum(map(len, step)) for step in planned])
        if way.numeric:
            rehearsing = live(Layout(begins, fresh, inserted, sizes), planned=planned, held=replay.held(memory))
            return dataclasses.replace(task, rehearsing=rehearsing), memory
        steps = zip(begins.tolist(), fresh.tolist(), planned, strict=True)
        items = np.concatenate([part for begin, size, drawn in steps for part in (new.items[begin : begin + size], *drawn)])
        positions = self.stream.positions[items]
        return dataclasses.replace(task, positions=positions, batches=Batches(sizes, fresh, way.mix)), memory

    def _foretold(self, memory: State, new: Arrivals, inserted: IntArray) -> tuple[IntArray, State]:
        """Return how many items are held at the begin of each step, and a memory that holds as many as that at the end.

        Which items stay depends on numbers that nobody has yet; how many of each class do, does not.
        """
        replay, held, at = self.online.replay, list[int](), 0
        none = np.zeros((0, 0))
        wide = {need: () if need == "losses" else (max(1, memory.get(need, none).shape[1]),) for need in replay.needs}
        for size in [*inserted.tolist(), len(new.items) - int(inserted.sum())]:
            held.append(len(replay.held(memory)))
            if size:
                some = new[at : at + size]
                memory = replay.add(memory, some, self._key, {need: np.zeros((size, *width)) for need, width in wide.items()})
            at += size
        return np.array(held[:-1]), memory

    def _watched(self, kept: Kept, items: IntArray, wrong: FloatArray) -> tuple[Parts, IntArray]:
        """Feed the detector what has got its label by now, in the order of labels; react to what it signals."""
        online, watch, none, now = self.online, kept.parts.get("watch", {}), np.zeros(0), kept.until_s
        items = np.concatenate([watch.get("items", none.astype(np.int64)), items])
        wrong = np.concatenate([watch.get("wrong", none), wrong])
        times = self.stream.labelled_s[items]
        order = np.argsort(times, kind="stable")
        known = order[times[order] <= now]
        later = np.flatnonzero((times > now) & np.isfinite(times))
        if "detector" in watch:
            before = watch["detector"].tobytes()
        else:
            before = online.detector.start(self.root.fold("client", self.number, "detector"))
        state, signals = online.detector.feed(before, wrong[known])
        alarmed = len(signals) > 0 and online.reaction is not None
        watch = {
            "items": items[later], "wrong": wrong[later], "detector": np.frombuffer(state, np.uint8),
            "alarm_step": np.array([kept.steps if alarmed else _alarm_step(kept)]),
        }  # fmt: skip
        parts = {"watch": watch}
        if len(signals) and online.reaction is not None:
            parts["replay"] = self._shrunk(self._memory(kept), online.reaction)
        return parts, items[known][signals]

    def _shrunk(self, memory: State, reaction: Reaction) -> State:
        """Return the memory after an alarm: the newest items, as many as the reaction keeps, as if only they had come."""
        replay = self.online.replay
        if reaction.keep_share == 1.0:
            return memory
        items, places = np.sort(replay.held(memory)), self.stream.positions
        newest = items[len(items) - math.ceil(reaction.keep_share * len(items)) :]
        kept = Arrivals(newest, self.federation.targets(self.number, places[newest]), self.stream.arrived_s[newest])
        return replay.add(replay.empty(), kept, self._key) if len(newest) else replay.empty()


def _alarm_step(kept: Kept) -> int:
    """Return how many local steps the client had taken at its last alarm; -1 before the first."""
    at = kept.parts.get("watch", {}).get("alarm_step")
    return -1 if at is None else int(at[0])
