"""Curricula: how many examples a task trains on follows from a clock, and which from their losses alone (METHODS A12, its note)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.errors import ScenarioError
from fedsim.learn import batching
from fedsim.learn.curriculum import Curriculum, composed
from fedsim.learn.engine import chunks
from fedsim.learn.job import Job
from fedsim.learn.mixing import Mixing
from fedsim.learn.models import load_params
from fedsim.learn.work import Start, Task
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load

COURSE = {"begin": 0.4, "over": 3}
RAGGED = {"data.partition": {"kind": "dirichlet", "alpha": 0.3}, "training.batch_size": 4, "server.rounds": 3}


def planned(parts: Parts, client: int, number: int, **clocks: int) -> Task:
    return parts.fleet.client(client).plan(Order(parts.job, Start(parts.first), number, **clocks), Kept())[0]


def losses_of(parts: Parts, task: Task) -> np.ndarray:
    """Return each example's cross-entropy by the model that came, as torch has it."""
    pool = parts.federation.pooled
    assert pool is not None
    x, y = torch.tensor(pool.x[task.positions]).to(torch.float64), torch.tensor(pool.y[task.positions])
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(load_params(parts.model, parts.first)(x), y, reduction="none").numpy()


@pytest.mark.parametrize("first", ["easy", "hard"])
def test_the_easiest_come_first(first: str, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task reads exactly those examples whose loss by torch is lowest (or highest), as many as its clock says, and counts for all."""
    parts = build(load(tiny({**RAGGED, "training.curriculum": {**COURSE, "first": first}, "engine.dtype": "float64"})))
    read: dict[int, list[int]] = {}

    def heard(job: Any, tasks: Any) -> Any:
        found = batching_orders(job, tasks)
        read.update({task.client: sorted(set(row[: task.seen].tolist())) for task, row in zip(tasks, found, strict=True)})
        return found

    batching_orders = batching.orders
    monkeypatch.setattr(chunks.batching, "orders", heard)
    for number, share in ((1, 0.4), (2, 0.6), (4, 1.0), (9, 1.0)):
        tasks = [planned(parts, client, number) for client in range(6)]
        parts.engine.run(tasks)
        for task in tasks:
            held = len(task.positions)
            count = min(held, max(2, int(np.ceil(share * held - 1e-9))))
            order = np.argsort(losses_of(parts, task) * (1 if first == "easy" else -1), kind="stable")
            assert (count, count, held) == (task.trained_on, task.seen, task.examples)
            assert sorted(task.positions[order[:count]].tolist()) == read[task.client]
            assert parts.fleet.flops.of(task) - parts.fleet.flops.forward * held == pytest.approx(
                parts.fleet.flops.of(replace(task, positions=task.positions[:count], easiest=None))
            )


def test_equal_losses_go_by_position() -> None:
    """Ties are settled by position, whichever sort numpy takes; levels of difficulty hold equally many, the easiest first."""
    job = Job(batch_size=5, curriculum=Curriculum(0.5, 1))
    task = Task(0, 0, job, Start({}), np.arange(10, 50), None, easiest=20)  # type: ignore[arg-type]
    found = composed(task, np.resize([2.0, 1.0], 40))

    assert found.positions.tolist() == [*range(11, 50, 2)]
    assert 40 == found.examples
    by = replace(job, curriculum=None, mixing=Mixing("difficulty", levels=2))
    levels = composed(replace(task, job=by, easiest=None), np.arange(40.0)[::-1]).sources
    assert levels is not None and [1] * 20 + [0] * 20 == levels.tolist()


@pytest.mark.parametrize("clock", ["round", "version", "virtual_s", "local_step"])
def test_one_digest(clock: str, go: Any, hands: None) -> None:
    """A curriculum gives the digest that it gives client by client in two processes; it begins with fewer steps, and ends with all."""
    over = {"round": 2, "version": 2, "virtual_s": 4, "local_step": 10}[clock]
    settings = {**RAGGED, "training.curriculum": {"begin": 0.3, "over": over, "clock": clock}}
    run = go(settings)
    steps, plain = run.tasks.groupby("round").steps.sum(), go(RAGGED).tasks.groupby("round").steps.sum()

    assert run.digest == go({**settings, "engine.chunk": 1, "engine.workers": 2}).digest
    assert steps[1] < steps[3] and steps[1] < 0.5 * plain[1]
    assert clock != "round" or steps[3] == plain[3]


def test_it_is_another_order_of_learning_and_no_other_end(go: Any) -> None:
    """Once it is over it trains as without; what it learned before is its own, and a mix by label goes on within what it has chosen."""
    mixed = {**RAGGED, "training.curriculum": COURSE, "training.mix": {"by": "label", "temperature": 5.0}}

    assert go({**RAGGED, "training.curriculum": {"begin": 0.999, "over": 1e-9}}).digest != go(RAGGED).digest
    assert 3 == len({go(settings).digest for settings in (mixed, {**RAGGED, "training.curriculum": COURSE}, RAGGED)})


STREAM = {"stream": {"arrivals": {"kind": "poisson", "per_s": 1.0}}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "stream": ({**STREAM}, "training.curriculum: on a [stream] what a client trains on is what has come"),
    "begin": ({"training.curriculum.begin": 1.0}, "training.curriculum.begin = 1.0: must be < 1"),
    "never": ({"training.curriculum.over": 0}, "training.curriculum.over = 0: must be > 0"),
    "kind": ({"training.curriculum": {**COURSE, "kind": "margin"}}, "training.curriculum.kind = 'margin': must be 'loss'"),
    "steps": (
        {"training.curriculum": {**COURSE, "clock": "local_step"}, "training.stopping": {"kind": "patience"}},
        "training.curriculum.clock = 'local_step': with training.stopping",
    ),
    "one": ({"model": {"kind": "mlp", "hidden": [4], "norm": "batch"}}, "model.kind: "),
    "objective": ({"training.objective": {"kind": f"{__name__}:Eachless"}}, "training.curriculum: goes by the loss of each example"),
}  # fmt: skip


class Eachless:
    """An objective that tells nothing of one example."""

    def loss(self, outputs: Any, targets: Any) -> Any:
        return torch.nn.functional.cross_entropy(outputs, targets)

    def sums(self, outputs: Any, targets: Any) -> Any:
        return {"loss": self.loss(outputs, targets) * len(targets), "examples": torch.tensor(len(targets))}

    def scores(self, sums: Any) -> Any:
        return {"loss": sums["loss"] / sums["examples"]}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tiny: Any) -> None:
    """A curriculum that cannot be had is refused by its key, in one line."""
    settings, begins = REFUSED[case]
    with pytest.raises(ScenarioError) as said:
        build(load(tiny({"training.curriculum": COURSE, **settings})))

    assert str(said.value).startswith(begins), said.value
    assert "one" != case or "with training.curriculum a batch may hold one" in str(said.value)
