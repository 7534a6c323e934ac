"""The report: one page that needs no network, for every way in which a run can end."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.report import figures
from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen
from fedsim.report.page import toml, write_report
from fedsim.score.outcomes import uncounted

Go = Callable[..., fedsim.Run]


class Page(HTMLParser):
    """What a browser would make of a page: its tags, its addresses, its words; what scripts hold is apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.titles += [value or "" for name, value in attrs if name == "title"]

    def handle_data(self, data: str) -> None:
        inside = self.tags[-1] if self.tags else ""
        if inside == "script":
            self.scripts.append(data)
        else:
            self.words += data


def page_of(run: fedsim.Run) -> Page:
    return Page(write_report(run))


def plots(page: Page) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Return the traces and the layout of each figure on *page*, in order."""
    found: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []
    for script in page.scripts:
        if script.startswith('{"data"'):
            figure = json.loads(script)
            found.append((figure["data"], figure["layout"]))
    return found


def timeline(page: Page) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return next((traces, layout) for traces, layout in plots(page) if any(t.get("orientation") == "h" for t in traces))


def interrupted(go: Go, folder: Path) -> fedsim.Run:
    """Return a run that was interrupted after its first round."""

    def stop(where: Any) -> None:
        if where.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go({"server.rounds": 5}, out=folder, watch=stop)
    return fedsim.load(folder)


def failed(go: Go, folder: Path) -> fedsim.Run:
    """Return a run whose training diverged."""
    with pytest.raises(fedsim.RunError):
        go({"training.optimizer.lr": 1e38, "training.epochs": 20}, out=folder)
    return fedsim.load(folder)


def done(go: Go, folder: Path) -> fedsim.Run:
    return go({"evaluate.federated_fraction": 0.5}, out=folder)


def late(go: Go, folder: Path) -> fedsim.Run:
    return go({"server.round_timeout_s": 1.15, "server.rounds": 4}, out=folder)


@pytest.mark.parametrize("make", [done, late, interrupted, failed])
def test_it_needs_no_network(make: Callable[[Go, Path], fedsim.Run], go: Go, tmp_path: Path) -> None:
    """However a run ended, its page loads nothing from anywhere, and holds the plotting library at most once."""
    page = page_of(make(go, tmp_path / "run"))

    assert [] == page.addresses
    assert [] == [tag for tag in page.tags if tag in ("link", "iframe", "img", "base", "object", "embed")]
    assert 1 == sum(len(script) > 1_000_000 for script in page.scripts)


def test_it_says_what_the_run_was(go: Go, tmp_path: Path) -> None:
    """The page has the name, the status, the final scores, the digest in full and the versions of a run."""
    run = done(go, tmp_path / "run")
    page = page_of(run)
    scores = [f"{run.final[name]:.4f}" for name in ("accuracy", "loss")]

    assert [] == [word for word in ("tiny", "done", run.digest, *scores, *run.manifest["versions"].values()) if word not in page.words]
    assert run.digest in page.titles


def test_its_curves_are_the_metrics(go: Go, tmp_path: Path) -> None:
    """The curves are the journal's scores: central, federated and training, against rounds, time and megabytes."""
    run = done(go, tmp_path / "run")
    (accuracy, _), (loss, _) = plots(page_of(run))[:2]
    central, sent = run.series("accuracy"), run.series("accuracy")
    drawn = {trace["name"]: trace for trace in accuracy}

    assert (["central", "federated"], ["central", "federated", "training"]) == (sorted(drawn), sorted(t["name"] for t in loss))
    assert central.value.tolist() == drawn["central"]["y"]
    assert central["round"].tolist() == drawn["central"]["x"] == drawn["central"]["meta"]["round"]
    assert central.now_s.tolist() == drawn["central"]["meta"]["now"]
    assert pytest.approx((sent.down_bytes + sent.up_bytes) / 1e6) == drawn["central"]["meta"]["sent"]


def test_its_timeline_is_the_tasks(go: Go, tmp_path: Path) -> None:
    """The lengths of a client's bars on the timeline add up to the time its messages were on their way."""
    run = done(go, tmp_path / "run")
    traces, layout = timeline(page_of(run))
    tasks = run.tasks
    bars = [trace for trace in traces if trace["type"] == "bar"]
    lasted = dict.fromkeys(range(6), 0.0)
    for trace in bars:
        for place, length in zip(trace["y"], trace["x"], strict=True):
            lasted[int(layout["yaxis"]["ticktext"][place])] += length

    assert (tasks.arrived_s - tasks.sent_s).groupby(tasks.client).sum().to_dict() == pytest.approx(lasted)
    assert {"download", "training", "evaluation", "upload"} == {trace["name"] for trace in bars}


def test_late_tasks_look_late(go: Go, tmp_path: Path) -> None:
    """Every task that came late is marked where it arrived and its work is hatched; one in time is neither."""
    run = late(go, tmp_path / "run")
    traces, layout = timeline(page_of(run))
    tasks = run.tasks
    late_ones = tasks[tasks.outcome == "late"]
    marks = next(trace for trace in traces if trace["name"].startswith("late"))
    work = next(trace for trace in traces if trace["name"] == "training")
    hatched = [text for text, shape in zip(work["hovertext"], work["marker"]["pattern"]["shape"], strict=True) if shape]

    assert 0 < len(late_ones) < len(tasks)
    assert sorted(late_ones.arrived_s) == sorted(marks["x"])
    assert sorted(late_ones.client) == sorted(int(layout["yaxis"]["ticktext"][place]) for place in marks["y"])
    assert len(tasks) - (tasks.outcome == "arrived").sum() == len(hatched)


def test_long_runs_show_their_first_rounds(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more tasks than fit, the timeline shows the whole rounds that do, or part of the first, and says so."""
    run = go({"server.rounds": 5}, out=tmp_path / "run")  # Six clients a round.
    monkeypatch.setattr(figures, "BARS", 17)
    page = page_of(run)
    assert "Rounds 1 to 2: the first 12 of 30 client tasks." in page.words
    assert 12 == len(next(trace for trace in timeline(page)[0] if trace["name"] == "training")["y"])

    monkeypatch.setattr(figures, "BARS", 4)
    page = page_of(run)
    assert "The first 4 of 6 client tasks of round 1" in page.words
    assert 4 == len(next(trace for trace in timeline(page)[0] if trace["name"] == "training")["y"])


def test_an_error_is_shown_and_not_obeyed(go: Go, tmp_path: Path) -> None:
    """The error of a failed run stands on the page as text, markup in it included."""
    run = failed(go, tmp_path / "run")
    assert run.manifest["error"] in page_of(run).words

    run.manifest["error"] = error = "round 1: <script>alert('x')</script><img src=http://evil> & $name"
    page = page_of(run)
    assert error in page.words
    assert ("img" not in page.tags, []) == (True, [s for s in page.scripts if "alert('x')" in s])


def test_names_in_a_scenario_are_text(go: Go, tmp_path: Path) -> None:
    """Markup in what a scenario or an objective names is never markup on the page, in a script neither."""
    run = go(out=tmp_path / "run")
    evil = "</script><img src=http://evil>"
    run.manifest["scenario"]["model"]["kind"] = run.manifest["scenario"]["name"] = evil
    run.manifest["final"][evil] = 1.0
    run.manifest["files"][evil] = evil
    seen = Seen.of(run)
    shown = figures.learning(replace(seen, metrics=seen.metrics.replace({"name": {"accuracy": evil}})), Drawing())

    assert "img" not in page_of(run).tags
    assert "<img" not in shown


def test_a_run_that_was_killed_has_a_page(go: Go, tmp_path: Path) -> None:
    """A folder whose manifest still says running gives its bytes, rounds and time from the rows that are there."""
    run = go(out=tmp_path / "run")
    about = {**run.manifest, "status": "running", "digest": None, "final": {"rounds": 0}, "virtual_s": 0.0, "bytes_down": 0}
    about |= {"metrics_digest": None, "bytes_up": 0, "bytes_wasted": 0}
    (run.path / "manifest.json").write_text(json.dumps(about), encoding="utf-8")
    killed = fedsim.load(run.path)
    seen = Seen.of(killed)

    assert (run.final, run.manifest["virtual_s"]) == (seen.final, seen.now_s)
    assert (run.manifest["bytes_down"], run.manifest["bytes_up"], 0) == seen.sent
    assert "still going when the report was written" in page_of(killed).words

    about["process"] |= {"began": "0"}  # The number is somebody else's now.
    (run.path / "manifest.json").write_text(json.dumps(about), encoding="utf-8")
    words = page_of(fedsim.load(run.path)).words
    assert "This run was killed." in words and "none yet" not in words


def test_a_run_without_rows_has_a_page(go: Go, tmp_path: Path) -> None:
    """A run that ended before its first score gives a page that says that there is none."""

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(out=tmp_path / "run", watch=stop)
    run = fedsim.load(tmp_path / "run")
    seen = Seen.of(run)
    empty = replace(seen, metrics=seen.metrics.iloc[:0])
    page = page_of(run)

    assert "No client task was recorded." in page.words and "interrupted after round 0" in page.words
    assert "No score was recorded." in figures.learning(empty, Drawing())


def test_the_scenario_on_the_page_runs_again(go: Go, tmp_path: Path) -> None:
    """The scenario as the page shows it is TOML that reads back as the scenario."""
    scenario = go(out=tmp_path / "run").manifest["scenario"] | {"odd key": {"a.b": 'quote " and \\', "on": True, "none": {}}}

    assert scenario == tomllib.loads(toml(scenario))


def test_a_streams_end_is_no_failure(tmp_path: Path) -> None:
    """The report counts what did not count as the terminal does, and its header has the prequential accuracy."""
    recorded = Path(__file__).with_name("recorded") / "split-digits"
    run = fedsim.load(shutil.copytree(recorded, tmp_path / "run"))
    page = write_report(run).read_text()

    assert {"came after a stream's end": 5} == uncounted(run.tasks)
    assert "5 came after a stream&#x27;s end" in page and "5 failed" not in page
    assert "<dt>prequential accuracy</dt><dd>0.5793</dd>" in page
    assert "Hatched tasks did not count: they came after a stream" in page and "stream had ended" in page
    assert '"name":"failed"' not in page and "after the deadline" not in page


def test_words_are_about_what_is_there(go: Go) -> None:
    """What is explained is shown: no federated scores, waiting messages or classes where there are none; hindsight is said."""
    plain = page_of(go()).words
    assert "Central scores" in plain and "server's test examples" in plain
    assert [] == [word for word in ("Federated", "Classes are", "grey line", "in hindsight", "every stream") if word in plain]

    stream = {"arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 10}}
    run = go({"data.test_fraction": 0, "stream": stream, "stream.items": 12, "server.rounds": 9, "evaluate.federated_fraction": 1.0})
    page = page_of(run)
    assert [] == [
        word for word in ("Federated is", "grey line", "the examples that clients trained on, in hindsight") if word not in page.words
    ]
    assert "server's test examples" not in page.words and "Then every stream had ended." in page.titles
    assert not re.search(r"\{\w+(:[^{}]*)?\}", page.words) and "fell into no batch" not in page.words
    assert (
        "With training.drop_last those count too" in page_of(go({"stream": stream, "training.drop_last": True, "server.rounds": 2})).words
    )
