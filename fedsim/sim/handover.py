"""Handing over: what is there gets its numbers, whole cohorts at a time, its row, and its reply. Moves no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flwr.app import Context, Error, Message, RecordDict

from fedsim.client.program import News, Reply
from fedsim.core.errors import RunError, door, must
from fedsim.core.state import State
from fedsim.core.types import Params, Seconds
from fedsim.flower import compat, compat_lazy, records
from fedsim.flower.apps import Mod, with_mods
from fedsim.flower.decode import recoded
from fedsim.learn.work import Result, Row
from fedsim.sim.heard import Said, heard_of, said_in
from fedsim.sim.invariants import Invariants
from fedsim.sim.ledger import Ledger
from fedsim.sim.mail import Delivery
from fedsim.sim.programs import Programs
from fedsim.sim.rows import Observer, PredictionRow
from fedsim.sim.watched import Head, Made, examined_of, noise_of, steps_of


class Held(NamedTuple):
    """A reply that is no error, with what will be told of it once its fate is sealed: its loss, its digest, and what its client said."""

    delivery: Delivery
    loss: float | None
    digest: str
    said: Said | None


class Handover:
    """Answers deliveries that have arrived, and tells *observer* the fate of each.

    Replies go through the client *mods*. *writable* replies may be written to by the strategy; read-only ones share the
    engine's memory. In a *dry* run there are no numbers, and so no replies.
    """

    def __init__(
        self, clients: Programs, observer: Observer, invariants: Invariants, *, mods: Sequence[Mod], writable: bool, dry: bool
    ) -> None:
        self.ledger = Ledger(observer, invariants)
        self._clients, self._observer, self._invariants = clients, observer, invariants
        self._fleet, self._engine = clients.fleet, clients.engine
        self._mods, self._writable, self._dry = list(mods), writable, dry
        self._contexts: dict[int, tuple[int, Context]] = {}  # By client, each with the life whose it is.
        self._checked: tuple[Any, Any, Any] = None, None, ()  # Of which stack, names and parcel the size was checked last.
        self._told_until: dict[int, Seconds] = {}  # By client: up to when its drifts are on record.
        self._late: list[Delivery] = []  # What arrived late, and leaves something behind that has not been told.

    def late(self, delivery: Delivery) -> None:
        """Tell the fate of a delivery that nobody waited for, and keep it where its numbers leave something behind."""
        self.ledger.settle(delivery, "late")
        if delivery.kept is not None:
            self._late.append(delivery)

    def answered(self, ready: list[Delivery], flying: Iterable[Delivery], now: Seconds) -> list[Message]:
        """Fill *ready* replies with numbers, and return them sorted by client: float sums depend on order.

        What is *flying* may be computed with them.
        """
        replies, held = self._filled(ready, flying, now, merge=True)
        self._tell(held, now)
        return replies

    def passed(self, ready: list[Delivery], flying: Iterable[Delivery], now: Seconds) -> tuple[list[Message], list[Held]]:
        """Return the replies to *ready*, as ``answered``, for somebody on the way to the server, and what is held until its fate is known.

        ``merged`` or ``dropped`` is to be told of that then; an error has its fate at once.
        """
        replies, held = self._filled(ready, flying, now, merge=False)
        for each in held:
            each.delivery.finished = None  # Its parameters go with the reply, and not with what is held.
        return replies, held

    def merged(self, held: Sequence[Held], now: Seconds) -> None:
        """Take that what was made of the replies *held* has come to the server."""
        for each in held:
            self._merge(each, now)
        self._tell(held, now)

    def dropped(self, held: Iterable[Held]) -> None:
        """Take that the server waits no more for what was made of the replies *held*."""
        for each in held:
            self.ledger.settle(each.delivery, "late")

    def _merge(self, each: Held, now: Seconds) -> None:
        self.ledger.settle(each.delivery, "arrived", each.loss, each.digest)
        if each.delivery.kind == "train" and not self._dry:
            self.ledger.versions.handed(each.delivery.number, now)

    def _filled(
        self, ready: list[Delivery], flying: Iterable[Delivery], now: Seconds, *, merge: bool
    ) -> tuple[list[Message], list[Held]]:
        """Return the replies to *ready*, and what is known of each that is no error: sealed at once where it is to *merge*."""
        held: list[Held] = []
        if self._dry:
            for delivery in ready:
                if delivery.failure:
                    self.ledger.settle(delivery, "failed")
                    continue
                held.append(Held(delivery, None, "", None))
                if merge:
                    self._merge(held[-1], now)
            return [], held
        ready.sort(key=lambda delivery: (delivery.client, delivery.id))
        computed = [delivery for delivery in ready if not delivery.failure]
        tickets = [delivery.ticket for delivery in computed if delivery.ticket is not None]
        others = [d.ticket for d in [*self._late, *flying] if d.ticket is not None and d.wanted]
        results = dict(zip(tickets, self._engine.collect(tickets, others), strict=True))
        replies: list[Message] = []
        self._tell_late()
        # By the model that they are of, where watched: a version of the server's, or what an edge made of it.
        monitored, trained = self._fleet.monitor is not None, dict[tuple[int, int, int], list[tuple[Delivery, Result]]]()
        for delivery in ready:
            if delivery.failure or delivery.ticket is None:
                code = delivery.code
                if code is None:
                    code = records.CLIENT_RAISED if delivery.reached else records.NODE_UNAVAILABLE
                replies.append(Message(Error(code, delivery.failure), reply_to=delivery.message))
                self.ledger.settle(delivery, "failed")
                if delivery.kept is not None and delivery.ticket is not None:  # Its client has trained, all the same.
                    self._late.append(delivery)
                continue
            result = results[delivery.ticket]
            self._check(delivery, result)
            if monitored and delivery.kind == "train":
                model = delivery.parcel.version, delivery.parcel.edge, delivery.parcel.edge_round
                trained.setdefault(model, []).append((delivery, result))
            finished = self._clients.finish(delivery, result)
            if finished.news is not None:
                self._told(delivery, finished.news)
            reply = self._reply(delivery, finished.reply)
            if reply.has_error():  # A mod refused.
                delivery.fail(reply.error.reason or "a mod refused")
                self.ledger.settle(delivery, "failed")
            else:
                loss = result.metrics.get("train_loss", result.metrics.get("loss"))
                coding = self._fleet.coding
                other = self._mods or (coding is not None and coding.changes_up)  # Then what travels is not what was computed.
                told = said_in(delivery, records.told(reply.content) if self._mods else finished.reply.metrics)
                held.append(Held(delivery, loss, records.digest_of_reply(reply) if other else result.digest, told))
                if merge:
                    self._merge(held[-1], now)
            replies.append(reply)
        self._watched([each for model in trained.values() for each in model])
        for model in sorted(trained):
            self._noise(model[0], trained[model], now)
        weights = [d.task.examples for d in computed if d.task and not d.failure]
        if weights:
            self._invariants.weights(computed[0].round, weights)
        return replies, held

    def finish(self, *, broken: bool = False) -> None:
        """Settle what has no fate yet, telling what it leaves behind unless the run is *broken*."""
        if not broken:  # Those on their way have begun, and have predicted.
            self._late += [d for d in self.ledger.open if d.abandoned and d.kept is not None]
            self._tell_late()
        for delivery in [*self._late, *self.ledger.open]:
            if delivery.ticket is not None:
                self._engine.discard(delivery.ticket)
        self.ledger.finish()

    def _tell(self, held: Sequence[Held], now: Seconds) -> None:
        """Tell what clients told of themselves in the replies *held*."""
        for row in heard_of([each.said for each in held if each.said is not None], now):
            self._observer.heard(row)

    def _check(self, delivery: Delivery, result: Result) -> None:
        """Raise RunError where a number of *result* is none."""
        task = delivery.planned
        wrong = [name for name, value in result.metrics.items() if not math.isfinite(value)]
        if wrong:
            delivery.fail(f"{wrong[0]} became {result.metrics[wrong[0]]}")
            where = self._engine.diagnose(task)
            raise RunError(
                f"round {delivery.round}: {wrong[0]} of client {delivery.client} became {result.metrics[wrong[0]]}"
                f" (its task {task.number}, {len(task.positions)} examples{f'; {where}' if where else ''}). Training diverged;"
                f" try a smaller training.optimizer.lr (now {task.job.lr:g})."
            )

    def _tell_late(self) -> None:
        """Tell what came of tasks whose replies were late: what they predicted is known, whoever waited for them."""
        late, self._late = self._late, []
        tickets = [delivery.ticket for delivery in late if delivery.ticket is not None]
        told = list(zip(late, self._engine.collect(tickets), strict=True))
        self._watched(told)
        for delivery, result in told:
            finished = self._clients.finish(delivery, result)
            if finished.news is not None:
                self._told(delivery, finished.news)

    def _watched(self, found: Sequence[tuple[Delivery, Result]]) -> None:
        """Tell the observer what was watched of the tasks *found*."""
        watched = [(delivery, _head(delivery), result.watched) for delivery, result in found if result.watched]
        if not watched:
            return
        self._observer.watched(steps_of([(head, seen) for _, head, seen in watched]))
        for delivery, head, seen in watched:
            if (row := examined_of(delivery.id, head, seen)) is not None:
                self._observer.examined(row)

    def _noise(self, version: int, trained: Sequence[tuple[Delivery, Result]], now: Seconds) -> None:
        """Tell the observer signal and noise between the clients that trained *version*, where there are several."""
        there = [(delivery.planned, result) for delivery, result in trained if not delivery.failure]
        if not there:
            return
        at, start = (trained[0][0].round, version, now), there[0][0].start.params
        row = noise_of(at, start, [Made(result.params, task.examples) for task, result in there if task.examples], self._fleet.trained)
        if row is not None:
            self._observer.noise(row)

    def _told(self, delivery: Delivery, news: News) -> None:
        """Tell the observer what was tested before training, and where a detector signalled drift."""
        stream = self._fleet.stream(delivery.client)
        before = self._told_until.get(delivery.client, -math.inf)
        self._told_until[delivery.client] = max(before, delivery.started_s)  # Late tasks may be told of after later ones.
        lived = (stream.changes_s > before) & (stream.changes_s <= delivery.started_s)
        self._observer.tested(
            PredictionRow(
                client=delivery.client, message=delivery.id, round=delivery.round, version=delivery.parcel.version,
                now_s=delivery.started_s, items=news.items, arrived_s=stream.arrived_s[news.items],
                labelled_s=stream.labelled_s[news.items], y=news.y, prediction=news.prediction, loss=news.loss,
                concepts=stream.concepts[news.items], alarms=news.alarms, drifts_s=stream.changes_s[lived],
            )
        )  # fmt: skip

    def _reply(self, delivery: Delivery, answer: Reply) -> Message:
        mods, name = self._mods if delivery.kind == "train" else [], delivery.id.replace("m", "r")
        if not mods and (self._fleet.coding is None or delivery.kind != "train") and compat_lazy.lazy_messages_work():
            self._check_answer(delivery, answer)
            return compat_lazy.reply_to(delivery.message, records.lazy_content(answer, writable=self._writable), name)

        def app(message: Message, context: Context) -> Message:
            return compat.reply_to(message, records.reply_content(answer, writable=self._writable))

        if mods:  # They read the content, which must be as it was sent; a reply takes no more than the metadata.
            sent = compat.with_metadata(delivery.parcel.content, delivery.message.metadata)
            names = ", ".join(str(getattr(mod, "__name__", mod)) for mod in mods)
            with door(f"client {delivery.client} in round {delivery.round}", f"a client mod ({names}) raised", wrong=RunError):
                reply = with_mods(mods, app)(sent, self._context(delivery))
        else:
            reply = app(delivery.message, _NO_CONTEXT)
        if not reply.has_error():
            reply = self._coded(delivery, reply)
            self._check_size(delivery, reply)
        compat.set_message_id(reply, name)
        return reply

    def _coded(self, delivery: Delivery, reply: Message) -> Message:
        """Return *reply* as it travels; what its client keeps of the encoding is kept."""
        coding, client = self._fleet.coding, delivery.client
        if coding is None or delivery.kind != "train":
            return reply
        kept: State = dict(self._clients.kept(client).parts.get("codec", {}))

        def code(params: Params) -> Params:
            nonlocal kept
            encoded, kept = coding.sent_up(params, kept)
            return encoded

        coded = compat.with_metadata(recoded(reply.content, code), reply.metadata)
        if kept:
            self._clients.keep(client, {"codec": kept})
        return coded

    def _check_answer(self, delivery: Delivery, answer: Reply) -> None:
        """Check that *answer* will be as large as was foretold: by what it is made of, which is the same for many."""
        whose = answer.given.stack if isinstance(answer.given, Row) else None
        stack, parcel, names = self._checked
        if whose is None or whose is not stack or delivery.parcel is not parcel or answer.metrics.keys() != names:
            size = records.reply_size(records.forms(answer.params), tuple(answer.metrics)).over(self._fleet.overhead)
            if size != delivery.up:
                must(False, f"{delivery.id}: {delivery.up} bytes were foretold, {size} encoded")
            self._checked = whose, delivery.parcel, answer.metrics.keys()

    def _check_size(self, delivery: Delivery, reply: Message) -> None:
        """Check that *reply* is as large as was foretold. Raises RunError that says what a mod made larger or smaller."""
        size, foretold = records.size_of(reply.content, records.UP).over(self._fleet.overhead), delivery.up
        if size == foretold:
            return
        forms = self._fleet.forms
        came = {name: form for record in reply.content.array_records.values() for name, form in records.forms_of(record).items()}
        wrong = sorted(name for name in {*forms, *came} if came.get(name) != forms.get(name))
        if not self._mods or self._fleet.coding or delivery.kind != "train":
            must(False, f"{delivery.id}: {foretold} bytes were foretold, {size} encoded")
        names = ", ".join(str(getattr(mod, "__name__", mod)) for mod in self._mods)
        what = (
            f"{wrong[0]} is {came.get(wrong[0], 'gone')} where {forms.get(wrong[0], 'nothing')} was expected"
            if wrong
            else f"its metrics are {sorted(name for record in reply.content.metric_records.values() for name in record)}"
        )
        raise RunError(
            f"client {delivery.client} in round {delivery.round}: a client mod ({names}) changed the size of the reply, on which its time"
            f" depends: {what}. A mod may change numbers; what changes sizes is a codec ([codec] up), which states them beforehand."
        )

    def _context(self, delivery: Delivery) -> Context:
        client, life = delivery.client, delivery.life
        if self._contexts.get(client, _NOBODY)[0] != life:
            self._contexts[client] = life, Context(
                run_id=1, node_id=records.node_of(client), node_config={"partition-id": client},
                state=RecordDict(), run_config={},
            )  # fmt: skip
        return self._contexts[client][1]


def _head(delivery: Delivery) -> Head:
    return Head(delivery.number, delivery.client, delivery.planned.number, delivery.round, delivery.parcel.version)


_NOBODY = (-1, None)
_NO_CONTEXT = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
