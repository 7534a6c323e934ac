"""A run as a Perfetto trace in virtual time: a track per client, the server's rounds, and counters. Knows not how a trace is written.

``trace.perfetto-trace`` opens at ui.perfetto.dev, which reads it in the browser and sends it nowhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.core.types import Frame, Seconds
from fedsim.exporting.exporters import Exporter, exporters
from fedsim.report.figures import Seen
from fedsim.score.run import Run

FILE = "trace.perfetto-trace"
SERVER, VERSIONS, CLIENTS, COUNTERS = 1, 2, 3, 4
"""The tracks at the top; those below are numbered from where these leave off."""
LANES, FIRST_CLIENT, FIRST_COUNTER = 64, 1 << 20, 1 << 10
"""Tasks of one client that can be shown at one moment, and where tracks are numbered from."""
ARROWS = 20_000
"""Tasks up to which arrows are drawn: from the round that asked to the task, and from its result to the version that took it in."""
COUNTED = {"down": "B", "up": "B"}


def register() -> None:
    """Register it."""
    exporters.register("perfetto")(lambda: Exporter("a trace in virtual time, a track per client, for ui.perfetto.dev", perfetto))


def perfetto(run: Run, folder: Path, _: Path) -> list[str]:
    """Write the trace; say what is not in it."""
    from fedsim.exporting.track_event import write

    tracks, events, lost = traced(Seen(run, run.tasks, run.rounds, run.metrics))
    with (folder / FILE).open("wb") as file:
        write(file, tracks, events)
    said = [f"Open {FILE} at ui.perfetto.dev: its time is virtual, from 0."]
    if lost:
        said.append(f"{lost:,} tasks are not in it: more than {LANES} of one client's overlapped.")
    return said


def traced(seen: Seen) -> tuple[list[Any], Iterator[Any], int]:
    """Return the tracks, the events of each in order, and how many tasks found no place."""
    from fedsim.exporting.track_event import Track

    tasks = seen.tasks.sort_values(["client", "sent_s", "message"], kind="stable")
    lanes, lost = _lanes(tasks, seen.now_s)
    tasks = tasks.assign(lane=lanes)
    tasks = tasks[tasks.lane >= 0]
    scores = [*dict.fromkeys(zip(seen.metrics.scope, seen.metrics.name, strict=True))]
    tracks = [
        Track(SERVER, "rounds", rank=0), Track(VERSIONS, "versions of the model", rank=1), Track(COUNTERS, "scores and bytes", rank=2),
        Track(CLIENTS, "clients", rank=3),
    ]  # fmt: skip
    names = [*(f"{scope} {name}" for scope, name in scores), *(f"sent {way}" for way in COUNTED)]
    units = ["", "", *COUNTED.values()][-len(COUNTED) :]
    for i, name in enumerate(names):
        tracks.append(Track(FIRST_COUNTER + i, name, COUNTERS, i, "" if i < len(scores) else units[i - len(scores)]))
    for client, lane in sorted({*zip(tasks.client.tolist(), tasks.lane.tolist(), strict=True)}):
        name = f"client {client}" if not lane else f"client {client}, meanwhile"
        tracks.append(Track(_track(client, lane), name, CLIENTS, client * LANES + lane))
    return tracks, _events(seen, tasks, scores), lost


def _events(seen: Seen, tasks: Frame, scores: list[tuple[str, str]]) -> Iterator[Any]:
    from fedsim.exporting.track_event import Event

    arrows = len(tasks) <= ARROWS
    asked = tasks.groupby(["round", "kind", "sent_s"]).message.agg(list).to_dict() if arrows else {}
    for row in seen.rounds.itertuples(index=False):
        each: Any = row
        name = f"round {each.round}" if each.kind == "train" else f"round {each.round}, {each.kind}"
        told = {"asked": int(each.asked), "arrived": int(each.arrived), "failed": int(each.failed), "missed": int(each.missed)}
        starts = tuple(_asked(message) for message in asked.get((each.round, each.kind, each.started_s), ()))
        yield Event(SERVER, "begin", each.started_s, name, each.kind, args=told, flows=starts)
        yield Event(SERVER, "end", each.ended_s)
    sent = {flow for messages in asked.values() for flow in map(_asked, messages)}
    merged: set[int] = set()
    for row in seen.run.versions.itertuples(index=False) if len(tasks) else ():
        each = row
        numbers = each.merged.tolist()
        merged.update(numbers)
        ends = tuple(_gave(number) for number in numbers) if arrows else ()
        yield Event(VERSIONS, "instant", each.now_s, f"version {each.version}", "version", args={"merged": len(numbers)}, ends=ends)
    for row in tasks.itertuples(index=False):
        yield from _task(row, seen.now_s, sent, merged if arrows else set())
    places = {pair: FIRST_COUNTER + i for i, pair in enumerate(scores)}
    for row in seen.metrics.itertuples(index=False):
        each = row
        yield Event(places[each.scope, each.name], "counter", each.now_s, value=float(each.value))
        for i, way in enumerate(COUNTED):
            yield Event(FIRST_COUNTER + len(scores) + i, "counter", each.now_s, value=float(getattr(each, f"{way}_bytes")))


def _task(task: Any, end_s: Seconds, sent: set[int], merged: set[int]) -> Iterator[Any]:
    """Yield the slice of a *task* with its phases in it: download, waiting, training or evaluation, upload."""
    from fedsim.exporting.track_event import Event

    track, number = _track(task.client, task.lane), int(task.message[1:])
    told: dict[str, int | float | str] = {
        "message": task.message, "round": int(task.round), "version": int(task.version), "outcome": task.outcome,
        "examples": int(task.examples), "steps": int(task.steps),
        "down_bytes": int(task.down_bytes + task.down_framing_bytes), "up_bytes": int(task.up_bytes + task.up_framing_bytes),
    }  # fmt: skip
    if task.loss == task.loss and task.loss is not None:
        told["loss"] = float(task.loss)
    if task.failure:
        told["failure"] = task.failure
    done = task.outcome == "arrived"
    name = f"{task.kind}, round {task.round}{'' if done else f', {task.outcome}'}"
    came = (_asked(task.message),) if _asked(task.message) in sent else ()
    yield Event(track, "begin", task.sent_s, name, task.kind, args=told, ends=came)
    last_s = task.sent_s
    for phase, until_s in phases(task, end_s):
        goes = (_gave(number),) if phase == "upload" and number in merged else ()
        yield Event(track, "begin", last_s, phase, "phase", flows=goes)
        yield Event(track, "end", until_s)
        last_s = until_s
    yield Event(track, "end", last_s)


def phases(task: Any, end_s: Seconds) -> Iterator[tuple[str, Seconds]]:
    """Yield each phase that a *task* went through with its end; one that the end of the run, *end_s*, cut off ends there."""
    work = "training" if task.kind.partition(".")[0] == "train" else "evaluation" if task.kind == "evaluate" else "work"
    from_s = task.sent_s
    for phase, until_s in (
        ("download", task.received_s), ("waiting", task.started_s), (work, task.computed_s), ("upload", task.arrived_s),
    ):  # fmt: skip
        if not until_s >= 0:  # NaN: it never happened.
            if task.stopped_s > from_s:  # Its client stopped in the middle.
                yield phase, task.stopped_s
                from_s = task.stopped_s
            if task.outcome == "in flight" and end_s > from_s:
                yield phase, end_s
            elif task.arrived_s > from_s:  # An error came in the place of what was to come.
                yield "error", task.arrived_s
            return
        if until_s > from_s:
            yield phase, until_s
        from_s = max(from_s, until_s)


def _lanes(tasks: Frame, end_s: Seconds) -> tuple[list[int], int]:
    """Return on which of its client's tracks each of *tasks* is, sorted by client and time: the first that is free; -1 for none."""
    found: list[int] = []
    client, busy, free = -1, list[tuple[Seconds, int]](), list[int]()
    for row in tasks.itertuples(index=False):
        task: Any = row
        if task.client != client:
            client, busy, free = task.client, [], list(range(LANES))
        while busy and busy[0][0] <= task.sent_s:
            heapq.heappush(free, heapq.heappop(busy)[1])
        until_s = max([task.sent_s, *(moment for _, moment in phases(task, end_s))])
        if free:
            found.append(heapq.heappop(free))
            heapq.heappush(busy, (until_s, found[-1]))
        else:
            found.append(-1)
    return found, found.count(-1)


def _track(client: int, lane: int) -> int:
    return FIRST_CLIENT + client * LANES + lane


def _asked(message: str) -> int:
    """Return the flow from the round that sent *message* to its task."""
    return int(message[1:]) * 2


def _gave(number: int) -> int:
    """Return the flow from the result of message *number* to the version that took it in."""
    return number * 2 + 1
