"""The figures of online learning show what the scores say, and no more points than a browser likes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedsim.report.drawing import Drawing
from fedsim.report.online_figures import DRIFTS, POINTS, accuracy_matrix_figure, prequential_figure, weights_figure
from fedsim.score.prequential import curves, windowed


def stream(n: int) -> pd.DataFrame:
    r = np.random.default_rng(0)
    y = r.integers(0, 3, n)
    right = r.random(n) < np.where(np.arange(n) < n // 2, 0.9, 0.5)
    return pd.DataFrame(
        {"client": r.integers(0, 5, n), "time_s": np.arange(n) * 1.5, "y": y, "prediction": np.where(right, y, (y + 1) % 3), "loss": 0.5}
    )


def test_the_curves_are_those_of_the_scores_and_end_with_the_last() -> None:
    """Each line goes through windowed scores, the last point is the last example's, and drifts are lines in its unit."""
    frame = stream(7300)
    figure = prequential_figure(frame, [5475.0, 100.0], window=500)
    scores = curves(frame, windowed(500))

    assert ["accuracy", "no_change", "majority"] == [
        name for name, trace in zip(("accuracy", "no_change", "majority"), figure.data, strict=False)
        if trace.y[-1] == scores[name].iloc[-1] and len(trace.y) <= POINTS
    ]  # fmt: skip
    assert [100.0 / 3600, 5475.0 / 3600] == [shape.x0 for shape in figure.layout.shapes]  # 10,948 s: hours.
    assert frame.time_s.iloc[-1] / 3600 == figure.data[0].x[-1]


def test_a_moment_is_a_point_and_alarms_are_marks() -> None:
    """Examples tested at one moment are one point, the score after them all; alarms lie at the bottom, in the axis' unit."""
    frame = stream(300).assign(time_s=np.repeat(np.arange(30) * 20.0, 10))
    figure = prequential_figure(frame, [], [40.0, 580.0], window=50)
    alarms = next(trace for trace in figure.data if trace.name == "alarm")

    assert (tuple(np.arange(30) / 3), (2 / 3, 29 / 3)) == (tuple(figure.data[0].x), tuple(alarms.x))
    assert curves(frame, windowed(50)).accuracy[9::10].tolist() == list(figure.data[0].y)


def test_little_and_much_are_drawn_too() -> None:
    """No example at all, a single one, and more drifts than lines are all figures, as HTML too."""
    draw = Drawing()

    assert "<div" in draw.html(prequential_figure(stream(0)), 300)
    assert "<div" in draw.html(prequential_figure(stream(1)), 300)
    assert DRIFTS == len(prequential_figure(stream(50), range(1000)).layout.shapes)


def test_the_matrix_is_blank_where_nothing_was_measured() -> None:
    """Rows go from the first evaluation, on top, to the last, and NaN is a gap."""
    figure = accuracy_matrix_figure(np.array([[0.9, np.nan], [0.5, 0.8]]), ["night", "day"])

    assert ((0.9, None), (0.5, 0.8)) == tuple(tuple(row) for row in figure.data[0].z)
    assert ("night", "day") == tuple(figure.data[0].x) == tuple(figure.data[0].y)
    assert "reversed" == figure.layout.yaxis.autorange
    assert ("1", "2", "3") == tuple(accuracy_matrix_figure(np.zeros((3, 2))).data[0].y)


def test_an_equal_share_is_of_all_clients() -> None:
    """The dotted line is the share of each of all clients, as the Gini coefficient beside it has them, merged or not."""
    shares = pd.DataFrame({"client": [3, 5], "tasks": [1, 1], "examples": [4, 4], "share": [0.5, 0.5]})

    assert [1 / 8, 1 / 2] == [weights_figure(shares, count).layout.shapes[0].y0 for count in (8, None)]
