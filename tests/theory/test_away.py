"""Clients that are away, by their availability or for what befell them: seconds and joules are those in which they were there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import fedsim

Go = Callable[..., fedsim.Run]
ALONE = {"clients.count": 2, "server.rounds": 1, "clients.network": {"kind": "failing:Far"}, "server.round_timeout_s": 200.0}
WATTS = {"clients.energy": {"kind": "constant", "compute_w": 5.0, "down_w": 2.0, "up_w": 3.0, "idle_w": 1.0}}
PAUSED = {**ALONE, **WATTS, "clients.availability": {"kind": "failing:Edges"}, "clients.leaving": "pause"}
"""3 s down, so many of work, 3 s up; the client is away from 4 to 9 s and from 12 to 20 s."""


def test_time_away_is_no_work(go: Go) -> None:
    """A client that pauses twice has worked, sent and drawn power for as long as it was there, whatever the clock says."""
    run = go({**PAUSED, "clients.compute": {"kind": "failing:Steady", "work_s": 3.0}})
    row, times, charged = run.tasks.iloc[0], run.times().iloc[0], run.charged.iloc[0]

    assert (row.work_away_s, row.up_away_s, row.down_away_s) == (5.0, 8.0, 0.0)
    assert times[["download_s", "training_s", "upload_s", "away_s", "total_s"]].tolist() == pytest.approx([3.0, 3.0, 3.0, 13.0, 22.0])
    assert run.ledger().compute_s.sum() == pytest.approx(3.0 * (run.tasks.started_s.notna()).sum())
    assert charged[["compute_j", "down_j", "up_j", "idle_j"]].tolist() == pytest.approx([15.0, 6.0, 9.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("leaving", ["finish", "pause", "abort"])
def test_who_is_away_takes_no_message(leaving: str, go: Go) -> None:
    """A device that died at 4 s, in rounds given up after 2.5 s: what was on its way stands still, what comes begins when it is back.

    By hand: the second message, half a second on its way by then, has 1.5 s left at 8 s; the third begins to be sent at 8 s; and of
    the time in which it was dead the device draws nothing.
    """
    run = go({
        **ALONE, **WATTS, "server.rounds": 5, "server.round_timeout_s": 2.5, "clients.leaving": leaving, "evaluate.every": 5,
        "clients.compute": {"kind": "failing:Steady", "work_s": 2.0}, "clients.failures": {"kind": "failing:Once", "away_s": 4.0},
    })  # fmt: skip
    tasks = run.tasks[run.tasks.client == 0].reset_index()
    charged = run.charged.set_index("message").loc[tasks.message.str[1:].astype(int)].reset_index()

    assert tasks.sent_s.tolist() == [0.0, 2.5, 5.0, 7.5, 10.0]
    assert tasks.stopped_s[0] == 4.0
    assert tasks.received_s[1:4].tolist() == [9.5, 11.0, 11.0]
    assert tasks.down_away_s.tolist() == [0.0, 4.0, 3.0, 0.5, 0.0] and tasks.started_s[1] == 9.5
    assert charged.down_j[1:4].tolist() == pytest.approx([6.0] * 3, abs=1e-5)
    assert charged.idle_j.tolist() == pytest.approx([0.0, 0.0, 1.5, 1.5, 0.0], abs=1e-5)


@pytest.mark.parametrize("poll_s", [0.0, 3.0])
def test_who_is_dead_when_the_run_ends_drew_nothing(poll_s: float, go: Go) -> None:
    """Messages that wait for a device that is not back, at the server or behind one that it died of, cost it no joule."""
    world = {"server.rounds": 3, "server.round_timeout_s": 5.0, "clients.failures": {"kind": "failing:Once"}}
    looks = {"transport": {"node_poll_s": poll_s}} if poll_s else {}
    run = go({**ALONE, **WATTS, **world, **looks, "clients.compute": {"kind": "failing:Steady", "work_s": 2.0}})
    waits = run.charged.loc[run.tasks["round"].to_numpy() > 1, ["compute_j", "down_j", "up_j", "idle_j"]].sum(axis=1)

    assert (run.tasks.cause != "").sum() == 2 and len(waits) == 4
    assert waits.tolist() == [0.0] * 4 or poll_s
    assert waits.max() <= 2.0 * 2.0  # Where clients look, one that had a message when it died may have been receiving till then.


def test_an_app_that_died_is_not_heard_of_once_its_device_has_left(go: Go) -> None:
    """Its SuperNode would tell after 60 s; with 'abort' it left after 4, and nothing is heard; one that pauses tells when it is back."""
    app = {"clients.failures": {"kind": "dropout", "probability": 0.999, "what": "app"}}
    device = {"clients.compute": {"kind": "failing:Steady", "work_s": 1.0}}
    told = {way: go({**PAUSED, **device, **app, "clients.leaving": way}).tasks.iloc[0] for way in ("finish", "abort", "pause")}

    assert all(row.cause == "dropped out while working" for row in told.values())
    assert told["finish"].outcome == "failed" and told["finish"].arrived_s == told["finish"].stopped_s + 60.0
    assert told["abort"].outcome == "late" and np.isnan(told["abort"].arrived_s)
    assert told["pause"].outcome == "failed"
