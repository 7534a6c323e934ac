"""Clients over time: ``run.clients`` against the tasks and the means that were recorded apart from it, and what old folders have."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedsim
from conftest import tiny_table
from fedsim.record import clients, journal
from fedsim.record.journal import Journal
from fedsim.score.taken import Figure, taken
from fedsim.score.target import Target
from fedsim.sim.heard import Said, heard_of
from fedsim.sim.rows import TaskRow

SCENARIO = {
    "data.partition": {"kind": "dirichlet", "alpha": 0.5}, "data.test_fraction": 0.2, "clients.count": 8,
    "clients.compute": {"kind": "lognormal", "gflops": 0.002, "sigma": 1.0, "overhead_s": 1.0},
    "server.strategy": {"kind": "FedAvg", "fraction_train": 0.7}, "server.rounds": 5, "server.round_timeout_s": 1.6,
    "evaluate.federated_fraction": 0.5, "evaluate.client_test_fraction": 0.3, "training.batch_size": 20,
}  # fmt: skip
"""Some are late in some rounds, some are asked to train only, or to evaluate only, and one is never heard of."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fedsim.Run:
    """A run with all that the frame is made of."""
    return fedsim.run(tiny_table(), overrides=SCENARIO, out=tmp_path_factory.mktemp("clients") / "run")


@pytest.fixture
def copy(run: fedsim.Run, tmp_path: Path) -> Path:
    """A copy of its folder, to be damaged."""
    return Path(shutil.copytree(run.path, tmp_path / "copy"))


def alter(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / journal.FILE)) as file:
        for statement in statements:
            file.execute(statement)
        file.commit()


def test_the_frame_has_every_task(run: fedsim.Run) -> None:
    """A row per client and round, with the outcome, the examples and the loss that its tasks have; nothing is there that was not asked."""
    frame, tasks = run.clients, run.tasks
    assert {"arrived", "late"} == {*tasks.outcome[tasks.kind == "train"]}
    for kind, state, loss, examples in (
        ("train", "outcome", "train_loss", "examples"), ("evaluate", "evaluation", "loss", "eval_examples"),
    ):  # fmt: skip
        of_kind = tasks[tasks.kind == kind]
        found = frame[frame[state].notna()]
        arrived = of_kind[of_kind.outcome == "arrived"]
        here = found[found[state] == "arrived"]

        asked = zip(of_kind["round"], of_kind.client, of_kind.outcome, strict=True)
        assert {*asked} == {*zip(found["round"], found.client, found[state], strict=True)}
        assert [*arrived.sort_values(["round", "client"])[["loss", "examples"]].itertuples(index=False, name=None)] == [
            *here[[loss, examples]].itertuples(index=False, name=None)
        ]
        assert found[found[state] != "arrived"][[loss, examples]].isna().all(axis=None)
    keys = [*zip(frame["round"], frame.client, strict=True)]
    assert sorted({*keys}) == keys
    assert list(clients.COLUMNS) == list(frame.columns)


def test_means_over_clients_are_those_that_the_strategy_made(run: fedsim.Run) -> None:
    """Weighted by examples, accuracies and losses of a round average to the federated scores that FedAvg reported."""
    frame, metrics = run.clients, run.metrics
    for name, scope, value, weight in (
        ("accuracy", "federated", "accuracy", "eval_examples"), ("loss", "federated", "loss", "eval_examples"),
        ("train_loss", "training", "train_loss", "weight"),
    ):  # fmt: skip
        told = frame.dropna(subset=[value])
        ours = (told[value] * told[weight]).groupby(told["round"]).sum() / told.groupby("round")[weight].sum()
        theirs = metrics[(metrics.scope == scope) & (metrics.name == name)].set_index("round")["value"]

        assert len(theirs) >= 4 and np.allclose(ours.to_numpy(), theirs.to_numpy(), rtol=1e-12)
    assert np.allclose(1.0, frame.groupby("round")["weight"].sum())


def test_versions_are_those_of_the_training(run: fedsim.Run) -> None:
    """Where a client did both in a round, its row has the version that it trained, one before that which it evaluated."""
    frame = run.clients
    trained = frame.outcome.notna()

    assert (frame.version[trained] == frame["round"][trained] - 1).all() and (frame.version[~trained] == frame["round"][~trained]).all()


def test_devices_are_told_of_all(run: fedsim.Run, copy: Path) -> None:
    """Every client's speed and volume are on record, asked or not; without them, what tasks tell of those that were asked."""
    known = run.devices
    alter(copy, "DROP TABLE devices")
    measured = fedsim.load(copy).devices
    tasks = run.tasks[run.tasks.kind == "train"]
    busy = tasks[tasks.computed_s.notna()]
    speed = busy.groupby("client").flops.sum() / 1e9 / (busy.computed_s - busy.started_s).groupby(busy.client).sum()

    assert list(range(8)) == known.client.tolist()
    assert {*tasks.client} == {*measured.client} and np.allclose(speed, measured.gflops.dropna(), rtol=1e-12)
    asked = known[known.client.isin(measured.client)]
    assert asked.examples.tolist() == measured.examples.fillna(asked.examples.set_axis(measured.index)).tolist()


def test_a_folder_of_before(run: fedsim.Run, copy: Path) -> None:
    """A folder that does not have what replies told gives what follows from its tasks, without accuracy, and says so."""
    alter(copy, "DROP TABLE heard")
    old = fedsim.load(copy).clients
    whole = run.clients

    assert clients.UNTOLD == old.attrs["note"] and "note" not in whole.attrs
    assert old.accuracy.isna().all()
    pd.testing.assert_frame_equal(whole.drop(columns="accuracy"), old.drop(columns="accuracy"))


def test_a_run_that_was_killed(run: fedsim.Run, copy: Path) -> None:
    """Replies whose rows were lost with the process come from the tasks; the others are as they were told."""
    alter(copy, "DELETE FROM heard WHERE rowid > 4")
    found, whole = fedsim.load(copy).clients, run.clients

    assert 0 < found.accuracy.notna().sum() < whole.accuracy.notna().sum()
    pd.testing.assert_frame_equal(whole.drop(columns="accuracy"), found.drop(columns="accuracy"))


def test_a_damaged_table_is_a_line(copy: Path) -> None:
    """What is not of its type, or not of its length, is said in a line."""
    alter(copy, "UPDATE heard SET told = x'00' WHERE rowid = 2")
    with pytest.raises(fedsim.RunError, match="table heard: cannot be read"):
        _ = fedsim.load(copy).clients
    alter(copy, "UPDATE heard SET clients = 'nobody' WHERE rowid = 2")
    with pytest.raises(fedsim.RunError, match="table heard is damaged in row 2"):
        _ = fedsim.load(copy).clients


def test_a_run_that_asked_nobody(tmp_path: Path) -> None:
    """A run that had learned enough before its first round has no client to tell of, and its figures are those of its end."""
    none = fedsim.run(tiny_table(), overrides={"stop": {"metric": "loss", "at_most": 1e6}}, out=tmp_path / "none")
    even = none.fairness()

    assert none.final["rounds"] == 0
    assert list(none.clients.columns) == list(clients.COLUMNS)
    assert not len(none.clients)
    assert (even.measure, even.participation.never) == ("", 1.0)
    assert taken(none, Target("loss", 1e6, upwards=False))["rounds_to_target"] == Figure(0.0)


def test_asked_twice_in_a_round(tmp_path: Path) -> None:
    """A client that is asked several times in a round has a row each time, in order; names of any app become columns."""
    rows = Journal(tmp_path)
    told = [{"num_examples": 3.0, "train-loss": 0.5, "lr": 0.1}, {"num_examples": 1.0, "train-loss": 0.25}, {"eval_acc": 0.75}]
    for message, (kind, loss) in enumerate((("train", 0.5), ("train", 0.25), ("evaluate", None)), 1):
        rows.task(
            TaskRow(f"m{message}", 2, 0, kind, 1, 0, "arrived", 0.0, 0.0, 0.0, 1.0, 1.0, 3, 1, 1.0, 100, 10, 100, 10, loss, "", "")
        )
    said = [Said(kind, n + 1, 2, 1, 0, told[n]) for n, kind in enumerate(("train", "train", "evaluate"))]
    for row in heard_of(said, 1.0):
        rows.heard(row)
    rows.close()
    found = clients.frame(tmp_path)

    assert [0.5, 0.25] == found.train_loss.tolist() and [0.75, 0.25] == found.weight.tolist()
    assert 0.1 == found.train_lr[0] and np.isnan(found.train_lr[1]) and 0.75 == found.accuracy[0] and np.isnan(found.accuracy[1])


def test_the_worst_tenth_goes_by_accuracy(run: fedsim.Run) -> None:
    """A comparison's worst tenth is the lowest last accuracy of eight clients, and the highest last loss beside it."""
    told = run.clients.dropna(subset=["accuracy"])
    figures = taken(run, None)

    assert min(group.accuracy.iloc[-1] for _, group in told.groupby("client")) == figures["worst tenth, accuracy"].value
    assert max(group.loss.iloc[-1] for _, group in told.groupby("client")) == figures["worst tenth, loss"].value
