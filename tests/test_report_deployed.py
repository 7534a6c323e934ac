"""The report of a run on real clients: its time is no virtual one, and what was foretold of it stands beside what was observed."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import pytest

import fedsim
from fedsim.real.validation import Row, Validation
from fedsim.report.page import write_report

STREAM = {
    "stream": {"arrivals": {"kind": "constant", "per_s": 5.0}, "trigger": {"kind": "count", "examples": 8},
               "drift": {"change": {"kind": "rotate", "degrees": 90.0}, "schedule": {"kind": "abrupt", "at_s": [2.0]}}},
    "clients.detector": {"kind": "ddm"}, "server.rounds": 3,
}  # fmt: skip


def on_real_clients(run: fedsim.Run, **more: Any) -> fedsim.Run:
    """Make of a simulated *run* one whose manifest says that it ran on real clients."""
    about = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps({**about, "ground": "flower", "time_scale": 1.0, **more}))
    return fedsim.load(run.path)


def titles(drawn: list[Any]) -> set[str]:
    return {str(figure.layout.xaxis.title.text) for figure in drawn}


@pytest.mark.parametrize(("about", "name"), [(None, "virtual time"), ({}, "time since the run began")])
def test_time_is_called_what_it_is(about: dict[str, Any] | None, name: str, go: Any, figures: list[Any]) -> None:
    """Axes, words and the switch between axes call time virtual where it was, and the time since the run began on real clients."""
    run = go(STREAM)
    page = write_report(run if about is None else on_real_clients(run, **about)).read_text(encoding="utf-8")
    words = page[page.rindex("<h1>") :]

    assert {"round", f"{name} (seconds)"} <= titles(figures) and not {t for t in titles(figures) if "time" in t} - {f"{name} (seconds)"}
    assert f'"now": "{name} (seconds)"' in words and f"value=now> {name}</label>" in words
    assert (about is None) == ("irtual" in words.partition("What the run was")[0])


def test_foretold_and_observed(go: Any) -> None:
    """Each row that was compared is a row of the page, with error and bound; the notes are below, and what disagrees is said."""
    rows = (
        Row("final parameters", "these bits", "these bits", None, None), Row("bytes <down>", 123456.0, 125000.0, -0.0124, 0.02),
        Row("seconds a round, foretold", 11.25, 9.0, 0.25, 0.10),
    )  # fmt: skip
    run = on_real_clients(go())
    assert "Foretold and observed" not in write_report(run).read_text(encoding="utf-8")
    found = Validation("tiny", run.path, rows, ("Fitted to <12> tasks.",))
    (run.path / "validation.json").write_text(json.dumps(found.plain()), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")

    for cells in (
        "<th>final parameters</th><td>these bits</td><td>these bits</td><td></td><td></td><td>yes</td>",
        "<th>bytes &lt;down&gt;</th><td>123,456</td><td>125,000</td><td>-1.2 %</td><td>2 %</td><td>yes</td>",
        "<th>seconds a round, foretold</th><td>11.25</td><td>9</td><td>+25.0 %</td><td>10 %</td><td class=no>no</td>",
        "Simulation and deployment do not agree.", escape("Fitted to <12> tasks."), "<h2>Foretold and observed</h2>",
    ):  # fmt: skip
        assert cells in page
    for broken in ("{", "[]", '{"rows": [{}], "notes": [], "agrees": true}'):
        (run.path / "validation.json").write_text(broken, encoding="utf-8")
        page = write_report(run).read_text(encoding="utf-8")
        assert "This part could not be made." in page and "is no validation that can be read" in page and "<h2>Learning</h2>" in page
