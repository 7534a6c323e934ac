"""Laws of monitoring: whoever looks on moves nothing, sees the same wherever tasks are computed, and sees what torch would."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fedsim
from fedsim.learn import batching, models
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.engine.watching import Watcher
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.optim import Adam
from fedsim.learn.store import Store
from fedsim.learn.work import STEP_COLUMNS, Result, Task, Watching
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from tests.laws.test_accumulate import federation, network
from tests.laws.test_engine import tasks

Go = Callable[..., fedsim.Run]
WHOLE = {"training.drop_last": True}  # Few sizes: each is compiled.
STREAM = {
    "stream": {"arrivals": {"kind": "poisson", "per_s": 2.0}, "trigger": {"kind": "count", "examples": 9}}, "server.rounds": 3,
    "clients.replay": {"kind": "reservoir", "capacity": 12}, "training.batch_size": 4,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plain": {**WHOLE, "model": {"kind": "mlp", "hidden": [8], "dropout": 0.2}},
    "momentum": {**WHOLE, "training.optimizer.momentum": 0.9},
    "adam": {**WHOLE, "training.optimizer": {"kind": "adam", "lr": 0.01, "state": "keep"}},
    "accumulate": {**WHOLE, "training.batch_size": 5, "training.accumulate": 2, "training.epochs": 2},
    "clipping": {**WHOLE, "training.clipping": {"kind": "norm", "bound": 0.05}},
    "own statistics": {**WHOLE, "model": {"kind": "mlp", "hidden": [8], "norm": "batch"}, "server.statistics": "keep_local"},
    "stopping": {**WHOLE, "training.stopping": {"kind": "patience"}, "training.epochs": 3},
    "scaffold": {**WHOLE, "training.algorithm": {"kind": "scaffold"}},
    "late": {**WHOLE, "server.round_timeout_s": 1.2},
    "stream": STREAM,
    "numeric": {**STREAM, "training.rehearsal": {"kind": "a_gem"}},
}
MONITOR = {"monitor": {"every": 2, "tasks": 0.8, "noise": 0.5, "noise_every": 1, "examples": 5}}


@pytest.mark.parametrize("kind", list(KINDS))
def test_who_looks_on_moves_nothing(kind: str, go: Go) -> None:
    """With [monitor] both digests and all rows are those of the run without, and every second step is on record."""
    plain, watched = go(KINDS[kind]), go({**KINDS[kind], **MONITOR})

    assert (plain.digest, plain.metrics_digest) == (watched.digest, watched.metrics_digest)
    assert plain.tasks.equals(watched.tasks)
    assert plain.steps.empty and plain.noise().empty and np.isnan(plain.noise_scale().within.value)
    assert set(watched.steps.step % 2) == {0} and (watched.steps[["gradient", "update", "lr", "batch"]] > 0).all().all()
    assert watched.noise_scale().within.count > 0


def test_a_watcher_that_writes_is_noticed(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """One last bit of one parameter, and the digest is another: the law above can fail."""
    end = Watcher.end

    def clumsy(self: Watcher, rate: float) -> None:
        self.rows.params[0][0].view(-1)[:1].mul_(1 + 1e-6)
        end(self, rate)

    plain = go(KINDS["momentum"])
    monkeypatch.setattr(Watcher, "end", clumsy)

    assert plain.digest != go({**KINDS["momentum"], **MONITOR}).digest


@pytest.mark.parametrize("kind", ["momentum", "numeric"])
def test_workers_see_the_same(kind: str, go: Go, hands: None) -> None:
    """Two workers send back what one process sees, and the same digest."""
    here, there = (go({**KINDS[kind], **MONITOR, "engine.workers": workers}) for workers in (1, 2))

    assert here.digest == there.digest
    assert here.steps.equals(there.steps)
    assert np.allclose(here.noise(), there.noise(), rtol=1e-4, atol=1e-9, equal_nan=True)


def seen(job: Job, chunk: int, every: int = 1, name: str = "mlp", dtype: torch.dtype = torch.float64) -> tuple[list[Task], list[Result]]:
    """Return tasks of every client, all but one watched, and what comes of them."""
    model, fed = network(name).to(dtype), federation()
    engine = CohortEngine(model, Classification(), Store(fed, dtype, torch.device("cpu")), chunk=chunk)
    watched = [task.watched(Watching(every, task.positions[:4])) if task.client != 2 else task for task in tasks(model, job, fed)]
    return watched, engine.run(watched)


JOBS = {
    "plain": Job(epochs=2, batch_size=6, lr=0.1),
    "momentum": Job(epochs=2, batch_size=6, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": Job(epochs=2, batch_size=6, lr=0.01, optimizer=Adam(0.01, 0.9, 0.999, 1e-8, 0.01, "reset")),
    "accumulate": Job(epochs=2, batch_size=3, accumulate=2, lr=0.1),
}


@pytest.mark.parametrize("kind", list(JOBS))
def test_lengths_are_those_of_torch(kind: str) -> None:
    """Loss, gradient and update of each step, ragged batches too, are what torch.nn and torch.optim give, to 1e-9 in float64."""
    job, model, pooled = JOBS[kind], network("mlp"), federation().pooled
    assert pooled is not None
    for task, result in zip(*seen(job, chunk=4), strict=True):
        if task.client == 2:
            assert not result.watched
            continue
        params = list(models.load_params(model, task.start.params).parameters())
        optimizer: torch.optim.Optimizer = torch.optim.SGD(params, job.lr, job.momentum, weight_decay=job.weight_decay)
        if kind == "adam":
            optimizer = torch.optim.Adam(params, job.lr, weight_decay=0.01)
        order, at, expected = batching.orders(job, [task])[0], 0, list[list[float]]()
        for number, size in enumerate(task.sizes.tolist()):
            places, at = order[at : at + size], at + size
            before = [param.detach().clone() for param in params]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(torch.tensor(pooled.x[places])), torch.tensor(pooled.y[places]))
            loss.backward()
            gradient = torch.cat([param.grad.flatten() for param in params if param.grad is not None]).norm()
            optimizer.step()
            update = torch.cat([(p.detach() - b).flatten() for p, b in zip(params, before, strict=True)]).norm()
            expected.append([number, loss.item(), float(gradient), float(update), job.lr, size])

        assert np.allclose(np.array(expected).T, result.watched["steps"], rtol=1e-9, atol=0), STEP_COLUMNS


def test_a_watched_task_is_the_task() -> None:
    """Every field of a task but what is watched is the same one in the watched task; a field of later versions too."""
    task = Task(*(object() for _ in fields(Task)))  # type: ignore[arg-type]  # Whatever it is, it goes along.
    watching = Watching(3, np.arange(2))
    watched = task.watched(watching)

    assert [watching if each.name == "watching" else getattr(task, each.name) for each in fields(Task)] == [
        getattr(watched, each.name) for each in fields(Task)
    ]


def test_chunks_see_the_same() -> None:
    """Rows see the same bits alone, in twos and all together, in float32, stacked or one by one; single examples to rounding.

    Of these the square of the signal is the difference of two that are like each other, in float32.
    """
    for name, job in (("mlp", JOBS["plain"]), ("mlp", JOBS["accumulate"]), ("logreg", JOBS["momentum"])):
        one, *others = (seen(replace(job, epochs=1), chunk, 2, name, torch.float32)[1] for chunk in (1, 2, 4))
        for other in others:
            for a, b in zip(one, other, strict=True):
                assert a.digest == b.digest and a.watched.keys() == b.watched.keys()
                assert not a.watched or np.array_equal(a.watched["steps"], b.watched["steps"])
                assert not a.watched or "noise" not in a.watched or np.allclose(a.watched["noise"], b.watched["noise"], rtol=1e-3)


def test_which_tasks_are_watched_hangs_on_their_keys(go: Go) -> None:
    """A smaller share watches some of the same tasks; gradients are taken one by one at every second version only."""
    many, few = (go({"monitor": {"tasks": share, "noise": 1.0, "noise_every": 2}, "server.rounds": 4}) for share in (1.0, 0.4))
    pairs = [set(zip(run.steps.client, run.steps.number, strict=True)) for run in (many, few)]

    assert len(pairs[0]) == 24 and 3 <= len(pairs[1]) <= 16 and pairs[1] < pairs[0]
    assert set(many.noise().query("tasks > 0").version) == {0, 2}


STOPS = {
    "plateau": ({"metric": "loss", "plateau": 3, "least": 0.1}, "loss no better by 0.1 for 3 evaluations"),
    "accuracy": ({"metric": "accuracy", "plateau": 1}, "accuracy no better for 1 evaluation"),
    "line": ({"metric": "accuracy", "at_least": 0.5}, "accuracy >= 0.5"),
}


@pytest.mark.parametrize("kind", list(STOPS))
def test_a_run_says_why_it_stopped(kind: str, go: Go) -> None:
    """It ends at the first evaluation that makes it so, counted by hand from the scores of a run without [stop]."""
    stop, words = STOPS[kind]
    whole = go({"server.rounds": 40, "training.optimizer.lr": 0.3})
    values = whole.series(stop["metric"]).value.tolist()
    sign, best, since, expected = (-1 if kind == "plateau" else 1), -np.inf, 0, -1
    for number, value in enumerate(values):
        better = sign * value > best + stop.get("least", 0.0)
        best, since = (sign * value, 0) if better else (best, since + 1)
        if (value >= 0.5) if kind == "line" else since >= stop["plateau"]:
            expected = number
            break
    run = go({"server.rounds": 40, "training.optimizer.lr": 0.3, "stop": stop})

    assert expected == run.final["rounds"] and 0 < expected < 40
    assert words == run.manifest["stopped"] and "stopped" not in whole.manifest


def test_noise_floor(go: Go) -> None:
    """A run without learning rate to speak of goes on while there is signal; one that has arrived stops, and is scored."""
    table = {"server.rounds": 60, "monitor": {"noise": 0.0}, "stop": {"noise_floor": 4}, "evaluate.every": 50}
    still, moving = go({**table, "training.optimizer.lr": 1.5, "training.batch_size": 3}), go({**table, "server.rounds": 6})

    assert 4 <= still.final["rounds"] < 60 and "scored_round" not in still.final
    assert still.manifest["stopped"] == "no signal between clients for 4 rounds"
    assert "stopped" not in moving.manifest and (moving.noise().signal > 0).all()


def test_a_noise_floor_that_nobody_sees_is_told(tiny: Any, go: Go) -> None:
    """A server that takes replies one at a time never stops by it: a note says so before the run, and another after it."""
    kind = "tests.test_circles:Polls"
    table = {"server.strategy": {"kind": kind}, "monitor": {}, "stop": {"noise_floor": 3}}
    before, after = build(load(tiny(table))).notes, go(table).manifest["notes"]
    may = [note for note in after if note.startswith("stop.noise_floor = 3: goes by")]

    assert may and set(may) <= set(before) and f"server.strategy.kind = {kind!r} has a start() of its own" in may[0]
    assert "stop.noise_floor = 3: had no effect: two clients' replies of one model were handed over together 0 times" in " ".join(after)
    rounds = go({**table, "server.strategy": {"kind": "FedAvg"}, "server.rounds": 3})
    assert not [note for note in rounds.manifest["notes"] if "noise_floor" in note]
