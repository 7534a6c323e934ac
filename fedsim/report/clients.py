"""What the report says of clients: who took part, how their scores lie, and whom that favours. A few hundred marks, of any run."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from fedsim.core.types import Array, FloatArray, Frame, IntArray
from fedsim.report.axes import logarithmic
from fedsim.report.drawing import ALARM, INK, Drawing
from fedsim.report.figures import Seen
from fedsim.score import fared, online
from fedsim.score.fairness import TENTH, Correlation, tenths
from fedsim.score.fared import MEASURES, Fairness
from fedsim.score.prequential import NO_ANSWER
from fedsim.score.target import upwards

MARKS = 120
"""Clients, or groups of as many clients each, that a figure shows."""
SPANS, ENOUGH = 60, 10
"""Spans of rounds that a curve is drawn of at most; and how many scores each has at least, where a run has that many."""
HEARD, SCORES, FEW = "#1f8fd0", "#009e73", 0.05
"""A blue and a green that read on white and on black, with the orange of ALARM told apart by everybody; and the p that makes a link."""


def took_part(seen: Seen) -> bool:
    """Return whether any client was asked for anything."""
    return len(seen.tasks) > 0


def clients(seen: Seen, draw: Drawing) -> str:
    """Return the figures of fairness, participation per client and against speed and volume, and how scores lie over rounds."""
    frame, run = seen.run.clients, seen.run
    count = int(seen.about["scenario"]["clients"]["count"])
    counts, gflops, examples = fared.heard(frame, run.devices, count)
    found = fared.fairness(frame, run.devices, run.tested, seen.about)
    drawn = [("How often each client was heard", _heard(counts, _asked(frame, count), draw))]
    if found.measure:
        drawn.append((f"{_named(found.measure)} of clients, over rounds", _scores(_told(seen, frame, found.measure), found.measure, draw)))
    for values, title, axis in (
        (gflops, "How often, by the speed of the device", "GFLOP/s"), (examples, "How often, by the volume of data", "examples"),
    ):  # fmt: skip
        known = values[np.isfinite(values)]
        if len(known) and known.min() < known.max():
            drawn.append((title, _against(values, counts, axis, draw)))
    figures = "".join(f"<figure><h3>{escape(title)}</h3>{html}</figure>" for title, html in drawn)
    note = f" {frame.attrs['note']}" if "note" in frame.attrs else ""
    return f"{_facts(found)}<div class=pair>{figures}</div><p class=note>{escape(_words(found) + note)}</p>"


def _asked(frame: Frame, count: int) -> IntArray:
    there = frame.client[frame.outcome.notna()].to_numpy(dtype=np.int64)
    return np.bincount(there[there < count], minlength=count)


def _heard(counts: IntArray, asked: IntArray, draw: Drawing) -> str:
    """Return how often each client was heard, and how often asked, from the most to the least; groups of clients where they are many."""
    import plotly.graph_objects as go

    order = np.lexsort((-asked, -counts))
    groups = np.array_split(order, min(MARKS, len(order)))
    firsts = np.cumsum([0, *(len(group) for group in groups[:-1])])
    each = len(counts) <= MARKS
    figure = go.Figure()
    for values, name, colour, opacity in ((asked, "asked to train", INK, 0.45), (counts, "heard in time", HEARD, 1.0)):
        figure.add_bar(
            x=(firsts + 1).tolist(), y=[float(values[group].mean()) for group in groups], name=name,
            marker={"color": colour, "opacity": opacity}, width=[float(len(group)) * 0.86 for group in groups], offset=0.07,
            hovertext=[f"client {group[0]}" if each else f"{len(group)} clients, on average" for group in groups],
            hovertemplate="%{hovertext}: %{y:.4g}",
        )  # fmt: skip
    figure.update_layout(barmode="overlay", showlegend=True)
    figure.update_xaxes(title="clients, the most heard first")
    figure.update_yaxes(title="times", rangemode="tozero")
    return draw.html(figure, 300)


def _told(seen: Seen, frame: Frame, measure: str) -> Frame:
    """Return every score that *measure* stands for: client, round, value."""
    if measure != "prequential accuracy":
        told: Frame = frame.loc[np.isfinite(frame[measure].to_numpy()), ["client", "round", measure]]
        return told.rename(columns={measure: "value"})
    scored = online.scored(seen.run.tested)
    scored = scored[scored.prediction != NO_ANSWER]
    return scored.assign(value=(scored.y == scored.prediction).astype(float)).groupby(["client", "round"], as_index=False)["value"].mean()


def _scores(told: Frame, measure: str, draw: Drawing) -> str:
    """Return the median, the 10 to 90 % band and the mean of the worst tenth of what clients told, over spans of rounds."""
    import plotly.graph_objects as go

    up = upwards(measure)
    spans = spread_over(told["round"].to_numpy(), told["value"].to_numpy(dtype=np.float64), up=up)
    at, low, middle, high, worst = spans.T.tolist()
    figure = go.Figure()
    figure.add_scatter(x=at, y=high, mode="lines", line={"width": 0}, hoverinfo="skip", showlegend=False)
    figure.add_scatter(
        x=at, y=low, mode="lines", line={"width": 0}, fill="tonexty", fillcolor=f"{SCORES}4d", name="80 % of clients", hoverinfo="skip",
    )  # fmt: skip
    mode = "lines+markers" if len(at) < SPANS // 2 else "lines"
    for values, name, colour, dash in ((middle, "median", SCORES, "solid"), (worst, "worst tenth, mean", ALARM, "dash")):
        figure.add_scatter(
            x=at, y=values, mode=mode, name=name, line={"color": colour, "width": 2, "dash": dash}, marker={"size": 5},
            hovertemplate="%{y:.4g} around round %{x:.4g}",
        )  # fmt: skip
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="round")
    figure.update_yaxes(title="loss" if not up else "accuracy", rangemode="tozero")
    return draw.html(figure, 300)


def spread_over(rounds: IntArray, values: FloatArray, *, up: bool) -> FloatArray:
    """Return how *values* lie over spans of *rounds*: a row each of middle round, 10 %, 50 %, 90 %, and mean of the worst tenth.

    SPANS at most, each of whole rounds and with ENOUGH values, where there are as many. Shapes: (n,), (n,) -> (spans, 5).

    >>> spread_over(np.repeat([1, 2], 11), np.tile(np.arange(11.0), 2), up=True).tolist()
    [[1.0, 1.0, 5.0, 9.0, 0.5], [2.0, 1.0, 5.0, 9.0, 0.5]]
    """
    order = np.argsort(rounds, kind="stable")
    rounds, values = rounds[order], values[order]
    starts = np.flatnonzero(np.r_[True, rounds[1:] != rounds[:-1]])
    least = max(ENOUGH, -(-len(values) // SPANS))
    cuts, begun = [0], 0
    for start in starts[1:].tolist():
        if start - begun >= least:
            cuts.append(start)
            begun = start
    if len(cuts) > 1 and len(values) - cuts[-1] < ENOUGH:  # What is left is too little for a span of its own.
        cuts.pop()
    found: list[list[float]] = []
    for low, high in zip(cuts, [*cuts[1:], len(values)], strict=True):
        inside = values[low:high]
        middle = (float(rounds[low]) + float(rounds[high - 1])) / 2
        found.append([middle, *np.quantile(inside, (0.1, 0.5, 0.9)).tolist(), tenths(inside, upwards=up)[0]])
    return np.array(found)


def _against(values: FloatArray, counts: IntArray, axis: str, draw: Drawing) -> str:
    """Return how often clients were heard against *values* of them: a dot a client, or a group of clients that are next to each other."""
    import plotly.graph_objects as go

    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    groups = np.array_split(order, min(MARKS, len(order)))
    x: Array = np.array([values[group].mean() for group in groups])
    figure = go.Figure()
    figure.add_scatter(
        x=x.tolist(), y=[float(counts[group].mean()) for group in groups], mode="markers", showlegend=False,
        marker={"color": HEARD, "size": 7, "opacity": 0.75},
        hovertext=[f"client {group[0]}" if len(group) == 1 else f"{len(group)} clients, on average" for group in groups],
        hovertemplate="%{hovertext}: %{x:.4g} " + axis + ", heard %{y:.4g} times<extra></extra>",
    )  # fmt: skip
    if x.min() > 0 and x.max() / x.min() > TENTH:
        logarithmic(figure, "x", axis)
    else:
        figure.update_xaxes(title=axis)
    figure.update_yaxes(title="times heard", rangemode="tozero")
    return draw.html(figure, 300)


def _named(measure: str) -> str:
    return {"train_loss": "Training loss"}.get(measure, measure.capitalize())


def _facts(found: Fairness) -> str:
    part, scores = found.participation, found.scores
    facts: list[tuple[str, float, str]] = [
        ("never heard", part.never, "The share of all clients of whom no reply came in time."),
        ("participation, Jain", part.jain, "1 where all were heard equally often, k / n where only k of n were."),
        ("participation, Gini", part.gini, "0 where all were heard equally often, near 1 where one client is all."),
    ]
    if scores is not None:
        what = f"Of the {MEASURES[found.measure]}."
        facts += [
            (f"worst tenth, {_short(found.measure)}", scores.worst_tenth, f"{what} The mean over the worst tenth of clients."),
            (f"best tenth, {_short(found.measure)}", scores.best_tenth, f"{what} The mean over the best tenth of clients."),
            ("variance", scores.variance, f"{what} Over clients, each counting the same."),
            ("scores, Jain", scores.jain, "1 where all clients have the same score, however good."),
            ("scores, Gini", scores.gini, "0 where all clients have the same score, however good."),
        ]
    cells = "".join(
        f'<div title="{escape(title)}"><dt>{escape(name)}</dt><dd>{_figure(value, share=name == "never heard")}</dd></div>'
        for name, value, title in facts
    )
    return f"<dl class=facts>{cells}</dl>"


def _short(measure: str) -> str:
    return "loss" if "loss" in measure else "accuracy"


def _figure(value: float, *, share: bool) -> str:
    if not math.isfinite(value):
        return "unknown"
    return f"{100 * value:{'.1f' if 0 < value < 0.1 else '.0f'}} %" if share else f"{value:.3g}"


def _words(found: Fairness) -> str:
    part, scores = found.participation, found.scores
    said = [_linked(part.with_speed, "faster devices", "fast and slow devices", "speed"),
            _linked(part.with_volume, "clients with more data", "clients with much and with little data", "volume")]  # fmt: skip
    if scores is not None:
        since = f", the earliest of round {found.since}" if "last" in MEASURES[found.measure] else ""
        spread = f"{scores.mean:.3g} on average, {math.sqrt(scores.variance):.2g} the standard deviation"
        said.append(f"Scores are the {MEASURES[found.measure]}{since}: of {scores.clients:,} of {part.clients:,} clients, {spread}.")
        said.append("Jain's index and the Gini coefficient say how equal scores are, not how good; that the worst tenth says.")
    else:
        said.append("Nothing was told of how clients fared.")
    if part.clients > MARKS:
        said.append(f"A bar or dot stands for {-(-part.clients // MARKS):,} clients or so.")
    return " ".join(said)


def _linked(link: Correlation, more: str, both: str, what: str) -> str:
    """Return what a correlation says, in a sentence."""
    if not math.isfinite(link.rho):
        if link.clients < 3:
            return f"The {what} of too few clients is known to say whether that is linked to how often they were heard."
        return f"Whether {what} is linked to how often clients were heard cannot be said: one of the two is the same for all."
    figures = f"(Spearman {link.rho:+.2f}, p = {link.p:.2g}, {link.clients:,} clients)"
    if link.p >= FEW:
        return f"Between {both} no link with how often they were heard was found {figures}."
    return f"{more.capitalize()} were heard {'more' if link.rho > 0 else 'less'} often {figures}."


