"""Flower's ClientApp for a scenario: the same client program, on a real node and with real messages. Knows no run, and no server."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedsim.client.kept import Kept
from fedsim.client.program import Finished, Program, Unable
from fedsim.codec import Coding
from fedsim.core.state import State
from fedsim.core.types import Params, Seconds
from fedsim.flower import compat, records
from fedsim.flower.decode import recoded
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job
from fedsim.learn.monitor import Monitor
from fedsim.learn.work import Result, Task

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]
"""A Flower client mod."""

App = Callable[[Message, Context], Message]


class Keeping(Protocol):
    """Where a node keeps what its client carries from message to message."""

    def kept(self, context: Context) -> Kept:
        """Return what the client behind *context* keeps; nothing yet where nobody kept anything."""
        ...

    def keep(self, context: Context, kept: Kept) -> None:
        """Keep it, so that it outlives the process."""
        ...


class InState:
    """Keeps it in Flower's own state of the client, which lasts as long as its SuperNode."""

    def kept(self, context: Context) -> Kept:
        """Return what is kept there."""
        return records.kept_of(context.state)

    def keep(self, context: Context, kept: Kept) -> None:
        """Write it there."""
        records.keep(context.state, kept)


IN_STATE = InState()


@dataclass(frozen=True, slots=True)
class Worked:
    """What was done for a message: the *task*, what came of it, and when that began, on a clock that never jumps.

    *now* is when that was to the client: the moment that its plan was made for.
    *cpu_s* are the processor seconds that the process had taken by then.
    """

    task: Task
    result: Result
    finished: Finished
    started_s: Seconds
    now: Seconds
    cpu_s: Seconds


@dataclass(frozen=True, slots=True)
class Site:
    """What one node has: its client program, the scenario's job, an engine, and the mods its training replies go through.

    On a stream *now* says how long the stream has been going, in seconds, and *wait* lets seconds pass until a trigger
    holds. *keeping* is where it keeps what it carries on; *worked* is told of each task that is done. *monitor* says what is watched;
    a node sees no versions, and takes the server's rounds for them.
    """

    client: Program
    job: Job
    engine: CohortEngine
    mods: Sequence[Mod] = ()
    now: Callable[[Context], Seconds] = lambda _context: 0.0
    wait: Callable[[Seconds], None] = time.sleep
    coding: Coding | None = None
    keeping: Keeping = IN_STATE
    worked: Callable[[Worked], None] = lambda _worked: None
    monitor: Monitor | None = None


def with_mods(mods: Sequence[Mod], app: App) -> App:
    """Return *app* with *mods* around it, the first outermost, as Flower applies them."""
    for mod in reversed(mods):
        app = _around(mod, app)
    return app


def client_app(site: Callable[[Context], Site]) -> ClientApp:
    """Return the ClientApp of a scenario; *site* says which client a node is, from its context."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, site(context))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, site(context))

    _ = train, evaluate  # Registered by their decorators.
    return app


def answer(message: Message, context: Context, here: Site) -> Message:
    """Return the reply of the node *here* to a message that trains or evaluates: through its mods, and as it travels."""
    if message.metadata.message_type != "train":
        return _answer(message, context, here)
    return _coded(with_mods(here.mods, lambda m, c: _answer(m, c, here))(message, context), context, here)


def _coded(reply: Message, context: Context, site: Site) -> Message:
    """Return *reply* as it travels, and write what is kept of the encoding into *context*."""
    coding = site.coding
    if coding is None or reply.has_error():
        return reply
    kept = site.keeping.kept(context)
    state: State = dict(kept.parts.get("codec", {}))

    def code(params: Params) -> Params:
        nonlocal state
        encoded, state = coding.sent_up(params, state)
        return encoded

    coded = compat.with_metadata(recoded(reply.content, code), reply.metadata)
    if state:
        site.keeping.keep(context, kept.having({"codec": state}))
    return coded


def _answer(message: Message, context: Context, site: Site) -> Message:
    order = records.order_of(message, records.StartCache(site.coding), site.job)
    kept, now = site.keeping.kept(context), site.now(context)
    ready_s = site.client.ready_s(order, kept, now)
    if math.isinf(ready_s):
        return Message(Error(records.CLIENT_RAISED, "the client's stream has ended"), reply_to=message)
    if ready_s > now:
        site.wait(ready_s - now)
    started_s, cpu_s = time.monotonic(), time.process_time()
    try:
        task, kept = site.client.plan(order, kept, ready_s)
    except Unable as error:
        return Message(Error(records.CLIENT_RAISED, str(error)), reply_to=message)
    if site.monitor is not None:
        task = site.monitor.watched(task, max(0, records.round_of(message.content) - 1))
    result = site.engine.run([task])[0]
    finished = site.client.finish(task, result, kept)
    site.keeping.keep(context, kept.having(finished.parts))
    site.worked(Worked(task, result, finished, started_s, ready_s, cpu_s))
    return Message(records.reply_content(finished.reply, writable=True), reply_to=message)


def _around(mod: Mod, inner: App) -> App:
    return lambda message, context: mod(message, context, inner)
