"""Devices that come back without what they kept: they begin anew, as clients that were never asked, in any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fedsim
from fedsim.client.kept import Kept
from fedsim.core.errors import ScenarioError
from fedsim.sim.programs import Programs

Go = Callable[..., fedsim.Run]
WORLD = {
    "clients.count": 6, "server.rounds": 8, "server.round_timeout_s": 12.0, "data.test_fraction": 0.5, "evaluate.every": 8,
    "clients.compute": {"kind": "exponential", "gflops": 0.0001, "overhead_s": 6.0}, "training.algorithm": {"kind": "scaffold"},
}  # fmt: skip
"""Rounds in which about a third of all replies is late: what a task leaves is then known only after the client's next has begun."""
CRASH = {"kind": "dropout", "probability": 0.3}


class Seen:
    """What clients kept whenever they began with a message, and those that had just lost it all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[tuple[int, Kept]] = []
        self.wiped: list[int] = []
        plan, lost = Programs._plan, Programs._lost  # pyright: ignore[reportPrivateUsage]

        def planning(programs: Programs, delivery: Any, *rest: Any) -> Any:
            self.kept.append((delivery.client, programs.kept(delivery.client)))
            return plan(programs, delivery, *rest)

        def losing(programs: Programs, client: int, kept: Kept) -> Kept:
            self.wiped.append(len(self.kept))
            return lost(programs, client, kept)

        monkeypatch.setattr(Programs, "_plan", planning)
        monkeypatch.setattr(Programs, "_lost", losing)

    @property
    def after(self) -> list[Kept]:
        """Return what clients kept when they began with the message after they had lost it all."""
        of = [(self.kept[i - 1][0], self.kept[i:]) for i in self.wiped]
        return [found[0] for who, rest in of if (found := [kept for client, kept in rest if client == who])]


def test_a_wiped_client_begins_as_one_that_was_never_asked(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is left of it is how often it has begun; one that keeps its state has its control variate still. The cause says which."""
    seen = Seen(monkeypatch)
    kept = go({**WORLD, "clients.failures": CRASH})
    assert not seen.wiped and any(each.parts for _, each in seen.kept)
    seen.kept.clear()
    lost = go({**WORLD, "clients.failures": {**CRASH, "state": "lost"}})

    assert len(seen.after) > 5 and len(seen.wiped) == (lost.tasks.cause == "dropped out while working, its state lost").sum()
    assert all(not each.parts and not each.steps and not each.seen and each.trained > 0 for each in seen.after)
    assert kept.tasks[["message", "client", "stopped_s"]].equals(lost.tasks[["message", "client", "stopped_s"]])  # The same luck.
    assert kept.digest != lost.digest


def test_a_client_that_only_says_so_is_found_out(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teeth: one that says that its state is lost, and keeps it, has a part at its next message."""
    monkeypatch.setattr(Programs, "_lost", lambda programs, client, kept: programs.kept(client))  # pyright: ignore
    seen = Seen(monkeypatch)
    go({**WORLD, "server.rounds": 5, "clients.failures": {**CRASH, "state": "lost"}})

    assert any(each.parts for each in seen.after)


def test_streams_bring_nothing_twice(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wiped client's memory is empty, and what arrives is tested once, in its order, all the same."""
    seen = Seen(monkeypatch)
    stream = {
        "stream.arrivals": {"kind": "constant", "per_s": 0.5}, "stream.trigger": {"kind": "count", "examples": 4},
        "clients.replay": {"kind": "reservoir", "capacity": 20}, "training.algorithm": {"kind": "fedavg"},
    }  # fmt: skip
    run = go({**WORLD, **stream, "clients.failures": {**CRASH, "state": "lost"}})

    assert len(seen.after) > 3 and all(not each.parts and not each.seen for each in seen.after)
    for _, items in run.tested.groupby("client"):
        assert items.item.tolist() == list(range(len(items)))


def test_the_digest_is_one_for_any_number_of_workers(go: Go) -> None:
    """Twice, and in two processes: the same bits."""
    world = {**WORLD, "clients.failures": {"kind": "hazard", "per_s": 0.05, "away_s": 3.0, "state": "lost"}, "server.rounds": 4}
    one, again, two = go(world), go(world), go({**world, "engine.workers": 2})

    assert "crashed while working, its state lost" in set(one.tasks.cause)
    assert one.digest == again.digest == two.digest


def test_an_app_that_dies_loses_nothing(go: Go) -> None:
    """What it keeps is its SuperNode's: asked otherwise is a line."""
    with pytest.raises(ScenarioError, match=r"clients\.failures\.state = 'lost': goes with what = 'device'"):
        go({**WORLD, "clients.failures": {**CRASH, "what": "app", "state": "lost"}})
