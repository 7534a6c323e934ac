"""What the report says of steps that were watched: how losses, gradients and updates went, and how much of them is noise."""

from __future__ import annotations

import math
from typing import Any

from fedsim.core.types import Frame
from fedsim.report.figures import Drawing, Seen

COLUMNS = {"loss": "#1f8fd0", "gradient": "#e69f00", "update": "#009e73"}
QUARTILES = (0.25, 0.5, 0.75)


def watched(seen: Seen) -> bool:
    """Return whether the scenario asks to watch, and something was seen."""
    return "monitor" in seen.about["scenario"] and len(seen.run.steps) > 0


def monitoring(seen: Seen, draw: Drawing) -> str:
    """Return the curves of watched steps by round, and those of the noise scales where there are estimates."""
    steps = seen.run.steps
    drawn = [_lengths(steps, name, colour, draw) for name, colour in COLUMNS.items()]
    noise = seen.run.noise()
    if len(noise):
        drawn.append(_scales(noise, draw))
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
    if name != "loss":
        figure.update_yaxes(type="log")
    title = {"loss": "Loss of a mini-batch", "gradient": "Length of the gradient", "update": "Length of the update"}[name]
    return title, draw.html(figure, 280)


def _scales(noise: Frame, draw: Drawing) -> tuple[str, str]:
    """Return the noise scales within and between clients by round; what is infinite is left out."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, words, colour in (("batch", "examples worth averaging", "#cc79a7"), ("cohort", "clients worth averaging", "#1f8fd0")):
        values: Any = noise[name]
        known = [value if math.isfinite(value) else None for value in values.tolist()]
        figure.add_scatter(x=noise["round"].tolist(), y=known, mode="lines+markers", marker={"size": 4}, line={"color": colour, "width": 2},
                           name=words, hovertemplate="%{y:.4g} in round %{x}")  # fmt: skip
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="round")
    figure.update_yaxes(type="log")
    return "Noise scale: tr(&Sigma;) / |G|&sup2;", draw.html(figure, 280)


def _words(seen: Seen, steps: Frame) -> str:
    scales = seen.run.noise_scale()
    kinds = ((scales.within, "a batch of {} examples"), (scales.between, "a round of {} clients"))
    said = [
        f"{what.format(f'{scale.value:,.3g}')}{f' ({scale.low:,.3g} to {scale.high:,.3g})' if scale.low == scale.low else ''}"
        for scale, what in kinds if math.isfinite(scale.value)
    ]  # fmt: skip
    over = f" Over the whole run noise and signal are alike in {' and '.join(said)}; much larger ones hardly save steps." if said else ""
    return f"{len(steps):,} local steps were watched. A gap in the noise scales is where no signal was told from noise.{over}"
