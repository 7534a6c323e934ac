"""What the report says of steps that were watched: how losses, gradients and updates went, and how much of them is noise."""

from __future__ import annotations

import math

import numpy as np

from fedsim.core.types import Frame
from fedsim.report.axes import logarithmic
from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen
from fedsim.report.noises import LARGER, WATCHED
from fedsim.score.noise import Scale, scale_of

COLUMNS = {"loss": "#1f8fd0", "gradient": "#e69f00", "update": "#009e73"}
QUARTILES = (0.25, 0.5, 0.75)
SPANS, ENOUGH = 6, 8
"""How many spans the noise scales are drawn for at most, and how many estimates each has at least, where a run has that many."""


def watched(seen: Seen) -> bool:
    """Return whether the scenario asks to watch, and something was seen."""
    return "monitor" in seen.about["scenario"] and len(seen.run.steps) > 0


def monitoring(seen: Seen, draw: Drawing) -> str:
    """Return the curves of watched steps by round, and the noise scales over spans of rounds where there are estimates."""
    steps = seen.run.steps
    drawn = [_lengths(steps, name, colour, draw) for name, colour in COLUMNS.items()]
    if scales := _scales(seen, draw):
        drawn.append(scales)
    figures = "".join(f"<figure><h3>{title}</h3>{html}</figure>" for title, html in drawn)
    return f"<div class=pair>{figures}</div><p class=note>{_words(seen, steps)}</p>"


def _lengths(steps: Frame, name: str, colour: str, draw: Drawing) -> tuple[str, str]:
    """Return median and quartiles of the column *name* over the watched steps of each round."""
    import plotly.graph_objects as go

    low, middle, high = (steps.groupby("round")[name].quantile(share) for share in QUARTILES)
    rounds = middle.index.tolist()
    figure = go.Figure()
    figure.add_scatter(x=rounds, y=high.tolist(), mode="lines", line={"width": 0}, hoverinfo="skip", showlegend=False)
    figure.add_scatter(
        x=rounds, y=low.tolist(), mode="lines", line={"width": 0}, fill="tonexty", fillcolor=f"{colour}33", name="half of the steps",
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(x=rounds, y=middle.tolist(), mode="lines", line={"color": colour, "width": 2}, name="median",
                       hovertemplate="%{y:.4g} in round %{x}")  # fmt: skip
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="round")
    if name == "loss":
        figure.update_yaxes(title="loss")
    else:
        logarithmic(figure, "y", "length (L2)")
    title = {"loss": "Loss of a mini-batch", "gradient": "Length of the gradient", "update": "Length of the update"}[name]
    return title, draw.html(figure, 280)


def _scales(seen: Seen, draw: Drawing) -> tuple[str, str] | None:
    """Return the noise scales within and between clients over spans of rounds, with their intervals; None where no signal was found."""
    import plotly.graph_objects as go

    between, within = seen.run.noises
    kinds = (("examples worth averaging", "#cc79a7", spans(within)), ("clients worth averaging", "#1f8fd0", spans(between)))
    known = [end for _, _, found in kinds for _, _, scale in found for end in (scale.value, scale.low, scale.high) if 0 < end < math.inf]
    if not known:
        return None
    bottom, top = min(known) / 1.25, max(known) * 1.25
    figure = go.Figure()
    for name, colour, found in kinds:
        shown = [(first, last, scale) for first, last, scale in found if 0 < scale.value < math.inf]
        if not shown:
            continue
        figure.add_scatter(
            x=[(first + last) / 2 for first, last, _ in shown], y=[scale.value for _, _, scale in shown], name=name,
            mode="lines+markers", marker={"size": 6}, line={"color": colour, "width": 1, "dash": "dot"},
            error_x={"array": [(last - first) / 2 for first, last, _ in shown], "thickness": 2, "width": 0},
            error_y={
                "array": [(scale.high if math.isfinite(scale.high) else 10 * top) - scale.value for _, _, scale in shown],
                "arrayminus": [scale.value - max(scale.low, bottom / 10) for _, _, scale in shown], "thickness": 1.5, "width": 4,
            },
            customdata=[[_rounds(first, last), scale.low, str(scale.high), scale.count] for first, last, scale in shown],
            hovertemplate="%{customdata[0]}: %{y:.3g} (%{customdata[1]:.3g} to %{customdata[2]:.4}), %{customdata[3]} estimates",
        )  # fmt: skip
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="round")
    logarithmic(figure, "y", "examples, or clients", range=[math.log10(bottom), math.log10(top)])
    return "Noise scale: tr(&Sigma;) / |G|&sup2;", draw.html(figure, 280)


def spans(estimates: Frame) -> list[tuple[int, int, Scale]]:
    """Return the noise scale of spans of rounds, the first and last of which stand before it: SPANS of them, ENOUGH estimates in each.

    The few tasks of one round would give a line that follows their luck.
    """
    rounds = np.unique(estimates["round"].to_numpy()) if len(estimates) else np.empty(0, dtype=np.int64)
    count = min(SPANS, max(1, len(estimates) // ENOUGH), len(rounds))
    found: list[tuple[int, int, Scale]] = []
    for span in np.array_split(rounds, count) if count else ():
        inside = estimates[estimates["round"].isin(span)]
        found.append((int(span[0]), int(span[-1]), scale_of(inside.signal.to_numpy(), inside.trace.to_numpy())))
    return found


def _rounds(first: int, last: int) -> str:
    return f"round {first}" if first == last else f"rounds {first} to {last}"


def _words(seen: Seen, steps: Frame) -> str:
    scales = seen.run.noise_scale()
    kinds = ((scales.within, "a batch of {} examples"), (scales.between, "a round of {} clients"))
    said = [
        f"{what.format(f'{scale.value:,.3g}')}{f' ({scale.low:,.3g} to {scale.high:,.3g})' if scale.low == scale.low else ''}"
        for scale, what in kinds if math.isfinite(scale.value)
    ]  # fmt: skip
    over = f" Over the whole run noise and signal are alike in {' and '.join(said)}; much larger ones hardly save steps." if said else ""
    drawn = (
        " Noise scales are drawn for spans of rounds, with their intervals of 95 %; a bar that leaves the figure has no end, and where no"
        f" signal was told from noise there is no point. {WATCHED} {LARGER}"
    ) if said else ""  # fmt: skip
    return f"{len(steps):,} local steps were watched.{over}{drawn}"
