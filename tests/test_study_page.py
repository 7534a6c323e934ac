"""What a study's page and table say, of a study made by hand: nothing is run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.learn.job import Job
from fedsim.report.noises import LARGER
from fedsim.scenario.load import Loaded
from fedsim.scenario.schema import Scenario
from fedsim.score.target import Target
from fedsim.studies import table
from fedsim.studies.fit import Fit
from fedsim.studies.found import Line, Study
from fedsim.studies.host import Host
from fedsim.studies.measures import Estimate
from fedsim.studies.page import write_page
from fedsim.studies.plan import Plan, Row

SIZES = (1, 16)


@pytest.fixture
def study(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Study]:
    """Return ``study(rounds)``: two sizes, each figure of which is its number times the size; nothing graded."""

    def made(rounds: int, metric: str = "accuracy") -> Study:
        scenario = Scenario.model_validate(tiny({"server.rounds": rounds}))
        rows = tuple(Row(str(size), size, float(size)) for size in SIZES)
        plan = Plan(
            Loaded(scenario, tmp_path), Job(epochs=1, batch_size=10, lr=0.1), np.array([30, 30]), rows, (7,), Target(metric, 0.5, True),
            3, 2.0, None,
        )  # fmt: skip
        lines = [_line(row) for row in rows]
        target = plan.target
        assert target is not None
        host = Host({1: 1e4, 16: 5e4}, {}, {1: 1, 16: 16}, 1.0, 1.0, 1e9)
        return Study(plan, target, metric, lines, Fit(10.0, 200.0, 0.1), tmp_path, host, 2, 0)

    return made


def _line(row: Row) -> Line:
    figures: dict[str, Estimate] = defaultdict(lambda: Estimate(0.02 * row.size, 0.001, 3))
    for name in ("steps_to_target", "examples_to_target", "virtual_s_to_target", "virtual_s_to_target_own", "memory_bytes", "score_epochs",
                 "score_steps", "score_own", "gap_epochs", "samples_per_s", "virtual_samples_per_s", "utilisation", "bytes_to_target",
                 "rounds_to_target", "memory_ratio",
                 *(f"{kind}_{s}" for kind in ("snr", "noise_scale") for s in (1, 10, 50, 100))):  # fmt: skip
        _ = figures[name]
    rates = dict.fromkeys(("own", "epochs", "steps", "target"), 0.1)
    return Line(row, rates, {0.1: 0.5, 0.2: math.nan}, figures, {"tuned": "1/1", "own": "1/1"}, {})


def test_each_axis_says_what_it_is_of(study: Callable[..., Study], figures: list[Any]) -> None:
    """Every figure has a title on both axes; where the ordinate is a logarithm, its unit, and not the figure's heading, has it."""
    write_page(study(30))
    titles = [figure.layout.yaxis.title.text for figure in figures]

    assert {"MB", "examples/s", "examples", "signal to noise", "steps, examples", "%", "accuracy", "seconds"} <= set(titles)
    assert all(titles) and all(figure.layout.xaxis.title.text for figure in figures)


@pytest.mark.parametrize(("rounds", "names"), [(5, ["1 and 10 %", "50 %", "100 %"]), (30, ["1 %", "10 %", "50 %", "100 %"])])
def test_no_curve_lies_under_another(study: Callable[..., Study], figures: list[Any], rounds: int, names: list[str]) -> None:
    """Percentages of training that are one round have one curve, whose name and note say so."""
    page = write_page(study(rounds)).read_text()
    [noise] = [figure for figure in figures if figure.layout.yaxis.title.text == "signal to noise"]

    assert names == [line.name for line in noise.data]
    assert ("After 1 and 10 % it is round 1 alike." in page) == (rounds == 5)
    assert LARGER in page and "over all clients" in page


def test_wide_tables_scroll_in_a_box_of_their_own(study: Callable[..., Study]) -> None:
    """On a phone no table makes the page wider: each stands in a box that scrolls, and its first column stays."""
    page = write_page(study(5)).read_text()
    body = page[page.index("<body>") :]

    assert body.count("<thead>") == body.count("<div class=study><table>") == 2
    assert ".study { overflow-x: auto;" in page and "th:first-child { position: sticky" in page


@pytest.mark.parametrize(("metric", "head"), [("accuracy", "accuracy,"), ("worst_group_accuracy", "score,")])
def test_columns_are_named_by_what_they_hold(study: Callable[..., Study], capsys: Any, metric: str, head: str) -> None:
    """The scores at equal epochs and equal steps are called scores at the head of their columns; 80 columns are enough."""
    table.show(study(5, metric))
    first, *rest = capsys.readouterr().out.splitlines()
    lines = rest[: rest.index(next(line for line in rest if line.startswith("1 ")))]

    assert [line.split() for line in lines[:2]] == [[head, head], ["equal", "equal", "time", "to"]]
    assert lines[2].split()[-3:] == ["epochs", "steps", "target"]
    assert f"of test examples{f', {metric}' if head == 'score,' else ''}" in " ".join(rest)
    assert max(map(len, [first, *rest[:-2]])) <= 80
