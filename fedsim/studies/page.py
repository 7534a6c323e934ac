"""A study as one web page that needs no network: what follows, the table with its verdicts, a figure per question. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedsim.record.manifest import machine, versions, whole
from fedsim.report.axes import logarithmic
from fedsim.report.drawing import ALARM, Drawing, ladder
from fedsim.report.noises import LARGER, STUDIED
from fedsim.report.page import PAGE as FRAME
from fedsim.report.page import toml
from fedsim.report.units import clock, duration, megabytes
from fedsim.studies import grades
from fedsim.studies.found import Line, Study
from fedsim.studies.measures import SHARES, Estimate, points_of
from fedsim.studies.table import PAGE, figure, footnotes, notes, sentences

HEIGHT = 320
BLUE, GREEN, ORANGE, PINK, GREY = "#1f8fd0", "#009e73", "#e69f00", "#cc79a7", "#808080"
COLUMNS = {
    "memory": "memory of a step", "speed": "speed on this computer", "utilisation": "share of peak", "stability": "gradient stability",
    "generalisation, equal epochs": "generalisation, equal epochs", "generalisation, equal steps": "generalisation, equal steps",
    "time to target": "time to target",
}  # fmt: skip
STYLE = f"""<style>
.study {{ overflow-x: auto; background: linear-gradient(Canvas, Canvas) right / 1.2rem 100% no-repeat local,
linear-gradient(to left, #80808060, transparent 1rem) right / 1rem 100% no-repeat scroll; }}
.study th:first-child {{ position: sticky; left: 0; background: Canvas; z-index: 1; }} .study table {{ font-size: 0.86rem; width: 100%; }}
.study th, .study td {{ padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid #80808030; overflow-wrap: normal; }}
.study td {{ white-space: nowrap; font-variant-numeric: tabular-nums; }} .study thead th {{ vertical-align: bottom; }}
.study td small {{ display: block; opacity: 0.75; }} .study tbody th {{ opacity: 1; font-weight: 650; white-space: nowrap; }}
.agrees {{ border-left: 3px solid {GREEN}; padding-left: 0.4rem; }}
.disagrees {{ border-left: 3px solid {ALARM}; padding-left: 0.4rem; }}
.undecided {{ border-left: 3px solid #80808080; padding-left: 0.4rem; }} .noclaim {{ padding-left: 0.4rem; }}
.key span {{ margin-right: 1.2rem; }} .says {{ max-width: 56rem; }}
dl.rules dt {{ font-weight: 600; }} dl.rules dd {{ margin: 0 0 0.5rem; }}
</style>"""


def write_page(study: Study) -> Path:
    """Write ``study.html`` into the study's folder, and return its path."""
    path, draw = study.folder / PAGE, Drawing()
    says = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(study))
    parts = [STYLE, f"<div class=says>{says}</div>", "<h2>The textbook's table, measured</h2>", _table(study), _costs(study),
             *(_section(title, words, figures, draw) for title, words, figures in _figures(study)), _how(study)]  # fmt: skip
    seeds = len(study.plan.seeds)
    status = f"batch sizes, {seeds} seed{'s' * (seeds > 1)}"
    whole(path, FRAME.substitute(name=escape(study.plan.scenario.name), status=escape(status), body="\n".join(parts)))
    return path


def _section(title: str, words: str, figures: Mapping[str, Any], draw: Drawing) -> str:
    drawn = "".join(f"<figure><h3>{escape(name)}</h3>{draw.html(each, HEIGHT)}</figure>" for name, each in figures.items())
    return f"<h2>{escape(title)}</h2><div class=pair>{drawn}</div><p class=note>{escape(words)}</p>" if figures else ""


def _table(study: Study) -> str:
    names = [name for name in COLUMNS if any(name in line.cells for line in study.lines)]
    head = "".join(f"<th>{escape(COLUMNS[name])}</th>" for name in names)
    body = "".join(
        f"<tr><th>{escape(line.row.label)}</th>{''.join(_cell(line, name, study) for name in names)}</tr>" for line in study.lines
    )
    key = (
        "<p class='note key'><span class=agrees>the textbook agrees</span><span class=disagrees>it does not: it says what stands in"
        " brackets</span><span class=undecided>cannot be decided: the interval holds both, or is not known</span></p>"
    )
    return f"{key}<div class=study><table><thead><tr><th>batch</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(line: Line, name: str, study: Study) -> str:
    cell = line.cells.get(name)
    if cell is None:
        return "<td></td>"
    form: dict[str, Callable[[Estimate], str]] = {
        "memory": lambda e: f"{figure(e)} x", "speed": lambda e: f"{figure(e, ',.0f')} /s", "stability": figure,
        "utilisation": lambda e: f"{figure(e, '.1f', 100.0)} %",
        "time to target": lambda e: duration(e.mean) if math.isfinite(e.mean) else "not reached",
    }  # fmt: skip
    said = form.get(name, lambda e: figure(e, ".4f"))(cell.estimate)
    grade = cell.grade or "not measured"
    claims = f" [{cell.textbook}]" if cell.textbook and cell.textbook != cell.grade else ""
    kind = cell.verdict.replace(" ", "")
    return f'<td><div class={kind} title="{escape(cell.verdict)}">{escape(said)}<small>{escape(grade + claims)}</small></div></td>'


def _costs(study: Study) -> str:
    """Return the table of rates, and of what it took to the target."""
    heads = ("batch", "rate: equal epochs", "equal steps", "to the target", "reached", "rounds", "steps of a client",
             "bytes", "virtual time", "the same, untuned", "reached")  # fmt: skip
    rows: list[str] = []
    for line in study.lines:
        have, own = line.figures, line.figures["virtual_s_to_target_own"]
        size, time_s = have["bytes_to_target"], have["virtual_s_to_target"]
        cells = (
            *(f"{line.rates[name]:g}" for name in ("epochs", "steps", "target")), line.arrived["tuned"], figure(have["rounds_to_target"]),
            figure(have["steps_to_target"], ",.0f"), _spread(size, megabytes), _spread(time_s, duration),
            _spread(own, duration), line.arrived["own"],
        )  # fmt: skip
        rows.append(f"<tr><th>{escape(line.row.label)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    rounds, longest = study.plan.scenario.server.rounds, study.plan.longest
    return (
        f"<h2>What it took to {escape(str(study.target))}</h2><div class=study><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div><p class=note>Means over seeds, with half the 95 % interval (Student's t). A target"
        f" that not every seed reached within {longest:,} rounds (untuned: {rounds:,}) has no mean: “-”. Steps of a client are"
        f" those that follow on each other, the mean over a round's clients. {escape(' '.join(footnotes(study)))}</p>"
    )


def _spread(estimate: Estimate, words: Callable[[float], str]) -> str:
    if not math.isfinite(estimate.mean):
        return "-"
    return words(estimate.mean) if math.isnan(estimate.half) else f"{words(estimate.mean)} ± {words(estimate.half)}"


def _figures(study: Study) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """Yield title, words and figures of each question."""
    lines = list({line.row.size: line for line in study.lines if not line.row.dynamic}.values())
    policy = [line for line in study.lines if line.row.dynamic]
    metric, target = study.metric, str(study.target)
    took = {
        "Local steps, and examples": _chart(lines, {
            "steps of a client": ("steps_to_target", BLUE), "examples of a client": ("examples_to_target", ORANGE),
        }, "steps, examples", log=True, line=study),
        "Virtual time": _chart(lines, {
            "tuned rate": ("virtual_s_to_target", BLUE), "the scenario's rate": ("virtual_s_to_target_own", ORANGE),
        }, beside=policy, seconds=True),
    }  # fmt: skip
    fit = study.fit
    yield (
        f"To {target}",
        "Below the critical batch size twice the batch takes half the steps and as many examples; above it as many steps, and twice the"
        " examples (McCandlish et al. 2018). "
        + (f"The dotted line is S = {fit.steps:.3g} + {fit.examples:.3g} / B, off by {100 * fit.error:.0f} % on average." if fit else ""),
        {name: each for name, each in took.items() if each},
    )
    colours: Mapping[int, str] = dict(zip(SHARES, (PINK, BLUE, GREEN, ORANGE), strict=True))
    shares = _apart(study.plan.scenario.server.rounds)
    best = {_percent(alike): (f"snr_{alike[-1]}", colours[alike[-1]]) for alike in shares.values()}
    same = "".join(f" After {_percent(alike)} it is round {at} alike." for at, alike in shares.items() if len(alike) > 1)
    yield (
        "Gradients: signal and noise",
        "Signal to noise is |G|² / (tr(Σ) / B), of the gradients of single examples of all clients, at a row's own models"
        " after so much of its training; of one model it would be in proportion to B. Where it is 1, the batch is as large as the noise"
        f" scale.{same} {STUDIED} {LARGER}",
        {
            "Signal to noise after so much of training": _chart(lines, best, "signal to noise", log=True),
            "Noise scale tr(Σ) / |G|²": _chart(
                lines, {name: (key.replace("snr", "noise_scale"), colour) for name, (key, colour) in best.items()}, "examples", log=True
            ),
        },
    )
    yield (
        "Generalisation",
        f"Test {metric} at the end, at the rate that ends best with that budget (a gap above 0: better on training examples). Equal steps"
        f" are {study.plan.steps:,} a task, equal epochs {study.plan.epochs:g}.",
        {
            f"Test {metric}": _chart(lines, {
                "equal epochs": ("score_epochs", BLUE), "equal steps": ("score_steps", GREEN),
                "equal epochs, untuned": ("score_own", ORANGE),
            }, metric, beside=policy),
            "Gap between training and test, equal epochs": _chart(
                lines, {"gap": ("gap_epochs", PINK)}, f"difference of {metric}", beside=policy
            ),
        },
    )  # fmt: skip
    yield (
        "A training step",
        "Memory is counted, what autograd saves included. Speed is the median of timed steps of plain SGD by torch, one thread; the share"
        f" is that of a large matrix product, {study.host.peak / 1e9:.3g} GFLOP/s. The device's speed is the scenario's own model of it.",
        {
            "Memory": _chart(lines, {"bytes": ("memory_bytes", BLUE)}, "MB", log=True, scale=1e-6),
            "Examples per second": _chart(lines, {
                "this computer": ("samples_per_s", BLUE), "the scenario's devices": ("virtual_samples_per_s", ORANGE),
            }, "examples/s", log=True),
            "Share of the peak": _chart(lines, {"share": ("utilisation", GREEN)}, "%", scale=100.0),
        },
    )  # fmt: skip
    yield (
        "Rates that were tried",
        "The first seed at equal epochs. Grids are centred on the linear rule, and go on where the best rate is at an end. A rate without a"
        " point diverged.",
        {f"{metric} at the end, by learning rate": _rates(lines, metric)},
    )


def _chart(
    lines: list[Line], series: Mapping[str, tuple[str, str]], title: str = "", *, log: bool = False, scale: float = 1.0,
    beside: list[Line] | None = None, seconds: bool = False, line: Study | None = None,
) -> Any:
    """Return figures by batch size, the size on a logarithm; *beside* are policies, which have none. None where there is nothing.

    *title* says in which unit they are; of *seconds* the clock does. With *line*, the fit of a study, sizes are those that updates had on
    average, which it was made by.
    """
    import plotly.graph_objects as go

    drawn = go.Figure()
    if seconds:
        known = [each.figures[key].mean for each in lines for key, _ in series.values() if math.isfinite(each.figures[key].mean)]
        unit, title = clock(max(known, default=0.0))
        scale = 1.0 / unit
        drawn.update_yaxes(rangemode="tozero")
    for name, (key, colour) in series.items():
        there = [(each, each.figures[key]) for each in lines if key in each.figures and math.isfinite(each.figures[key].mean)]
        there = [(each, e) for each, e in there if e.mean > 0 or not log]
        if there:
            drawn.add_scatter(
                x=[each.row.size if line is None else each.taken for each, _ in there], y=[e.mean * scale for _, e in there],
                name=name, mode="lines+markers",
                line={"color": colour, "width": 2}, marker={"size": 6}, text=[each.row.label for each, _ in there],
                error_y={
                    "array": [_half(e) * scale for _, e in there], "thickness": 1, "width": 3,
                    "arrayminus": [min(_half(e), (0.9 if log else 1e9) * abs(e.mean)) * scale for _, e in there],
                },
                hovertemplate="batch %{text}: %{y:.4g}",
            )  # fmt: skip
        for each in beside or ():
            if key in each.figures and math.isfinite(each.figures[key].mean):
                drawn.add_hline(
                    y=each.figures[key].mean * scale, line={"dash": "dash", "color": colour, "width": 1.5}, annotation_text="policy"
                )
    curves: list[Any] = list(drawn.data)
    if not curves:
        return None
    if line is not None and line.fit is not None:
        sizes = sorted(each.taken for each in lines if math.isfinite(each.taken))
        xs = [sizes[0] * (sizes[-1] / sizes[0]) ** (i / 40) for i in range(41)]
        drawn.add_scatter(
            x=xs, y=[line.fit.at(x) for x in xs], name="fit", mode="lines", line={"color": GREY, "dash": "dot", "width": 1.5},
            hoverinfo="skip",
        )  # fmt: skip
        if sizes[0] < line.fit.critical < sizes[-1]:
            drawn.add_vline(x=line.fit.critical, line={"color": GREY, "width": 1})
            drawn.add_annotation(  # Of a logarithmic axis, an annotation's place is the logarithm.
                x=math.log10(line.fit.critical), y=1, yref="paper", xanchor="left", text=f"critical {line.fit.critical:.2g}",
                showarrow=False,
            )
    _sized(drawn, lines)
    if log:
        logarithmic(drawn, "y", title)
    else:
        drawn.update_yaxes(title=title)
    drawn.update_layout(showlegend=len(curves) > 1)
    return drawn


def _apart(rounds: int) -> dict[int, list[int]]:
    """Return by round which percentages of *rounds* it stands for: of few rounds one stands for several, and one curve for them.

    >>> _apart(5)
    {1: [1, 10], 3: [50], 5: [100]}
    """
    found: dict[int, list[int]] = {}
    for share, at in points_of(rounds).items():
        found.setdefault(at, []).append(share)
    return found


def _percent(shares: Sequence[int]) -> str:
    return f"{' and '.join(map(str, shares))} %"


def _half(estimate: Estimate) -> float:
    return 0.0 if math.isnan(estimate.half) else estimate.half


def _sized(drawn: Any, lines: list[Line]) -> None:
    ticks = {each.row.size: "full" if each.row.whole else each.row.label for each in lines}
    ends = [math.log10(min(ticks)) - 0.05, math.log10(max(ticks)) + 0.05]
    logarithmic(drawn, "x", "batch size", tickvals=list(ticks), ticktext=list(ticks.values()), range=ends)


def _rates(lines: list[Line], metric: str) -> Any:
    import plotly.graph_objects as go

    drawn = go.Figure()
    for each, colour in zip(lines, ladder(len(lines)), strict=True):
        known = {rate: score for rate, score in each.tried.items() if math.isfinite(score)}
        name = "full" if each.row.whole else each.row.label
        drawn.add_scatter(
            x=list(known), y=list(known.values()), name=name, mode="lines+markers", line={"color": colour, "width": 1.5},
            marker={"size": 5}, hovertemplate=f"batch {name}, rate %{{x:.3g}}: %{{y:.4f}}",
        )  # fmt: skip
    logarithmic(drawn, "x", "learning rate")
    drawn.update_yaxes(title=metric)
    drawn.update_layout(showlegend=True)
    return drawn


def _how(study: Study) -> str:
    rules = "".join(f"<dt>{escape(name)}</dt><dd>{escape(rule)}</dd>" for name, rule in grades.RULES.items())
    said = "".join(f"<p class=note>{escape(note)}</p>" for note in notes(study))
    plan = study.plan
    facts = {
        "seeds": ", ".join(map(str, plan.seeds)), "runs": f"{study.runs:,} ({study.read:,} of them were done before, and read)",
        "folder": str(study.folder), "target": str(study.target), **machine(), **versions(),
    }  # fmt: skip
    shown = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return (
        f"<h2>How a number becomes a word</h2><dl class=rules>{rules}</dl>"
        "<p class=note>The textbook agrees where the whole 95 % interval has its grade, and disagrees where no part of it has. All sizes"
        " share their seeds, and with them data, devices and first models.</p>"
        f"<h2>What the study was</h2>{said}<div class=pair><section><h3>Scenario</h3><pre>{escape(toml(plan.scenario.plain()))}</pre>"
        f"</section><section><h3>Runs</h3><table>{shown}</table></section></div>"
    )
