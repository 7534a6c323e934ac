"""The sections of a report: an installed package's own appears, and a broken one is one line and no lost report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pytest

import fedsim
from fedsim.report.page import OURS, write_report
from fedsim.report.sections import Section, sections

STRANGER = '''
from fedsim.report.sections import Section

def slow():
    return Section("Slow <clients>", lambda seen: len(seen.tasks) > 0, lambda seen, draw: f"<p>{len(seen.run.tasks)} tasks were slow.</p>")

def never():
    return Section("Never", lambda seen: False, lambda seen, draw: "<p>never</p>")

def broken():
    def html(seen, draw):
        import plotly.graph_objects as go
        draw.html(go.Figure(), 100)
        raise ValueError("no <wind> today\\nand none tomorrow")
    return Section("Weather", lambda seen: True, html)

def asks():
    return Section("Matrix", lambda seen: True, lambda seen, draw: seen.run.accuracy_matrix())

def mute():
    return Section("Mute", lambda seen: True, lambda seen, draw: None)

def none():
    return {"title": "Mine"}
'''
LINES = {
    "broken": ("Weather", "section 'broken': raised ValueError: no <wind> today."),
    "asks": ("Matrix", "{path}: has no accuracy by classes."),
    "mute": ("Mute", "section 'mute': raised TypeError: html gave a NoneType, not text."),
    "none": ("none", "section 'none': returned a dict, not a section of the report."),
    "gone": ("gone", "section = 'gone': cannot import 'stranger:gone': AttributeError:"),
}
"""Of each broken section, its heading and what the page says below."""


def line(title: str, words: str) -> str:
    return f"<h2>{title}</h2><p class=note>This part could not be made. {escape(words)}"


@pytest.fixture
def run(tmp_path: Path) -> fedsim.Run:
    """A copy of a recorded run."""
    return fedsim.load(shutil.copytree(Path(__file__).with_name("recorded") / "quickstart", tmp_path / "run"))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of somebody's whose entry points are sections."""
    about = tmp_path / "site" / "stranger-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n", encoding="utf-8")
    points = "\n".join(f"{name} = stranger:{name}" for name in ("slow", "never", *LINES))
    (about / "entry_points.txt").write_text(f"[fedsim.section]\n{points}\n", encoding="utf-8")
    (about.parent / "stranger.py").write_text(STRANGER, encoding="utf-8")
    monkeypatch.syspath_prepend(about.parent)
    yield
    sys.modules.pop("stranger", None)


@pytest.mark.usefixtures("installed")
def test_a_strangers_section_appears(run: fedsim.Run) -> None:
    """It stands before our last, under its title as text; one that does not apply leaves no trace."""
    page = write_report(run).read_text("utf-8")

    assert f"<h2>Slow &lt;clients&gt;</h2><p>{len(run.tasks)} tasks were slow.</p>" in page
    assert page.index("<h2>Rounds</h2>") < page.index("<h2>Slow") < page.index("<h2>What the run was</h2>")
    assert "Never" not in page


@pytest.mark.usefixtures("installed")
def test_a_broken_section_is_a_line(run: fedsim.Run) -> None:
    """Whatever a stranger's section raises or returns, the page says so in its place, and all else is there."""
    page = write_report(run).read_text("utf-8")

    assert [] == [name for name, (title, words) in LINES.items() if line(title, words.format(path=run.path)) not in page]
    assert [] == [section.title for section in OURS.values() if section.title not in page and section.applies is OURS["facts"].applies]
    assert "tasks were slow" in page


@pytest.mark.parametrize("name", ["learning", "rounds"])
def test_one_of_ours_that_breaks_loses_no_report(run: fedsim.Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plotting library comes with the first figure that is on the page, though one before it was drawn and lost."""

    def breaks() -> Section:
        def html(seen: object, draw: object) -> str:
            OURS[name].html(seen, draw)  # pyright: ignore[reportArgumentType]
            raise KeyError("mine")

        return Section(OURS[name].title, lambda _: True, html)

    whole = write_report(run).read_text("utf-8")
    monkeypatch.setitem(sections._entries, name, breaks)  # pyright: ignore[reportPrivateUsage]
    page = write_report(run).read_text("utf-8")

    assert line(OURS[name].title, f"section '{name}': raised KeyError: 'mine'.") in page
    assert 1 == whole.count("id=plotly>") == page.count("id=plotly>")


def test_names_are_registered_once() -> None:
    """A section cannot take the name of one of ours."""
    assert list(OURS) == [name for name in OURS if name in sections.names()]
    with pytest.raises(ValueError, match="section 'learning' is registered twice"):
        sections.register("learning")(lambda: OURS["learning"])
