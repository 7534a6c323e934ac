"""Pacing: rounds take what order statistics say, as many are abandoned as binomial tails say, and the first replies are the first."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate
from scipy.stats import binom, norm

import fedsim
from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.types import FloatArray
from fedsim.preview import preview
from fedsim.rehearsal import told
from fedsim.report.page import write_report
from fedsim.scenario.build import build
from fedsim.scenario.kinds import slots
from fedsim.scenario.load import load
from fedsim.sim import bulk, grid
from fedsim.sim.paced import Counted, Paced
from fedsim.sim.rows import RoundRow, TaskRow
from fedsim.strategy import stock

Go = Callable[..., fedsim.Run]
EXAMPLES, GFLOPS = 20, 1e-3
SCENARIOS = Path(__file__).parents[2] / "scenarios"
DRY: dict[str, Any] = {
    "name": "dry", "seed": 5,
    "data": {"source": {"kind": "counted", "examples": EXAMPLES}},
    "clients": {"count": 20_000, "compute": {"kind": "exponential", "gflops": GFLOPS}, "network": {"kind": "ideal"}},
    "model": {"kind": "sized", "megabytes": 0.01, "gflop_per_example": 1e-3 * GFLOPS},
    "training": {"epochs": 1, "batch_size": EXAMPLES, "optimizer": {"kind": "sgd", "lr": 0.1}},
    "server": {"strategy": {"kind": "FedAvg", "clients_per_round": 10}, "rounds": 600},
}  # fmt: skip
"""So many clients that hardly any is asked while it is still at an earlier task."""


def rows(table: Mapping[str, Any] = DRY, /, **overrides: Any) -> tuple[list[RoundRow], list[TaskRow]]:
    """Return the rows of a dry run of *table* with *overrides*, their stops for dots."""
    rounds, tasks = list[RoundRow](), list[TaskRow]()

    def heard(row: TaskRow | RoundRow) -> None:
        (rounds if isinstance(row, RoundRow) else tasks).append(row)  # type: ignore[arg-type]

    told(build(load(table, {name.replace("__", "."): value for name, value in overrides.items()})), wall_s=1e9, also=heard)
    return rounds, tasks


def lasted(rounds: list[RoundRow]) -> FloatArray:
    return np.array([row.ended_s - row.started_s for row in rounds])


def harmonic(n: int, power: int = 1) -> float:
    return sum(1 / k**power for k in range(1, n + 1))


# How long rounds take.


def mean_task_s() -> float:
    """Return the mean seconds of a task of DRY: its operations by the speed that is declared."""
    rounds, tasks = rows(server__rounds=1, clients__compute={"kind": "constant", "gflops": GFLOPS})
    assert 1 == len({row.flops for row in tasks})
    return float(lasted(rounds)[0])


@pytest.mark.parametrize(("asked", "pacing", "expected", "variance"), [
    (10, {"kind": "all"}, harmonic(10), harmonic(10, 2)),
    (13, {"kind": "over_selection", "take": 10}, harmonic(13) - harmonic(3), harmonic(13, 2) - harmonic(3, 2)),
    (13, {"kind": "minimum_fraction", "fraction": 10 / 13, "seconds": 1e3}, harmonic(13) - harmonic(3), harmonic(13, 2) - harmonic(3, 2)),
])  # fmt: skip
def test_rounds_of_exponential_tasks_take_what_order_statistics_say(
    asked: int, pacing: dict[str, Any], expected: float, variance: float
) -> None:  # fmt: skip
    """All of n take H_n mean tasks, the first k of n take H_n - H_(n - k) (METHODS E.1, X7)."""
    rounds, _ = rows(server__pacing=pacing, server__strategy__clients_per_round=asked)
    found = lasted(rounds) / mean_task_s()

    assert abs(found.mean() - expected) < 4 * math.sqrt(variance / len(found))
    assert {10} == {row.arrived for row in rounds} and {asked - 10} == {row.missed for row in rounds}


def test_ten_lognormal_devices_take_what_quadrature_gives() -> None:
    """The slowest of ten devices of sigma 0.6 takes 2.6870 median tasks (METHODS E.1, X7)."""
    expected = integrate.quad(lambda z: 10 * norm.pdf(z) * norm.cdf(z) ** 9 * math.exp(0.6 * z), -9, 9)[0]
    rounds, _ = rows(clients__compute={"kind": "lognormal", "gflops": GFLOPS, "sigma": 0.6}, server__pacing={"kind": "all"})
    found = lasted(rounds) / mean_task_s()

    assert round(expected, 4) == 2.6870
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found))


def test_a_deadline_that_follows_settles_at_its_quantile() -> None:
    """Under exponential tasks four in five replies, or a little more, are in time at -log(0.2) mean tasks, wherever it began."""
    for first in (0.2, 50.0):
        mean_s = mean_task_s()
        pacing = {"kind": "adaptive", "quantile": 0.8, "first_s": first * mean_s, "last": 20}
        rounds, _ = rows(server__pacing=pacing, server__rounds=400, server__strategy__clients_per_round=30)
        came = np.array([row.arrived for row in rounds[100:]])

        assert 0.79 < came.mean() / 30 < 0.85  # It grows at once, where it was too short, and falls by what is seen then.
        assert 0.98 < lasted(rounds)[100:].mean() / mean_s / -math.log(0.2) < 1.15


# How many are abandoned.


def test_as_many_rounds_are_abandoned_as_binomial_tails_say() -> None:
    """Where each of 26 drops out with a chance of 0.08, fewer than m answer as often as P(Bin(26, 0.92) < m) says (METHODS E.1, X9)."""
    failing = {"clients__failures": {"kind": "dropout", "probability": 0.08}, "server__round_timeout_s": 1e4}
    n, m, rounds = 26, 23, 400
    chance = float(binom.cdf(m - 1, n, 0.92))
    for pacing in ({"kind": "over_selection", "take": m}, {"kind": "minimum_fraction", "fraction": m / n, "seconds": 1e3}):
        found, _ = rows(server__strategy__clients_per_round=n, server__rounds=rounds, server__pacing=pacing, **failing)
        short = [row for row in found if row.ended_s - row.started_s > 999.0]

        assert abs(len(short) - rounds * chance) < 4 * math.sqrt(rounds * chance * (1 - chance))
        if pacing["kind"] == "over_selection":  # It waits to the end, and has what came.
            assert {row.arrived for row in found if row not in short} == {m} and all(0 < row.arrived < m for row in short)
        else:
            assert short == [row for row in found if row.abandoned] and {0} == {row.arrived for row in short}
            assert f"{m} are wanted" in short[0].abandoned


# Laws of rounds, whatever the pacing.

PACINGS: dict[str, dict[str, Any]] = {
    "all": {}, "deadline": {"seconds": 0.03}, "over_selection": {"take": 0.6}, "minimum_fraction": {"fraction": 0.9, "seconds": 0.04},
    "adaptive": {"first_s": 0.02, "quantile": 0.7},
}  # fmt: skip
WORLD = {
    "clients__count": 40, "server__rounds": 40, "server__strategy__clients_per_round": 20, "server__round_timeout_s": 0.5,
    "clients__failures": {"kind": "dropout", "probability": 0.1, "what": "device", "away_s": 0.01},
    "clients__compute": {"kind": "exponential", "gflops": GFLOPS},
}  # fmt: skip


def broken_laws(rounds: list[RoundRow], tasks: list[TaskRow], pacing: Mapping[str, Any]) -> Iterator[str]:
    """Yield which laws of a round that was paced the rows break."""
    by_round = {number: list(each) for number, each in groupby(sorted(tasks, key=lambda row: (row.round, row.message)), lambda r: r.round)}
    take = {"over_selection": 12, "minimum_fraction": 18}.get(pacing["kind"], 20)
    for row in rounds:
        mine = by_round[row.round]
        heard = [each for each in mine if each.outcome == "arrived"]
        others = [each for each in mine if each.outcome in ("late", "in flight") and each.arrived_s >= 0]
        if row.asked != row.arrived + row.failed + row.missed or len(heard) != row.arrived:
            yield "every message is counted, missed or failed"
        if len(heard) > take:
            yield "no more than were wanted"
        if any(each.arrived_s > row.ended_s for each in heard):
            yield "nothing counts that came later"
        if heard and max((e.arrived_s, e.message) for e in heard) > min(((e.arrived_s, e.message) for e in others), default=(math.inf, "")):
            yield "who counts came first"
        if (row.abandoned and heard) or bool(row.abandoned) != (pacing["kind"] == "minimum_fraction" and row.arrived < take):
            yield "of an abandoned round nothing counts"
        if {each.discarded for each in mine} - {"", "enough", "abandoned"} or any(each.discarded for each in heard):
            yield "what is discarded says why, and nothing else"
        if row.ended_s - row.started_s > min(float(pacing.get("seconds", 0.5)), 0.5) + 1e-9:
            yield "a round ends by its deadline"


def test_every_kind_has_a_case() -> None:
    """No pacing of ours goes untried here."""
    assert set(slots()["pacing"].registry) == set(PACINGS)


@pytest.mark.parametrize("kind", PACINGS)
@pytest.mark.parametrize("at_once", [True, False])
def test_rounds_keep_the_laws(kind: str, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first replies are the ones that count, no more than are wanted; deadlines hold; an abandoned round is nothing."""
    monkeypatch.setattr(bulk, "LEAST", 2 if at_once else 10**9)
    pacing = {"kind": kind, **PACINGS[kind]}
    rounds, tasks = rows(**WORLD, server__pacing=pacing)

    assert [] == [*broken_laws(rounds, tasks, pacing)]
    assert len(rounds) == 40 and any(row.arrived for row in rounds)


@pytest.mark.parametrize("wrong", ["the last", "all that came", "abandons nothing", "no deadline"])
def test_the_laws_have_teeth(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking the last replies, or all, keeping what was abandoned, or waiting longer: each breaks a law."""
    over, wait = Paced.over, Paced.wait

    def bent(self: Paced, given: Any, limit_s: Any, sent: Any, ready: list[Any], *rest: Any) -> Any:
        found = over(self, given, limit_s, sent, ready, *rest)
        if wrong == "the last" and found.beyond:
            usable = sorted((each for each in ready if not each.failure), key=lambda each: -each.number)
            errors = [each for each in ready if each.failure]
            return Counted([*usable[: given.enough], *errors], usable[given.enough :], "enough")
        return Counted(ready) if wrong in ("all that came", "abandons nothing") else found

    kind = {"the last": "over_selection", "all that came": "over_selection", "no deadline": "deadline"}.get(wrong, "minimum_fraction")
    monkeypatch.setattr(Paced, "over", bent)
    if wrong == "no deadline":
        monkeypatch.setattr(Paced, "wait", lambda self, kind, asked: wait(self, "evaluate", asked))
    ties = {"clients__compute": {"kind": "constant", "gflops": GFLOPS}} if kind == "over_selection" else {}
    pacing = {"kind": kind, **PACINGS[kind]}

    assert [*broken_laws(*rows(**{**WORLD, **ties}, server__pacing=pacing), pacing)]


STRATEGIES: dict[str, dict[str, Any]] = {
    "Krum": {"num_malicious_nodes": 1}, "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1}, "BulyanIterated": {"num_malicious_nodes": 1}, "QFedAvg": {"client_learning_rate": 0.1},
}  # fmt: skip
PRIVATE = {
    "noise_multiplier": 1.0, "num_sampled_clients": 13, "clipping_norm": 1.0, "strategy": {"kind": "FedAvg", "clients_per_round": 13},
}  # fmt: skip


@pytest.mark.parametrize("kind", stock.names())
def test_over_selection_works_with_every_stock_strategy(kind: str) -> None:
    """Whatever strategy asks 13 clients goes on with the first ten."""
    takes = stock.arguments(kind)
    given = {name: value for name, value in {**PRIVATE, **STRATEGIES.get(kind, {})}.items() if name in takes}
    if "strategy" not in takes:
        given["clients_per_round"] = 13
    table = {**DRY, "data": {"source": {"kind": "digits"}, "partition": {"kind": "iid"}}, "model": {"kind": "logreg"}}
    small = {"clients__count": 40, "server__rounds": 3, "server__strategy": {"kind": kind, **given}}
    rounds, _ = rows(table, **small, server__pacing={"kind": "over_selection", "take": 10})

    assert [(13, 10, 3)] * 3 == [(row.asked, row.arrived, row.missed) for row in rounds]


# What the server takes, and what is wrong.


def test_a_server_that_aggregates_is_busy(go: Go) -> None:
    """0.2 s, 0.1 s a reply and 0.5 s a megabyte later there is the next version, and the next round; its default moves nothing."""
    asked = {"server.rounds": 3, "evaluate.federated_fraction": 0.5}
    plain, busy = go(asked), go({**asked, "server.aggregation": {"seconds": 0.2, "per_reply_s": 0.1, "per_mb_s": 0.5}})
    up_mb = float(plain.tasks[plain.tasks.kind == "train"].up_bytes.sum()) / 3 / 1e6
    took_s = 0.2 + 0.1 * 6 + 0.5 * up_mb
    trained = busy.rounds[busy.rounds.kind == "train"]

    assert plain.digest == go({**asked, "server.aggregation": {}}).digest != busy.digest
    assert np.allclose(busy.versions.now_s[1:], trained.ended_s + took_s)
    assert busy.manifest["virtual_s"] == pytest.approx(plain.manifest["virtual_s"] + 3 * took_s, rel=1e-6)


def test_nobody_in_time_is_told_and_ends_a_run(go: Go) -> None:
    """Of two rounds in which nobody can be in time a note gives fastest and deadline; after ten the run ends."""
    slow = {"kind": "constant", "gflops": 5.0, "overhead_s": 3.0}
    far = {"server.pacing": {"kind": "deadline", "seconds": 0.5}, "clients.compute": slow}
    notes = " ".join(go({**far, "server.rounds": 2}).manifest["notes"])
    with pytest.raises(RunError, match=r"no client could finish any of rounds 1 to 10 before its deadline: fastest 3.* s, deadline 0\.5 s"):
        go({**far, "server.rounds": 30})

    assert "no client could finish round 1 (nor 1 more) before its deadline: fastest 3" in notes
    assert "what server.pacing waits is too short" in notes


def test_whoever_can_be_in_time_ends_no_run() -> None:
    """Rounds without a reply in time are no end where clients are fast enough, and only ever busy or failing."""
    slow = {"clients__count": 1, "server__strategy__clients_per_round": 1, "clients__failures": {"kind": "dropout", "probability": 0.9}}
    rounds, _ = rows(**slow, server__rounds=40, server__pacing={"kind": "deadline", "seconds": 5.0}, server__round_timeout_s=50.0)

    assert len(rounds) == 40 and sum(row.arrived for row in rounds) < 20


@pytest.mark.parametrize(("table", "line"), [
    ({"kind": "deadline", "seconds": 0.0}, "server.pacing.seconds = 0.0: must be > 0"),
    ({"kind": "deadline", "seconds": -3}, "server.pacing.seconds = -3: must be > 0"),
    ({"kind": "deadline"}, "server.pacing.seconds: missing"),
    ({"kind": "over_selection", "take": 14}, "server.pacing.take = 14: a round asks 6 clients"),
    ({"kind": "over_selection", "take": 0}, "server.pacing.take = 0: must be a whole number >= 1, or a share"),
    ({"kind": "over_selection", "take": 1.5}, "server.pacing.take = 1.5: must be a whole number >= 1, or a share"),
    ({"kind": "minimum_fraction", "fraction": 1.2, "seconds": 3.0}, "server.pacing.fraction = 1.2: must be <= 1"),
    ({"kind": "adaptive", "quantile": 0}, "server.pacing.quantile = 0: must be > 0"),
    ({"kind": "overselection"}, "server.pacing.kind = 'overselection': no such pacing. Did you mean 'over_selection'?"),
])  # fmt: skip
def test_bad_words_are_named(table: dict[str, Any], line: str, tiny: Any) -> None:
    """What no round can be paced by is refused by its key, its value, and what would have worked."""
    with pytest.raises(ScenarioError) as refused:
        build(load(tiny({"server.pacing": table})))

    assert str(refused.value).startswith(line)


def test_what_is_foretold_is_paced(go: Go, tiny: Any) -> None:
    """A check takes the time of the run, to the last bit, and says of rounds in which nobody can be in time who is the fastest."""
    first = {"server.pacing": {"kind": "over_selection", "take": 4}, "server.aggregation": {"seconds": 3.0}, "server.rounds": 3}
    far = {"server.pacing": {"kind": "deadline", "seconds": 0.5}}
    told_of, hopeless = (preview(load(tiny(each))) for each in (first, far))

    assert told_of.foretold.virtual_s == go(first).manifest["virtual_s"] > 9.0
    assert any("before its deadline: fastest 1.1" in note for note in hopeless.notes)
    with pytest.raises(RunError, match=r"rounds 1 to 10 before its deadline: fastest 1\.1. s"):
        preview(load(tiny({**far, "server.rounds": 20})))


def test_the_shipped_stragglers_are_waited_for_as_they_say() -> None:
    """Rounds of stragglers.toml: all are slower than a deadline of 10 s, that than the first 10 of 13, and those than 5 s."""
    sweep = tomllib.loads((SCENARIOS / "sweeps" / "waiting.toml").read_text())
    took: dict[str, float] = {}
    for point in sweep["points"]:
        table, seen = point["server.pacing"], list[RoundRow]()
        parts = build(load(SCENARIOS / "stragglers.toml", {**sweep["set"], **point}))
        told(parts, wall_s=1e9, also=lambda row, seen=seen: seen.append(row) if isinstance(row, RoundRow) else None)  # type: ignore[misc]
        took[f"{table['kind']} {table.get('seconds', '')}".strip()] = seen[-1].ended_s

    assert took["deadline 5.0"] < took["over_selection"] < took["deadline 10.0"] < took["all"]
    assert took["deadline 5.0"] < took["adaptive"] < took["all"]


def test_a_deadline_that_never_comes_is_a_note(tiny: Any) -> None:
    """A deadline beyond the round's own says so, and so does taking all of those asked."""
    notes = [
        " ".join(build(load(tiny({"server.pacing": each, "server.round_timeout_s": 60}))).notes)
        for each in ({"kind": "deadline", "seconds": 90.0}, {"kind": "over_selection", "take": 6})
    ]

    assert "its deadline of 90 s never comes" in notes[0] and "is all of the 6 clients" in notes[1]


def test_evaluation_is_not_paced(go: Go) -> None:
    """Messages of evaluation are waited for as without pacing."""
    run = go({"server.pacing": {"kind": "over_selection", "take": 2}, "evaluate.federated_fraction": 1.0})
    by_kind = run.rounds.groupby("kind")[["arrived", "missed"]].sum()

    assert by_kind.loc["train"].tolist() == [4, 8] and by_kind.loc["evaluate"].tolist() == [12, 0]


def test_what_did_not_count_says_why(go: Go, cli: Any) -> None:
    """The ledger and the summary tell what was not needed, and what came in an abandoned round, from what was late."""
    first = go({"server.pacing": {"kind": "over_selection", "take": 4}, "server.rounds": 4})
    gone = go({"server.pacing": {"kind": "minimum_fraction", "fraction": 1.0, "seconds": 1.12}, "server.rounds": 4})

    assert {"counted", "not needed"} <= set(first.ledger().fate) and "late" not in set(first.ledger().fate)
    assert "in an abandoned round" in set(gone.ledger().fate) and (gone.rounds.abandoned != "").any()
    assert "not needed" in cli("show", first.path).out and "rounds were abandoned" in " ".join(gone.manifest["notes"])
    assert "as many replies as it wanted" in write_report(first).read_text("utf-8")


def test_nothing_is_moved_by_waiting_for_all(go: Go) -> None:
    """``all``, and a deadline that is the round's own, have the digest of no pacing."""
    plain = go({"server.round_timeout_s": 2.0})
    every = go({"server.round_timeout_s": 2.0, "server.pacing": {"kind": "all"}})

    assert plain.digest == every.digest == go({"server.pacing": {"kind": "deadline", "seconds": 2.0}}).digest
    assert grid.Paced(None).notes == []
