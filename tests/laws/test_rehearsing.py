"""Clients that rehearse train together, and nobody's numbers depend on who else is there: laws over every method, each with teeth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.learn.engine import cohort, lent
from fedsim.learn.engine.aims import Aim
from fedsim.learn.engine.together import Together, goes_together
from fedsim.learn.engine.updates import Updates
from fedsim.learn.rehearsal import Live, Way, rehearsals
from fedsim.learn.work import Result, Start, Task
from fedsim.scenario.build import Parts, build
from fedsim.scenario.guards import Guarded
from fedsim.scenario.kinds import slots
from fedsim.scenario.load import load

RESERVOIR, NONE = {"kind": "reservoir", "capacity": 12}, {"kind": "none"}
CLIENTS = 4
slots()  # Registers all.
NUMERIC = [kind for kind in rehearsals if rehearsals.call(rehearsals.get(kind, at=kind), {}).way.numeric]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, RESERVOIR if rehearsals.get(kind, at=kind)().way.draws else NONE) for kind in NUMERIC},
    "er, prioritised": ("er", {"kind": "prioritised", "capacity": 12}),
    "der++, loss_aware": ("der++", {"kind": "loss_aware", "capacity": 12}),
}  # fmt: skip
"""Every registered method whose steps have numbers of their own, and policies that are told losses."""


def parts_of(tiny: Any, name: str, **more: Any) -> Parts:
    kind, replay = CASES[name]
    return build(load(tiny({
        "clients.count": CLIENTS, "data.test_fraction": 0.5, "model": {"kind": "mlp", "hidden": [6]}, "clients.replay": replay,
        "training": {"epochs": 2, "batch_size": 4, "optimizer": {"kind": "sgd", "lr": 0.2}, "rehearsal": {"kind": kind}},
        "stream": {"arrivals": {"kind": "poisson", "per_s": 1.0}}, **more,
    })))  # fmt: skip


def second_tasks(parts: Parts) -> list[Task]:
    """Return the second task of each client, by when it remembers something: they are of different lengths."""
    programs = [parts.fleet.client(client) for client in range(CLIENTS)]
    kept, tasks = [Kept()] * CLIENTS, list[Task]()
    for now in (9.0, 21.0):
        planned = [program.plan(Order(parts.job, Start(parts.first)), before, now) for program, before in zip(programs, kept, strict=True)]
        tasks = [task for task, _ in planned]
        if now < 20.0:
            found = zip(programs, planned, parts.engine.run(tasks), strict=True)
            kept = [after.having(program.finish(task, result, after).parts) for program, (task, after), result in found]
    return tasks


def trained(parts: Parts, tasks: Sequence[Task], groups: Sequence[Sequence[int]]) -> list[Result]:
    found: dict[int, Result] = {}
    for group in groups:
        found.update(zip(group, parts.engine.run([tasks[i] for i in group]), strict=True))
    return [found[i] for i in range(len(tasks))]


def apart(one: Sequence[Result], two: Sequence[Result]) -> float:
    """Return how far apart what clients send, keep and report are."""
    far = 0.0
    for a, b in zip(one, two, strict=True):
        pairs = [(a.params[name], b.params[name]) for name in a.params]
        pairs += [(a.parts[part][name], b.parts[part][name]) for part in ("rehearsal", "replay") for name in a.parts.get(part, {})]
        pairs += [(np.array(a.metrics["train_loss"]), np.array(b.metrics["train_loss"]))]
        assert {part: set(state) for part, state in a.parts.items()} == {part: set(state) for part, state in b.parts.items()}
        assert all(x.shape == y.shape for x, y in pairs)
        far = max([far, *(float(np.abs(x.astype(float) - y.astype(float)).max()) for x, y in pairs if x.size)])
    return far


GROUPS = [[[0], [1], [2], [3]], [[3, 1], [2, 0]]]


@pytest.mark.parametrize("name", CASES)
def test_who_shares_a_chunk_moves_no_bit(name: str, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients together, in pairs or one by one send and keep the same bits, and to rounding what autograd gives one client at a time.

    Where a step reduces over rows, or a client recalls what its neighbour does, they do not.
    """
    parts = parts_of(tiny, name)
    tasks = second_tasks(parts)
    together = trained(parts, tasks, [range(CLIENTS)])
    monkeypatch.setattr(cohort, "goes_together", lambda _: False)
    alone = trained(parts, tasks, [range(CLIENTS)])
    monkeypatch.undo()

    assert all(map(goes_together, tasks))
    assert [0.0, 0.0] == [apart(together, trained(parts, tasks, groups)) for groups in GROUPS]
    assert 0.0 < apart(together, alone) < 1e-4
    if name in ("der", "der++", "lwf", "ewc"):
        recalled: Callable[..., Any] = Together._recalled  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(Together, "_recalled", lambda *args: [each.roll(1, 0) for each in recalled(*args)])
        assert apart(together, trained(parts, tasks, [range(CLIENTS)])) > 1e-3
        monkeypatch.undo()
    right: Callable[..., Any] = Updates._pass  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(Updates, "_pass", lambda *args: mingled(args[0], args[3], right(*args)))
    assert apart(together, trained(parts, tasks, [range(CLIENTS)])) > 1e-3


def mingled(updates: Updates, mine: Any, ran: Any) -> Any:
    """Reduce over rows, as no step may."""
    for param in updates.rows.params:
        param[mine] = param[mine].mean(dim=0, keepdim=True)
    return ran


class Own:
    """A reader's method, as far as it matters here; what stands in its file may change between two runs."""

    way = Way(numeric=True)


def test_a_step_of_a_readers_method_is_kept_for_nobody(tiny: Any) -> None:
    """A compiled step of ours goes by the values of its method; one of a reader's is shared with no run, behind its door either."""
    parts = parts_of(tiny, "der++")
    engine, live = parts.engine, cast(Live, second_tasks(parts)[0].rehearsing)
    methods: list[Any] = [live.rehearsal, replace(cast(Any, live.rehearsal), alpha=0.7), Own(), Guarded(Own(), {}, "mine:Own")]
    x, y = torch.zeros(4, 64), torch.zeros(4, dtype=torch.long)
    keys = [lent.key(engine.parts[0], Aim(engine.objective, each, 2, (), told=False), x, y, {"templates": None}) for each in methods]

    assert None not in keys[:2] and keys[0] != keys[1]
    assert [None, None] == keys[2:]


def test_what_cannot_be_stacked_trains_alone_whoever_is_there(tiny: Any) -> None:
    """A policy that needs gradients or features, or looks a step ahead, is the task's own reason to train alone; losses are none."""
    found = {
        kind: goes_together(second_tasks(parts_of(tiny, "der", **{"clients.replay": {"kind": kind, "capacity": 12}}))[0])
        for kind in ("fifo", "prioritised", "loss_aware", "mir", "gss", "herding")
    }

    assert found == {"fifo": True, "prioritised": True, "loss_aware": True, "mir": False, "gss": False, "herding": False}
