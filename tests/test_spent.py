"""What a report says in words and numbers beside its curves: where bytes went, how long messages take, what was run, what follows."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedsim
from fedsim import plot
from fedsim.core.errors import RunError, ScenarioError
from fedsim.report import findings
from fedsim.report.drawing import LADDER, ladder
from fedsim.report.figures import POINTS, Seen, thinned
from fedsim.report.page import write_report
from fedsim.scenario.asked import asked
from fedsim.score import spent
from fedsim.score.stragglers import stragglers

Go = Callable[..., fedsim.Run]
LATE: dict[str, Any] = {
    "clients.count": 12, "clients.compute": {"kind": "lognormal", "gflops": 0.00003, "sigma": 1.0, "overhead_s": 1.0},
    "server.strategy": {"kind": "FedAvg", "clients_per_round": 4}, "server.round_timeout_s": 3.0, "server.rounds": 12,
    "evaluate.federated_fraction": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> fedsim.Run:
    """A run some of whose replies are late."""
    from tests.conftest import tiny_table

    return fedsim.run(tiny_table(LATE), out=tmp_path_factory.mktemp("late") / "run")


def test_the_ledger_adds_up(late: fedsim.Run) -> None:
    """All bytes of the run are in it, once, and what did not count is what the manifest calls wasted."""
    table, about = late.ledger(), late.manifest

    assert table[["down", "down_framing"]].to_numpy().sum() == about["bytes_down"]
    assert table[["up", "up_framing"]].to_numpy().sum() == about["bytes_up"]
    assert table[table.fate != "counted"].total.sum() == about["bytes_wasted"] > 0
    assert table.messages.sum() == len(late.tasks)
    assert {"train", "evaluate"} == set(table.kind)


def test_phases_are_what_a_message_took(late: fedsim.Run) -> None:
    """The four phases of a message that came add up to its time; quantiles are numpy's; shares add up to all."""
    times, table = late.times(), spent.spread(late.tasks)
    came = times[times.total_s.notna()]
    trained = times[times.kind == "train"]

    assert np.allclose(came[[f"{name}_s" for name in spent.PHASES]].sum(axis=1), came.total_s)
    assert table.set_index("phase").p90_s["training"] == np.quantile(trained.training_s.dropna(), 0.9)
    assert table[table.phase != "total"].share.sum() == pytest.approx(1.0)


def seen(late: fedsim.Run, **changes: Any) -> Seen:
    return replace(Seen.of(late), **changes)


def scores(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({
        "round": range(len(values)), "now_s": np.arange(len(values)) * 2.0, "scope": "central", "name": "accuracy", "value": values,
        "down_bytes": 1000, "up_bytes": 500,
    })  # fmt: skip


def test_findings_are_said_where_their_rule_holds(late: fedsim.Run) -> None:
    """Each finding has the number that it rests on; where its rule does not hold nothing is said."""
    told = " ".join(findings.finding_lines(seen(late)))
    tasks = late.tasks[late.tasks.kind == "train"]
    share = (tasks.outcome == "late").mean()
    total = (tasks.arrived_s - tasks.sent_s).dropna()

    assert f"{100 * share:.0f} % of replies were late: the deadline (3 s) is at the {100 * (total <= 3.0).mean():.0f} % point" in told
    in_time = late.tasks.assign(outcome="arrived", arrived_s=late.tasks.sent_s + 1.0)
    assert "were late" not in " ".join(findings.finding_lines(seen(late, tasks=in_time)))
    flat = [0.1, 0.5, 0.8, 0.9, 0.9, 0.9, 0.901, 0.9, 0.902, 0.9]
    assert "brought little: since round 7 the best accuracy went from 0.901 to 0.902" in " ".join(
        findings.finding_lines(seen(late, metrics=scores(flat)))
    )
    rising = [0.1 * i for i in range(10)]
    words = " ".join(findings.finding_lines(seen(late, metrics=scores(rising))))
    assert "brought little" not in words
    assert "swings" not in words
    wild = [0.1, 0.5, 0.3, 0.6, 0.2, 0.6, 0.3, 0.7, 0.3, 0.7]
    assert "accuracy still swings: by 0.4" in " ".join(findings.finding_lines(seen(late, metrics=scores(wild))))


def test_all_that_was_gained_is_one_number(late: fedsim.Run) -> None:
    """Swings and flatness are shares of the same gain, from the first score to the best; what got worse gained nothing."""
    both = [0.1, 0.9, 0.7, 0.9, 0.7, 0.9, 0.7, 0.9, 0.7, 0.5, 0.7, 0.5]
    words = " ".join(findings.finding_lines(seen(late, metrics=scores(both))))
    worse = " ".join(findings.finding_lines(seen(late, metrics=scores([1.0 - value for value in both]))))
    losses = scores([1.0 - value for value in both]).assign(name="loss")

    assert "0.9 to 0.9, 0 % of all that was gained" in words
    assert "accuracy still swings: by 0.2 from one evaluation to the next over the last quarter, 25 % of all that was gained" in words
    assert "swings" not in worse
    assert "loss still swings: by 0.2 from one evaluation to the next over the last quarter, 25 % of all" in " ".join(
        findings.finding_lines(seen(late, metrics=losses))
    )


def test_a_run_says_what_its_file_asks(tmp_path: Path, tiny: Any) -> None:
    """Question, expectation and reference of the file stand in the manifest and on the page; comments further down do not."""
    file = Path(__file__).parents[1] / "scenarios/stragglers.toml"
    said = asked(file)
    run = fedsim.run(file, overrides={"server.rounds": 1}, out=tmp_path / "run")
    page = write_report(run).read_text("utf-8")

    assert said == run.manifest["asked"]
    assert "what does a deadline cost when some phones are ten times slower than others?" == said["question"]
    assert said["expected"] in page
    assert "60 clients hold digits (quantity" in page
    assert {} == asked(tiny({}))
    (tmp_path / "own.toml").write_text("# Question: one,\n#    and more of it\n# \n# not this\nname = 'x'\n# Expected: no\n")
    assert {"question": "one, and more of it"} == asked(tmp_path / "own.toml")


def test_what_clients_hold_is_written_down(late: fedsim.Run) -> None:
    """Sizes and labels in the run's folder are those of the federation that it built."""
    from fedsim.scenario.build import build
    from fedsim.scenario.load import Loaded, recorded

    told = json.loads((late.path / "data.json").read_text())
    federation = build(Loaded(recorded(late.manifest["scenario"])[0], Path())).federation

    assert told["labels"] == [np.bincount(federation.labels(i), minlength=federation.outputs).tolist() for i in range(12)]
    assert sum(told["sizes"]["counts"]) == 12
    assert told["train_examples"] == sum(map(sum, told["labels"]))
    assert np.prod(told["example"]["shape"]) == np.size(told["example"]["x"])


def test_figures_one_by_one(late: fedsim.Run) -> None:
    """``fedsim.plot`` draws what the report does, against what is asked for, and says what is not there."""
    line = plot.learning(late, against="bytes").data[0]
    series = late.series("accuracy")

    assert list(line.x) == pytest.approx(((series.down_bytes + series.up_bytes) / 1e6).tolist())
    assert sum(plot.round_times(late).data[0].y) > 0
    for draw in (plot.message_times, plot.timeline, plot.sizes, plot.examples):
        figure = draw(late.path)
        assert figure.data
        assert figure.layout.yaxis.title.text
    with pytest.raises(ScenarioError, match="'acuracy' was not recorded. Did you mean 'accuracy'"):
        plot.learning(late, "acuracy")
    (late.path / "data.json").rename(late.path / "away.json")
    with pytest.raises(RunError, match=r"has no data\.json"):
        plot.sizes(late)
    (late.path / "away.json").rename(late.path / "data.json")


def test_long_lines_are_thinned() -> None:
    """A line of many rows keeps its first and last, and no more than are drawn."""
    rows = pd.DataFrame({"value": range(50_000)})

    assert POINTS == len(thinned(rows))
    assert [0, 49_999] == thinned(rows)["value"].iloc[[0, -1]].tolist()
    assert thinned(rows.head(10)).equals(rows.head(10))


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_no_colour_vanishes() -> None:
    """Each colour of a ladder stands out from black and from white by 2.2 : 1; the end of viridis, from which we took them, does not."""
    colours = ladder(20)

    def least(colour: str) -> float:
        return min(1.05 / (luminance(colour) + 0.05), (luminance(colour) + 0.05) / 0.05)

    assert 2.2 <= min(map(least, colours))
    assert [LADDER[0], LADDER[-1]] == [colours[0], colours[-1]]
    assert least("#440154") < 2.2


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open a page in")
def test_a_browser_draws_every_figure(late: fedsim.Run, tmp_path: Path) -> None:
    """In a real browser, without a network, each figure of the page is drawn and nothing is complained of."""
    page = write_report(late)
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--window-size=1280,9000",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom", f"file://{page}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert [] == re.findall(r'CONSOLE.*?"(.*?)"', done.stderr)
    wanted = page.read_text("utf-8").count("<div class=plot ")
    assert wanted >= 6
    assert wanted == len(re.findall(r'class="plot js-plotly-plot"', done.stdout))
    assert page.stat().st_size < 3_000_000


def test_rounds_wait_for_who_answers_last(late: fedsim.Run) -> None:
    """A round's time is that of the client named, phase by phase, or the deadline's; without it, the one before ends it."""
    table, tasks = late.stragglers(), late.tasks[late.tasks.kind == "train"]
    phases = table[["download_s", "waiting_s", "training_s", "upload_s"]]
    to_the_end, by_deadline = table[table.waited_for != "deadline"], table[table.waited_for == "deadline"]

    assert len(table) == late.final["rounds"] and len(to_the_end) and len(by_deadline)
    assert np.allclose(phases.sum(axis=1)[to_the_end.index], to_the_end.round_s, rtol=1e-9)
    assert (by_deadline.round_s == 3.0).all() and (by_deadline.spared_s.dropna() == 0.0).all()
    for row in to_the_end.itertuples():
        others = tasks[(tasks["round"] == row.round) & (tasks.client != row.client)]
        assert row.round_s - row.spared_s == pytest.approx((others.arrived_s - others.sent_s).max())
        assert row.waited_for == phases.loc[row.Index].idxmax().removesuffix("_s")
    assert "Whom rounds waited for" in write_report(late).read_text(encoding="utf-8")


def test_a_round_that_nobody_answered_waited_for_its_deadline(late: fedsim.Run) -> None:
    """Nobody is named then, and nothing would have been spared."""
    tasks = late.tasks.assign(arrived_s=math.nan)
    table = stragglers(tasks, late.rounds)

    assert {"deadline"} == {*table.waited_for} and table.client.isna().all() and table.spared_s.isna().all()
