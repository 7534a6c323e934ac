"""The figures of a report, one by one, for notebooks: each takes a run (or its folder) and returns a plotly Figure.

Behind them are frames with documented columns: ``run.metrics``, ``run.tasks``, ``run.rounds``, ``run.times()``, ``run.ledger()``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedsim.core.errors import RunError, ScenarioError, choices
from fedsim.score.run import Run, load

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from fedsim.report.figures import Seen

__all__ = ["examples", "learning", "message_times", "round_times", "sizes", "timeline"]

AGAINST = {"rounds": "round", "time": "now", "bytes": "sent"}


def learning(run: Run | str | Path, score: str = "accuracy", against: Literal["rounds", "time", "bytes"] = "rounds") -> Figure:
    """Return *score* of a run, a line for each of who measured it: the server, clients as they train, clients on what they keep back.

    *against* rounds, virtual time, or megabytes sent, both ways. Frame: ``run.metrics``. Raises ScenarioError for a score that is not
    there.

    >>> import fedsim
    >>> run = fedsim.run("scenarios/quickstart.toml", overrides={"server.rounds": 2}, out=tmp / "plotted")
    >>> figure = learning(run, against="time")
    >>> [round(moment, 2) for moment in figure.data[0].x], figure.layout.xaxis.title.text
    ([0.0, 1.46, 3.07], 'virtual time (seconds)')
    """
    from fedsim.report.figures import score_figures
    from fedsim.report.units import axis_of, clock

    seen = _seen(run)
    found = score_figures(seen)
    if score not in found:
        raise ScenarioError(f"plot.learning: {score!r} was not recorded. {choices(score, sorted(found))}")
    if against not in AGAINST:
        raise ScenarioError(f"plot.learning: against = {against!r}. {choices(against, AGAINST)}")
    figure = found[score]
    for line in figure.data:
        line.x = line.meta[AGAINST[against]]
    titles = {"rounds": "round", "time": f"{axis_of(seen.about)} ({clock(seen.now_s)[1]})", "bytes": "megabytes sent, down and up"}
    return _plain(figure.update_xaxes(title=titles[against]))


def message_times(run: Run | str | Path) -> Figure:
    """Return which share of training messages was through download, waiting, training and upload within so long. Frame: ``run.times()``."""
    from fedsim.report.times import figure
    from fedsim.report.units import axis_of

    seen = _seen(run)
    deadline_s = float(seen.about["scenario"]["server"].get("round_timeout_s", float("inf")))
    return _plain(figure(seen.tasks, deadline_s, axis_of(seen.about)))


def round_times(run: Run | str | Path) -> Figure:
    """Return how long each round took. Frame: ``run.rounds``."""
    from fedsim.report.figures import rounds_figures

    return _plain(next(iter(rounds_figures(_seen(run)).values())))


def timeline(run: Run | str | Path) -> Figure:
    """Return who did what when, of the first rounds: a line per client, a bar per phase of each message. Frame: ``run.tasks``."""
    from fedsim.report.figures import timeline_figure

    figure, tall = timeline_figure(_seen(run))
    return _plain(figure, tall)


def sizes(run: Run | str | Path) -> Figure:
    """Return how many clients hold how many examples. From the run's ``data.json``; RunError where it has none."""
    from fedsim.report.holding import sizes as drawn

    return _plain(drawn(_held(run)))


def examples(run: Run | str | Path) -> Figure:
    """Return what share of each client's examples is of which class. From the run's ``data.json``; RunError where it has none."""
    from fedsim.report.holding import labels

    held = _held(run)
    if not held["labels"]:
        raise RunError("plot.examples: the run counted no labels: its targets are no classes, or its examples come over time.")
    return _plain(labels(held))


def _seen(run: Run | str | Path) -> Seen:
    from fedsim.report.figures import Seen

    return Seen.of(run if isinstance(run, Run) else load(run))


def _held(run: Run | str | Path) -> Any:
    from fedsim.report.holding import told

    found = run if isinstance(run, Run) else load(run)
    held = told(found)
    if held is None:
        raise RunError(f"{found.path}: does not say what its clients held (it has no data.json; deployed and older runs have none).")
    return held


def _plain(figure: Any, height: int = 360) -> Figure:
    """Return *figure* for any page, light or dark."""
    from fedsim.report.drawing import GRID, INK

    figure.update_layout(
        template="none", height=height, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": INK},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
    )  # fmt: skip
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    return figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
