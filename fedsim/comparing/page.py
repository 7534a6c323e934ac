"""A comparison as one web page that needs no network: the verdicts, differences with their intervals, curves with bands. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.comparing.found import Against, Comparison
from fedsim.comparing.table import PAGE, cells, measure_name, notes, resampling, rule, sentence
from fedsim.core.types import FloatArray
from fedsim.record.manifest import machine, versions, whole
from fedsim.report.drawing import COLOURS, INK, Drawing
from fedsim.report.page import PAGE as FRAME
from fedsim.report.page import toml
from fedsim.report.units import clock
from fedsim.score.run import Run
from fedsim.score.spending import paired
from fedsim.score.taken import TO_TARGET, better_upwards

POINTS = 120
"""Moments of virtual time at which a curve is drawn."""
ROOM = 0.3
"""Of the height of all curves so much is left above and below them: a band that is wider is cut there."""
STYLE = """<style>
.compare { overflow-x: auto; } .compare table { font-size: 0.88rem; }
.compare th, .compare td { padding: 0.25rem 1.1rem 0.25rem 0; border-bottom: 1px solid #80808030; overflow-wrap: normal; }
.compare td { white-space: nowrap; font-variant-numeric: tabular-nums; text-align: right; } .compare thead th { text-align: right; }
.compare thead th:first-child { text-align: left; } .compare tr.decides th, .compare tr.decides td { font-weight: 650; opacity: 1; }
.verdict { border-left: 4px solid #808080; padding: 0.3rem 1rem; margin: 0.8rem 0; max-width: 56rem; font-size: 1.05rem; }
.verdict.better { border-color: #009e73; } .verdict.worse { border-color: #d55e00; } .verdict.alike { border-color: #1f8fd0; }
@media print { .modebar { display: none !important; } section { break-inside: avoid; } }
</style>"""


def write_page(found: Comparison, folder: Path) -> Path:
    """Write ``compare.html`` into *folder*, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = Drawing()
    names = " and ".join([", ".join(side.name for side in found.sides[:-1]), found.sides[-1].name])
    body = [STYLE, *(_verdict(each, found) for each in found.against), _differences(found, draw), _curves(found, draw),
            *(_table(each, found) for each in found.against), _how(found)]  # fmt: skip
    status = "paired" if found.plan.pairs else "unpaired"
    page = FRAME.substitute(name=escape(names), status=f"compared, {status}", body="\n".join(each for each in body if each))
    whole(folder / PAGE, page)
    return folder / PAGE


def _verdict(each: Against, found: Comparison) -> str:
    kind = each.verdict.replace(" ", "-")
    return f'<p class="verdict {kind}"><b>{escape(each.side.name)}: {escape(each.verdict)}.</b> {escape(sentence(each, found))}</p>'


def _differences(found: Comparison, draw: Drawing) -> str:
    """Return the figure of all differences: a line a measure, each on an axis of its own, with 0."""
    from plotly.subplots import make_subplots  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    measures = [name for name in dict.fromkeys(row.measure for each in found.against for row in each.rows)
                if any(row.measure == name and math.isfinite(row.interval.low) and row.reached != (0, 0)
                       for each in found.against for row in each.rows)]  # fmt: skip
    if not measures:
        return ""
    many, base = len(found.against), found.sides[0].name
    titles = [_axis(name) for name in measures]
    drawn: Any = make_subplots(rows=len(measures), cols=1, subplot_titles=titles, vertical_spacing=min(0.5, 0.62 / len(measures)))
    for line, name in enumerate(measures, 1):
        scale = _scale(name)
        for i, each in enumerate(found.against):
            row = next((row for row in each.rows if row.measure == name), None)
            if row is None or not math.isfinite(row.interval.low):
                continue
            colour = COLOURS[(i + 1) % len(COLOURS)]
            mean, (low, high) = row.interval.mean * scale, (row.interval.low * scale, row.interval.high * scale)
            boot = (row.boot[0] * scale, row.boot[1] * scale)
            for (left, right), wide, what in (((low, high), 2, "Student's t"), (boot, 6, "bootstrap")):
                drawn.add_scatter(
                    x=[left, right], y=[each.side.name] * 2, mode="lines", line={"color": colour, "width": wide}, showlegend=False,
                    opacity=1.0 if wide == 2 else 0.45, hovertemplate=f"{what}: %{{x:.4g}}<extra></extra>", row=line, col=1,
                )
            drawn.add_scatter(
                x=[mean], y=[each.side.name], mode="markers", marker={"color": colour, "size": 9}, showlegend=False,
                hovertemplate=f"{name}: %{{x:.4g}}<extra></extra>", row=line, col=1,
            )
        drawn.add_vline(x=0, line={"color": INK, "width": 1}, row=line, col=1)
        if name == found.against[0].by and found.plan.matters:
            for at in (-found.plan.matters, found.plan.matters):
                drawn.add_vline(x=at * scale, line={"color": INK, "width": 1, "dash": "dot"}, row=line, col=1)
    drawn.update_annotations(x=0, xanchor="left", font={"size": 12})
    drawn.update_yaxes(showgrid=False)
    height = 90 + len(measures) * (58 + 22 * many)
    few = resampling(found)
    return (
        f"<h2>Differences from {escape(base)}</h2>{draw.html(drawn, height)}<p class=note>Dot: the mean difference. Thin line: Student's t"
        f" (of the deciding measure at the level of its look, of the others at 95 %). Broad line: the bootstrap. {escape(few)}</p>"
    )


def _axis(measure: str) -> str:
    unit = {"virtual_s": "s", "virtual_s_to_target": "s", "bytes": "MB", "bytes_to_target": "MB"}.get(measure, "")
    way = "more is better" if better_upwards(measure) else "less is better"
    return f"{measure_name(measure)}{f', {unit}' if unit else ''} ({way})"


def _scale(measure: str) -> float:
    return 1e-6 if measure.startswith("bytes") else 1.0


def _curves(found: Comparison, draw: Drawing) -> str:
    metric = found.plan.target.metric if found.plan.target else "accuracy"
    runs = {side.name: [run for _, run in sorted(found.runs[side.name].items())] for side in found.sides}
    if not all(_has(run, metric) for each in runs.values() for run in each):
        metric = "loss"
    if not all(each and all(_has(run, metric) for run in each) for each in runs.values()):
        return ""
    rounds = {name: _by_round(each, metric) for name, each in runs.items()}
    last_s = max(float(run.manifest["virtual_s"]) for each in runs.values() for run in each)
    unit_s, unit = clock(last_s)
    times = {name: _by_time(each, metric, unit_s) for name, each in runs.items()}
    shown = [_chart(rounds, "round", metric, found), _chart(times, f"virtual time, {unit}", metric, found)]
    cut = " Bands that are wider than the figure are cut at its edge." if any(each.layout.yaxis.range for each in shown) else ""
    counts = ", ".join(f"{name} {len(each)}" for name, each in runs.items())
    return (
        f"<h2>Learning</h2><div class=pair>{''.join(f'<section>{draw.html(each, 360)}</section>' for each in shown)}</div>"
        f"<p class=note>Test {escape(metric)}: mean over seeds ({escape(counts)}), and as a band its 95 % interval"
        " (Student's t, each point by itself). Bands may overlap where a verdict is clear: pairs share their luck, bands do not."
        f" Where a run has ended it counts with its last score.{cut}</p>"
    )


def _has(run: Run, metric: str) -> bool:
    return not run.series(metric).empty


Curve = tuple[FloatArray, FloatArray, FloatArray, FloatArray]


def _by_round(runs: Sequence[Run], metric: str) -> Curve:
    series = [run.series(metric) for run in runs]
    at = np.unique(np.concatenate([each["round"].to_numpy(dtype=float) for each in series]))
    return _banded(at, [_stepped(each["round"].to_numpy(dtype=float), each["value"].to_numpy(dtype=float), at) for each in series])


def _by_time(runs: Sequence[Run], metric: str, unit_s: float) -> Curve:
    series = [run.series(metric) for run in runs]
    at = np.linspace(0.0, max(float(each.now_s.max()) for each in series), POINTS)
    x, *more = _banded(at, [_stepped(each.now_s.to_numpy(dtype=float), each["value"].to_numpy(dtype=float), at) for each in series])
    return x / unit_s, more[0], more[1], more[2]


def _stepped(x: FloatArray, y: FloatArray, at: FloatArray) -> FloatArray:
    """Return the last of *y* whose *x* is no later, for each moment of *at*."""
    return y[np.maximum(0, np.searchsorted(x, at, side="right") - 1)]


def _banded(at: FloatArray, curves: Sequence[FloatArray]) -> Curve:
    values = np.array(curves)
    found = [paired(values[:, i], 0.05) for i in range(len(at))]
    means = np.array([each.mean for each in found])
    ends = [np.array([each.low if math.isfinite(each.low) else each.mean for each in found]),
            np.array([each.high if math.isfinite(each.high) else each.mean for each in found])]  # fmt: skip
    return at, means, ends[0], ends[1]


def _chart(curves: Mapping[str, Curve], x_title: str, metric: str, found: Comparison) -> Any:
    import plotly.graph_objects as go

    drawn = go.Figure()
    for i, (name, (at, mean, low, high)) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        drawn.add_scatter(
            x=[*at, *at[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=colour, opacity=0.22, line={"width": 0}, showlegend=False,
            hoverinfo="skip", mode="lines",
        )
        drawn.add_scatter(
            x=at, y=mean, name=name, mode="lines", line={"color": colour, "width": 2, "dash": ("solid", "dash", "dot", "dashdot")[i % 4]},
            hovertemplate=f"{x_title} %{{x:.4g}}: %{{y:.4f}}",
        )
    target = found.plan.target
    if target is not None and target.metric == metric:
        drawn.add_hline(y=target.value, line={"color": INK, "width": 1, "dash": "dot"}, annotation_text=str(target),
                        annotation_position="bottom right")  # fmt: skip
    drawn.update_xaxes(title=x_title)
    line = target.value if target is not None and target.metric == metric else None
    drawn.update_yaxes(title=f"test {metric}", range=_view([*curves.values()], line))
    drawn.update_layout(showlegend=True)
    return drawn


def _view(curves: Sequence[Curve], line: float | None) -> tuple[float, float] | None:
    """Return the ends of an axis on which *curves*, and a *line* across them, fill the figure; None where all bands fit anyway.

    >>> at, mean = np.arange(2.0), np.array([0.2, 0.8])
    >>> _view([(at, mean, mean - 0.1, mean + 2.0)], 0.9), _view([(at, mean, mean - 0.1, mean + 0.1)], None)
    ((0.1, 1.11), None)
    """
    means = np.concatenate([*(mean for _, mean, _, _ in curves), np.array([] if line is None else [line])])
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    room = ROOM * (high - low) or 0.1 * abs(high) or 0.1
    ends = min(float(np.nanmin(band)) for _, _, band, _ in curves), max(float(np.nanmax(band)) for _, _, _, band in curves)
    if ends[0] >= low - room and ends[1] <= high + room:
        return None
    view = max(min(ends[0], low), low - room), min(max(ends[1], high), high + room)
    return round(view[0], 9), round(view[1], 9)


def _table(each: Against, found: Comparison) -> str:
    heads = ("", each.base.name, each.side.name, "difference", "interval (t)", "bootstrap, 95 %")
    rows: list[str] = []
    for row in each.rows:
        if row.measure == TO_TARGET[0]:
            counts = [f"{got} of {n}" for got, n in zip(row.reached or (), row.n, strict=False)]
            values = "".join(f"<td>{count}</td>" for count in (counts[1], counts[0], "", "", ""))
            rows.append(f"<tr><th>reached {escape(str(found.plan.target))}</th>{values}</tr>")
        name, *values = cells(row, each)
        shown = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f"<tr{' class=decides' if row.measure == each.by else ''}><th>{escape(name)}</th>{shown}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return (
        f"<h2>{escape(each.side.name)} against {escape(each.base.name)}</h2><div class=compare><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _how(found: Comparison) -> str:
    said = "".join(f"<p class=note>{escape(note)}</p>" for note in (*notes(found), *found.faults))
    runs = "".join(
        f"<tr><th>{escape(name)}, seed {seed}</th><td>{escape(str(run.path))}</td><td>{escape(run.digest[:16])}...</td></tr>"
        for name, each in found.runs.items() for seed, run in each.items()
    )  # fmt: skip
    about = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in {**machine(), **versions()}.items())
    scenarios = "".join(
        f"<section><h3>{escape(side.name)}</h3><pre>{escape(toml({k: v for k, v in side.scenario.items() if k != 'seed'}))}</pre></section>"
        for side in found.sides
    )
    return (
        f"<h2>How it is decided</h2><p class=says>Rule: {escape(rule(found))}</p>"
        f"{said}<h2>What was compared</h2><div class=pair>{scenarios}"
        f"<section><h3>Runs</h3><table>{runs}</table></section><section><h3>This computer</h3><table>{about}</table></section></div>"
    )
