"""Laws of early stopping: a task that stops is the task that ordered so few epochs, takes so long, and has one digest."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

import fedsim
from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.errors import FedsimError, ScenarioError
from fedsim.flower import compat, records
from fedsim.learn.engine.queue import here
from fedsim.learn.stopping import Patience, Stopping, stoppings
from fedsim.learn.work import Start
from fedsim.preview import preview
from fedsim.scenario.build import Parts, build
from fedsim.scenario.kinds import slots
from fedsim.scenario.load import load
from fedsim.sim.grid import VirtualGrid

slots()  # Importing registers.
Go = Callable[..., fedsim.Run]
RAGGED = {
    "data.partition": {"kind": "dirichlet", "alpha": 0.3}, "model": {"kind": "mlp", "hidden": [8], "dropout": 0.2}, "server.rounds": 2,
    "training.batch_size": 7, "training.epochs": 12, "training.optimizer": {"kind": "sgd", "lr": 0.5, "momentum": 0.5},
}  # fmt: skip
STOPPING = {"training.stopping": {"kind": "patience", "epochs": 1}}


@pytest.mark.parametrize("kind", list(stoppings))
@pytest.mark.parametrize("algorithm", ["fedavg", "fednova", "scaffold"])
def test_one_digest(kind: str, algorithm: str, go: Go, hands: None) -> None:
    """Computed here or by two workers; some tasks stop early, and the server hears after how many steps."""
    settings = {**RAGGED, "training.stopping": {"kind": kind}, "training.algorithm": {"kind": algorithm}}
    one, two = go(settings), go({**settings, "engine.workers": 2})
    full = go({**RAGGED, "training.algorithm": {"kind": algorithm}})

    assert one.digest == two.digest
    assert (one.tasks.steps < full.tasks.steps).any()
    assert np.isclose(one.series("steps", "training").value.iloc[0], np.average(one.tasks.steps[:6], weights=one.tasks.examples[:6]))


def answers(parts: Parts, epochs: int, stopping: Stopping | None) -> list[Any]:
    """Return the results of every client's first task."""
    order = Order(replace(parts.job, epochs=epochs, stopping=stopping), Start(parts.first))
    tasks = [parts.fleet.client(c).plan(order, Kept())[0] for c in range(6)]
    return list(zip(tasks, parts.engine.run(tasks), strict=True))


def test_a_task_that_stops_is_the_task_of_so_few_epochs(tiny: Any) -> None:
    """Parameters, loss and cost are those of a task that ordered the epochs it took; the best of them where these are restored."""
    parts = build(load(tiny({**RAGGED, **STOPPING})))
    seen: set[int] = set()
    for restores in (False, True):
        for (task, result), client in zip(answers(parts, 12, Patience(2, 0.0, restores)), range(6), strict=True):
            epoch = task.steps // 12
            took = int(result.metrics["steps"]) // epoch
            seen.add(took)
            sent = max(took - 2, 1) if restores and took < 12 else took
            plain_task, plain = answers(parts, sent, None)[client]
            if took < 12 or not restores:
                assert all(np.array_equal(result.params[name], array) for name, array in plain.params.items())
            if not restores:
                checks = parts.fleet.flops.forward * len(task.held_back) * took
                assert parts.fleet.flops.of(task, took * epoch) == pytest.approx(parts.fleet.flops.of(plain_task) + checks)
                assert result.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"])

    assert 1 < len(seen)


def test_an_algorithm_goes_by_the_steps_behind_what_is_sent(tiny: Any) -> None:
    """Where the best epoch is restored FedNova's normaliser counts its steps, and not those that came after."""
    parts = build(load(tiny({**RAGGED, **STOPPING, "training.algorithm": {"kind": "fednova"}, "training.optimizer.momentum": 0.0})))
    fewer = 0
    for task, result in answers(parts, 12, Patience(2, 0.0, True)):
        took, behind = int(result.metrics["steps"]), round(result.metrics["normaliser"])
        assert behind in ({took - 2 * (task.steps // 12)} if took < task.steps else range(1, took + 1))
        fewer += behind < took

    assert fewer


def test_time_follows_from_what_it_took(go: Go, tiny: Any) -> None:
    """On equal devices the seconds of a task grow with its own operations and nothing else; a preview takes the most."""
    settings = {**RAGGED, **STOPPING, "clients.compute": {"kind": "constant", "gflops": 0.01, "overhead_s": 0.5}}
    tasks = go(settings).tasks
    seconds = (tasks.computed_s - tasks.started_s).to_numpy()

    assert np.allclose(seconds, 0.5 + tasks.flops / 1e7)
    assert tasks.computed_s.max() <= preview(load(tiny(settings))).plain()["virtual_s"]


class Deaf:
    """Hears nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_what_is_lost_is_forgotten(algorithm: str, tiny: Any) -> None:
    """Tasks that were computed for their time and whose replies are lost leave no numbers behind at the end."""
    parts = build(load(tiny({**RAGGED, **STOPPING, "training.algorithm": {"kind": algorithm}})))
    queue = here(parts.engine)
    grid = VirtualGrid(parts.fleet, queue, Deaf())
    config, extra = records.job_config(parts.job), {} if parts.extras is None else parts.extras.state
    content = RecordDict({"arrays": compat.array_record({**parts.first, **extra}), "config": config})
    for timeout in (0.01, 0.02, 1e6):  # Abandoned before they begin, and while they wait for their turn.
        grid.send_and_receive([Message(content, records.node_of(c), "train") for c in range(6)], timeout=timeout)
    grid.finish()

    assert not queue._done and not queue._pending  # pyright: ignore


OWN = """
from fedsim.learn.stopping import Patience

class Own:
    restores = False
    def __init__(self, how):
        self.how = how
    def stops(self, losses):
        if self.how == "raises":
            raise KeyError("boo")
        return {"text": "yes"}.get(self.how, len(losses) == 1)

def own(how=""):
    return Own(how)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have mine.py in the folder."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


def test_a_strangers_is_used(mine: None, go: Go, hands: None) -> None:
    """One that stops after the first epoch takes an epoch's steps, with two workers too."""
    one = go({**RAGGED, "training.stopping": {"kind": "mine:own"}})

    assert (one.tasks.steps == go({**RAGGED, "training.stopping": {"kind": "patience"}, "training.epochs": 1}).tasks.steps).all()
    assert one.digest == go({**RAGGED, "training.stopping": {"kind": "mine:own"}, "engine.workers": 2}).digest


@pytest.mark.parametrize("how", ["text", "raises"])
def test_a_wrong_one_is_named(how: str, mine: None, go: Go) -> None:
    """What it answers is refused in one line."""
    with pytest.raises(FedsimError, match=r"training\.stopping\.kind = 'mine:own': its stops\(\) [^\n]*$"):
        go({**RAGGED, "training.stopping": {"kind": "mine:own", "how": how}})


@pytest.mark.parametrize("settings", [{"training.epochs": None, "training.steps": 5}, {"stream": {}}])
def test_where_it_cannot_work_it_is_refused(settings: dict[str, Any], tiny: Any) -> None:
    """Without epochs, and on streams."""
    with pytest.raises(ScenarioError, match=r"^training\.stopping: stops (after an epoch|by examples)"):
        build(load(tiny({**STOPPING, **settings})))
