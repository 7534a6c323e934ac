"""Flower's ClientApp and ServerApp for a scenario: the same client program, on a real node and with real messages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedsim.client.program import Program, Unable
from fedsim.codec import Coding
from fedsim.core.state import State
from fedsim.core.types import Params, Seconds
from fedsim.flower import compat, records
from fedsim.flower.decode import coded, recoded
from fedsim.flower.rounds import Control, Course, drive
from fedsim.learn.controllers import Controller
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]
"""A Flower client mod."""

App = Callable[[Message, Context], Message]


@dataclass(frozen=True, slots=True)
class Site:
    """What one node has: its client program, the scenario's job, an engine, and the mods its training replies go through.

    On a stream *now* says how long the stream has been going, in seconds, and *wait* lets seconds pass until a trigger
    holds.
    """

    client: Program
    job: Job
    engine: CohortEngine
    mods: Sequence[Mod] = ()
    now: Callable[[Context], Seconds] = lambda _context: 0.0
    wait: Callable[[Seconds], None] = time.sleep
    coding: Coding | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a server needs: the strategy, where it starts, what it orders, how long, and how it scores."""

    strategy: Strategy
    first: Params
    job: Job
    rounds: int
    timeout_s: float
    evaluate: Callable[[int, Params], dict[str, float] | None]
    coding: Coding | None = None
    controller: Controller | None = None


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
        here = site(context)
        return _coded(with_mods(here.mods, lambda m, c: _answer(m, c, here))(message, context), context, here)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer(message, context, site(context))

    _ = train, evaluate  # Registered by their decorators.
    return app


def server_app(plan: Callable[[Context], Plan]) -> ServerApp:
    """Return the ServerApp of a scenario: the scenario's strategy, on whatever grid it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        ready = plan(context)

        def score(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            scores = ready.evaluate(server_round, records.params_of(arrays))
            return None if scores is None else MetricRecord(dict(scores))

        control = None if ready.controller is None else Control(ready.controller, ready.job)
        course = Course(ready.rounds, ready.timeout_s, records.job_config(ready.job), ConfigRecord(), control)
        with compat.exact_distances():
            drive(ready.strategy, coded(grid, ready.coding), compat.array_record(ready.first), course, score, lambda: False)

    _ = main
    return app


def _coded(reply: Message, context: Context, site: Site) -> Message:
    """Return *reply* as it travels, and write what is kept of the encoding into *context*."""
    coding = site.coding
    if coding is None or reply.has_error():
        return reply
    kept = records.kept_of(context.state)
    state: State = dict(kept.parts.get("codec", {}))

    def code(params: Params) -> Params:
        nonlocal state
        encoded, state = coding.sent_up(params, state)
        return encoded

    coded = compat.with_metadata(recoded(reply.content, code), reply.metadata)
    if state:
        records.keep(context.state, kept.having({"codec": state}))
    return coded


def _answer(message: Message, context: Context, site: Site) -> Message:
    order = records.order_of(message, records.StartCache(site.coding), site.job)
    kept, now = records.kept_of(context.state), site.now(context)
    ready_s = site.client.ready_s(order, kept, now)
    if math.isinf(ready_s):
        return Message(Error(records.CLIENT_RAISED, "the client's stream has ended"), reply_to=message)
    if ready_s > now:
        site.wait(ready_s - now)
    try:
        task, kept = site.client.plan(order, kept, ready_s)
    except Unable as error:
        return Message(Error(records.CLIENT_RAISED, str(error)), reply_to=message)
    result = site.engine.run([task])[0]
    finished = site.client.finish(task, result, kept)
    records.keep(context.state, kept.having(finished.parts))
    return Message(records.reply_content(finished.reply, writable=True), reply_to=message)


def _around(mod: Mod, inner: App) -> App:
    return lambda message, context: mod(message, context, inner)
