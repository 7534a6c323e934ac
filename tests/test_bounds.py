"""[stop] by virtual time and by bytes: where a run ends, what it and its check say of that, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim import walking
from fedsim.preview import preview
from fedsim.rehearsal import rehearse
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.score.target import Target

Go = Callable[..., fedsim.Run]
Tiny = Callable[..., dict[str, Any]]
Cli = Callable[..., Any]
STREAM = {"stream.arrivals": {"kind": "constant", "per_s": 1.0}, "stream.trigger": {"kind": "count", "examples": 3}}


def sums(run: fedsim.Run) -> Any:
    """Return round, virtual seconds and megabytes both ways at the end of each round, by the journal."""
    rows = run.metrics.query("scope == 'central' and name == 'loss'")
    return rows["round"].to_numpy(), rows.now_s.to_numpy(), (rows.down_bytes + rows.up_bytes).to_numpy() / 1e6


@pytest.mark.parametrize("more", [{}, STREAM])
def test_a_run_ends_after_the_round_that_spends_it(go: Go, tiny: Tiny, more: dict[str, Any]) -> None:
    """It ends after the first round at whose end the time is over, or the bytes are sent; that model is scored, and check foretold it."""
    number, time_s, sent_mb = sums(go({"server.rounds": 8, **more}))
    cases = [
        ({"virtual_s": float(time_s[3])}, 3), ({"virtual_s": float(time_s[3:5].mean())}, 4),
        ({"megabytes": float(sent_mb[2:4].mean())}, 3), ({"virtual_s": float(time_s[5]), "megabytes": float(sent_mb[2])}, 2),
    ]  # fmt: skip
    for stop, last in cases:
        asked = {"server.rounds": 8, "evaluate.every": 5, "stop": stop, **more}
        run, foretold = go(asked), preview(load(tiny(asked)))

        assert (last, number[last]) == (run.final["rounds"], last) and "scored_round" not in run.final
        assert run.manifest["stopped"] == (foretold.plain()["stopped"])
        assert (foretold.rounds, foretold.foretold.exact, foretold.foretold.virtual_s) == (last, True, run.manifest["virtual_s"])
        assert [0, last] == sums(run)[0].tolist()


def test_what_comes_first_ends_it(go: Go) -> None:
    """Beside a score: the score where it comes first, and the time where that does; the manifest says which."""
    both = {"metric": "accuracy", "at_least": 0.0, "virtual_s": 1e9}
    soon = {"metric": "accuracy", "at_least": 1.0, "virtual_s": 0.5, "megabytes": 1e6}
    scored, timed = go({"server.rounds": 4, "stop": both}), go({"server.rounds": 4, "stop": soon})

    assert ("accuracy >= 0.0", 0) == (scored.manifest["stopped"], scored.final["rounds"])
    assert ("0.5 s of virtual time", 1) == (timed.manifest["stopped"], timed.final["rounds"])
    assert Target("accuracy", 1.0, upwards=True) == Target.of(timed.manifest["scenario"]["stop"])


@pytest.mark.parametrize("key", ["virtual_s", "megabytes"])
@pytest.mark.parametrize("rounds", [9, 1_000_000_000])
def test_an_end_that_is_not_rehearsed_is_foretold(tiny: Tiny, key: str, rounds: int) -> None:
    """Foretold from six rounds, or from six and samples of what is to come, it ends where all of them say it does, however many may be."""
    day = {"kind": "diurnal", "mean": 0.5, "amplitude": 0.5}
    more = {"clients.count": 20, "clients.availability": day, "server.strategy": {"kind": "FedAvg", "clients_per_round": 3}}
    per_round = {"virtual_s": 1.6, "megabytes": 0.0165}[key]
    asked = {**more, "server.rounds": rounds, "stop": {key: 300 * per_round}}
    true = rehearse(build(load(tiny({**asked, "server.rounds": 2000}))), wall_s=1000.0)
    found = rehearse(build(load(tiny({**asked, "server.rounds": max(rounds, 2000)}))), wall_s=3.0, rounds=6)

    assert true.exact and 100 < true.rounds < 2000 and not found.exact
    assert found.stopped == true.stopped != ""
    assert found.rounds == pytest.approx(true.rounds, rel=0.1) and found.virtual_s == pytest.approx(true.virtual_s, rel=0.1)
    assert found.low_s <= true.virtual_s <= found.high_s


def test_a_walk_ends_where_there_is_no_room() -> None:
    """Rounds of 1 s in the first half of a day of 100 s and of 5 s in the second: 75 s are over after 55 rounds, not after 25."""
    rows = [(float(t), 1.0 if t < 50 else 5.0, 2.0, 0.0, 7.0, 3.0) for t in range(100)]
    table = walking.by_phase(np.array(rows), 100.0)
    for room, expected in ((walking.Room(left_s=75.0), 55), (walking.Room(left_bytes=205.0), 21), (walking.Room(), 120)):
        [found], [count] = walking.walk(table[None], 0.0, 120, 100.0, room)

        assert count == pytest.approx(expected, abs=1) and found[3] == 7 * count


REFUSED = {
    "nothing": ({}, "stop: give one of at_least, at_most, plateau, noise_floor, or virtual_s or megabytes (none given)"),
    "a metric beside time": ({"metric": "loss", "virtual_s": 5.0}, "stop: metric has no effect without one of at_least, at_most, plateau"),
    "no time": ({"virtual_s": 0.0}, "stop.virtual_s = 0.0: must be > 0"),
    "minus bytes": ({"megabytes": -1.0}, "stop.megabytes = -1.0: must be > 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_ends_nothing_is_refused(tiny: Tiny, case: str) -> None:
    """A table that ends nothing, or a score that nobody looks at, is refused in the reader's words."""
    stop, words = REFUSED[case]
    with pytest.raises(fedsim.ScenarioError, match="stop") as refused:
        load(tiny({"stop": stop} if stop else {"stop": {}}))

    assert words in str(refused.value)


def test_check_says_where_it_ends(cli: Cli, scenario_file: Callable[..., Any]) -> None:
    """It says after which round what is spent; and of what is never spent, that the run is over before."""
    ends = cli("check", scenario_file({"server.rounds": 9, "stop": {"virtual_s": 2.0}}))
    never = cli("check", "--json", scenario_file({"stop": {"megabytes": 1000.0}}))

    assert "(2, then 2 s of virtual time are spent)" in " ".join(ends.out.split())
    figures = json.loads(never.out)
    assert None is figures["stopped"] and "[stop]: the run is over before it comes to 1,000 MB sent." in figures["notes"]
