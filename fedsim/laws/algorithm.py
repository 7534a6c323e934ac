"""Laws of algorithms, both halves: pure functions of arrays, that give what they say. Knows no method and no strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.state import State, pack, unpack
from fedsim.core.types import Params
from fedsim.laws.broken import Law, Make, alike, alike_states, keepable, luck, want
from fedsim.laws.optimizer import FORMS, OF_TERMS, Terms
from fedsim.learn.algorithms import Algorithm, Ended, Server, Update
from fedsim.learn.algorithms.ending import ended_by, named
from fedsim.learn.job import Job
from fedsim.learn.work import Start, Task

CLIENTS = 4
COUNTS = (1, 5, 12)
"""Steps that tasks take."""


def params(seed: int, scale: float = 1.0) -> Params:
    """Return parameters drawn from *seed*."""
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=form)).astype(np.float32).reshape(form) for name, form in FORMS.items()}


def task_of(algorithm: Algorithm, steps: int, kept: State, client: int = 0) -> tuple[Task, Params]:
    """Return a task of so many steps on a client that has *kept* so much, and the parameters that it came to."""
    sent = {extra: params(100 + number, 0.1) for number, extra in enumerate(algorithm.down)}
    start, moved = params(1), params(10 + client, 0.05)
    job = Job(epochs=0, steps=steps, batch_size=2, lr=0.1, algorithm=algorithm)
    task = Task(client, 0, job, Start({**start, **named(sent)}), np.arange(4), Key(client), parts={"algorithm": kept})
    return task, {name: start[name] + steps * moved[name] for name in start}


def ended(algorithm: Algorithm, steps: int, kept: State, client: int = 0) -> Ended:
    """Return what *algorithm* makes of such a task."""
    task, reached = task_of(algorithm, steps, kept, client)
    return ended_by(algorithm, task, reached, list(FORMS))


def finish_gives_what_it_says(make: Make) -> None:
    """A task ends with the extra arrays and metrics that are named, of the parameters' forms, and with what can be kept; all finite."""
    for steps in COUNTS:
        algorithm, kept = make(), State()
        for number in range(2):
            found, words = ended(algorithm, steps, kept), f"task {number} of {steps} steps"
            for extra, arrays in found.extra.items():
                alike(_forms(params(1)), _forms(arrays), f"{words}: forms of {extra}")
                want(all(np.isfinite(array).all() for array in arrays.values()), f"{words}: {extra} is not finite")
            alike(sorted(algorithm.metrics), sorted(found.metrics), f"{words}: its metrics")
            want(all(np.isfinite(value) for value in found.metrics.values()), f"{words}: metrics {dict(found.metrics)}")
            kept = keepable(found.kept, f"{words}: what is kept")
            strange = {name.partition("/")[0] for name in kept} - set(algorithm.keeps)
            want(not strange, f"{words}: it keeps {sorted(strange)}, and says that it keeps {list(algorithm.keeps)}")


def finish_is_pure(make: Make) -> None:
    """How a task ends follows from the task, whatever ended before; nothing that goes in is written to."""
    used, kept = make(), State()
    for steps in COUNTS:
        for client in range(2):
            words, was, drawn = f"client {client} after {steps} steps", unpack(pack(kept)), luck()
            task, reached = task_of(used, steps, kept, client)
            whole, trained = {n: a.copy() for n, a in task.start.params.items()}, {n: a.copy() for n, a in reached.items()}
            found, fresh = ended_by(used, task, reached, list(FORMS)), ended(make(), steps, was, client)
            for name in ("extra", "kept", "metrics"):
                alike(dict(getattr(fresh, name)), dict(getattr(found, name)), f"{words}, by one that has ended others before: {name}")
            alike(whole, dict(task.start.params), f"{words}: what it started from")
            alike(trained, dict(reached), f"{words}: what it was trained to")
            alike_states(was, kept, f"{words}: what was kept")
            want(drawn == luck(), f"{words}: it draws from numpy's global generator")
        kept = ended(make(), steps, kept).kept


def updates(make: Make, steps: Sequence[int]) -> list[Update]:
    """Return the replies of a client for each of *steps*, which took so many."""
    found: list[Update] = []
    for client, count in enumerate(steps):
        algorithm = make()
        end = ended(algorithm, count, {}, client)
        found.append(Update(task_of(algorithm, count, {}, client)[1], end.extra, 10.0 * (client + 1), {"train_loss": 1.0, **end.metrics}))
    return found


def after(server: Server, told: Sequence[Update], state: State) -> tuple[Params, State]:
    """Return the next model and state, from what a strategy that averages would make of *told*."""
    start = params(1)
    weights = np.array([1.0 if server.weights == "uniform" else update.examples for update in told])
    seen = server.before(start, told)
    average = {
        name: np.average([each[name].astype(np.float64) for each in seen], axis=0, weights=weights).astype(np.float32).reshape(FORMS[name])
        for name in start
    }
    return server.after(start, average, told, state)


def the_server_keeps_forms(make: Make) -> None:
    """What travels from the first round on is there; model, replies and state keep their forms, and are finite, from one client on."""
    for steps in ([1], [5], [1, 5, 12, 5]):
        algorithm: Algorithm = make()
        server = algorithm.server(CLIENTS)
        if server is None:
            return
        start, told = params(1), updates(make, steps)
        state, words = keepable(server.begin(params(1)), "the state before the first round"), f"clients that took {steps} steps"
        begun = _forms(state)
        missing = [f"{extra}/{name}" for extra in algorithm.down for name in start if f"{extra}/{name}" not in begun]
        want(not missing, f"the state before the first round is without {missing[:1]}, which travels")
        for seen in server.before(start, told):
            alike(_forms(start), _forms(seen), f"{words}: forms of a reply as the strategy sees it")
        for number in range(3):
            model, state = after(server, told, state)
            alike(_forms(start), _forms(model), f"{words}, round {number}: forms of the model")
            alike(begun, _forms(keepable(state, f"{words}, round {number}: the state")), f"{words}, round {number}: forms of the state")
            good = all(np.isfinite(array).all() for array in (*model.values(), *state.values()))
            want(good, f"{words}, round {number}: the model or the state is not finite")


def the_server_is_pure(make: Make) -> None:
    """A round follows from replies and state, whatever rounds there were before; nothing that goes in is written to."""
    used, told = make().server(CLIENTS), updates(make, [1, 5, 12])
    if used is None:
        return
    state = used.begin(params(1))
    for number in range(3):
        words, was = f"round {number}", unpack(pack(state))
        start, average = params(1), params(2)
        sent = [({n: a.copy() for n, a in u.params.items()}, {e: dict(x) for e, x in u.extra.items()}) for u in told]
        fresh = make().server(CLIENTS)
        alike(_plain(fresh.before(params(1), told)), _plain(used.before(start, told)), f"{words}, by one that is used: replies as seen")
        one, two = fresh.after(params(1), params(2), told, unpack(pack(was))), used.after(start, average, told, state)
        alike(dict(one[0]), dict(two[0]), f"{words}, by one that has had others: the model")
        alike_states(one[1], two[1], f"{words}, by one that has had others: the state")
        alike((params(1), params(2)), (start, average), f"{words}: start and average that went in")
        alike_states(was, state, f"{words}: the state that went in")
        alike([a for a, _ in sent], [dict(u.params) for u in told], f"{words}: the replies that went in")
        state = two[1]


def the_order_of_replies_does_not_matter(make: Make) -> None:
    """Replies in another order, and arrays in another order of names, give the same model and state but for rounding."""
    server = make().server(CLIENTS)
    if server is None:
        return
    told = updates(make, [1, 5, 12, 7])
    backwards = [
        Update(dict(reversed(u.params.items())), {e: dict(reversed(x.items())) for e, x in u.extra.items()}, u.examples, u.metrics)
        for u in reversed(told)
    ]
    states = [server.begin(params(1)) for _ in range(2)]
    for number in range(2):
        ends = [after(server, replies, state) for replies, state in zip((told, backwards), states, strict=True)]
        states = [state for _, state in ends]
        for what, (one, two) in {"model": (ends[0][0], ends[1][0]), "state": (states[0], states[1])}.items():
            for name in one:
                close = np.allclose(one[name], two[name], rtol=1e-4, atol=1e-5)
                want(close, f"round {number}, replies backwards: {name} of the {what} is another, not by rounding only")


def _forms(arrays: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(arrays[name].dtype), np.shape(arrays[name])) for name in sorted(arrays)}


def _plain(replies: Sequence[Params]) -> list[dict[str, Any]]:
    return [dict(reply) for reply in replies]


def _of_terms(law: Callable[[Terms, Sequence[str]], None]) -> Law:
    def asked(make: Make) -> None:
        law(lambda: make().terms(Job(steps=3)), make().down)

    asked.__name__, asked.__doc__ = law.__name__, law.__doc__
    return asked


LAWS: dict[str, tuple[Law, ...]] = {
    "algorithm": (
        *(_of_terms(law) for law in OF_TERMS), finish_gives_what_it_says, finish_is_pure, the_server_keeps_forms, the_server_is_pure,
        the_order_of_replies_does_not_matter,
    )
}  # fmt: skip
