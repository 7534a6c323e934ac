"""Each invariant fires: worlds that are broken on purpose, in one way each, are stopped, and the line names what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import RunError
from fedsim.cost.meter import Charged, Meter
from fedsim.sim.inbox import Inbox
from fedsim.sim.invariants import Invariants
from fedsim.sim.ledger import Ledger
from fedsim.sim.mail import Delivery
from fedsim.sim.metered import Metered
from fedsim.sim.rows import TaskRow

Patch = pytest.MonkeyPatch
WORLD: dict[str, Any] = {
    "server.rounds": 2, "server.round_timeout_s": 90.0, "server.strategy": {"kind": "FedAvg", "min_available_nodes": 2},
    "clients.energy": {"kind": "constant", "compute_w": 5.0}, "clients.failures": {"kind": "dropout", "probability": 0.4},
    "clients.overhead": {"message_bytes": 100, "loss": 0.1}, "evaluate.every": 2,
}  # fmt: skip


def altered(**changes: Callable[[TaskRow], Any]) -> Callable[[Patch], None]:
    """Return what lets rows be written with *changes*, each from the row as it should be."""

    def broken(patch: Patch) -> None:
        settle = Delivery.settle

        def settled(*given: Any, **named: Any) -> TaskRow:
            row = settle(*given, **named)
            return dataclasses.replace(row, **{name: change(row) for name, change in changes.items()})

        patch.setattr(Delivery, "settle", settled)

    return broken


def clock_goes_back(patch: Patch) -> None:
    wait = Inbox.wait

    def early(inbox: Inbox, *given: Any, **named: Any) -> None:
        wait(inbox, *given, **named)
        inbox._invariants.at(inbox._env.now - 1.0, "a look")  # pyright: ignore[reportPrivateUsage]

    patch.setattr(Inbox, "wait", early)


def told_twice(patch: Patch) -> None:
    settle = Ledger.settle

    def again(ledger: Ledger, delivery: Delivery, *given: Any, **named: Any) -> None:
        settle(ledger, delivery, *given, **named)
        ledger._open[delivery.id] = delivery  # pyright: ignore[reportPrivateUsage]

    patch.setattr(Ledger, "settle", again)


def skips_a_stage(patch: Patch) -> None:
    patch.setattr(Delivery, "start", lambda delivery, now: setattr(delivery, "started_s", now))


def stops_too_soon(patch: Patch) -> None:
    stop = Delivery.stop

    def before(delivery: Delivery, now: float, worked_s: float) -> None:
        stop(delivery, now, worked_s)
        delivery.stopped_s = delivery.started_s - 0.5

    patch.setattr(Delivery, "stop", before)


def stops_after_it_was_told(patch: Patch) -> None:
    stop = Delivery.stop

    def later(delivery: Delivery, now: float, worked_s: float) -> None:
        stop(delivery, now, worked_s)
        delivery.stopped_s = now + 1e6

    patch.setattr(Delivery, "stop", later)


def charges_twice(patch: Patch) -> None:
    charge = Metered._charge  # pyright: ignore[reportPrivateUsage]

    def twice(metered: Metered, rows: list[TaskRow], end_s: float) -> None:
        again = list(rows)
        charge(metered, rows, end_s)
        charge(metered, again, end_s)

    patch.setattr(Metered, "_charge", twice)


def charges_less_than_nothing(patch: Patch) -> None:
    charge = Meter.charge

    def less(*given: Any) -> Charged:
        found = charge(*given)
        return dataclasses.replace(found, idle_j=found.idle_j - 1.0)

    patch.setattr(Meter, "charge", less)


def wastes_nothing(patch: Patch) -> None:
    charge = Metered._charge  # pyright: ignore[reportPrivateUsage]

    def forgiving(metered: Metered, rows: list[TaskRow], end_s: float) -> None:
        charge(metered, rows, end_s)
        metered._wasted_j = 0.0  # pyright: ignore[reportPrivateUsage]

    patch.setattr(Metered, "_charge", forgiving)


BROKEN: dict[str, tuple[Callable[[Patch], None], str]] = {
    "the clock": (clock_goes_back, r"the clock went back from \S+ to"),
    "the future": (altered(version=lambda row: row.version + 1), "an update from the future: version 1"),
    "the order of times": (altered(received_s=lambda row: row.received_s + 1e3), "times are out of order"),
    "a stop before the start": (stops_too_soon, "it was stopped at"),
    "a stop after its end": (stops_after_it_was_told, "it was stopped at"),
    "bytes down": (altered(down_bytes=lambda row: row.down_bytes + 1), r"bytes were sent down, \d+ accounted for"),
    "bytes up": (altered(up_bytes=lambda row: 0, up_framing_bytes=lambda row: 0, up_resent_bytes=lambda row: 0), "bytes were sent up"),
    "directions": (
        altered(down_bytes=lambda row: row.down_bytes + row.up_bytes, up_bytes=lambda row: 0), r"bytes were sent down, \d+ accounted for",
    ),
    "what was sent again": (altered(down_resent_bytes=lambda row: row.down_framing_bytes + 1), "more was sent again"),
    "time away": (altered(work_away_s=lambda row: 1e6), r"its client was away for 1000000\.0 s of a phase that took"),
    "less than no time away": (altered(down_away_s=lambda row: -1.0), r"its client was away for -1\.0 s"),
    "one fate": (told_twice, "has its fate already"),
    "stages": (skips_a_stage, "went from held to"),
    "each message is charged once": (charges_twice, r"messages had their fate, and \d+ were charged"),
    "joules are none below 0": (charges_less_than_nothing, r"charged less than no joules \(idle\)"),
    "joules used and wasted": (wastes_nothing, r"J were drawn, \S+ counted and 0\.0 wasted"),
}  # fmt: skip


@pytest.mark.parametrize(("broken", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_world_broken_on_purpose_is_stopped(
    broken: Callable[[Patch], None], said: str, go: Callable[..., fedsim.Run], monkeypatch: Patch
) -> None:
    """The run ends with a line that says what is wrong: nothing of it is trusted."""
    broken(monkeypatch)
    with pytest.raises(RunError, match=said):
        go(WORLD)


def test_the_world_that_is_not_broken_goes_on(go: Callable[..., fedsim.Run]) -> None:
    """The same world as it is: it has what the others break, failures, what is sent again, and joules."""
    run = go(WORLD)

    assert (run.tasks.cause != "").any() and (run.tasks.down_resent_bytes > 0).all() and run.energy().total_j.sum() > 0
    assert np.isfinite(run.charged.compute_j).all()


def test_memories_and_weights_are_watched() -> None:
    """More remembered than a memory holds, and weights of an average that are none."""
    with pytest.raises(RunError, match="remembers 4 examples, and its memory holds 3"):
        Invariants.remembered("here", 4, 3)
    for wrong in ([0.0, 0.0], [2.0, -1.0]):
        with pytest.raises(RunError, match="cannot be made to sum to one"):
            Invariants.weights(1, wrong)
    Invariants.weights(1, [0.0, 1.0])
