"""A client on a stream: what one message makes it test, train on and remember.

Everything here follows from the stream, the clock and what the client remembers; numbers are the engine's. What the
client learns from them (its detector's alarms, what a policy was told) comes back with ``absorb``, and counts from the
client's next task on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedsim.client.detectors import Detector, Never
from fedsim.client.reactions import Reaction
from fedsim.core.errors import RunError
from fedsim.core.keys import Key
from fedsim.core.state import State, pack, unpack
from fedsim.core.types import FloatArray, IntArray, Seconds
from fedsim.data.replay import Arrivals, Replay
from fedsim.data.replay.memory import schedule
from fedsim.data.stream import Stream
from fedsim.data.stream.trigger import Trigger
from fedsim.learn.rehearsal import Live, Rehearsal
from fedsim.learn.work import FULL, LOCAL, Batches, Job, Result, Start, Task

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
        return self.rehearsal.numeric or bool(self.replay.needs)

    @property
    def watching(self) -> bool:
        """Return whether there is a detector."""
        return not isinstance(self.detector, Never)


@dataclass(frozen=True, slots=True)
class Learned:
    """What a client carries from task to task.

    What had arrived by *until_s* has been tested, what had its label by then has been trained on. *seen* counts the
    examples, *steps* the local steps so far. *memory* is the replay policy's; *numbers* what the last task left.
    *waiting* holds items tested whose label had not come, and whether the answer was wrong. *alarm_step* is the step of
    the last alarm, -1 before the first.
    """

    memory: State
    until_s: Seconds = -math.inf
    seen: int = 0
    steps: int = 0
    numbers: State = field(default_factory=dict[str, np.ndarray])
    waiting: State = field(default_factory=dict[str, np.ndarray])
    detector: bytes = b""
    alarm_step: int = -1

    def packed(self) -> bytes:
        """Return it as bytes, for a client's state on a real node."""
        counts = {"until_s": np.array([self.until_s]), "counts": np.array([self.seen, self.steps, self.alarm_step])}
        parts = {"memory": self.memory, "numbers": self.numbers, "waiting": self.waiting, "": counts}
        return pack({f"{part}/{name}": array for part, state in parts.items() for name, array in state.items()})

    @classmethod
    def unpacked(cls, data: bytes, detector: bytes) -> Learned:
        """Return what ``packed`` wrote, and the detector's state beside it."""
        parts: dict[str, State] = {"memory": {}, "numbers": {}, "waiting": {}, "": {}}
        for name, array in unpack(data).items():
            part, _, rest = name.partition("/")
            parts[part][rest] = array
        seen, steps, alarm_step = parts[""]["counts"].tolist()
        return cls(
            parts["memory"], float(parts[""]["until_s"][0]), seen, steps, parts["numbers"], parts["waiting"], detector, alarm_step
        )


@dataclass(frozen=True, slots=True)
class News:
    """What came of a client's task besides its reply: examples tested, in order, and alarms.

    Shapes: items, y, prediction, loss (tested,); alarms: items after whose labels the detector signalled drift.
    """

    items: IntArray
    y: IntArray
    prediction: IntArray
    loss: FloatArray
    alarms: IntArray


@dataclass(frozen=True, slots=True)
class OnStream:
    """Client *number* on its *stream*; *targets* gives the labels at positions, *root* is the root key."""

    number: int
    online: Online
    stream: Stream
    targets: Callable[[IntArray], IntArray]
    root: Key

    def begin(self) -> Learned:
        """Return what a client carries that has seen nothing."""
        detector = self.online.detector.start(self.root.fold("client", self.number, "detector"))
        return Learned(self.online.replay.empty(), detector=detector)

    def ready_s(self, learned: Learned, now: Seconds) -> Seconds:
        """Return when the client acts on a message that is there *now*; infinity when its stream has ended."""
        return self.online.trigger.ready_s(self.stream, learned.until_s, now)

    def plan(self, job: Job, start: Start, learned: Learned, count: int, key: Key, now: Seconds) -> tuple[Task, Learned]:
        """Return the client's task number *count*, and what it carries once that has begun."""
        online, stream = self.online, self.stream
        job = dataclasses.replace(job, lr=job.lr * self._lr_scale(learned))
        begin, end = stream.arrived(learned.until_s), stream.arrived(now)
        labelled = stream.labelled_s[:end]
        items = np.flatnonzero((labelled > learned.until_s) & (labelled <= now))
        if not len(items):
            raise RunError(
                f"stream.trigger: client {self.number} was to train at {now:g} s, when no new example had its label. A trigger"
                f" holds once there is one."
            )
        new = Arrivals(items, self.targets(stream.positions[items]), stream.arrived_s[items])
        base = Task(
            self.number, count, job, start, stream.positions[items], key, test=stream.positions[begin:end],
            state=learned.numbers if online.chained else None,
        )  # fmt: skip
        if online.rehearsal.method == "union":
            task, memory = self._union(base, new, learned, now)
        else:
            task, memory = self._batches(base, new, learned, now)
        seen, steps = learned.seen + len(items), learned.steps + task.steps
        held = len(online.replay.held(memory))
        weight = {"trained": task.seen, "seen": seen, "held": max(1, held)}[online.weight]
        after = dataclasses.replace(learned, memory=memory, until_s=now, seen=seen, steps=steps)
        return dataclasses.replace(task, weight=weight), after

    def absorb(self, task: Task, result: Result, before: Seconds, now: Seconds, learned: Learned) -> tuple[Learned, News]:
        """Return what the client carries once *result* of its *task* is known, and what there is to tell.

        The task was planned at *now*, the one before it at *before*; *learned* is what ``plan`` returned.
        """
        online, begin = self.online, self.stream.arrived(before)
        items = np.arange(begin, begin + task.tested)
        tested = result.outputs
        memory, numbers = learned.memory, {**result.state}
        if online.replay.needs:
            memory = {name.removeprefix("replay/"): numbers.pop(name) for name in list(numbers) if name.startswith("replay/")}
        if online.predict == "local":
            numbers |= {LOCAL + name: array for name, array in result.params.items()}
        learned = dataclasses.replace(learned, memory=memory, numbers=numbers)
        none = np.zeros(0, dtype=np.int64)
        y, prediction = tested.get("y", none), tested.get("prediction", none)
        alarms = none
        if online.watching:
            learned, alarms = self._watched(learned, items, (prediction != y).astype(np.float64), now)
        return learned, News(items, y, prediction, tested.get("loss", np.zeros(0)), alarms)

    def _lr_scale(self, learned: Learned) -> float:
        reaction = self.online.reaction
        if reaction is None or learned.alarm_step < 0:
            return 1.0
        return float(reaction.lr_scale(np.array([learned.steps - learned.alarm_step]))[0])

    def _rehearsal(self, learned: Learned) -> Rehearsal:
        """Return the rehearsal, with the replay share that a reaction has set."""
        reaction, usual = self.online.reaction, self.online.rehearsal
        if reaction is None or reaction.replay_share is None or learned.alarm_step < 0:
            return usual
        return dataclasses.replace(usual, ratio=reaction.replay_share)

    @property
    def _key(self) -> Key:
        return self.root.fold("client", self.number, "replay")

    def _union(self, task: Task, new: Arrivals, learned: Learned, now: Seconds) -> tuple[Task, State]:
        replay = self.online.replay
        remembered = replay.draw(learned.memory, replay.capacity, self._key.fold("draw", learned.steps), now)  # All that is not too old.
        both = np.union1d(new.items, remembered.items)
        return dataclasses.replace(task, positions=np.sort(self.stream.positions[both])), replay.add(
            learned.memory, new, self._key
        )

    def _batches(self, task: Task, new: Arrivals, learned: Learned, now: Seconds) -> tuple[Task, State]:
        replay, rehearsal, n = self.online.replay, self._rehearsal(learned), len(new.items)
        fresh = task.job.sizes(n)
        epoch = min(len(fresh), math.ceil(task.job.read(n) / task.job.size(n)))
        begins = np.resize(np.cumsum(fresh[:epoch]) - fresh[:epoch], len(fresh))
        inserted = np.where(np.arange(len(fresh)) < epoch, fresh, 0)  # An example enters the memory once.
        count = rehearsal.replayed(n if task.job.batch_size == FULL else task.job.batch_size)
        first, covered = learned.steps, int(inserted.sum())
        planned: list[list[IntArray]] = []
        memory = learned.memory
        if not replay.needs:
            for draw in range(max(1, rehearsal.draws)):
                drawn, memory = schedule(
                    replay, learned.memory, new[:covered], inserted.tolist(), count if rehearsal.draws else 0, self._key,
                    first + draw * AGAIN, now,
                )  # fmt: skip
                planned.append([each.items for each in drawn])
            memory = replay.add(memory, new[covered:], self._key) if covered < n else memory
            if self.online.live:
                sizes = fresh + sum(np.array([len(items) for items in draw]) for draw in planned) if rehearsal.draws else fresh
                return self._live(task, new, learned, memory, now, planned, fresh, begins, inserted, sizes), memory
        else:
            held, memory = self._foretold(memory, new, inserted)
            sizes = fresh + rehearsal.draws * np.minimum(count, held)
            looked = np.minimum(replay.candidates, held)
            candidates = rehearsal.draws * int(looked[looked > count].sum()) if count else 0
            return self._live(task, new, learned, memory, now, planned, fresh, begins, inserted, sizes, candidates), memory
        places, parts = self.stream.positions, list[IntArray]()
        for begin, size, drawn in zip(begins.tolist(), fresh.tolist(), planned[0], strict=True):
            parts += [places[new.items[begin : begin + size]], places[drawn]]
        sizes = fresh + np.array([len(drawn) for drawn in planned[0]])
        positions = np.concatenate(parts)
        return dataclasses.replace(task, positions=positions, batches=Batches(sizes, fresh, rehearsal.mix)), memory

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

    def _live(
        self, task: Task, new: Arrivals, learned: Learned, memory: State, now: Seconds, planned: list[list[IntArray]],
        fresh: IntArray, begins: IntArray, inserted: IntArray, sizes: IntArray, candidates: int = 0,
    ) -> Task:  # fmt: skip
        replay, rehearsal = self.online.replay, self._rehearsal(learned)
        state = {**learned.numbers, **({f"replay/{name}": a for name, a in learned.memory.items()} if replay.needs else {})}
        live = Live(
            rehearsal, replay, new, begins, fresh, inserted, sizes,
            tuple(tuple(step) for step in zip(*planned, strict=True)) if planned else None,
            replay.held(memory) if planned else None, self.stream.positions[: self.stream.arrived(now)], self._key, learned.steps, now,
            candidates,
        )  # fmt: skip
        return dataclasses.replace(task, rehearsing=live, state=state)

    def _watched(self, learned: Learned, items: IntArray, wrong: FloatArray, now: Seconds) -> tuple[Learned, IntArray]:
        """Feed the detector what has got its label by *now*, in the order of labels; react to what it signals."""
        online, none = self.online, np.zeros(0)
        items = np.concatenate([learned.waiting.get("items", none.astype(np.int64)), items])
        wrong = np.concatenate([learned.waiting.get("wrong", none), wrong])
        times = self.stream.labelled_s[items]
        order = np.argsort(times, kind="stable")
        known = order[times[order] <= now]
        later = np.flatnonzero((times > now) & np.isfinite(times))
        state, signals = online.detector.feed(learned.detector, wrong[known])
        waiting: State = {"items": items[later], "wrong": wrong[later]}
        learned = dataclasses.replace(learned, detector=state, waiting=waiting)
        if len(signals) and online.reaction is not None:
            learned = dataclasses.replace(learned, alarm_step=learned.steps, memory=self._shrunk(learned.memory, online.reaction))
        return learned, items[known][signals]

    def _shrunk(self, memory: State, reaction: Reaction) -> State:
        """Return the memory after an alarm: the newest items, as many as the reaction keeps, as if only they had come."""
        replay = self.online.replay
        if reaction.keep_share == 1.0:
            return memory
        keep = math.ceil(reaction.keep_share * len(memory["items"]))
        newest = np.argsort(memory["items"])[len(memory["items"]) - keep :]
        kept = Arrivals(memory["items"][newest], memory["labels"][newest], memory["arrived_s"][newest])
        return replay.add(replay.empty(), kept, self._key) if keep else replay.empty()
