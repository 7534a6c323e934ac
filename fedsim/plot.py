"""The figures of a report, one by one, for notebooks: each takes a run (or its folder) and returns a plotly Figure.

Behind them are frames, named with each; their columns, with units, are in the docstrings of ``fedsim.Run``: ``help(fedsim.Run.tasks)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedsim.core.errors import RunError, ScenarioError, choices
from fedsim.score.run import Run, load

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from fedsim.report.figures import Seen

__all__ = [
    "accuracy_matrix", "examples", "learning", "message_times", "overlaid", "prequential", "round_times", "sizes", "timeline", "weights",
]  # fmt: skip


def __dir__() -> list[str]:
    """Return the figures: what a notebook offers, and nothing of what they are made with."""
    return sorted(__all__)


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
    _check_against("learning", against)
    figure = found[score]
    for line in figure.data:
        line.x = line.meta[AGAINST[against]]
    titles = {"rounds": "round", "time": f"{axis_of(seen.about)} ({clock(seen.now_s)[1]})", "bytes": "megabytes sent, down and up"}
    return _plain(figure.update_xaxes(title=titles[against]))


def overlaid(
    runs: Mapping[str, Run | str | Path], score: str = "accuracy", against: Literal["rounds", "time", "bytes"] = "rounds"
) -> Figure:
    """Return *score* of several runs on the server's test part, a line for each, called as *runs* names it.

    *against* is as in ``learning``. Frames: ``run.series(score)``. Raises ScenarioError for a score that one of them has not.

    >>> import fedsim
    >>> run = fedsim.run("scenarios/quickstart.toml", overrides={"server.rounds": 2}, out=tmp / "overlaid")
    >>> figure = overlaid({"one": run, "the same": run.path}, against="bytes")
    >>> [line.name for line in figure.data], [round(sent, 2) for sent in figure.data[1].x]
    (['one', 'the same'], [0.0, 0.46, 0.92])
    """
    import plotly.graph_objects as go

    from fedsim.report.drawing import COLOURS
    from fedsim.report.units import axis_of, clock

    _check_against("overlaid", against)
    found = {str(name): run if isinstance(run, Run) else load(run) for name, run in runs.items()}
    lines = {name: run.series(score) for name, run in found.items()}
    for name, line in lines.items():
        if line.empty:
            central = found[name].metrics.query("scope == 'central'").name
            raise ScenarioError(f"plot.overlaid: {name} did not record {score!r}. {choices(score, sorted({*central}))}")
    unit, unit_name = clock(max([0.0, *(float(line.now_s.max()) for line in lines.values())]))
    axes = {axis_of(run.manifest) for run in found.values()}
    titles = {
        "rounds": "round", "time": f"{axes.pop() if len(axes) == 1 else 'time'} ({unit_name})", "bytes": "megabytes sent, down and up",
    }  # fmt: skip
    figure = go.Figure()
    for number, (name, line) in enumerate(lines.items()):
        x = {"rounds": line["round"], "time": line.now_s / unit, "bytes": (line.down_bytes + line.up_bytes) / 1e6}[against]
        figure.add_scatter(
            x=x.tolist(), y=line.value.tolist(), name=name, mode="lines+markers" if len(line) <= 60 else "lines",
            line={"color": COLOURS[number % len(COLOURS)], "width": 2}, marker={"size": 4}, hovertemplate="%{y:.4f} at %{x:.6g}",
        )  # fmt: skip
    return _plain(figure.update_xaxes(title=titles[against]).update_yaxes(title=score).update_layout(showlegend=True))


def message_times(run: Run | str | Path) -> Figure:
    """Return which share of training messages was through download, waiting, training and upload within so long. Frame: ``run.times()``."""
    from fedsim.report.times import figure
    from fedsim.score.outcomes import deadline_of

    seen = _seen(run)
    return _plain(figure(seen.tasks, deadline_of(seen.about)))


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


def prequential(run: Run | str | Path, window: int | None = None) -> Figure:
    """Return how many of the examples that came were predicted right before anybody trained on them, beside two baselines.

    Means over the last *window* examples (a twentieth of all, 50 to 1000, unless given); true drifts are lines, alarms of detectors marks.
    Frames: ``run.tested``, ``run.drifts``, ``run.alarms``. Raises RunError for a run whose clients predicted nothing: one without [stream].
    """
    from fedsim.report.online_figures import fitting, prequential_figure
    from fedsim.report.units import axis_of
    from fedsim.score.online import scored

    seen = run if isinstance(run, Run) else load(run)
    found = scored(seen.tested)
    if found.empty:
        raise RunError(f"plot.prequential: no example of {seen.path} was predicted before it was trained on; runs with [stream] do so.")
    drifts_s, alarms_s = seen.drifts.time_s.tolist(), seen.alarms.time_s.tolist()
    return _plain(prequential_figure(found, drifts_s, alarms_s, window=window or fitting(len(found)), time=axis_of(seen.manifest)))


def accuracy_matrix(run: Run | str | Path) -> Figure:
    """Return the accuracy on each group of ``evaluate.by_classes`` after each concept, as a map. Values: ``run.accuracy_matrix()``.

    Raises RunError for a run that was not evaluated by classes.
    """
    from fedsim.report.online_figures import accuracy_matrix_figure

    found = (run if isinstance(run, Run) else load(run)).accuracy_matrix()
    return _plain(accuracy_matrix_figure(found.accuracy, found.groups))


def weights(run: Run | str | Path) -> Figure:
    """Return the share of the weight that each client had in the aggregation, largest first. Frame: ``run.weights()``."""
    from fedsim.report.online_figures import weights_figure

    seen = run if isinstance(run, Run) else load(run)
    return _plain(weights_figure(seen.weights(), int(seen.manifest["scenario"]["clients"]["count"])))


def _check_against(name: str, against: str) -> None:
    if against not in AGAINST:
        raise ScenarioError(f"plot.{name}: against = {against!r}. {choices(against, AGAINST)}")


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
