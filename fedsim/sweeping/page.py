"""A sweep as one web page that needs no network: parallel coordinates, slices, the Pareto front, the best, what broke. Runs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedsim.record.manifest import machine, versions, whole
from fedsim.report.axes import logarithmic
from fedsim.report.drawing import ALARM, INK, LADDER, Drawing
from fedsim.report.page import PAGE as FRAME
from fedsim.report.page import toml
from fedsim.sweeping.found import DONE, Sweep, Variant, upwards
from fedsim.sweeping.points import spoken
from fedsim.sweeping.table import PAGE, RUNS, TABLE, heading, labels, notes, written

LINES, DOTS, BEST, FAULTS = 600, 2000, 25, 100
"""Variants that the parallel coordinates and a slice draw at most, and that the tables of the best and of what broke have."""
WIDE = 20.0
"""How many times its smallest value the largest of a key is, from which on its axis is logarithmic."""
BLUE, GREEN = "#1f8fd0", "#009e73"
SCALE = [[place / (len(LADDER) - 1), colour] for place, colour in enumerate(LADDER)]
STYLE = """<style>
.parcoords text { text-shadow: none !important; }
.sweep { overflow-x: auto; } .sweep table { font-size: 0.88rem; }
.sweep th, .sweep td { padding: 0.25rem 1.1rem 0.25rem 0; border-bottom: 1px solid #80808030; white-space: nowrap; }
.sweep td { font-variant-numeric: tabular-nums; text-align: right; } .sweep thead th { text-align: right; }
.sweep thead th:first-child { text-align: left; } .sweep tbody tr:first-child > * { font-weight: 650; opacity: 1; }
.faults, .wide { overflow-x: auto; } .wide > div { min-width: 44rem; }
.best { border-left: 4px solid #009e73; padding: 0.3rem 1rem; margin: 0.8rem 0; max-width: 56rem; font-size: 1.05rem; }
@media print { .modebar { display: none !important; } section { break-inside: avoid; } }
</style>"""


def write_page(found: Sweep) -> Path:
    """Write ``sweep.html`` into the sweep's folder, and return its path."""
    draw = Drawing()
    body = [STYLE, _best(found), _coordinates(found, draw), _slices(found, draw), _front(found, draw), _ranking(found), _faults(found),
            _how(found)]  # fmt: skip
    status = "done" if not found.late else f"{found.done:,} of {found.total:,} runs"
    whole(found.folder / PAGE, FRAME.substitute(name=escape(found.name), status=status, body="\n".join(part for part in body if part)))
    return found.folder / PAGE


@dataclass(frozen=True)
class Scale:
    """How the values of a key lie on an axis: numbers, on a logarithmic one or not, or by their *words*."""

    log: bool
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Sequence[Any]) -> Scale:
        """Return the scale that suits *values*."""
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return cls(False, tuple(dict.fromkeys(spoken(value) for value in values)))
        return cls(bool(values) and min(values) > 0 and max(values) >= WIDE * min(values))

    def at(self, value: Any) -> float:
        """Return where *value* lies."""
        if self.words:
            return float(self.words.index(spoken(value)))
        return math.log10(value) if self.log else float(value)


def thinned(found: Sweep, having: Sequence[Variant], most: int) -> list[Variant]:
    """Return at most *most* of the variants *having* what is drawn: the best half of that, and of the others every so many."""
    if len(having) <= most:
        return list(having)
    place = {id(each): i for i, each in enumerate(found.ranked)}
    order = sorted(having, key=lambda each: place.get(id(each), len(place)))
    best, others = order[: most // 2], order[most // 2 :]
    step = len(others) / (most - len(best))
    return best + [others[int(i * step)] for i in range(most - len(best))]


def _said(shown: int, of: int) -> str:
    return f" Shown are {shown:,} of {of:,}: the best, and of the others every so many; {TABLE} has all." if shown < of else ""


def _measured(found: Sweep) -> list[Variant]:
    return [each for each in found.variants if each.status == DONE and found.goals and not math.isnan(each.value(found.goals[0].measure))]


def _best(found: Sweep) -> str:
    if not found.ranked or not found.goals:
        return "<div class=notice><p>No variant is done with every seed.</p></div>"
    best, goal = found.ranked[0], found.goals[0]
    way = "highest" if goal.up else "lowest"
    if len(found.goals) > 1 and found.front:
        names = ", ".join(heading(name) for name in found.pareto)
        return f'<p class=best><b>{len(found.front):,} variants are on the Pareto front</b> by {escape(names)} (below).</p>'
    return (
        f"<p class=best><b>{escape(best.point.name)}</b> has the {way} {escape(goal.measure)} of {len(_measured(found)):,} variants:"
        f" {escape(written(goal.measure, best.mean(goal.measure)))}.</p>"
    )


def _coordinates(found: Sweep, draw: Drawing) -> str:
    import plotly.graph_objects as go

    having = _measured(found)
    if len(having) < 2:
        return ""
    goal, shown = found.goals[0], thinned(found, having, LINES)
    dimensions: list[dict[str, Any]] = []
    for key, name in labels(found).items():
        values = [each.point.assignment.get(key) for each in shown]
        scale = Scale.of(values)
        places = [scale.at(value) for value in values]
        if scale.words:
            ticks = {"tickvals": list(range(len(scale.words))), "ticktext": [word[:24] for word in scale.words]}
        else:
            known = sorted({float(value) for value in values if value is not None})
            few = known if len(known) <= 8 else [known[round(i * (len(known) - 1) / 5)] for i in range(6)]
            ticks = {"tickvals": [scale.at(value) for value in few], "ticktext": [f"{value:.3g}" for value in few]}
        dimensions.append({"label": name, "values": places, **ticks})
    names = list(dict.fromkeys([*(goal.measure for goal in found.goals), *found.pareto]))
    for name in names:
        factor = 1e-6 if name.startswith("bytes") else 1.0
        mega = ", MB" if factor != 1.0 else ""
        dimensions.append({"label": f"{heading(name)}{mega}", "values": [each.value(name) * factor for each in shown]})
    values = [each.value(goal.measure) for each in shown]
    figure = go.Figure(go.Parcoords(
        dimensions=dimensions, labelfont={"color": INK, "size": 12}, tickfont={"color": INK, "size": 11},
        rangefont={"color": INK, "size": 10},
        line={"color": values, "colorscale": SCALE, "reversescale": not goal.up, "showscale": True,
              "colorbar": {"title": heading(goal.measure), "thickness": 12, "tickfont": {"color": INK}}},
        unselected={"line": {"color": INK, "opacity": 0.06}}, name="variants",
    ))  # fmt: skip
    return (
        f"<h2>All keys at once</h2><div class=wide><div>{draw.html(figure, 420)}</div></div><p class=note>A line a variant, coloured by"
        f" {escape(goal.measure)} (mean over seeds). Drag along an axis to pick a range; drag an axis by its name to move it."
        f"{_said(len(shown), len(having))}</p>"
    )


def _slices(found: Sweep, draw: Drawing) -> str:
    import plotly.graph_objects as go

    having = _measured(found)
    if not having:
        return ""
    goal, shown, parts = found.goals[0], thinned(found, having, DOTS), list[str]()
    factor, unit = (1e-6, ", MB") if goal.measure.startswith("bytes") else (1.0, "")
    for key, name in labels(found).items():
        scale = Scale.of([each.point.assignment.get(key) for each in shown])
        figure = go.Figure()
        x = [spoken(v) if scale.words else v for v in (each.point.assignment.get(key) for each in shown)]
        means = [each.mean(goal.measure) for each in shown]
        halves = [mean.half * factor if mean is not None and math.isfinite(mean.half) else 0.0 for mean in means]
        figure.add_scatter(
            x=x, y=[each.value(goal.measure) * factor for each in shown], mode="markers", name=name,
            marker={"color": BLUE, "size": 6, "opacity": 0.75}, text=[escape(each.point.name) for each in shown],
            error_y={"type": "data", "array": halves, "color": BLUE, "thickness": 0.8, "width": 0} if any(halves) else None,
            hovertemplate="%{text}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
        if scale.log:
            logarithmic(figure, "x", name)
        else:
            figure.update_xaxes(title=name, type="category" if scale.words else "linear")
        figure.update_yaxes(title=f"{heading(goal.measure)}{unit}")
        parts.append(f"<section>{draw.html(figure, 320)}</section>")
    interval = " with its 95 % interval" if len(found.seeds) > 1 else ""
    return (
        f"<h2>Each key by itself</h2><div class=pair>{''.join(parts)}</div><p class=note>A dot a variant: {escape(goal.measure)}, mean over"
        f" seeds{interval}; the other keys vary with it.{_said(len(shown), len(having))}</p>"
    )


def _front(found: Sweep, draw: Drawing) -> str:
    import plotly.graph_objects as go

    if len(found.pareto) < 2:
        return ""
    having = [each for each in found.variants if all(not math.isnan(each.value(name)) for name in found.pareto)]
    if not having:
        return "<h2>Pareto front</h2><p class=note>No variant has all these measures.</p>"
    on = {id(each) for each in found.front}
    others = thinned(found, [each for each in having if id(each) not in on], DOTS)
    parts = list[str]()
    for down, up in pairwise(reversed(found.pareto)):
        factors = [1e-6 if name.startswith("bytes") else 1.0 for name in (down, up)]
        figure = go.Figure()
        for group, colour, name, mode in ((others, INK, "beaten", "markers"), (found.front, GREEN, "on the front", "markers")):
            row = sorted(group, key=lambda each: each.value(down))
            figure.add_scatter(
                x=[each.value(down) * factors[0] for each in row], y=[each.value(up) * factors[1] for each in row], mode=mode, name=name,
                marker={"color": colour, "size": 6 if name == "beaten" else 9, "opacity": 0.5 if name == "beaten" else 1.0},
                text=[escape(each.point.name) for each in row], hovertemplate="%{text}: %{x:.4g}, %{y:.4g}<extra></extra>",
            )  # fmt: skip
        if len(found.pareto) == 2:
            row = sorted(found.front, key=lambda each: each.value(down))
            figure.add_scatter(
                x=[each.value(down) * factors[0] for each in row], y=[each.value(up) * factors[1] for each in row], mode="lines",
                line={"color": GREEN, "width": 1.5, "shape": "vh" if upwards(down) else "hv"}, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
        figure.update_xaxes(title=_axis(down))
        figure.update_yaxes(title=_axis(up))
        figure.update_layout(showlegend=True)
        parts.append(f"<section>{draw.html(figure, 380)}</section>")
    names = ", ".join(_axis(name) for name in found.pareto)
    rest = f" Of the beaten {len(others):,} of {len(having) - len(on):,} are drawn." if len(others) < len(having) - len(on) else ""
    return (
        f"<h2>Pareto front</h2><div class=pair>{''.join(parts)}</div><p class=note>By {escape(names)}: no other variant is at least as good"
        f" in all of these and better in one. Means over seeds; an interval is not looked at.{rest}</p>"
    )


def _axis(measure: str) -> str:
    unit = ", MB" if measure.startswith("bytes") else ", s" if measure.startswith("virtual_s") else ""
    return f"{heading(measure)}{unit} ({'more' if upwards(measure) else 'less'} is better)"


def _ranking(found: Sweep) -> str:
    measures = list(dict.fromkeys([*(goal.measure for goal in found.goals), *found.pareto, "virtual_s", "bytes"]))[:6]
    front = {id(each) for each in found.front}
    names = labels(found)
    heads = ["variant", *names.values(), *(heading(name) for name in measures), *(["front"] if front else [])]
    rows = "".join(
        "<tr><th>" + escape(each.point.name) + "</th>"
        + "".join(f"<td>{escape(spoken(each.point.assignment.get(key)))}</td>" for key in names)
        + "".join(f"<td>{escape(written(name, each.mean(name)))}</td>" for name in measures)
        + (f"<td>{'yes' if id(each) in front else ''}</td>" if front else "") + "</tr>"
        for each in found.ranked[:BEST]
    )  # fmt: skip
    if not rows:
        return ""
    more = f"<p class=note>The best {BEST} of {len(found.ranked):,}; {TABLE} has all, {RUNS} every run.</p>"
    more = more if len(found.ranked) > BEST else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<h2>The best</h2><div class=sweep><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{more}"


def _faults(found: Sweep) -> str:
    broken = [each for each in found.variants if each.why]
    if not broken:
        return ""
    rows = "".join(
        f"<tr><th>{escape(each.point.name)}</th><td>{escape(each.status)}</td><td>{escape(each.why)}</td></tr>" for each in broken[:FAULTS]
    )
    more = f"<p class=note>{FAULTS} of {len(broken):,}; {TABLE} has all.</p>" if len(broken) > FAULTS else ""
    return f'<h2 style="color: {ALARM}">Not ranked</h2><div class=faults><table>{rows}</table></div>{more}'


def _how(found: Sweep) -> str:
    said = "".join(f"<p class=note>{escape(note)}</p>" for note in notes(found))
    about = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in {**machine(), **versions()}.items())
    told = {name: value for name, value in found.asked.items() if name != "scenario" or isinstance(value, str)}
    asked = json.loads(json.dumps(told, default=str))
    return (
        f"<h2>What was searched, and how</h2>{said}<div class=pair><section><h3>Sweep</h3><pre>{escape(toml(asked))}</pre></section>"
        f"<section><h3>Scenario</h3><pre>{escape(toml(found.scenario))}</pre></section>"
        f"<section><h3>This computer</h3><table>{about}</table></section></div>"
    )
