"""Clocks of learning-rate schedules in runs: what each task's steps are paced at, the same however it is computed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

import fedsim
from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.errors import RunError, ScenarioError
from fedsim.flower import compat, records
from fedsim.learn.engine.queue import Queue
from fedsim.learn.work import Start, Task
from fedsim.scenario.build import build
from fedsim.scenario.load import load

Go = Callable[..., fedsim.Run]
RAGGED = {"data.partition": {"kind": "dirichlet", "alpha": 0.3}, "training.batch_size": 7, "server.rounds": 3}
SCHEDULE = "training.schedule"
STREAM = {
    "stream": {"arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 9}}, "training.batch_size": 4,
    "clients.replay": {"kind": "reservoir", "capacity": 12}, "server.rounds": 3,
}  # fmt: skip
DECAY = {"kind": "exponential", "rate": 0.9}
PACES: dict[str, dict[str, Any]] = {
    "round": {SCHEDULE: {"kind": "cosine", "over": 3, "warmup": 1, "warmup_from": 0.5}},
    "version": {SCHEDULE: {**DECAY, "clock": "version"}},
    "virtual_s": {SCHEDULE: {**DECAY, "clock": "virtual_s"}},
    "local_step": {SCHEDULE: {**DECAY, "clock": "local_step"}, "training.algorithm": {"kind": "scaffold"}},
    "restart": {SCHEDULE: {"kind": "cosine", "over": 4, "clock": "local_step", "restart": True}, "training.optimizer": {"kind": "adam"}},
    "batch": {"training.scale_with_batch": {"rule": "sqrt", "base": 7}, "training.optimizer.momentum": 0.9},
}  # fmt: skip


@pytest.mark.parametrize(("name", "on"), [*((name, "off") for name in PACES), ("local_step", "on"), ("batch", "on")])
def test_one_digest(name: str, on: str, go: Go, hands: None) -> None:
    """Rates give the digest that they give client by client in two processes; and another one than a rate that stays."""
    settings = {**(STREAM if on == "on" else RAGGED), **PACES[name]}
    plain = {key: value for key, value in settings.items() if key not in (SCHEDULE, "training.scale_with_batch")}
    digest = go(settings).digest

    assert digest == go({**settings, "engine.chunk": 1, "engine.workers": 2}).digest
    assert digest != go(plain).digest


@pytest.fixture
def tasks(go: Go, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[tuple[int, int], Task]]:
    """Return a function of overrides that runs the tiny scenario and returns its training tasks, by client and number."""

    def run(settings: dict[str, Any]) -> dict[tuple[int, int], Task]:
        found: dict[tuple[int, int], Task] = {}
        submit = Queue.submit

        def heard(self: Queue, task: Task) -> int:
            if task.job.kind == "train":
                found[task.client, task.number] = task
            return submit(self, task)

        with monkeypatch.context() as patch:
            patch.setattr(Queue, "submit", heard)
            run.last = go(settings)  # type: ignore[attr-defined]
        return found

    return run


def factors(task: Task) -> np.ndarray:
    """Return what the rates of a task are of its job's."""
    return task.step_rates / task.job.lr


@pytest.mark.parametrize("on", [RAGGED, STREAM], ids=["off", "on streams"])
def test_local_steps_go_on(on: dict[str, Any], tasks: Any) -> None:
    """A client's steps are counted over all its tasks, or from 0 in each with restart."""
    for restart in (False, True):
        found = tasks({**on, SCHEDULE: {**DECAY, "clock": "local_step", "restart": restart}})
        for client in range(6):
            taken = 0
            for number in range(3):
                task = found[client, number]
                want = 0.9 ** (np.arange(task.steps) + (0 if restart else taken))
                assert np.abs(factors(task) / want - 1).max() < 1e-12
                taken += task.steps


def test_seconds_are_those_at_which_a_task_begins(tasks: Any) -> None:
    """On the virtual clock the factor is that of the moment when the client starts to work."""
    found = tasks({**RAGGED, SCHEDULE: {"kind": "polynomial", "over": 1000, "clock": "virtual_s"}})
    rows = tasks.last.tasks

    assert len(rows) == 18
    for row in rows.itertuples():
        assert np.abs(factors(found[row.client, row.number]) - (1 - row.started_s / 1000)).max() < 1e-12


class EveryOther(FedAvg):
    """Aggregates in even rounds only."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        made, told = super().aggregate_train(server_round, replies)
        return (None if server_round % 2 else made), told


def test_rounds_and_versions_are_two_clocks(tasks: Any) -> None:
    """Rounds count from 0 in the first; versions count what was made, whoever answers when."""
    slow = {"clients.compute": {"kind": "exponential", "gflops": 1e-4}, "server.round_timeout_s": 1.5}
    for clock, made in (("round", [1, 0.9, 0.81, 0.729]), ("version", [1, 1, 0.9, 0.9])):
        settings = {**RAGGED, "server.rounds": 4, "server.strategy": {"kind": f"{__name__}:EveryOther"}}
        found = tasks({**settings, SCHEDULE: {**DECAY, "clock": clock}})
        run = tasks.last
        assert [pytest.approx(made[number]) for _, number in found] == [factors(task)[0] for task in found.values()]
        # Under any order of clients, late ones among them, what a version's tasks are paced at is the same.
        late = tasks({**settings, **slow, SCHEDULE: {**DECAY, "clock": clock}})
        rows = tasks.last.tasks.set_index(["client", "number"])
        assert (tasks.last.tasks.outcome == "late").any() and (run.tasks.outcome == "arrived").all()
        for key, task in late.items():
            at = int(rows.loc[key, "round"]) - 1
            assert factors(task)[0] == pytest.approx(made[at])


def test_a_version_is_what_the_message_says(tiny: Any) -> None:
    """A client goes by what its message tells; one that tells nothing is refused in words."""
    parts = build(load(tiny({**RAGGED, **PACES["version"]})))
    content = RecordDict({"arrays": compat.array_record(parts.first), "config": records.job_config(parts.job)})
    content["config"]["server-version"] = 5
    order = records.order_of(Message(content, 1000, "train"), records.StartCache(), parts.job)
    rates = parts.fleet.client(0).plan(order, Kept())[0].step_rates

    assert rates == pytest.approx(0.1 * 0.9**5)
    del content["config"]["server-version"]
    with pytest.raises(RunError, match="came without 'server-version'"):
        records.order_of(Message(content, 1000, "train"), records.StartCache(), parts.job)


def test_a_key_travels_only_where_it_is_read(go: Go) -> None:
    """The version is in the messages of a schedule that goes by it, and in no others."""
    sizes = [go({**RAGGED, SCHEDULE: {**DECAY, "clock": clock}}).tasks.down_bytes.unique().tolist() for clock in ("round", "version")]
    plain = go(RAGGED).tasks.down_bytes.unique().tolist()

    assert plain == sizes[0] and [plain[0] + len("server-version") + 8] == sizes[1]


class Writes(FedAvg):
    """Orders half the rate in each further round."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        config["lr"] = 0.1 * 0.5 ** (server_round - 1)
        return super().configure_train(server_round, arrays, config, grid)


def test_a_schedule_is_a_server_that_orders_rates(go: Go) -> None:
    """Halving by the round gives the bits of a server that orders half each time, and multiplies what it orders."""
    schedule = {SCHEDULE: {"kind": "step", "size": 1, "gamma": 0.5}}
    ordered = go({**RAGGED, "server.strategy": {"kind": f"{__name__}:Writes"}})
    both = go({**RAGGED, "server.strategy": {"kind": f"{__name__}:Writes"}, **schedule})

    assert go({**RAGGED, **schedule}).digest == ordered.digest
    assert go({**RAGGED, SCHEDULE: {"kind": "step", "size": 1, "gamma": 0.25}}).digest == both.digest


def test_a_batch_scales_its_step(tiny: Any) -> None:
    """A short last batch has its own rate, and the schedule's factor beside it."""
    parts = build(load(tiny({**RAGGED, SCHEDULE: DECAY, "training.scale_with_batch": {"base": 14}})))
    task = parts.fleet.client(1).plan(Order(parts.job, Start(parts.first), 3), Kept())[0]

    assert len(np.unique(task.sizes)) == 2
    assert np.abs(task.step_rates - 0.1 * 0.81 * task.sizes / 14).max() < 1e-15


def test_a_reaction_multiplies(tasks: Any) -> None:
    """After an alarm the schedule's rate is raised, as one without a schedule is."""
    alarms = {
        "clients.detector": {"kind": "page_hinkley", "min_instances": 2, "threshold": 0.2, "only_worse": False},
        "clients.reaction": {"kind": "adapt", "lr_factor": 3.0, "lr_steps": 10},
    }  # fmt: skip
    plain, paced = tasks({**STREAM, **alarms}), tasks({**STREAM, **alarms, SCHEDULE: {"kind": "step", "size": 1, "gamma": 0.999}})
    raised = [key for key, task in plain.items() if factors(task)[0] > 1.0]

    assert raised
    assert any(factors(paced[key])[0] == pytest.approx(factors(plain[key])[0] * 0.999 ** key[1]) for key in raised)


@pytest.mark.parametrize("algorithm", ["scaffold", "fednova", "feddyn"])
def test_a_rate_of_nothing_moves_nothing(algorithm: str, go: Go) -> None:
    """Where a schedule has come to 0, algorithms that divide by the rate go on."""
    run = go({**RAGGED, "training.algorithm": {"kind": algorithm, **({"alpha": 0.1} if algorithm == "feddyn" else {})},
              SCHEDULE: {"kind": "cosine", "over": 2}})  # fmt: skip

    assert all(np.isfinite(array).all() for array in run.params().values())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({SCHEDULE: {"kind": "cosin", "over": 3}}, "training.schedule.kind = 'cosin': no such lr_schedule. Did you mean 'cosine'?"),
    ({SCHEDULE: {"kind": "cosine"}}, "training.schedule.over: missing. 'cosine' needs it"),
    ({SCHEDULE: {"kind": "cosine", "over": 3, "warmpu": 1}}, "schedule.warmpu: 'cosine' has no such setting. Did you mean 'warmup'?"),
    ({SCHEDULE: {**DECAY, "clock": "rounds"}}, "schedule.clock = 'rounds': must be 'local_step', 'round', 'version' or 'virtual_s'"),
    ({SCHEDULE: {**DECAY, "warmup": -1}}, "training.schedule.warmup = -1: must be >= 0"),
    ({SCHEDULE: {**DECAY, "warmup_from": 0.5}}, "training.schedule.warmup_from = 0.5: has no effect without training.schedule.warmup"),
    ({SCHEDULE: {**DECAY, "warmup": 2, "warmup_from": 0}}, "training.schedule.warmup_from = 0: must be > 0"),
    ({SCHEDULE: {**DECAY, "restart": True}}, "training.schedule.restart = true: counts local steps, and training.schedule.clock = 'round'"),
    ({SCHEDULE: {"kind": "exponential", "rate": 1.1}}, "training.schedule.rate = 1.1: must be <= 1"),
    ({SCHEDULE: {"kind": "multistep", "milestones": [4, 2]}}, "training.schedule.milestones = [4, 2]: must ascend, like [2, 4]"),
    ({SCHEDULE: {"kind": "one_cycle", "over": 3}}, "training.schedule.over = 3: leaves no time to rise"),
    ({SCHEDULE: {**DECAY, "clock": "local_step"}, "training.stopping": {"kind": "patience"}}, "with training.stopping nobody"),
    ({SCHEDULE: {**DECAY, "clock": "version"}, "server.strategy": {"kind": f"{__name__}:Own"}}, "has a start() of its own"),
    ({SCHEDULE: DECAY, "server.strategy": {"kind": "QFedAvg", "client_learning_rate": 0.1}}, "divides by client_learning_rate"),
    ({"training.scale_with_batch": {"rule": "cubic", "base": 2}}, "training.scale_with_batch.rule = 'cubic': must be 'linear' or 'sqrt'"),
    ({"training.scale_with_batch": {"base": 0}}, "training.scale_with_batch.base = 0: must be >= 1"),
    ({SCHEDULE: {"kind": f"{__name__}:Negative"}}, "its factor() gives -1.0 at [0], expected finite numbers >= 0"),
]


class Own(FedAvg):
    """Starts itself."""

    def start(self, *args: Any, **kwargs: Any) -> Any:
        return super().start(*args, **kwargs)


class Negative:
    """A schedule that turns back."""

    def factor(self, times: np.ndarray) -> np.ndarray:
        return times - 1.0


@pytest.mark.parametrize(("settings", "said"), WRONG)
def test_what_cannot_be_is_said(settings: dict[str, Any], said: str, tiny: Any) -> None:
    """One line names the key, the value, and what would have worked."""
    with pytest.raises(ScenarioError) as caught:
        build(load(tiny(settings)))

    assert said in str(caught.value) and "\n" not in str(caught.value)
