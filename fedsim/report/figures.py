"""The figures of a report: learning, the timeline of the clients' work, the rounds; each with the words that go with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

import numpy as np

from fedsim.core.types import Frame
from fedsim.report.drawing import ALARM, INK, MARGIN, Drawing, ladder
from fedsim.report.units import axis_of, clock, duration, megabytes
from fedsim.score.outcomes import named, uncounted
from fedsim.score.run import Run
from fedsim.sim.rows import STREAM_ENDED

BARS = 400
"""Client tasks that the timeline shows at most, and rounds: more are neither read by a person nor drawn fast by a browser."""
POINTS = 1000
"""Points of a line at most."""
PHASES = (
    ("download", "#56b4e9", 0.5), ("training", "#009e73", 0.86), ("evaluation", "#cc79a7", 0.86),
    ("upload", "#e69f00", 0.5), ("waiting", "#6b7280", 0.16),
)  # fmt: skip
"""Name, colour, height. Waiting comes last and is thin: meanwhile the client's device works on an earlier task."""
ENDED = "came after a stream's end"
DISCARDED_WORDS = {
    "not needed": "came when the round had as many replies as it wanted", "in an abandoned round": "came in a round that was abandoned",
}  # fmt: skip
MARKS = {
    "late": ("late: discarded", "x", "came after the deadline"), "failed": ("failed", "diamond", "failed"),
    "not needed": ("not needed: discarded", "x-thin-open", DISCARDED_WORDS["not needed"]),
    "in an abandoned round": ("round abandoned", "cross-open", DISCARDED_WORDS["in an abandoned round"]),
    ENDED: ("after its stream's end", "square-open", ENDED),
    "in flight": ("cut off by the end", "triangle-right-open", "were cut off by the end of the run"),
}  # fmt: skip
"""What did not count, by outcome as ``outcomes.uncounted`` names it: name, symbol, and words for a sentence."""
SCOPES = {"central": "#1f8fd0", "training": "#e69f00", "federated": "#cc79a7"}
MEANINGS = {
    "accuracy": "The share of examples classified correctly.",
    "loss": "The mean loss per example; of training, the mean over a client's mini-batches while it trains.",
    "drift": "Alarms of a client's drift detector in one task, as the strategy averages them.",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as its report sees it: the run, and its frames, read once."""

    run: Run
    tasks: Frame
    rounds: Frame
    metrics: Frame

    @classmethod
    def of(cls, run: Run) -> Seen:
        """Return what *run*'s folder holds. Raises RunError where one of its tables cannot be read."""
        if "stream" in run.manifest["scenario"]:
            _ = run.tested
        return cls(run, run.tasks, run.rounds, run.metrics)

    @property
    def about(self) -> dict[str, Any]:
        """Return the run's manifest."""
        return self.run.manifest

    @property
    def now_s(self) -> float:
        """Return how far the run's time came; the manifest of a run that was killed, or still goes, does not know."""
        seen = [self.tasks[["sent_s", "arrived_s"]].max().max(), self.rounds.ended_s.max(), self.metrics.now_s.max()]
        return max([float(self.about["virtual_s"]), *(float(time_s) for time_s in seen if time_s == time_s)])

    @property
    def final(self) -> dict[str, float]:
        """Return the last central scores and the number of rounds, from the rows where the manifest is too early."""
        if self.about["status"] != "running":
            return dict(self.about["final"])
        central = self.metrics[self.metrics.scope == "central"].groupby("name").last()
        reached = self.metrics["round"].max() if len(self.metrics) else 0
        return {**{str(name): float(value) for name, value in central["value"].items()}, "rounds": int(reached)}

    @property
    def sent(self) -> tuple[float, float, float]:
        """Return the bytes sent down, sent up, and wasted."""
        about, tasks = self.about, self.tasks
        if about["status"] != "running":
            return about["bytes_down"], about["bytes_up"], about["bytes_wasted"]
        down, up = tasks.down_bytes + tasks.down_framing_bytes, tasks.up_bytes + tasks.up_framing_bytes
        return float(down.sum()), float(up.sum()), float((down + up)[tasks.outcome != "arrived"].sum())


def score_figures(seen: Seen) -> dict[str, Any]:
    """Return a figure for each score, by name: its rows against rounds, and what they are against time and megabytes as ``meta``."""
    import plotly.graph_objects as go

    unit, _ = clock(seen.now_s)
    metrics = seen.metrics.assign(
        shown=seen.metrics.name.replace("train_loss", "loss"), now=seen.metrics.now_s / unit,
        sent=(seen.metrics.down_bytes + seen.metrics.up_bytes) / 1e6,
    )  # fmt: skip
    drawn: dict[str, Any] = {}
    for shown, group in metrics.groupby("shown"):
        figure = drawn[str(shown)] = go.Figure()
        shades = _shades([str(scope) for scope in group.scope.unique()])
        for (scope, name), whole in group.groupby(["scope", "name"]):
            line = thinned(whole)
            along = {"round": line["round"].tolist(), "now": line.now.tolist(), "sent": line.sent.tolist()}
            figure.add_scatter(
                x=along["round"], y=line.value.tolist(), meta=along, name=escape(str(scope if name in (shown, "train_loss") else name)),
                mode="lines+markers" if len(line) <= 60 else "lines", marker={"size": 4},
                line={"color": shades[str(scope)], "width": 2 if scope in SCOPES else 1.2}, hovertemplate="%{y:.4f} at %{x:.6g}",
            )  # fmt: skip
        stop = seen.about["scenario"].get("stop") or {}
        if stop.get("metric") == shown and {"at_least", "at_most"} & stop.keys():
            figure.add_hline(y=stop.get("at_least", stop.get("at_most")), line={"dash": "dot", "color": ALARM, "width": 1.5})
        figure.update_layout(showlegend=True)
        figure.update_xaxes(title="round")
        figure.update_yaxes(title=escape(str(shown)))
    return drawn


def thinned(rows: Frame) -> Frame:
    """Return *rows*, or POINTS of them, evenly spread, the first and the last among them."""
    if len(rows) <= POINTS:
        return rows
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, POINTS).astype(int))]


def learning(seen: Seen, draw: Drawing) -> str:
    """Return each score against rounds, time or megabytes, with the switch between these."""
    metrics = seen.metrics
    if metrics.empty:
        return "<p>No score was recorded.</p>"
    unit_name = clock(seen.now_s)[1]
    drawn = [
        f"<figure class=score><h3>{escape(shown)}</h3>{draw.html(figure, 330)}</figure>" for shown, figure in score_figures(seen).items()
    ]
    shown = {str(name) for name in metrics.name.replace("train_loss", "loss")}
    most = int(metrics.groupby(["scope", "name"]).size().max())
    fewer = f" Of {most:,} evaluations {POINTS:,} are drawn, evenly spread." if most > POINTS else ""
    titles = {"round": "round", "now": f"{axis_of(seen.about)} ({unit_name})", "sent": "megabytes sent, down and up"}
    words = {"round": "rounds", "now": axis_of(seen.about), "sent": "megabytes sent"}
    radios = "".join(
        f'<label><input type=radio name=axis autocomplete=off value={axis}{" checked" if axis == "round" else ""}> {word}</label>'
        for axis, word in words.items()
    )
    meanings = " ".join(f"<b>{name}</b>: {text}" for name, text in MEANINGS.items() if name in shown)
    scopes = {str(scope).split(" ")[0] for scope in metrics.scope}
    on = "the examples that clients trained on, in hindsight" if seen.run.hindsight else "the server's test examples"
    said = {
        "central": f"<b>Central</b> scores are the global model's, on {on}.",
        "classes": "<b>Classes</b> are the same, on those of these classes.",
        "training": "<b>Training</b> is the mean over the clients heard in a round, as the strategy weighs them, while they train.",
        "federated": "<b>Federated</b> is that mean, over examples which the clients keep back.",
        "controller": "<b>Controller</b> is what the server's controller asked for after a round.",
    }
    who = " ".join(text for scope, text in said.items() if scope in scopes)
    return (
        f"<fieldset><legend>against</legend>{radios}</fieldset><div class=pair>{''.join(drawn)}</div>"
        f"<p class=note>{meanings} {who}{fewer}</p>"
        f"<script>{SWITCH.substitute(titles=json.dumps(titles))}</script>"
    )


def _shades(scopes: list[str]) -> dict[str, str]:
    """Return a colour for each of *scopes*: those by classes are a ladder, in the order of the scenario."""
    others = [scope for scope in scopes if scope not in SCOPES]
    return SCOPES | dict(zip(others, ladder(len(others)), strict=True))


def timeline_figure(seen: Seen) -> tuple[Any, int]:
    """Return who did what when, a line per client, a bar per phase of each of the first tasks; and how tall that is to be drawn."""
    import plotly.graph_objects as go

    tasks = _first_rounds(seen.tasks)[0]
    clients = sorted(tasks.client.unique().tolist())
    place = {client: i for i, client in enumerate(clients)}
    segments = [segment for task in tasks.itertuples(index=False) for segment in _segments(task, seen.now_s)]
    end_s = max((segment.to_s for segment in segments), default=0.0)
    unit, unit_name = clock(end_s)
    figure = go.Figure()
    for phase, colour, height in PHASES:
        found = sorted((segment for segment in segments if segment.phase == phase), key=lambda segment: segment.lost)
        if not found:
            continue  # Those that counted come first, so that the legend looks like them.
        hatch = ["/" if segment.lost and phase != "waiting" else "" for segment in found]
        figure.add_bar(
            orientation="h", name=phase, y=[place[segment.task.client] for segment in found], width=height,
            base=[segment.from_s / unit for segment in found], x=[(s.to_s - s.from_s) / unit for s in found],
            marker={"color": colour, "line": {"width": 0}, "opacity": [0.75 if lines else 1.0 for lines in hatch],
                    "pattern": {"shape": hatch, "size": 5, "solidity": 0.4}},
            hovertext=[segment.text for segment in found], hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    fate = named(tasks)
    for outcome, (name, symbol, _) in MARKS.items():
        lost = tasks[fate == outcome]
        if len(lost):
            ends = [_end_s(row, seen.now_s) / unit for row in lost.itertuples()]
            figure.add_scatter(
                x=ends, y=[place[client] for client in lost.client], mode="markers", name=name, hoverinfo="skip",
                marker={"symbol": symbol, "color": ALARM, "size": 7},
            )  # fmt: skip
    rounds = seen.rounds[seen.rounds["round"].isin(tasks["round"].unique())]
    figure.update_layout(barmode="overlay", bargap=0, shapes=[_wall(at_s / unit) for at_s in sorted({*rounds.started_s, *rounds.ended_s})])
    begins = rounds.groupby("round").started_s.min()
    for number, from_s in begins.iloc[:: max(1, -(-len(begins) // 12))].items():
        figure.add_annotation(
            text=f"{number}", x=from_s / unit, y=1, yref="paper", xanchor="left", yanchor="bottom",
            showarrow=False, font={"size": 11},
        )  # fmt: skip
    figure.update_xaxes(title=f"{axis_of(seen.about)} ({unit_name})", range=[0, end_s / unit * 1.01], showgrid=False)
    step = max(1, -(-len(clients) // 60))
    figure.update_yaxes(
        title="client", tickvals=list(range(0, len(clients), step)), ticktext=[str(client) for client in clients[::step]],
        range=[len(clients) - 0.4, -0.6], showgrid=False,
    )  # fmt: skip
    around = MARGIN["t"] + MARGIN["b"]
    tall = around + 50 + int(len(clients) * max(4, min(22, 800 / len(clients))))
    figure.update_layout(showlegend=True, legend_y=1 + 18 / (tall - around))
    return figure, tall


def timeline(seen: Seen, draw: Drawing) -> str:
    """Return who did what when."""
    if seen.tasks.empty:
        return "<p>No client task was recorded.</p>"
    tasks, caption = _first_rounds(seen.tasks)
    figure, tall = timeline_figure(seen)
    drawn = draw.html(figure, tall)
    why = [MARKS[outcome][2] for outcome in uncounted(tasks)]
    hatched = f" Hatched tasks did not count: they {', '.join(why[:-1])}{' or ' * (len(why) > 1)}{why[-1]}." if why else ""
    trigger = ", or for the client's trigger" if "stream" in seen.about["scenario"] else ""
    waits = any(trace.name == "waiting" for trace in figure.data)
    waiting = f" A thin grey line is a message that waits for a device that is still at work on an earlier one{trigger}." if waits else ""
    return (
        f"<figure class=timeline>{drawn}</figure><p class=note>{escape(caption)} A dotted"
        " line is where a round begins or ends, the first of all and some others with their numbers"
        f" above.{hatched}{waiting} The buttons at the top right of a figure zoom and pan.</p>"
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    """One phase of one task."""

    task: Any
    phase: str
    from_s: float
    to_s: float

    @property
    def lost(self) -> bool:
        return self.task.outcome != "arrived"

    @property
    def text(self) -> str:
        task, lasted = self.task, duration(self.to_s - self.from_s)
        size = megabytes(task.down_bytes + task.down_framing_bytes + task.up_bytes + task.up_framing_bytes)
        return (
            f"client {task.client}, round {task.round}: <b>{self.phase}</b><br>{lasted}, from {self.from_s:.3f} s to"
            f" {self.to_s:.3f} s<br>{task.examples} examples, {size} down and up<br>"
            f"{escape(f'{task.outcome} ({task.cause})' if task.cause else task.outcome)}"
        )


def _end_s(task: Any, end_s: float) -> float:
    """Return when a *task* that did not count was over: with its answer, when its client stopped, or with the run, at *end_s*."""
    return next((moment for moment in (task.arrived_s, task.stopped_s) if moment >= 0), end_s)


def _segments(task: Any, end_s: float) -> Iterable[_Segment]:
    work = "training" if task.kind == "train" else "evaluation"
    ends = (("download", task.received_s), ("waiting", task.started_s), (work, task.computed_s), ("upload", task.arrived_s))
    from_s = task.sent_s
    for phase, to_s in ends:
        if not to_s >= 0:  # NaN: it never happened.
            if task.outcome == "in flight" or task.stopped_s >= 0:
                yield _Segment(task, phase, from_s, max(from_s, task.stopped_s if task.stopped_s >= 0 else end_s))
            return
        if to_s > from_s:
            yield _Segment(task, phase, from_s, to_s)
        from_s = to_s


def _first_rounds(tasks: Frame) -> tuple[Frame, str]:
    """Return the tasks of the first rounds that fit on the timeline, and the sentence that says which these are."""
    counts = tasks.groupby("round").size()
    whole = counts[counts.cumsum() <= BARS].index
    if len(whole) == len(counts):
        return tasks, f"All {len(tasks):,} client tasks."
    if len(whole):
        shown = tasks[tasks["round"].isin(whole)]
        which = f"Rounds {whole[0]} to {whole[-1]}" if len(whole) > 1 else f"Round {whole[0]}"
        return shown, f"{which}: the first {len(shown):,} of {len(tasks):,} client tasks."
    first = tasks[tasks["round"] == counts.index[0]].sort_values(["sent_s", "message"])
    return first.head(BARS), f"The first {BARS} of {len(first):,} client tasks of round {counts.index[0]}, in the order of sending."


def _wall(at: float) -> dict[str, Any]:
    return {
        "type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "layer": "below",
        "line": {"color": INK, "width": 1, "dash": "dot"},
    }  # fmt: skip


def rounds_figures(seen: Seen) -> dict[str, Any]:
    """Return how long each round took, and where any did without some, how many clients it went on without, by heading."""
    import plotly.graph_objects as go

    rows = seen.rounds
    group = -(-int(rows["round"].max()) // BARS)
    place = (rows["round"] - 1) // group * group + (1 + group) / 2
    each = "" if group == 1 else f", the mean of {group} rounds"
    lasted = rows.ended_s - rows.started_s
    unit, unit_name = clock(float(lasted.max()))
    lengths, missing = go.Figure(), go.Figure()
    for kind, name, colour in (("train", "training", "#009e73"), ("evaluate", "evaluation", "#cc79a7")):
        of_kind = rows.kind == kind
        if of_kind.any():
            means = (lasted[of_kind] / unit).groupby(place[of_kind]).mean()
            lengths.add_bar(x=means.index.tolist(), y=means.tolist(), name=name, marker={"color": colour})
    lengths.update_layout(barmode="stack", showlegend=bool((rows.kind != "train").any()))
    lengths.update_xaxes(title="round")
    lengths.update_yaxes(title=unit_name, rangemode="tozero")
    found = {f"How long each round took{each}": lengths}
    if int(rows.missed.sum() + rows.failed.sum()):
        ended = seen.tasks[seen.tasks.failure == STREAM_ENDED].groupby("round").size()
        after = rows["round"].map(ended).fillna(0).astype(int).where(rows.kind == "train", 0)
        for count, name, colour in (
            (rows.missed, "missed the deadline", ALARM), (rows.failed - after, "failed", "#6b7280"), (after, "stream had ended", "#b0b7c3"),
        ):  # fmt: skip
            if count.any():
                means = count.groupby(rows["round"]).sum()
                means = means.groupby((means.index - 1) // group * group + (1 + group) / 2).mean()
                missing.add_bar(x=means.index.tolist(), y=means.tolist(), name=name, marker={"color": colour})
        missing.update_layout(barmode="stack", showlegend=True)
        missing.update_xaxes(title="round")
        most = int((rows.missed + rows.failed).max())
        missing.update_yaxes(title="clients", rangemode="tozero", dtick=1 if most <= 6 else None)
        found[f"Clients that a round went on without{each}"] = missing
    return found


def rounds(seen: Seen, draw: Drawing) -> str:
    """Return how long each round took, and how many clients it went on without."""
    rows = seen.rounds
    if rows.empty:
        return "<p>No round was finished.</p>"
    drawn = "".join(f"<figure><h3>{title}</h3>{draw.html(figure, 300)}</figure>" for title, figure in rounds_figures(seen).items())
    asked, lost = int(rows.asked.sum()), int(rows.missed.sum() + rows.failed.sum())
    said = (
        f"{lost:,} of {asked:,} messages brought no answer, or none in time." if lost else "Every client that was asked answered in time."
    )
    return f"<div class=pair>{drawn}</div><p class=note>{said}</p>"


SWITCH = Template("""
const titles = $titles;
for (const radio of document.querySelectorAll("input[name=axis]")) radio.addEventListener("change", () => {
  for (const plot of document.querySelectorAll(".score .plot")) change(plot, (data, layout) => {
    for (const line of data) line.x = line.meta[radio.value];
    layout.xaxis.title = {text: titles[radio.value]};
    layout.xaxis.autorange = true;
  });
});
""")
