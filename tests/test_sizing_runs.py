"""What ``fedsim size`` says to deploy: dry runs are the runs themselves, untrained; and the answer is what was measured."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import ScenarioError
from fedsim.preview import preview
from fedsim.record.leaving import Interrupted
from fedsim.rehearsal import told
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.sizing import Sizing, course, plan, seen, size, table
from fedsim.sizing.seen import Figures, Noted, Seen, Setting, figures
from fedsim.trial import timed

SLOW: dict[str, Any] = {
    "clients.count": 12, "clients.compute": {"kind": "lognormal", "gflops": 0.00003, "sigma": 1.0, "overhead_s": 1.0},
    "server.strategy": {"kind": "FedAvg", "clients_per_round": 4}, "server.round_timeout_s": 3.0, "server.rounds": 6,
}  # fmt: skip
SIZED: dict[str, Any] = {
    **SLOW, "model": {"kind": "sized", "megabytes": 3.0, "gflop_per_example": 0.001}, "data.source": {"kind": "counted", "examples": 200},
    "data.partition": None, "data.test_fraction": None,
}  # fmt: skip


def dried(table: Any) -> Seen:
    """Rehearse the scenario *table*."""
    loaded = load(table)
    noted = Noted(loaded.scenario.clients.count)
    told(build(loaded), wall_s=100.0, also=noted)
    return noted.seen()


def test_a_dry_run_is_the_run_untrained(tiny: Any, go: Any) -> None:
    """Rounds, outcomes and bytes of a dry run are those of the run, message by message; with another seed they are not."""
    run = Seen.of_run(go(SLOW))
    dry = dried(tiny(SLOW))
    other = dried(tiny({**SLOW, "seed": 12}))

    assert (run.outcome == 1).any()
    orders = [np.lexsort((each.client, each.round)) for each in (run, dry)]  # Rows come as fates are sealed.
    for name in ("client", "round", "outcome", "down", "up", "took_s"):
        ours, theirs = (getattr(each, name)[order] for each, order in zip((run, dry), orders, strict=True))
        assert np.array_equal(ours, theirs, equal_nan=name == "took_s"), name
    assert np.array_equal(run.begins_s, dry.begins_s)
    assert np.array_equal(run.ends_s, dry.ends_s)
    assert not np.array_equal(dry.ends_s, other.ends_s)


def test_with_edges_the_server_sends_what_goes_to_them(tiny: Any, go: Any) -> None:
    """Dry and run alike, the server's bytes are those between it and its edges, and a client's its own."""
    behind = {**SLOW, "edges": {"count": 3, "rounds": 2, "network": {"kind": "constant", "down_mbps": 1.0, "up_mbps": 1.0}}}
    run = go(behind)
    seen, about = [Seen.of_run(run), dried(tiny(behind))], run.manifest

    for each in [figures(each, 6) for each in seen]:
        assert (about["edges"]["bytes_down"], about["edges"]["bytes_up"]) == (each.server_down, each.server_up)
        assert each.client_bytes.sum() == about["bytes_down"] + about["bytes_up"]
        assert each.whole_s == pytest.approx(about["virtual_s"])


def test_figures_are_those_of_check(tiny: Any) -> None:
    """Late replies, bytes and the time of all rounds agree with what ``fedsim check`` foretells of the same scenario."""
    found, checked = figures(dried(tiny(SLOW)), 6), preview(load(tiny(SLOW))).foretold

    assert found.whole_s == pytest.approx(checked.virtual_s)
    assert found.late == pytest.approx(checked.missed / checked.asked)
    assert found.server_down == checked.down_bytes
    assert found.server_up == checked.up_bytes
    assert found.client_bytes.sum() == pytest.approx(checked.down_bytes + checked.up_bytes)


def test_the_wait_for_the_first_clients_is_virtual_time(tiny: Any, go: Any) -> None:
    """Where nobody is there at first, the time to the end is that of the run's clock, and not since the first round began."""
    scarce = {
        "clients.count": 6, "clients.availability": {"kind": "onoff", "mean_on_s": 30.0, "mean_off_s": 600.0},
        "server.strategy": {"kind": "FedAvg", "clients_per_round": 3, "min_available_nodes": 3}, "server.rounds": 3,
    }  # fmt: skip
    run, dry = go(scarce), dried(tiny(scarce))
    first = run.metrics[run.metrics["round"] == 1].now_s.iloc[0]

    assert dry.begins_s[0] > 60.0
    assert figures(Seen.of_run(run), 1).whole_s == first
    assert figures(dry, 3).whole_s == pytest.approx(run.manifest["virtual_s"])
    assert figures(dry, 6).whole_s == pytest.approx(2 * run.manifest["virtual_s"] - dry.begins_s[0])


def test_a_target_that_holds_from_the_start_is_refused(tiny: Any, tmp_path: Path) -> None:
    """A score that the untrained model has needs no round: there is nothing to deploy, and a line says so."""
    with pytest.raises(ScenarioError, match=r"with seed \d+ loss <= 50 holds before the first round"):
        size(tiny(SLOW), target="loss<=50", clients=[4], timeouts=[3.0], seeds=1, jobs=1, out=tmp_path / "size")


def test_clients_that_are_never_heard_are_foretold() -> None:
    """From a third of the rounds the share that is never heard in all is foretold within two points, where some cannot be heard at all."""
    draw = np.random.default_rng(3)
    count, asked, rounds = 2000, 40, 200
    able = draw.random(count) < 0.8
    client = np.concatenate([draw.permutation(count)[:asked] for _ in range(rounds)])
    outcome = np.where(able[client], 0, 1)
    number = np.repeat(np.arange(1, rounds + 1), asked)
    ends = np.arange(1.0, rounds + 1)

    def first(known: int) -> Seen:
        few, zeros = number <= known, np.zeros((number <= known).sum(), dtype=np.int64)
        return Seen(count, ends[:known] - 1, ends[:known], client[few], number[few], outcome[few], zeros, zeros, zeros.astype(float))

    exact = figures(first(rounds), rounds).unheard
    assert exact == pytest.approx(1 - len(np.unique(client[outcome == 0])) / count)
    assert figures(first(60), rounds).unheard == pytest.approx(exact, abs=0.02)
    assert figures(first(60), 60).unheard > exact + 0.15


def row(clients: int, wait: float, whole_s: float, moved: float, *, late: float = 0.0, learned: tuple[Any, ...] = ()) -> course.Row:
    found = Figures(5, whole_s, np.array([whole_s]), late, 0.0, 3.0, np.array([moved]), moved, 0.0, 0.0)
    return course.Row(Setting(clients, wait), 5.0, (found,), learned, 5)


def test_the_best_meets_the_deadline_with_the_least() -> None:
    """Of rows that are there in time the one with the fewest bytes, or the shortest; without a target one that loses few replies."""
    target = plan.Target("accuracy", 0.9, True)
    asked = plan.Plan((), Setting(1, 1.0), (7,), 5, target, 100.0, "bytes")
    rows = [row(1, 1, 120.0, 1.0), row(2, 1, 90.0, 3.0, late=0.5), row(3, 1, 80.0, 4.0), row(4, 1, 99.0, 3.5)]
    missed = dataclasses.replace(rows[1], learned=(course.Learned(None, 7, None, rows[1].each[0]),))  # type: ignore[arg-type]

    def says(asked: plan.Plan, rows: list[course.Row]) -> int | None:
        found = course.best(asked, rows)
        return None if found is None else found.setting.clients

    assert 2 == says(asked, rows)
    assert 3 == says(dataclasses.replace(asked, least="time"), rows)
    assert 4 == says(asked, [rows[0], missed, *rows[2:]])
    assert 4 == says(dataclasses.replace(asked, target=None), rows)
    assert 1 == says(dataclasses.replace(asked, deadline_s=None), rows)
    assert says(dataclasses.replace(asked, deadline_s=10.0), rows) is None


def test_it_says_what_its_runs_came_to(tiny: Any, tmp_path: Path) -> None:
    """The answer's rounds, time and bytes are those of the runs that it rests on; asked again, it runs nothing and says the same."""
    asked: dict[str, Any] = {
        "target": "accuracy=0.5", "clients": [3, 6], "timeouts": "2,20", "seeds": 2, "deadline": "1h", "jobs": 2, "out": tmp_path / "size",
    }  # fmt: skip
    scenario = tiny({**SLOW, "server.rounds": 30})
    found = size(scenario, **asked)
    best = found[found.best].iloc[0]
    about = found.attrs["size"]

    assert best.measured
    assert best.runs == 2
    runs = [fedsim.load(path) for path in about["runs"]]
    ours = [run for run in runs if run.manifest["scenario"]["server"]["strategy"]["clients_per_round"] == best.clients
            and run.manifest["scenario"]["server"]["round_timeout_s"] == best.timeout_s]  # fmt: skip
    assert 2 == len(ours)
    reached = [run.series("accuracy").query("value >= 0.5")["round"].min() for run in ours]
    assert best.rounds == np.mean(reached)
    ended = [run.rounds[run.rounds["round"] <= n].ended_s.max() for run, n in zip(ours, reached, strict=True)]
    assert best.whole_s == pytest.approx(np.mean(ended))
    sent = [run.series("accuracy").query(f"round == {n}").iloc[0] for run, n in zip(ours, reached, strict=True)]
    assert best.server_down_bytes == pytest.approx(np.mean([row.down_bytes for row in sent]))
    assert 4 == len(found)
    estimated = found[~found.measured]
    assert len(estimated)
    assert estimated.rounds.between(found[found.measured].rounds.min() - 1e-6, found[found.measured].rounds.max() + 1e-6).all()
    written = [*(tmp_path / "size").rglob("*.npz"), *(tmp_path / "size").rglob("journal.sqlite")]
    before = {path: path.stat().st_mtime_ns for path in written}
    again = size(scenario, **asked)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert again.equals(found)


def test_a_row_fits_into_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Spans of time are written in the table as above it, and eighty columns are enough, if need be without the p95."""
    monkeypatch.setenv("COLUMNS", "80")
    rows = (row(8, 600.0, 4500.0, 123e6), row(13, 28.7, 250.0, 9e6))
    asked = plan.Plan((), Setting(8, 600.0), (7,), 5, None, None, "time")
    table.show(Sizing("phones", asked, rows, rows[0], 50, tmp_path, 2, ()))
    said = capsys.readouterr().out

    assert "10 min 0 s" in said and "28.7 s" in said and "1 h 15 min" in said and not re.search(r"\dm?s\b|\d+m\d+s", said), said
    assert max(len(line) for line in said.splitlines() if "size.html" not in line) <= 80 and "…" not in said


def test_ctrl_c_while_it_looks_says_how_to_go_on(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any run is asked for too, an interrupted search says what is safe, and that the same command goes on."""
    def pressed(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.scenario.build.build", pressed)
    monkeypatch.setattr("fedsim.many.runs._started", lambda *_: None)
    with pytest.raises(Interrupted, match=r"no run is done yet\. The same command goes on from there"):
        size(tiny(SLOW), clients=[4], timeouts=[3.0], jobs=1, out=tmp_path / "size")


def test_how_far_they_came_is_said(tiny: Any, tmp_path: Path) -> None:
    """Where no run reaches the target, the answer names the best score of all rounds of all runs."""
    found = size(tiny(SLOW), target="accuracy=1", clients=[4], timeouts=[3.0], seeds=2, jobs=1, out=tmp_path / "size").attrs["size"]
    best = max(fedsim.load(path).series("accuracy").value.max() for path in found["runs"])

    assert f"in 6 rounds; the best came to {best:.4g}. Raise server.rounds, or lower the target." in found["says"]


def test_sizes_alone_will_do(tiny: Any, tmp_path: Path) -> None:
    """A model and examples of which only sizes are known are timed as such: 3 MB travel, 200 examples cost 0.2 GFLOP."""
    parts = build(load(tiny(SIZED)))

    assert 3_000_000 == sum(array.nbytes for array in parts.first.values())
    assert parts.fleet.flops.training == pytest.approx(1e6)
    assert [200] * 12 == parts.federation.sizes(np.arange(12)).tolist()
    foretold = preview(load(tiny(SIZED)))
    assert timed(load(tiny(SIZED)), foretold).why.startswith("model.kind = 'sized': has sizes")
    with pytest.raises(ScenarioError, match=r"model\.kind = 'sized': has sizes, and no numbers to learn from"):
        fedsim.run(tiny(SIZED), out=tmp_path / "run")
    with pytest.raises(ScenarioError, match=r"data\.source\.kind = 'counted': has sizes"):
        fedsim.run(tiny({**SIZED, "model": {"kind": "logreg"}}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "asked", "says"),
    [
        ({}, {"target": "acuracy=0.5"}, "'acuracy' is not reported here. Did you mean 'accuracy'"),
        ({}, {"target": "accuracy=2"}, "--target 'accuracy=2': can never hold, since no accuracy is above 1"),
        ({}, {"target": "loss=-0.1"}, "can never hold, since no loss is below 0."),
        ({"stop": {"metric": "accuracy", "at_least": 90}}, {}, "stop.at_least = 90: can never hold, since no accuracy is above 1"),
        ({}, {"clients": "0"}, "--clients '0': must be numbers above 0"),
        ({}, {"clients": "13"}, "13 must be a whole number from 1 to clients.count = 12"),
        ({}, {"timeouts": "fast"}, "--timeouts 'fast': must be numbers above 0 with commas between"),
        ({}, {"deadline": "soon"}, "--deadline 'soon': must look like 6h"),
        ({}, {"least": "joules"}, "--least 'joules': must be bytes or time."),
        (SIZED, {"target": "accuracy=0.5"}, "has sizes, and no numbers to learn from. Leave the target out"),
    ],
)  # fmt: skip
def test_what_cannot_be_sized_is_said(tiny: Any, tmp_path: Path, changes: Any, asked: Any, says: str) -> None:
    """Before anything runs, in the reader's words."""
    with pytest.raises(ScenarioError) as told_:
        size(tiny({**SLOW, **changes}), out=tmp_path / "size", jobs=1, **asked)

    assert says in str(told_.value)


def test_numbers_read_well() -> None:
    """No deadline that is proposed is below the moment that it is to cover, nor more than twice as late."""
    for seconds in 10 ** np.random.default_rng(0).uniform(-3, 6, 500):
        assert seconds * (1 - 1e-6) <= plan.nice(seconds) <= 2 * seconds
    assert math.isnan(course.between({}, 3.0))
    assert "3 h" in table.duration(10800.0)
    assert seen.OUTCOMES[0] == "arrived"
