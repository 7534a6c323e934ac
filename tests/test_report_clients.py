"""The report's section on clients: what it says is what the run came to, and it stays small, however many clients and rounds there are."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from conftest import tiny_table
from fedsim.record.journal import Journal
from fedsim.report.clients import SPANS, spread_over
from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen
from fedsim.report.sections import part
from fedsim.sim.rows import DevicesRow, HeardRow, TaskRow

LATE = TaskRow("m1", 7, 0, "train", 1, 0, "late", 0.0, 0.1, 0.1, 5.0, 6.0, 9, 1, 1e6, 100, 10, 100, 10, None, "", "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fedsim.Run:
    """A run with federated evaluations."""
    more = {
        "evaluate.federated_fraction": 1.0, "evaluate.client_test_fraction": 0.3, "data.test_fraction": 0.2,
        "server.strategy": {"kind": "FedAvg", "fraction_train": 0.5},
    }  # fmt: skip
    return fedsim.run(tiny_table(), overrides=more, out=tmp_path_factory.mktemp("served") / "run")


@pytest.fixture
def crowd(run: fedsim.Run, tmp_path: Path) -> fedsim.Run:
    """A folder of 1,000 clients over 400 rounds, the faster the more often heard, the later the more accurate; client 7 was late once."""
    about = run.manifest
    about["scenario"]["clients"]["count"] = 1001
    (tmp_path / "manifest.json").write_text(json.dumps(about), encoding="utf-8")
    rows, everybody, draws = Journal(tmp_path), np.arange(1000), np.random.default_rng(4)
    rows.devices(DevicesRow(np.arange(1001), np.r_[1.0 + everybody / 100, 0.5], np.full(1001, 40)))
    rows.task(LATE)
    for number in range(1, 401):
        there = everybody[draws.random(1000) < (everybody + 100) / 1100]
        for kind, names in (("train", ["num-examples", "train_loss"]), ("evaluate", ["num-examples", "loss", "accuracy"])):
            same = np.full(len(there), number)
            told = [np.full(len(there), 40.0), np.ones(len(there)), (number + draws.random(len(there))) / 401]
            messages = same * 10_000 + there * 2 + (kind == "train")
            rows.heard(HeardRow(kind, number * 1.0, json.dumps(names), messages, there, same, same, np.concatenate(told[: len(names)])))
    rows.close()
    return fedsim.load(tmp_path)


def drawn(run: fedsim.Run) -> str:
    return part("clients", Seen.of(run), Drawing())


def said(html: str) -> str:
    return re.sub(r"<script.*?</script>|<[^>]*>", " ", html, flags=re.DOTALL)


def test_it_says_what_the_run_came_to(run: fedsim.Run, figures: list[Any]) -> None:
    """The figures of fairness stand in the section, and each client's count in its bars."""
    html, found = drawn(run), run.fairness()
    words = said(html)
    heard = run.clients[run.clients.outcome == "arrived"].groupby("client").size()

    assert "could not be made" not in html and found.scores is not None
    for value in (found.participation.jain, found.participation.gini, found.scores.worst_tenth, found.scores.variance):
        assert f" {value:.3g} " in words
    assert f"{100 * found.participation.never:.0f} %" in words and "accuracy on what each client keeps back" in words
    bars = next(trace for trace in figures[0].data if trace.name == "heard in time")
    assert sorted(heard, reverse=True) + [0] * (6 - len(heard)) == list(bars.y)


def test_it_stays_small(crowd: fedsim.Run, figures: list[Any]) -> None:
    """Of 400,000 rows a few hundred marks are drawn; the words say whom participation favours."""
    html = drawn(crowd)
    marks = [len(trace.x) for figure in figures for trace in figure.data]
    curve = next(trace for trace in figures[1].data if trace.name == "median")

    assert "could not be made" not in html
    assert 150_000 < len(crowd.clients) and max(marks) <= 120 and sum(marks) < 800
    assert re.search(r"Faster devices were heard more often \(Spearman \+(0.99|1.00), p = 0, 1,001 clients\)", said(html))
    assert re.search(r"never heard +0.1 % ", said(html)) and "is the same for all" in said(html)
    assert len(curve.x) <= SPANS and np.allclose(np.array(curve.y) * 401, np.array(curve.x) + 0.5, atol=0.6)


def test_spans_hold_every_score_once() -> None:
    """Spans are whole rounds, in order, of at least ten scores each; one round of few is no span of its own."""
    rounds = np.repeat([1, 2, 3, 9], [10, 4, 7, 3])
    spans = spread_over(rounds, np.r_[np.zeros(10), np.ones(14)], up=True)

    assert [1.0, 5.5] == spans[:, 0].tolist() and [0.0, 1.0] == spans[:, 2].tolist() and [0.0, 1.0] == spans[:, 4].tolist()


def test_a_folder_of_before_says_so(tmp_path: Path) -> None:
    """A folder that knows no metrics of replies has the section still, with the note, and by the loss of training."""
    words = said(drawn(fedsim.load(shutil.copytree(Path(__file__).with_name("recorded") / "quickstart", tmp_path / "run"))))

    assert "written before replies&#x27; metrics were recorded" in words and "worst tenth, loss" in words
