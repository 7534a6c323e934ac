"""The report's part on runs with streams: accuracy before training, what is still known, drift noticed, freshness, weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from fedsim.core.types import Frame
from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen
from fedsim.report.online_figures import WINDOW, accuracy_matrix_figure, fitting, prequential_figure, weights_figure
from fedsim.report.units import axis_of, duration
from fedsim.score import matrix, online
from fedsim.score.continual import RECOVERY_EPS, RECOVERY_WINDOW
from fedsim.score.prequential import summary
from fedsim.score.run import Run

CLIENTS = 10
"""Clients up to which a table has a row for each."""
STYLE = """<style>
.figures td, .figures th { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures td:first-child, .figures th:first-child { text-align: left; } .figures { margin: 0.3rem 0 0.6rem; }
.wide { overflow-x: auto; }
</style>"""
SCORES = {
    "accuracy": "accuracy", "no_change": "no change", "majority": "majority", "log_loss": "log loss", "kappa": "kappa",
    "kappa_m": "kappa-M", "kappa_temporal": "kappa-temporal",
}  # fmt: skip
"""Columns of the table of scores, and how they are headed."""


def streams(seen: Seen, draw: Drawing) -> str:
    """Return what the report says about a run's streams."""
    run = seen.run
    tested = run.tested
    scored = online.scored(tested)
    if scored.empty:
        return "<p>No example was tested.</p>"
    drifts, alarms = run.drifts, run.alarms
    parts = [
        STYLE, _prequential(run, tested, scored, drifts, alarms, draw), _matrix(run, draw),
        _drift(run, tested, drifts, alarms),
        _freshness(run), _weights(run, draw),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _prequential(run: Run, tested: Frame, scored: Frame, drifts: Frame, alarms: Frame, draw: Drawing) -> str:
    window = fitting(len(scored))
    figure = prequential_figure(scored, drifts.time_s.tolist(), alarms.time_s.tolist(), window=window, time=axis_of(run.manifest))
    found = summary(scored)
    few = (found.scope == "client").sum() <= CLIENTS
    rows = found if few else found[found.scope != "client"]
    listed = [
        [
            f"client {row['client']}" if row["scope"] == "client" else row["scope"],
            f"{row['examples']:,}",
            *(_number(row[name]) for name in SCORES),
        ]
        for row in rows.to_dict("records")
    ]
    unlabelled = len(tested) - len(scored)
    missing = f" {unlabelled:,} more were tested, but their labels never come." if unlabelled else ""
    return (
        "<h3>Examples predicted before their client trained on them</h3>"
        f"<figure>{draw.html(figure, 360)}</figure>"
        f"{table(['', 'examples', *SCORES.values()], listed)}"
        f"<p class=note>{len(scored):,} examples, each predicted when its client came to train on it.{missing}"
        " <b>No change</b> repeats the label that a client learned last, <b>majority</b> takes the one it has learned most"
        " often; kappa-temporal and kappa-M say how far the accuracy lies beyond these two, kappa beyond chance: 1 is"
        " perfect, 0 is no better. The worst tenth are the clients of the lowest accuracy, at least one. The curve shows the last"
        f" {window:,} examples at each moment: a twentieth of all, but 50 at least and {WINDOW:,} at most.</p>"
    )


def _matrix(run: Run, draw: Drawing) -> str:
    metrics = run.metrics
    if not metrics.scope.str.startswith(matrix.GROUP).any():
        return ""
    found = run.accuracy_matrix()
    if not len(found.accuracy):
        return ""
    after = [_after(row, number) for row, number in enumerate(found.rounds.tolist())]
    figure = accuracy_matrix_figure(found.accuracy, found.groups, after)
    scores = table(["", ""], [[name, _number(value)] for name, value in found.scores.items()])
    on = "the examples that clients trained on, in hindsight" if run.hindsight else "the server's test examples"
    tall = 130 + 36 * max(4, len(found.accuracy))
    return (
        "<h3>What is still known of each group of classes</h3>"
        f"<div class=pair><figure>{draw.html(figure, min(560, tall))}</figure><div>{scores}"
        f"<p class=note>The global model on {on}, by classes. A row is the last evaluation before the"
        " model had learned from a later concept; the last row is the end. <b>Forgetting</b> is how far earlier groups lie"
        " below the best they ever were, <b>any-time accuracy</b> the mean, over all evaluations, of the accuracy on what"
        " had come by then.</p></div></div>"
    )


def _after(concept: int, number: int) -> str:
    return f"{concept + 1} (round {number})" if number >= 0 else f"{concept + 1} (not evaluated)"


def _drift(run: Run, tested: Frame, drifts: Frame, alarms: Frame) -> str:
    watching = run.manifest["scenario"]["clients"].get("detector", {"kind": "none"})["kind"] != "none"
    said = _recovered(run, drifts, online.recoveries(tested, drifts))
    if not watching:
        return f"<h3>Drift</h3>{said}" if said else ""
    found = online.detections(tested, alarms, drifts, known=online.told(run.manifest["scenario"], drifts))
    rows: Frame = found if len(found) <= CLIENTS + 1 else found[found.client == online.ALL]
    scored = not np.isnan(found.drifts.iloc[-1])
    counts = ("alarms", "drifts", "noticed", "missed", "false_alarms") if scored else ("alarms",)
    listed = [
        [_client(row["client"]), *(_counted(row[name]) for name in counts), *([_seconds(row["mean_delay_s"])] if scored else [])]
        for row in rows.to_dict("records")
    ]
    head = ["", *(name.replace("_", " ") for name in counts), *(["mean delay"] if scored else [])]
    rule = (
        " A drift is noticed by the client's first alarm after it and before its next drift; every other alarm is false. The"
        f" delay is {_time(run)}, until the task in which the alarm was raised." if scored else ""
    )  # fmt: skip
    unknown = (
        " Where the true drifts are unknown, an alarm is neither right nor false: <b>stream.drifts_s</b> in the scenario"
        " declares known times." if found.drifts.isna().any() else ""
    )  # fmt: skip
    return (
        f"<h3>{'Drift, and who noticed' if scored else 'Alarms'}</h3>{table(head, listed)}"
        f"<p class=note>{escape(_sentence(online.noticed(found)))}{rule}{unknown}</p>{said}"
    )


def _recovered(run: Run, drifts: Frame, back: Frame) -> str:
    if back.empty:
        return ""
    moments = f"{len(back):,} moments" if len(back) > 1 else "one moment"
    said = f"{len(drifts):,} drifts of clients, at {moments} of {_time(run)}."
    enough = back[(back[["before", "after"]] >= RECOVERY_WINDOW).all(axis=1)].recovery_s.to_numpy(dtype=np.float64)
    if len(enough):
        mean = f", after {duration(float(np.nanmean(enough)))} in the mean" if np.isfinite(enough).any() else ""
        said += (
            f" After {np.isfinite(enough).sum():,} of the {len(enough):,} that can be told, the accuracy over {RECOVERY_WINDOW} examples"
            f" came back to within {RECOVERY_EPS:g} of what it had been before{mean}."
        )
    if len(enough) < len(back):
        said += f" Of {len(back) - len(enough):,} it cannot be told: it takes {RECOVERY_WINDOW} examples before and after,"
        said += " up to the next drift."
    return f"<p class=note>{said}</p>"


def _freshness(run: Run) -> str:
    found = run.freshness()
    rows: Frame = found if len(found) <= CLIENTS + 1 else found[found.client == online.ALL]
    listed = [
        [_client(row["client"]), _seconds(row["mean_age_s"]), _seconds(row["age_s"]), f"{row['merged']:,} of {row['examples']:,}",
         _seconds(row["to_model_s"]), _seconds(row["to_model_p90_s"])]
        for row in rows.to_dict("records")
    ]  # fmt: skip
    training = run.manifest["scenario"]["training"]
    few = {
        "drop_last": training.get("drop_last"), "steps": training.get("steps"), "epochs": (training.get("epochs") or 1) < 1,
        "sampling": training.get("sampling") == "replacement",
    }  # fmt: skip
    which = next((f"training.{key}" for key, asked in few.items() if asked), "")
    counted = f" With {which} those count too that came to a task and fell into no batch." if which else ""
    return (
        "<h3>Freshness</h3>"
        f"{table(['', 'mean age', 'age at the end', 'examples merged', 'mean time to a model', '90 % within'], listed)}"
        "<p class=note>The age is that of the newest example which the model serving a client has learned from;"
        " its mean leaves out the time before a client has such a model. <b>Merged</b> are examples that a global model learned"
        " from, and the <b>time to a model</b> is that from an example's arrival at its client to the first which did."
        f"{counted}</p>"
    )


def _weights(run: Run, draw: Drawing) -> str:
    shares = run.weights()
    if shares.empty:
        return ""
    count = int(run.manifest["scenario"]["clients"]["count"])
    return (
        f"<h3>Who weighs how much</h3><div class=pair><figure>{draw.html(weights_figure(shares, count), 240)}</figure>"
        f"<p class=note>Results of {len(shares):,} of {count:,} clients were merged. A client's share is its part of its round's"
        f" examples, averaged over the rounds; the dotted line is what each of all {count:,}"
        f" would have if they were equal. The Gini coefficient of all clients' shares is"
        f" {_number(online.gini(shares.share.to_numpy(), count))}: 0 is all alike, 1 is one client alone.</p></div>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table of figures; every cell is text."""
    top = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>" if any(head) else ""
    body = "".join(f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows)
    return f"<div class=wide><table class=figures>{top}{body}</table></div>"


def _client(number: Any) -> str:
    return "all" if int(number) == online.ALL else f"client {int(number)}"


def _time(run: Run) -> str:
    return "the run's time" if run.manifest.get("ground") else "virtual time"


def _counted(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "unknown"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "none"


def _seconds(value: float) -> str:
    return duration(value) if np.isfinite(value) else "unknown"
