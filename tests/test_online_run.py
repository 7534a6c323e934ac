"""What a run on streams tells, held to figures worked out by hand: in a folder written row by row, and in real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedsim
from fedsim.record import manifest
from fedsim.record.journal import Journal, MetricRow
from fedsim.report.page import write_report
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.score.online import gini, pooled, recoveries
from fedsim.session import verify
from fedsim.sim import rows as row_kinds
from fedsim.sim.rows import RoundRow, TaskRow

Go = Callable[..., fedsim.Run]
STREAM = {
    "stream.arrivals": {"kind": "constant", "per_s": 1.0}, "stream.trigger": {"kind": "count", "examples": 5},
    "server.rounds": 30, "clients.compute": {"kind": "constant", "gflops": 1e9, "overhead_s": 0.0},
    "clients.network": {"kind": "ideal"}, "evaluate.every": 1,
}  # fmt: skip
SPLIT = {"stream.order": {"kind": "class_incremental", "tasks": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}}
GROUPS = {"evaluate.by_classes": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}


# A folder written by hand: two clients, three rounds of ten seconds.


def task(
    client: int, number: int, turn: int, received: float, started: float, computed: float, examples: int, outcome: Any = "arrived"
) -> TaskRow:
    """Return a training task; what its round, sent_s and arrived_s are follows from *turn*: round 1 is from 0 s to 10 s."""
    return TaskRow(
        message=f"m{turn}{client}", client=client, number=number, kind="train", round=turn, version=turn - 1, outcome=outcome,
        sent_s=10.0 * turn - 10, received_s=received, started_s=started, computed_s=computed, arrived_s=10.0 * turn,
        examples=examples, steps=1, flops=1.0, down_bytes=1, down_framing_bytes=0, up_bytes=1, up_framing_bytes=0, loss=0.1,
        result="", failure="",
    )  # fmt: skip


def told(
    client: int, turn: int, now: float, rows: list[tuple[int, float, float, int, int, int]], alarms: list[int], drifts: list[float]
) -> row_kinds.PredictionRow:
    """Return a test of rows (item, arrived_s, labelled_s, y, prediction, concept)."""
    items, arrived_s, labelled_s, y, prediction, concepts = (np.array(column) for column in zip(*rows, strict=True))
    return row_kinds.PredictionRow(
        client=client, message=f"m{turn}{client}", round=turn, version=turn - 1, now_s=now, items=items, arrived_s=arrived_s,
        labelled_s=labelled_s, y=y, prediction=prediction, loss=np.full(len(rows), 0.5), concepts=concepts,
        alarms=np.array(alarms, dtype=np.int64), drifts_s=np.array(drifts, dtype=np.float64),
    )  # fmt: skip


def written(folder: Path, concepts: tuple[int, int] = (1, 1), predict: str = "received") -> fedsim.Run:
    """Return a run whose every row is written here; *concepts* are those of the third round's items and the second's."""
    last, second = concepts
    folder.mkdir()
    journal = Journal(folder)
    for row in (
        task(0, 0, 1, 0.0, 4.0, 5.0, 1), task(0, 1, 2, 10.0, 15.0, 16.0, 3), task(1, 0, 2, 11.0, 18.0, 19.0, 2),
        task(0, 2, 3, 20.0, 24.0, 25.0, 9, "late"), task(1, 1, 3, 20.0, 28.0, 29.0, 4),
    ):  # fmt: skip
        journal.task(row)
    journal.tested(told(0, 1, 4.0, [(0, 1.0, 1.0, 0, 0, 0), (1, 2.0, 12.0, 1, 0, 0), (2, 4.0, np.inf, 0, 1, 0)], [], []))
    journal.tested(told(1, 2, 18.0, [(0, 6.0, 6.0, 0, 0, 0), (1, 17.0, 17.0, 1, 0, second)], [], [16.0]))
    journal.tested(told(0, 2, 15.0, [(3, 13.0, 13.0, 0, 0, 0), (4, 15.0, 15.0, 1, 1, second), (5, 15.0, 23.0, 1, 1, second)], [4], [14.0]))
    journal.tested(told(1, 3, 28.0, [(2, 27.0, 27.0, 1, 1, last)], [2, 2], [] if last == second else [26.0]))
    for turn, asked in ((1, 1), (2, 2), (3, 2)):
        journal.round(RoundRow(turn, "train", 10.0 * turn - 10, 10.0 * turn, asked, asked - (turn == 3), 0, int(turn == 3)))
    for turn, values in enumerate([(0.2, 0.1), (0.9, 0.3), (0.4, 0.8), (0.5, 0.7)]):
        for group, value in zip(("classes 0", "classes 1"), values, strict=True):
            journal.metric(MetricRow(turn, 10.0 * turn, group, "accuracy", value, 0, 0))
            journal.metric(MetricRow(turn, 10.0 * turn, group, "loss", 9.0, 0, 0))
    journal.close()
    about = json.loads((Path(__file__).parent / "recorded" / "quickstart" / manifest.FILE).read_text(encoding="utf-8"))
    about["scenario"] |= {"name": "hand", "clients": {"count": 4}, "stream": {"predict": predict}}
    manifest.write(folder, {**about, "virtual_s": 30.0})
    return fedsim.load(folder)


def test_prequential_scores_by_hand(tmp_path: Path) -> None:
    """Eight of nine tested examples get labels, 6 are right; the baselines know what had its label by an earlier test."""
    run = written(tmp_path / "run")
    table = run.prequential().set_index("scope")
    pooled = table.loc["pooled"]

    assert (9, 8) == (len(run.tested), pooled.examples)
    assert {"client": [4 / 5, 2 / 3], "mean": 11 / 15, "worst tenth": 2 / 3, "pooled": 6 / 8} == {
        scope: pytest.approx(list(table.accuracy[scope]) if scope == "client" else table.accuracy[scope]) for scope in table.index.unique()
    }
    assert pytest.approx((3 / 4, 1 / 4, 0.5)) == (pooled.no_change, pooled.majority, pooled.log_loss)
    assert pytest.approx((3 / 4 - 1 / 4) / (1 - 1 / 4)) == pooled.kappa_m
    assert [4.0, 4.0, 15.0, 15.0, 15.0, 18.0, 18.0, 28.0] == run.prequential_curve().time_s.tolist()
    assert 2 / 3 == pytest.approx(run.prequential_curve(clients=[1]).accuracy.iloc[-1])


def test_the_matrix_by_hand(tmp_path: Path) -> None:
    """Row 0 is the last model without concept 1, row 1 the end; the five scores follow from four numbers and the start."""
    found = written(tmp_path / "run").accuracy_matrix()

    assert (("0", "1"), [1, 3], [10.0, 30.0]) == (found.groups, found.rounds.tolist(), found.now_s.tolist())
    assert [[0.9, 0.3], [0.5, 0.7]] == found.accuracy.tolist()
    assert pytest.approx({
        "average accuracy": 0.6, "forgetting": 0.4, "backward transfer": -0.4, "forward transfer": 0.2,
        "any-time accuracy": (0.9 + 0.6 + 0.6) / 3,
    }) == found.scores  # fmt: skip
    assert ["round", "now_s", "0", "1"] == list(found.frame.columns)


def test_a_concept_that_comes_again_is_a_row_of_its_own(tmp_path: Path) -> None:
    """Concepts 0, 1, 0 give three rows, by the client's drifts; transfer between groups is then not defined."""
    found = written(tmp_path / "run", concepts=(0, 1)).accuracy_matrix()

    assert [[0.9, 0.3], [0.4, 0.8], [0.5, 0.7]] == found.accuracy.tolist()
    assert (0.6, True) == (found.average_accuracy, np.isnan(found.forgetting))


def test_detection_by_hand(tmp_path: Path) -> None:
    """Client 0 notices after 1 s, client 1 after 12 s and once for nothing; with a horizon of 5 s it misses its drift."""
    run = written(tmp_path / "run")

    assert [[0, 1, 1, 1, 0, 0, 1.0], [1, 2, 1, 1, 0, 1, 12.0], [-1, 3, 2, 2, 0, 1, 6.5]] == run.detection().to_numpy().tolist()
    assert [3, 2, 1, 1, 2, 1.0] == run.detection(horizon_s=5.0).iloc[-1].tolist()[1:]


def test_freshness_by_hand(tmp_path: Path) -> None:
    """Models 1 to 3 know examples of 1 s, 17 s and 27 s; what the late task trained on is in none; an example counts from its merge on."""
    found = written(tmp_path / "run").freshness().set_index("client")
    means = [(14.0 * 10 + 8.0 * 10) / 20, (14.5 * 9 + 8.0 * 10) / 19]

    assert pytest.approx([*means, sum(means) / 2]) == found.mean_age_s.tolist()
    assert [13.0, 13.0, 13.0] == found.age_s.tolist()
    assert [(5, 4), (3, 3), (8, 7)] == list(zip(found.examples, found.merged, strict=True))
    assert pytest.approx([(9 + 18 + 7 + 5) / 4, (14 + 3 + 3) / 3, (39 + 20) / 7]) == found.to_model_s.tolist()


def test_a_client_that_serves_its_own_model_is_as_fresh_as_its_training(tmp_path: Path) -> None:
    """With predict = local, client 0 knows its examples of 1 s and 15 s once trained, then what the third message held."""
    found = written(tmp_path / "run", predict="local").freshness().set_index("client")

    assert (9.5 * 11 + 5.5 * 9 + 10.5 * 5) / 25 == pytest.approx(found.mean_age_s[0])


def test_weights_by_hand(tmp_path: Path) -> None:
    """Shares are within rounds, meant over them; what was late weighs nothing; two of four clients were never asked."""
    run = written(tmp_path / "run")

    assert [[0, 2, 4, pytest.approx(1.6 / 3)], [1, 2, 6, pytest.approx(1.4 / 3)]] == run.weights().to_numpy().tolist()
    assert (1.4 + 3 * 1.6) / (4 * 3) == pytest.approx(run.weight_gini())
    assert gini(np.array([3.0, 1.0, 0.0])) == pytest.approx(gini(np.array([1.0, 3.0]), 3))


def test_recovery_pools_those_who_drift_together() -> None:
    """Two clients that drift at 10 s are one row, back when the last two examples of both are right; the next drift ends it."""
    tested = pd.DataFrame({
        "client": [0, 1, 0, 1, 0, 1, 0, 1], "time_s": [1.0, 2.0, 10.0, 11.0, 12.0, 13.0, 20.0, 21.0],
        "labelled_s": [1.0, 2.0, 10.0, 11.0, 12.0, 13.0, 20.0, 21.0], "y": 1, "prediction": [1, 1, 0, 0, 1, 1, 0, 0],
    })  # fmt: skip
    drifts = pd.DataFrame({"client": [0, 1, 1], "time_s": [10.0, 10.0, 20.0]})
    found = recoveries(tested, drifts, window=2, eps=0.0)

    assert [[10.0, 2, 2, 4, 3.0], [20.0, 1, 3, 1]] == [found.iloc[0].tolist(), found.iloc[1].tolist()[:4]]
    assert np.isnan(found.recovery_s[1])


# Real runs.


def test_true_drifts_are_on_record_as_far_as_they_were_lived(tiny: Callable[..., Any], go: Go) -> None:
    """A client's drifts in the journal are those of its stream until its last test, once each, though it is asked rarely."""
    overrides = STREAM | SPLIT | {"server.strategy": {"kind": "FedAvg", "fraction_train": 0.5}, "server.rounds": 7}
    run = go(overrides)
    streams = build(load(tiny(), overrides)).federation.streams
    assert streams is not None
    last = run.tested.groupby("client").time_s.max()
    lived = {int(c): [t for t in streams.of(int(c)).changes_s.tolist() if t <= last[c]] for c in last.index}
    found = {client: run.drifts[run.drifts.client == client].time_s.tolist() for client in lived}

    assert lived == found
    assert 0 < sum(map(len, lived.values())) < 6


def test_an_example_waits_for_its_round(go: Go) -> None:
    """One example a second, trained on by fives in no time: an example waits 0 to 4 s, and the newest is 2.5 s old on average."""
    found = go(STREAM | {"stream.items": 25, "clients.count": 2}).freshness().iloc[-1]

    assert (50, 50) == (found.examples, found.merged)
    assert pytest.approx((2.0, 2.5), abs=1e-3) == (found.to_model_s, found.mean_age_s)


def test_memory_forgets_less(go: Go) -> None:
    """In a real run of two tasks the first is forgotten without a memory, and less with one; rows are the ends of tasks."""
    training = STREAM | SPLIT | GROUPS | {"data.test_fraction": 0.3, "training.optimizer.lr": 0.3, "server.rounds": 60}
    without, with_memory = (
        go(training | more).accuracy_matrix() for more in ({}, {"clients.replay": {"kind": "reservoir", "capacity": 100}})
    )

    assert (2, 2) == without.accuracy.shape == with_memory.accuracy.shape
    assert with_memory.forgetting < without.forgetting - 0.1
    assert without.accuracy[0, 1] < 0.2 < without.accuracy[0, 0]


def test_a_task_may_have_nothing_new_to_test(go: Go) -> None:
    """When all has arrived and only labels are still to come, clients go on training, and every example is tested once."""
    run = go(STREAM | {"stream.items": 20, "stream.labels": {"kind": "constant", "delay_s": 100.0}, "clients.count": 2})

    assert "done" == run.status
    assert [20, 20] == run.tested.groupby("client").item.nunique().tolist() == run.tested.groupby("client").size().tolist()
    assert run.freshness().merged.iloc[-1] == 40


def test_without_groups_there_is_no_matrix(go: Go) -> None:
    """A run without accuracies by classes says, in one line, which key gives them."""
    with pytest.raises(fedsim.RunError, match=r"evaluate\.by_classes"):
        go(STREAM | {"server.rounds": 2}).accuracy_matrix()


def test_a_run_without_a_stream_has_nothing_to_tell(go: Go) -> None:
    """Where nobody has a stream every table is there, and empty or undefined, never an error."""
    run = go()
    table, fresh = run.prequential(), run.freshness()

    assert (0, 0, 0, 0) == (len(run.tested), len(run.alarms), len(run.drifts), len(run.recovery()))
    assert (["pooled"], True) == (table.scope.tolist(), np.isnan(table.accuracy[0]))
    assert ([[-1, 0, 0, 0, 0]], 0) == (run.detection().iloc[:, :5].to_numpy().tolist(), int(fresh.merged.sum()))
    assert {"accuracy": None, "examples": 0} == {name: pooled(run.tested)[name] for name in ("accuracy", "examples")}


def test_verify_names_a_prediction_that_was_changed(go: Go, tmp_path: Path) -> None:
    """A journal whose first prediction was edited is not what a second run predicts, and ``verify`` says which one."""
    import sqlite3

    run = go(STREAM | {"server.rounds": 2})
    with sqlite3.connect(run.path / "journal.sqlite") as file:
        row, old = file.execute("SELECT rowid, prediction FROM tested LIMIT 1").fetchone()
        edited = np.frombuffer(old, "<i8").copy()
        edited[0] = 9 - edited[0]
        file.execute("UPDATE tested SET prediction = ? WHERE rowid = ?", (edited.tobytes(), row))
    said = verify(run.path, tmp_path / "again")

    assert said is not None and said.startswith("tested row 1 (round 1, client 0): prediction was")


# What a person sees.


def test_the_report_tells_of_streams_only_where_there_are_some(go: Go) -> None:
    """A run with streams, drift and a detector has all parts, with the pooled figures; one without a stream has none."""
    run = go(STREAM | SPLIT | GROUPS | {"clients.detector": {"kind": "ddm"}})
    page, plain = write_report(run).read_text("utf-8"), write_report(go()).read_text("utf-8")
    said = [
        "Online learning", "predicted before their client trained", "no change", "kappa-temporal", "worst tenth",
        "What is still known of each group", "forgetting", "Drift, and who noticed", "false alarms", "Freshness", "Gini",
    ]  # fmt: skip
    pooled = run.prequential().set_index("scope").loc["pooled"]

    assert [] == [words for words in said if words not in page]
    elsewhere = ("no change", "worst tenth", "Gini")  # What is said of how clients fared, too.
    assert [] == [words for words in said if words in plain and words not in elsewhere]
    assert f"<tr><th>pooled</th><td>{int(pooled.examples):,}</td><td>{pooled.accuracy:.3f}</td><td>{pooled.no_change:.3f}</td>" in page


def test_the_command_line_says_how_well_clients_predicted(
    cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path
) -> None:
    """``--json`` has the pooled figures under ``online``, ``show`` two rows; a run without a stream has neither."""
    answer = cli("run", scenario_file(STREAM), "--json", "--out", tmp_path / "run")
    online, shown = json.loads(answer.out)["online"], cli("show", tmp_path / "run").out
    pooled = fedsim.load(tmp_path / "run").prequential().set_index("scope").loc["pooled"]

    assert (0, int(pooled.examples), pooled.accuracy, pooled.no_change) == (
        answer.code,
        online["examples"],
        online["accuracy"],
        online["no_change"],
    )
    assert {"examples", "accuracy", "log_loss", "kappa", "kappa_m", "kappa_temporal", "majority", "no_change", "worst_tenth"} == set(online)
    assert f"accuracy {pooled.accuracy:.4f} (no change {pooled.no_change:.4f}, majority {pooled.majority:.4f})" in shown
    assert "online" not in json.loads(cli("run", scenario_file(), "--json", "--out", tmp_path / "plain").out)
    assert "worst tenth" not in cli("show", tmp_path / "plain").out
