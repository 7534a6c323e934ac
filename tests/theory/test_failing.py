"""Tasks that fail and clients that leave: how many and when by theory, times by hand, and nothing moved where nothing fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import Looking
from scipy.stats import binom, kstest

import fedsim
from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.keys import Key
from fedsim.cost.failures import HEARTBEATS_S, dropout, hazard, silent
from fedsim.scenario.load import load
from fedsim.session import execute, virtual

Go = Callable[..., fedsim.Run]
LINKS = str(Path(__file__).parents[1] / "traces" / "links.csv")
DEVICES = {"clients.compute": {"kind": "constant", "gflops": 5.0, "overhead_s": 10.0}, "clients.network": {"kind": "ideal"}}
MANY = {**DEVICES, "clients.count": 40, "server.rounds": 10, "server.round_timeout_s": 100.0, "data.test_fraction": 0.5}


def that(kind: str, **settings: Any) -> dict[str, Any]:
    return {**MANY, "clients.failures": {"kind": kind, **settings}}


# How many, and when.


def test_as_many_drop_out_as_the_binomial_says_and_evenly_over_their_work() -> None:
    """Of 50,000 tasks a share p drops out, the moment even over the work; a wrong p is four deviations off."""
    failures = dropout(Key(1), probability=0.08)
    found = [fault for client in range(500) for task in range(100) if (fault := failures.fails(client, task, 10.0))]
    z = (len(found) - 4000) / math.sqrt(50_000 * 0.08 * 0.92)

    assert abs(z) < 4
    assert kstest([fault.after_s / 10.0 for fault in found], "uniform").pvalue > 1e-4
    assert abs((len(found) - 50_000 * 0.09) / math.sqrt(50_000 * 0.09 * 0.91)) > 4


def test_crashes_come_by_the_exponential_law() -> None:
    """A share 1 - exp(-rate * work) crashes, and their moments are exponential, cut off at the end of the work."""
    failures, rate, work = hazard(Key(2), per_s=0.02), 0.02, 30.0
    found = [fault.after_s for client in range(500) for task in range(40) if (fault := failures.fails(client, task, work))]
    share = 1 - math.exp(-rate * work)
    z = (len(found) - 20_000 * share) / math.sqrt(20_000 * share * (1 - share))

    assert abs(z) < 4
    assert kstest(found, lambda at: (1 - np.exp(-rate * np.asarray(at))) / share).pvalue > 1e-4
    assert kstest(found, lambda at: np.asarray(at) / work).pvalue < 1e-4


def test_over_selection_meets_its_goal_as_often_as_the_binomial_says(go: Go) -> None:
    """Of 1.3 m clients that are asked fewer than m answer as often as P(Bin(1.3 m, 0.92) < m) says, by stock FedAvg and a deadline."""
    m, rounds = 20, 200
    strategy = {"kind": "FedAvg", "fraction_train": 26 / 40, "min_train_nodes": 26}
    run = go({**that("dropout", probability=0.08), "server.rounds": rounds, "server.strategy": strategy, "evaluate.every": 50})
    short, chance = int((run.rounds.arrived < m).sum()), float(binom.cdf(m - 1, 26, 0.92))

    assert (run.rounds.asked == 26).all()
    assert abs(short - rounds * chance) < 4 * math.sqrt(rounds * chance * (1 - chance)) + 1
    assert abs(run.rounds.arrived.sum() - rounds * 26 * 0.92) < 4 * math.sqrt(rounds * 26 * 0.92 * 0.08)


# What comes of it.


@pytest.mark.parametrize("kind", ["dropout", "silent", "corrupted", "empty", "app", "away"])
def test_what_a_server_hears_is_what_flower_would_tell(kind: str, go: Go) -> None:
    """Devices that die are heard of by the deadline alone, or once they are missed; apps by an error; bytes and work are what was done."""
    device = {"app": {"what": "app"}, "away": {"away_s": 90.0}}.get(kind, {})
    run = go({**that("dropout" if device else kind, probability=0.3, **device), "server.rounds": 2})
    failed = run.tasks[run.tasks.cause != ""]
    rest = run.tasks[run.tasks.cause == ""]

    assert 10 < len(failed) < 40
    assert (rest.outcome == "arrived").all() and rest.stopped_s.isna().all()
    if kind in ("dropout", "silent"):
        assert (failed.outcome == "late").all() and failed.arrived_s.isna().all() and (failed.failure == "").all()
        assert run.rounds.ended_s.tolist() == [100.0, 200.0] and (run.rounds.missed > 0).all()
    else:
        assert (failed.outcome == "failed").all() and (failed.failure != "").all() and (run.rounds.missed == 0).all()
    if kind in ("app", "away"):
        assert (failed.arrived_s - failed.stopped_s).to_numpy() == pytest.approx(HEARTBEATS_S)
    if kind == "corrupted":
        assert (failed.up_bytes == rest.up_bytes.iloc[0]).all() and failed.computed_s.notna().all()
    else:
        assert (failed.up_bytes == 0).all() and failed.computed_s.isna().all()
    if kind in ("dropout", "app", "away"):  # All are alike, so that what was done goes by the time.
        full, took = rest.flops.max(), 10.0
        assert (failed.flops / full).to_numpy() == pytest.approx((failed.stopped_s - failed.started_s) / took, rel=0.1)
    else:
        assert (failed.flops >= rest.flops.min()).all()


def test_errors_have_flowers_codes(go: Go) -> None:
    """A strategy is given the code that a SuperLink would give, or 0 where Flower has none."""
    wanted = {"corrupted": {0}, "empty": {2}, "away": {5}, "app": {8}}
    for kind, codes in wanted.items():
        device = {"app": {"what": "app"}, "away": {"away_s": 90.0}}.get(kind, {})
        Looking.codes.clear()
        table = that("dropout" if device else kind, probability=0.5, **device)
        go({**table, "server.rounds": 1, "server.strategy": {"kind": "failing:Looking"}})
        assert set(Looking.codes) == codes


def test_a_client_that_is_away_takes_no_message(go: Go) -> None:
    """Who is away for 150 s begins with the next round's message when it is back, and not before."""
    run = go({**that("dropout", probability=0.4, away_s=150.0), "server.rounds": 4})
    tasks = run.tasks.sort_values(["client", "sent_s"])
    after = [
        (begin, stopped)
        for _, of in tasks.groupby("client")
        for stopped, begin in zip(of.stopped_s[:-1], of.started_s[1:], strict=True)
        if stopped >= 0 and begin >= 0
    ]

    assert len(after) > 10
    assert all(begin >= stopped + 150.0 - 1e-9 for begin, stopped in after)


# What a client keeps.


def test_a_crashed_client_keeps_what_it_had(go: Go) -> None:
    """On streams a task that broke off is as if it had never been: what arrived is tested once, by the next that is finished."""
    stream = {"stream.arrivals": {"kind": "constant", "per_s": 0.5}, "stream.trigger": {"kind": "count", "examples": 4}}
    run = go({**that("dropout", probability=0.4), **stream, "clients.count": 6, "server.rounds": 8})
    tested = run.tested[["client", "item"]]

    assert (run.tasks.cause != "").sum() > 5
    assert not tested.duplicated().any()
    for _, items in tested.groupby("client"):
        assert items.item.tolist() == list(range(len(items)))


@pytest.mark.parametrize("kind", ["corrupted", "silent"])
def test_a_client_whose_reply_is_lost_has_trained(kind: str, go: Go) -> None:
    """On streams what it predicted is told all the same, and nothing twice."""
    stream = {"stream.arrivals": {"kind": "constant", "per_s": 0.5}, "stream.trigger": {"kind": "count", "examples": 4}}
    run = go({**that(kind, probability=0.4), **stream, "clients.count": 6, "server.rounds": 8})
    failed = run.tasks[run.tasks.cause != ""]
    lost = {*zip(failed.client, failed["round"], strict=True)}

    assert len(lost) > 5
    assert lost <= {*zip(run.tested.client, run.tested["round"], strict=True)} and not run.tested[["client", "item"]].duplicated().any()


# Nothing moves where nothing fails.


@pytest.mark.parametrize(
    "nothing",
    [
        {"clients.failures": {"kind": "dropout", "probability": 0.0}}, {"clients.failures": {"kind": "hazard", "per_s": 0.0}},
        {"clients.failures": {"kind": "silent"}}, {"clients.leaving": "finish"}, {"clients.leaving": "abort"}, {"clients.leaving": "pause"},
    ],
    ids=str,
)  # fmt: skip
def test_what_never_fails_moves_no_digest(nothing: Mapping[str, Any], go: Go) -> None:
    """No chance, no rate, and nobody who ever leaves: the digests are those without."""
    plain, same = go({**MANY, "server.rounds": 2}), go({**MANY, "server.rounds": 2, **nothing})

    assert (plain.digest, plain.metrics_digest) == (same.digest, same.metrics_digest)


@pytest.mark.parametrize("leaving", ["abort", "pause"])
def test_the_digest_is_one_for_any_number_of_workers(leaving: str, go: Go) -> None:
    """Twice, and in two processes: the same bits."""
    availability = {"kind": "onoff", "mean_on_s": 20.0, "mean_off_s": 5.0}
    strategy = {"kind": "FedAvg", "min_available_nodes": 2}
    world = {
        **that("hazard", per_s=0.02), "server.rounds": 3, "clients.availability": availability, "clients.leaving": leaving,
        "server.strategy": strategy, "training.algorithm": {"kind": "scaffold"},
    }  # fmt: skip
    one, again, two = go(world), go(world), go({**world, "engine.workers": 2})

    assert {"left while working", "crashed while working"} & set(one.tasks.cause)
    assert one.digest == again.digest == two.digest


# Leaving.


WAYS = {"clients.availability": {"kind": "failing:Edges"}, "clients.count": 2, "server.rounds": 1, "clients.network": {
    "kind": "failing:Far"}, "server.round_timeout_s": 200.0}  # fmt: skip
"""3 s down, so many of work, 3 s up; the client leaves after 4 s."""


def moments(run: fedsim.Run) -> list[float]:
    row = run.tasks.iloc[0]
    return [row.received_s, row.started_s, row.computed_s, row.arrived_s, row.stopped_s]


@pytest.mark.parametrize(
    ("leaving", "work_s", "expected", "cause"),
    [
        ("finish", 5.0, [3.0, 3.0, 8.0, 11.0, math.nan], ""),
        ("abort", 5.0, [3.0, 3.0, math.nan, math.nan, 4.0], "left while working"),
        ("abort", 0.5, [3.0, 3.0, 3.5, math.nan, 4.0], "left while uploading"),
        ("pause", 0.5, [3.0, 3.0, 3.5, 11.5, math.nan], ""),  # 0.5 of the way up before, 2.5 after.
        ("pause", 3.0, [3.0, 3.0, 11.0, 22.0, math.nan], ""),  # 1 of work, 2 from 9 on; 1 of the way up, 2 from 20 on.
        ("pause", 4.0, [3.0, 3.0, 12.0, 23.0, math.nan], ""),  # The work ends as the client leaves.
    ],
)
def test_times_are_those_of_a_walk_by_hand(leaving: str, work_s: float, expected: list[float], cause: str, go: Go) -> None:
    """What leaving makes of a message whose client is away twice, phase by phase."""
    device = {"kind": "failing:Steady", "work_s": work_s}
    run = go({**WAYS, "clients.compute": device, "clients.leaving": leaving})

    assert moments(run) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert run.tasks.cause.iloc[0] == cause
    assert run.tasks.outcome.iloc[0] == ("late" if cause else "arrived")


def test_who_leaves_while_downloading_never_has_the_message(go: Go) -> None:
    """It is received by nobody, and its bytes are lost."""
    slow = {"clients.network": {"kind": "failing:Far", "takes_s": 5.0}, "clients.leaving": "abort"}
    run = go({**WAYS, **slow})

    assert moments(run) == pytest.approx([math.nan] * 4 + [4.0], nan_ok=True)
    assert set(run.tasks.cause) == {"left while downloading"} and (run.tasks.down_bytes > 0).all()


@pytest.mark.parametrize("leaving", ["abort", "pause"])
@pytest.mark.parametrize(
    "failures", [{"kind": "hazard", "per_s": 0.05, "away_s": 70.0}, {"kind": "corrupted", "probability": 0.2}], ids=["crash", "corrupted"]
)
def test_busy_worlds_keep_their_books(leaving: str, failures: Mapping[str, Any], go: Go) -> None:
    """Deadlines shorter than tasks, so that messages wait behind others, while clients come, go and crash: invariants hold to the end."""
    run = go({
        "clients.count": 10, "server.rounds": 10, "server.round_timeout_s": 8.0, "clients.leaving": leaving, "clients.failures": failures,
        "clients.availability": {"kind": "onoff", "mean_on_s": 20.0, "mean_off_s": 8.0},
        "clients.compute": {"kind": "exponential", "gflops": 0.0001, "overhead_s": 3.0},
        "server.strategy": {"kind": "FedAvg", "min_available_nodes": 2}, "evaluate.federated_fraction": 0.5,
    })  # fmt: skip
    tasks = run.tasks
    busy = tasks[tasks.started_s.notna()].sort_values(["client", "started_s"])
    ends = busy.computed_s.fillna(busy.stopped_s)

    assert set(tasks.cause) > {""} and (tasks.outcome[tasks.cause.str.startswith("left")] == "late").all()
    for client in busy.client.unique():  # One at a time.
        of = busy.client == client
        assert (busy.started_s[of].to_numpy()[1:] >= ends[of].to_numpy()[:-1] - 1e-9).all()


# Wrong, and nothing left to happen.


def test_failures_of_ones_own_are_looked_at(go: Go) -> None:
    """A fault after more work than there is is a line by the reader's word."""
    with pytest.raises(RunError, match=r"failures\.kind = 'failing:Odd': its fails\(\) gives a Fault after 11\S+ s of work, expected"):
        go({**MANY, "clients.failures": {"kind": "failing:Odd"}})


def test_a_wait_without_a_timeout_for_nobody_is_a_line(go: Go) -> None:
    """A strategy that waits for ever for who never answers is told so, and what was recorded is safe."""
    table = {**that("silent", share=0.5), "server.rounds": 2, "server.strategy": {"kind": "failing:Endless"}}
    with pytest.raises(RunError, match=r"waits without a timeout.*replies that never come.*\(never answers\)"):
        go(table)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"clients.failures": {"kind": "dropout", "probability": 1.0}}, r"clients\.failures\.probability = 1\.0: must be .*< 1"),
        ({"clients.failures": {"kind": "dropout"}}, r"clients\.failures\.probability"),
        ({"clients.failures": {"kind": "hazard", "per_s": -1.0}}, r"clients\.failures\.per_s = -1\.0: must be >= 0"),
        ({"clients.failures": {"kind": "dropout", "probability": 0.1, "what": "phone"}}, r"clients\.failures\.what.*phone"),
        ({"clients.failures": {"kind": "dropout", "probability": 0.1, "what": "app", "away_s": 5.0}}, r"away_s = 5: .*what = 'device'"),
        ({"clients.failures": {"kind": "dies"}}, r"clients\.failures\.kind = 'dies': no such failure"),
        ({"clients.count": 2, "clients.failures": {"kind": "silent", "share": 0.9999999}}, r"none of the 2 clients ever answers"),
        ({"clients.leaving": "stop"}, r"clients\.leaving"),
        ({"clients.leaving": "abort", "server.link.ingress_mbps": 5.0}, r"clients\.leaving = 'abort': .* server\.link"),
        ({"clients.leaving": "pause", "clients.network": {"kind": "trace", "path": LINKS}}, r"clients\.leaving = 'pause': .* go with time"),
        ({"clients.leaving": "pause", "transport": {}}, r"clients\.leaving = 'pause': .* transport"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_a_line(wrong: Mapping[str, Any], said: str, go: Go) -> None:
    """Certain failure, rates below 0, words that nobody knows, and leaving where links are shared."""
    with pytest.raises(ScenarioError, match=said):
        go({**MANY, **wrong})


def test_who_is_silent_is_a_share() -> None:
    """Of 10,000 clients a share is silent, in all their tasks."""
    failures = silent(Key(3), share=0.2)
    mute = failures.mute(np.arange(10_000))

    assert abs(mute.sum() - 2000) < 4 * math.sqrt(10_000 * 0.2 * 0.8)
    assert [failures.fails(client, 5, 1.0) is not None for client in range(200)] == mute[:200].tolist()


def test_what_real_clients_do_not_go_by_is_noted(tiny: Any, tmp_path: Path) -> None:
    """On ground that is not the virtual one a note names each table that nothing goes by; on the virtual one there is none."""
    loaded = load(tiny({"clients.overhead": {"share": 0.1}, "clients.leaving": "abort"}))
    there = execute(loaded, tmp_path / "there", lay=lambda *given: virtual(*given))
    here = execute(loaded, tmp_path / "here")

    assert any(note.startswith("clients.overhead, clients.leaving: clients are real") for note in there.manifest["notes"])
    assert not any("clients are real" in note for note in here.manifest["notes"])
