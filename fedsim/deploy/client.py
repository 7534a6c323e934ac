"""A node's side: which client it is, what it answers its server's queries, and the diary it keeps of its tasks. Knows no strategy."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from fedsim.core.errors import FedsimError, ScenarioError
from fedsim.core.types import Seconds
from fedsim.deploy import diary
from fedsim.deploy.diary import BEGIN, END, RECORD, Begin, Entry, Present
from fedsim.deploy.words import NodeWords, RunWords
from fedsim.flower import records
from fedsim.flower.apps import Site, Worked, answer
from fedsim.record.manifest import versions
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import Loaded

_PROCESS = "flwr-clientapp"
"""What Flower calls the process that it starts for a message."""
_fresh = True


@dataclass(frozen=True, slots=True)
class Node:
    """The client that a node is: its words, its scenario, and the site where messages are worked on."""

    words: NodeWords
    loaded: Loaded
    site: Site
    parts: Parts


@lru_cache(maxsize=4)
def _node(words: RunWords, config: tuple[tuple[str, object], ...]) -> Node:
    loaded = words.loaded()
    mine = NodeWords.of(dict(config), loaded.scenario.clients.count)
    parts = build(loaded)
    site = Site(parts.fleet.client(mine.client), parts.job, parts.engine, parts.strategy.mods, coding=parts.fleet.coding)
    return Node(mine, loaded, site, parts)


def node_of(context: Context, folder: Path) -> Node:
    """Return the client behind *context*, of the app in *folder*; made once per process. Raises ScenarioError."""
    return _node(RunWords.of(context.run_config, folder), tuple(sorted(context.node_config.items())))


def replied(message: Message, context: Context, folder: Path) -> Message:
    """Return what the node behind *context* replies to *message*: what is wrong with its words, or with the message, is an error reply."""
    received_s, received_wall_s = _received()
    try:
        if message.metadata.message_type == diary.QUERY:
            return _queried(message, context, folder)
        return _worked(message, context, node_of(context, folder), received_s, received_wall_s)
    except FedsimError as error:
        return Message(Error(records.CLIENT_RAISED, str(error)), reply_to=message)


def _worked(message: Message, context: Context, node: Node, received_s: float, received_wall_s: float) -> Message:
    begin = diary.run_of(context.state)
    if begin is None:  # A server that is not ours: the client's stream begins with its first message.
        begin = Begin(time.time(), RunWords.of(context.run_config, Path()).time_scale, node.loaded.scenario.clients.count, "")
        diary.enter_run(context.state, begin)
    done: list[Worked] = []
    clock, scale = _StreamClock(begin), begin.time_scale
    here = replace(node.site, now=clock.now, wait=lambda seconds: time.sleep(seconds / scale), worked=done.append)
    reply = answer(message, context, here)
    computed_s = time.monotonic()
    for work in done:
        task, training = work.task, work.task.job.kind == "train"
        steps = int(work.result.metrics.get("steps", task.steps)) if training else 0
        diary.wrote(context.state, Entry(
            message.metadata.message_id, task.number, received_wall_s, received_wall_s + work.started_s - received_s,
            received_wall_s + computed_s - received_s, task.examples, steps, node.parts.fleet.flops.of(task, steps if training else None),
            task.job.batch_size if training and node.parts.fleet.sizing is not None else 0,
        ))  # fmt: skip
    return reply


@dataclass(frozen=True, slots=True)
class _StreamClock:
    """How long the run has been going, by this node's clock."""

    begin: Begin

    def now(self, context: Context) -> Seconds:
        """Return the seconds of the run; where a clock was set back, no less than when the client last acted."""
        passed_s = (time.time() - self.begin.began_wall_s) * self.begin.time_scale
        return max(0.0, passed_s, records.kept_of(context.state).until_s)


def _queried(message: Message, context: Context, folder: Path) -> Message:
    said = message.content.config_records.get(RECORD)
    asked = None if said is None else said.get("ask")
    if said is None or asked not in (BEGIN, END):
        raise ScenarioError(f"a 'query' message came that asks {asked!r}; our client answers what its own server asks: {BEGIN}, {END}.")
    if asked == END:
        return _told(message, diary.diary_of(context.state))
    begin, node = diary.begin_of(said), node_of(context, folder)
    if begin.scenario_digest != node.loaded.scenario.digest:
        raise ScenarioError(
            f"the server's scenario is another than the node's ({begin.scenario_digest[:12]}... there,"
            f" {node.loaded.scenario.digest[:12]}... here): {RunWords.of(context.run_config, folder).scenario} must be the same on both."
        )
    diary.enter_run(context.state, begin)
    held = int(node.parts.federation.held(np.array([node.words.client]))[0])
    return _told(message, diary.record_of(Present(
        node.words.client, time.time(), held, platform.node(), os.getpid(), ", ".join(f"{k} {v}" for k, v in versions().items()),
    )))  # fmt: skip


def _told(message: Message, record: ConfigRecord) -> Message:
    return Message(RecordDict({RECORD: record}), reply_to=message)


def _received() -> tuple[float, float]:
    """Return when the message at hand came: the first of a process came before it, which was started for it. Monotonic, and since 1970."""
    global _fresh
    age_s = _age_s() if _fresh and Path(sys.argv[0]).name == _PROCESS else 0.0
    _fresh = False
    return time.monotonic() - age_s, time.time() - age_s


def _age_s() -> float:
    """Return how long this process has been running; 0 where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
