"""Logarithmic axes: each figure that any test draws has plain values and a title on each, and the reports' say what they are of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from drawn import unread
from plotly.graph_objects import Figure, Scatter

import fedsim
from fedsim.report import monitoring
from fedsim.report.axes import logarithmic, readable
from fedsim.report.drawing import Drawing
from fedsim.report.page import write_report

SOURCE = Path(fedsim.__file__).parent


def test_a_stranger_cannot_get_it_wrong(figures: list[Any]) -> None:
    """What is drawn gets plain ticks whoever drew it; a title nobody can make up, and its lack is found."""
    figure = Figure(Scatter(y=[0.05, 50.0]))
    figure.update_yaxes(type="log")
    assert ["yaxis"] == unread(figure)
    Drawing().html(figure, 100)
    assert figure.layout.yaxis.tickformat == ",~r" and ["yaxis"] == unread(figure)
    figure.update_yaxes(title="MB")
    assert [figure] == figures and [] == unread(figure)


def test_ticks_of_ones_own_are_left() -> None:
    """Named ticks stay as they are; a linear axis is not touched."""
    figure = Figure(Scatter(x=[1, 10], y=[1, 2]))
    logarithmic(figure, "x", "batch size", tickvals=[1, 10], ticktext=["1", "full"])
    readable(figure)
    assert ("1", "full") == figure.layout.xaxis.ticktext and figure.layout.xaxis.tickformat is None
    assert figure.layout.yaxis.tickformat is None and [] == unread(figure)


def test_one_file_makes_them() -> None:
    """No other file of ours says that an axis is a logarithm, so that none is without title and ticks."""
    said = [path.name for path in sorted(SOURCE.rglob("*.py")) if 'type="log"' in path.read_text() or '"type": "log"' in path.read_text()]
    assert ["axes.py"] == said


def test_a_watched_run_draws_what_can_be_read(go: Callable[..., fedsim.Run], figures: list[Any]) -> None:
    """Gradient, update and noise scales stand on logarithmic axes with a title; the last with the interval of each span of rounds."""
    run = go({"monitor": {"every": 1, "noise": 1.0, "noise_every": 1}, "server.rounds": 6})
    words = write_report(run).read_text()
    logs = {figure.layout.yaxis.title.text: figure for figure in figures if figure.layout.yaxis.type == "log"}

    assert {"length (L2)", "examples, or clients"} == set(logs) and [] == [unread(figure) for figure in figures if unread(figure)]
    [within] = [line for line in logs["examples, or clients"].data if line.name == "examples worth averaging"]
    _, examined = run.noises
    spans = monitoring.spans(examined)
    assert len(spans) == 36 // monitoring.ENOUGH  # Six tasks a round are too few: rounds are pooled.
    assert list(within.y) == [scale.value for _, _, scale in spans if scale.value < math.inf]
    assert np.all(np.array(within.error_y.array) > 0)
    assert "over all clients" in words and "Within clients" in words


@pytest.mark.parametrize(("tasks", "rounds", "spans"), [(10, 30, 6), (1, 30, 3), (1, 5, 1), (40, 2, 2), (0, 0, 0)])
def test_spans_hold_all_estimates(tasks: int, rounds: int, spans: int) -> None:
    """Spans lie beside each other, hold each estimate once, and are not more than there are rounds, or estimates for."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"round": np.repeat(np.arange(1, rounds + 1), tasks)}).assign(signal=1.0, trace=3.0)
    frame = frame.sample(frac=1.0, random_state=draw)
    found = monitoring.spans(frame)

    assert spans == len(found) and len(frame) == sum(scale.count for _, _, scale in found)
    assert [(last, first) for (_, last, _), (first, _, _) in zip(found, found[1:], strict=False) if first <= last] == []
    assert {3.0} >= {scale.value for _, _, scale in found}
