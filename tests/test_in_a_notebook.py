"""What a notebook shows by itself: a run as a card, and a line while one goes. No kernel here: Jupyter's display is stood in for."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import IPython.display
import pytest

import fedsim
from fedsim import plot
from fedsim.exporting.columns import TABLES
from fedsim.live import notebook

RECORDED = Path(__file__).resolve().parents[1] / "analysis/benchmarks/traces/quickstart"
Tiny = Callable[..., dict[str, Any]]


class Screen:
    """Stands in for Jupyter's display: what is shown, and when; it may break at any call from *broken* on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: int = 10**6) -> None:
        self.shown: list[dict[str, str]] = []
        self._broken = broken
        monkeypatch.setattr(notebook, "in_notebook", lambda: True)
        monkeypatch.setattr(IPython.display, "display", self.display)

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Screen:
        assert raw and display_id
        self.update(bundle, raw=True)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        if len(self.shown) >= self._broken:
            raise RuntimeError("the page is closed")
        self.shown.append(bundle)


def test_a_line_follows_the_run_and_goes(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run goes a line says name, round and score, no more often than it is to; then nothing is left; and no bit has moved."""
    table = tiny({"server.rounds": 3})
    silent = fedsim.run(table, out=tmp_path / "silent")
    monkeypatch.setattr(notebook, "EVERY_S", 0.01)
    screen = Screen(monkeypatch)
    take = notebook.Teller.take
    monkeypatch.setattr(notebook.Teller, "take", lambda self, where: (take(self, where), time.sleep(0.05))[0])
    began = time.monotonic()
    run = fedsim.run(table, out=tmp_path / "followed")
    took_s = time.monotonic() - began
    words = [each["text/plain"] for each in screen.shown]

    assert silent.digest == run.digest
    assert words[0].startswith(f"{run.name}: building the world") and words[-1] == "" == screen.shown[-1]["text/html"]
    assert any("round 2 of 3, accuracy 0." in said for said in words)
    assert any('<progress value="0.6667" max="1"' in each["text/html"] for each in screen.shown)
    assert len(words) <= took_s / 0.01 + 2


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_display_that_fails_breaks_no_run(broken: int, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the page breaks at once, while the run goes, or at the end, the run is done."""
    monkeypatch.setattr(notebook, "EVERY_S", 0.01)
    Screen(monkeypatch, broken)

    assert "done" == fedsim.run(tiny({"server.rounds": 2}), out=tmp_path / "run").status


def test_the_line_goes_when_the_run_breaks_and_is_not_there_unasked(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that breaks takes its line along; one that somebody watches has none; nor has one outside a notebook."""
    screen = Screen(monkeypatch)
    with monkeypatch.context() as breaking, pytest.raises(KeyboardInterrupt):
        breaking.setattr(notebook.Teller, "take", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        fedsim.run(tiny(), out=tmp_path / "broken")
    assert screen.shown[-1] == notebook.NOTHING
    screen.shown.clear()
    heard: list[int] = []
    fedsim.run(tiny({"server.rounds": 1}), out=tmp_path / "watched", watch=lambda where: heard.append(where.round))
    assert ([], [0, 1]) == (screen.shown, heard)
    monkeypatch.undo()
    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: pytest.fail("shown"))
    fedsim.run(tiny({"server.rounds": 1}), out=tmp_path / "outside")
    assert not notebook.in_notebook()


class Read(HTMLParser):
    """A card as a browser reads it: names and values of its rows, tags, and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(html)
        self.rows = dict(zip(self.cells[::2], self.cells[1::2], strict=True))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [str(value) for name, value in attrs if name == "href"]
        if tag in ("th", "td"):
            self.cells.append("")
        assert not any(name.startswith("on") or "color" in str(value) or "background" in str(value) for name, value in attrs)

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_a_run_is_a_card(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run shows scores, rounds, time, bytes, digest and folder, and its report where there is one; nothing of it is taken for HTML."""
    monkeypatch.chdir(tmp_path)
    run = fedsim.run(tiny({"server.rounds": 2}), out="a run")
    plain = Read(run._repr_html_())
    file = run.path / "manifest.json"
    about = json.loads(file.read_text())
    assert plain.rows["accuracy"] == f"{about['final']['accuracy']:.4f}" and plain.rows["rounds"] == "2 of 2"
    assert plain.rows["digest"] == f"{run.digest[:16]}..." and plain.rows["run folder"] == "a run"
    assert ["accuracy", "loss", "rounds", "virtual time", "sent down, up", "digest", "run folder"] == list(plain.rows) and plain.links == []

    (run.path / "report.html").write_text("")
    about["scenario"]["name"], about["error"], about["status"] = "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "failed"
    file.write_text(json.dumps(about))
    bad = Read(html := fedsim.load("a run")._repr_html_())
    assert {"div", "strong", "table", "tr", "th", "td", "code", "a"} == bad.tags and "&lt;script&gt;" in html
    assert bad.rows["ended by"] == about["error"] and bad.links == ["a%20run/report.html"]
    assert Read(fedsim.load(run.path.absolute())._repr_html_()).links == [(run.path.absolute() / "report.html").as_uri()]
    file.write_text("{")
    assert "no run to be read" in run.__class__(run.path)._repr_html_()


@pytest.mark.parametrize("table", sorted({*TABLES} & {*dir(fedsim.Run)} - {"noise"}))
def test_a_frame_says_its_columns(table: str) -> None:
    """The docstring of each frame of a run names every column that it has."""
    frame, said = TABLES[table](fedsim.load(RECORDED)), str(getattr(fedsim.Run, table).__doc__)

    assert [] == [name for name in map(str, frame.columns) if not re.search(rf"(?<!\w){name}(?!\w)", said)]


def test_plots_of_several_runs_and_of_weights(tmp_path: Path) -> None:
    """Runs lie over each other by round, by their own seconds, or by bytes; weights are shares of one; other words are refused."""
    run = fedsim.load(RECORDED)
    by = {against: plot.overlaid({"a": run, "b": RECORDED}, "loss", against) for against in ("rounds", "time", "bytes")}  # pyright: ignore
    series = run.series("loss")

    assert all(list(figure.data[1].y) == series.value.tolist() for figure in by.values())
    assert list(by["rounds"].data[0].x) == series["round"].tolist() and list(by["time"].data[0].x) == series.now_s.tolist()
    assert list(by["bytes"].data[1].x) == ((series.down_bytes + series.up_bytes) / 1e6).tolist()
    assert by["time"].layout.xaxis.title.text.startswith("time since the run began")
    assert sum(plot.weights(run).data[0].y) == pytest.approx(1.0)
    for words in ({"score": "acc"}, {"against": "round"}):
        with pytest.raises(fedsim.ScenarioError, match=str(next(iter(words.values())))):
            plot.overlaid({"a": run}, **words)
    with pytest.raises(fedsim.RunError, match="stream"):
        plot.prequential(run)
