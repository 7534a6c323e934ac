"""What ``fedsim check`` foretells: to the last bit where there is time to rehearse every round, else with an interval."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim import rehearsal, walking
from fedsim.core.errors import RunError
from fedsim.data.arriving import looked_at
from fedsim.data.replay import replays
from fedsim.data.river import RiverGenerator
from fedsim.preview import preview
from fedsim.rehearsal import Foretold, rehearse
from fedsim.scenario.build import build
from fedsim.scenario.load import load

Go = Callable[..., fedsim.Run]
Tiny = Callable[..., dict[str, Any]]
DAY = {
    "clients.count": 40, "data.test_fraction": 0.5, "clients.availability": {"kind": "diurnal", "mean": 0.3, "amplitude": 0.9},
    "clients.compute": {"kind": "lognormal", "gflops": 5.0, "sigma": 0.5, "overhead_s": 60.0},
    "server.strategy": {"kind": "FedAvg", "clients_per_round": 8}, "evaluate.every": 1000,
}  # fmt: skip
"""By day more than ten of forty clients are there, by night fewer than the eight that a round wants: it waits for them."""
STAGGERED = {
    "data": {"source": {"kind": "stagger", "examples_per_client": 40}, "test_fraction": 0}, "clients.count": 4, "server.rounds": 20,
    "stream": {
        "arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 5},
        "drift": {
            "change": {"kind": "variants", "of": [0, 1]}, "schedule": {"kind": "abrupt", "at_s": [20.0]},
            "onset": {"kind": "staggered", "step_s": 15.0},
        },
    },
}  # fmt: skip


def foretell(tiny: Tiny, overrides: dict[str, Any], **how: Any) -> Foretold:
    """Return what is foretold of the tiny scenario with *overrides*."""
    return rehearse(build(load(tiny(overrides))), **{"wall_s": 1000.0, **how})


@pytest.mark.parametrize(
    "more",
    [
        DAY | {"server.rounds": 40},
        {"server.rounds": 50, "clients.availability": {"kind": "onoff", "mean_on_s": 30.0, "mean_off_s": 60.0}},
        {"server.rounds": 40, "server.round_timeout_s": 1.2},
        {"server.rounds": 3, "server.round_timeout_s": 1.0,  # Replies are on the wire when the run ends.
         "clients.network": {"kind": "constant", "up_mbps": 0.04, "down_mbps": 100.0}},
        {"server.rounds": 30, "evaluate.federated_fraction": 0.5},
    ],
)
def test_a_run_takes_what_was_foretold(go: Go, tiny: Tiny, more: dict[str, Any]) -> None:
    """Where every round is rehearsed, virtual time and bytes are the run's, whatever clients do and however many rounds."""
    run, foretold = go(more), preview(load(tiny(more)))
    figures = foretold.plain()

    assert foretold.foretold.exact
    names = ("virtual_s", "bytes_down", "bytes_up")
    assert [run.manifest[name] for name in names] == [figures[name] for name in names]
    assert [figures["virtual_s"]] * 2 == figures["virtual_s_interval"]
    assert figures["rounds"] == figures["rehearsed_rounds"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_cycle_is_looked_at_all_round(tiny: Tiny, seed: int) -> None:
    """Foretold from ten rounds near the peak and samples of the day, the time of all lies in the interval; ten alone miss."""
    more = DAY | {"server.rounds": 800, "seed": seed}
    true, found = foretell(tiny, more), foretell(tiny, more, rounds=10)
    naive_s = foretell(tiny, more | {"server.rounds": 10}).virtual_s * 80  # What was done before: the mean of the first.

    assert (True, False, 800) == (true.exact, found.exact, found.rounds)
    assert 0 < found.sampled < found.rehearsed < 150
    assert found.low_s <= true.virtual_s <= found.high_s
    assert abs(found.virtual_s / true.virtual_s - 1) < 0.2 < abs(naive_s / true.virtual_s - 1)
    assert found.down_bytes == pytest.approx(true.down_bytes, rel=0.02)


def test_who_is_asked_by_night_counts_too(tiny: Tiny) -> None:
    """Where a share of those available is asked, fewer are by night: bytes and clients a round follow the cycle."""
    more = DAY | {"server.rounds": 1000, "server.strategy": {"kind": "FedAvg", "fraction_train": 0.5}, "seed": 4}
    true, found = foretell(tiny, more), foretell(tiny, more, rounds=10)

    assert found.down_bytes == pytest.approx(true.down_bytes, rel=0.1)
    assert found.asked == pytest.approx(true.asked, rel=0.1)
    assert found.virtual_s == pytest.approx(true.virtual_s, rel=0.1)


def test_a_walk_through_a_day_by_hand() -> None:
    """In a day of 100 s whose first half has rounds of 1 s and whose second half rounds of 5 s, 120 rounds take two days."""
    rows = [(float(t), 1.0 if t < 50 else 5.0, 2.0, 0.0, 7.0, 3.0) for t in range(100)]
    table = walking.by_phase(np.array(rows), 100.0)
    [sums], _ = walking.walk(table[None], 0.0, 120, 100.0)

    assert sums == pytest.approx([200.0, 240.0, 0.0, 840.0, 360.0], abs=3.0)


@pytest.mark.parametrize("rounds", [5, 7])
def test_streams_end_a_run_that_is_foretold_from_its_beginning(tiny: Tiny, rounds: int) -> None:
    """Foretold from a few rounds, a run with streams ends when these do, not after all the rounds that the server would play."""
    more = STAGGERED | {"server.rounds": 2000}
    true, found = foretell(tiny, more), foretell(tiny, more, rounds=rounds)

    assert (true.ends, found.ends, found.exact) == (True, True, False)
    assert found.virtual_s == pytest.approx(true.virtual_s, rel=0.15) and found.low_s <= true.virtual_s <= found.high_s
    assert found.rounds == pytest.approx(true.rounds, abs=2) and found.up_bytes == pytest.approx(true.up_bytes, rel=0.3)


def test_streams_that_go_on_end_nothing(tiny: Tiny) -> None:
    """Where the server's rounds are over before the streams are, these do not shorten what is foretold."""
    more = STAGGERED | {"server.rounds": 6}
    found = foretell(tiny, more, rounds=4)

    assert (6, False) == (found.rounds, found.ends)


@pytest.mark.parametrize(
    ("reaction", "exact"), [({}, True), ({"lr_factor": 2.0}, True), ({"replay_share": 0.5}, False), ({"buffer": "reset"}, False)]
)
def test_what_alarms_change_is_not_called_exact(tiny: Tiny, reaction: dict[str, Any], exact: bool) -> None:
    """A rehearsal has no alarms: where these change how much is trained, it does not claim the run's own times."""
    memory = {"clients.replay": {"kind": "reservoir", "capacity": 20}, "clients.detector": {"kind": "ddm"}}
    found = foretell(tiny, STAGGERED | memory | {"clients.reaction": {"kind": "adapt", **reaction}})

    assert (exact, exact) == (found.exact, not math.isnan(found.low_s))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock on which every look takes a second."""
    looks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(looks)))


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("stream", [{}, {"stream.arrivals": {"kind": "constant", "per_s": 1.0}, "stream.items": 5000}])
def test_wall_time_bounds_it(tiny: Tiny, stream: dict[str, Any]) -> None:
    """When wall time is out it stops, with an interval and not at all rounds; without any, it rehearses one round."""
    found = foretell(tiny, {"server.rounds": 900, **stream}, wall_s=60.0)
    one = foretell(tiny, {"server.rounds": 900, **stream}, wall_s=0.0)

    assert 4 < found.rehearsed < 200
    assert found.low_s <= found.virtual_s <= found.high_s < 3 * found.virtual_s
    assert (1, True, True) == (one.rehearsed, math.isnan(one.low_s), math.isfinite(one.virtual_s))


@pytest.mark.usefixtures("slow")
def test_looking_at_clients_is_bounded_too(tiny: Tiny) -> None:
    """Counting labels stops when its wall time is out, and says at how many clients it looked."""
    found = preview(load(tiny({"clients.count": 100, "data.test_fraction": 0.5})), wall_s=100.0).plain()

    assert 3 <= found["labels_from_clients"] < 20
    assert found["labels_per_client_median"] > 0
    assert [3] == [len(list(looked_at(count, 50, 0.0))) for count in (1000,)]


def test_check_says_what_it_looked_at(cli: Callable[..., Any], scenario_file: Callable[..., Path]) -> None:
    """The terminal says that time is virtual, whether all rounds were rehearsed, and if not, what there is to do."""
    path = scenario_file(DAY | {"server.rounds": 100})
    whole, cut = (" ".join(cli("check", path, *more).out.split()) for more in ((), ("--wall-s", "0")))

    assert "of virtual time (slowest" in whole and "all 100 rounds on the virtual clock" in whole
    assert "1 of 100 rounds on the virtual clock, without training. --wall-s N takes more time" in cut
    assert "some" in cut and "of virtual time" in cut


def test_json_has_the_interval(cli: Callable[..., Any], scenario_file: Callable[..., Path]) -> None:
    """``check --json`` has the interval: both ends the figure where all was rehearsed, null where one round was."""
    path = scenario_file(DAY | {"server.rounds": 20})
    whole, cut = (json.loads(cli("check", path, "--json", *more).out) for more in ((), ("--wall-s", "0")))

    assert [whole["virtual_s"]] * 2 == whole["virtual_s_interval"]
    assert (None, 1, 20) == (cut["virtual_s_interval"], cut["rehearsed_rounds"], cut["rounds"])


def test_it_tells_how_far_it_is(tiny: Tiny) -> None:
    """Whoever watches hears of every round, samples included, and of how many there are."""
    heard: list[tuple[int, int]] = []
    foretell(tiny, {"server.rounds": 200}, rounds=3, watch=lambda *said: heard.append(said))

    assert [(1, 200), (2, 200), (3, 200), (4, 200)] == heard[:4]
    assert len(heard) == heard[-1][0] < 200


@pytest.mark.parametrize("kind", sorted(replays.names()))
def test_a_memory_that_ignores_labels_is_foretold_without_them(tiny: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients' examples are made once, for the test; a rehearsal makes none unless a memory looks at them, and foretells the same."""
    made: list[int] = []
    variant_of = RiverGenerator.variant_of
    monkeypatch.setattr(
        RiverGenerator, "variant_of", lambda self, client, variant: made.append(client) or variant_of(self, client, variant)
    )
    memory = {"kind": kind} if kind == "none" else {"kind": kind, "capacity": 5}
    parts = build(load(tiny(STAGGERED | {"clients.replay": memory})))
    once = {client: made.count(client) for client in range(4)}

    made.clear()
    lean, blind = rehearse(parts, wall_s=1000.0), not made
    monkeypatch.setattr(rehearsal, "sorts_by_class", lambda replay: True)
    whole = rehearse(parts, wall_s=1000.0)
    assert lean == whole and made and blind == (kind in ("none", "fifo", "reservoir", "mir"))
    assert {0: 2, 1: 2, 2: 1, 3: 1} == once  # The second concept comes for the first two alone.

    monkeypatch.setattr(rehearsal, "sorts_by_class", lambda replay: False)  # The wrong one: whoever sorts, sorts zeros.
    assert (rehearse(parts, wall_s=1000.0) == whole) == (kind not in ("ring", "herding"))


def test_a_wait_for_what_never_is_comes_to_an_end(tiny: Any, go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check whose time is over, and a run after very many looks, say how many clients there were at most; who gets enough goes on."""
    rare = {"kind": "onoff", "mean_on_s": 1.0, "mean_off_s": 9.0}
    table = {"clients.availability": rare, "server.strategy": {"kind": "FedAvg", "clients_per_round": 6, "min_available_nodes": 6}}
    with pytest.raises(RunError, match=r"server.strategy: waits for more clients .* at most [1-5] of 6 in 1,\d\d\d looks"):
        preview(load(tiny(table)), wall_s=0.001)
    monkeypatch.setattr("fedsim.sim.patience.LOOKS", 50)
    monkeypatch.setattr("fedsim.sim.patience.LOOKS_EACH", 1)
    with pytest.raises(RunError, match=r"at most [0-5] of 6 in 51 looks"):
        go(table)

    assert "done" == go({**table, "server.strategy": {"kind": "FedAvg", "clients_per_round": 1, "min_available_nodes": 1}}).status


def test_whose_stream_has_ended_sends_no_parameters(tiny: Any) -> None:
    """Bytes sent up are told from rounds in which more clients had something to send: they are less, and not by half too many."""
    arrivals = {"kind": "poisson", "per_s": 0.2, "rate_sigma": 1.0}
    table = tiny({"stream.arrivals": arrivals, "server.rounds": 400, "clients.count": 8})
    parts = build(load(table))
    true, told = rehearse(parts, wall_s=1e3), rehearse(build(load(table)), wall_s=1.0, rounds=10)

    assert 10 == told.rehearsed < true.rehearsed
    assert 0.7 < (told.up_bytes / told.down_bytes) / (true.up_bytes / true.down_bytes) < 1.1


TROUGH = {
    "clients.count": 120, "data.test_fraction": 0.2, "server.rounds": 150,
    "clients.availability": {"kind": "diurnal", "mean": 0.06, "amplitude": 1.0, "peak_s": 43200.0, "slot_s": 900.0},
    "server.strategy": {"kind": "FedAvg", "clients_per_round": 7},
}  # fmt: skip
"""Hours go by before enough clients are there for the first round, and minutes between the others."""


def test_the_slowest_round_is_one_of_the_run(tiny: Any) -> None:
    """Samples are taken a whole cycle ahead; what lies beyond the end of the run is no round of it."""
    told = rehearse(build(load(tiny(TROUGH))), wall_s=0.5, rounds=10)

    assert 0 < told.sampled
    assert told.slowest_round_s <= told.virtual_s


def test_a_first_wait_comes_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far ahead rounds are sampled follows from how long rounds take, and not from how long the first one waited."""
    guessed: list[float] = []
    span_s = rehearsal._span_s  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(rehearsal, "_span_s", lambda parts, guess_s: guessed.append(guess_s) or span_s(parts, guess_s))
    parts = build(load(tiny(TROUGH)))
    rehearse(parts, wall_s=0.5, rounds=10)
    true, first = rehearse(parts, wall_s=1e3), rehearse(parts, wall_s=1e3, rounds=1)

    assert first.slowest_round_s > 0.5 * true.virtual_s
    assert guessed[0] < true.virtual_s
