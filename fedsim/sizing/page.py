"""A sizing as one web page that needs no network: what to deploy, what each setting comes to, and what that rests on. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.record.manifest import whole
from fedsim.report.drawing import ALARM, INK, Drawing, ladder
from fedsim.report.page import PAGE as FRAME
from fedsim.report.page import toml
from fedsim.report.units import clock, duration
from fedsim.scenario.load import Loaded
from fedsim.sizing import Sizing
from fedsim.sizing.course import Row
from fedsim.sizing.table import HEADINGS, PAGE, facts, notes, row_cells, sentence

STYLE = """<style>
.sized { overflow-x: auto; margin-top: 1.2rem; }
.sized td, .sized th { padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #80808030; text-align: right;
white-space: nowrap; } .sized .best td { font-weight: 650; } .sized .misses { opacity: 0.6; }
th.part { padding-left: 1.4em; }
.answer { border-left: 4px solid #009e73; padding: 0.3rem 1rem; margin: 0.8rem 0; max-width: 56rem; font-size: 1.05rem; }
.answer.none { border-color: #d55e00; }
</style>"""


def write_page(found: Sizing, loaded: Loaded) -> Path:
    """Write ``size.html`` into the sizing's folder, and return its path."""
    draw, best = Drawing(), found.best
    kind = "answer" if best is not None else "answer none"
    told = [f'<p class="{kind}">{escape(sentence(found))}</p>']
    if best is not None:
        rows = "".join(
            f"<tr><th{' class=part' if name.startswith(' ') else ''}>{escape(name.strip())}</th><td>{escape(value)}</td></tr>"
            for name, value in facts(found, best)
        )
        told.append(f"<table>{rows}</table>")
    drawn = "".join(
        f"<figure><h3>{title}</h3>{draw.html(make(found), 340)}</figure>"
        for title, make in (("Time and bytes", _trade), ("How long a round takes, and who is late", _waits))
    )
    said = "".join(f"<p class=note>{escape(note)}</p>" for note in [*found.notes, *notes(found)])
    links = [
        f'<a href="{escape(each.run.path.name)}/">{escape(each.run.path.name)}</a>' for row in found.rows for each in row.learned
    ]  # fmt: skip
    rests = f"<p class=note>Runs that learned: {', '.join(links)}; and {found.dry_runs:,} dry ones.</p>" if links else ""
    body = [
        STYLE, *told, f"<h2>Every setting</h2><div class=pair>{drawn}</div>{_table(found)}{said}{rests}",
        f"<h2>The scenario</h2><pre>{escape(toml(loaded.scenario.plain()))}</pre>",
    ]  # fmt: skip
    whole(found.folder / PAGE, FRAME.substitute(name=escape(found.name), status="sized", body="\n".join(body)))
    return found.folder / PAGE


def _cohorts(found: Sizing) -> list[tuple[str, list[Row]]]:
    """Return the rows that came to anything, by how many clients a round asks."""
    there = [row for row in found.rows if row.each]
    asked = dict.fromkeys(row.setting.clients for row in there)
    return [
        (f"{clients:,} a round" if clients else "as the strategy asks", [row for row in there if row.setting.clients == clients])
        for clients in asked
    ]  # fmt: skip


def _lines(found: Sizing, x: Callable[[Row], float], y: Callable[[Row], float], text: Callable[[Row], str]) -> Any:
    """Return a figure with a line for each cohort, a mark a setting: full where runs learned with it, the best with a ring."""
    import plotly.graph_objects as go

    drawn, groups = go.Figure(), _cohorts(found)
    for (name, rows), colour in zip(groups, ladder(len(groups)), strict=True):
        symbols = ["circle" if row.learned or found.plan.target is None else "circle-open" for row in rows]
        drawn.add_scatter(
            x=[x(row) for row in rows], y=[y(row) for row in rows], name=name, mode="lines+markers", line={"color": colour, "width": 1.5},
            marker={"size": 9, "symbol": symbols}, hovertext=[text(row) for row in rows], hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    if found.best is not None:
        drawn.add_scatter(
            x=[x(found.best)], y=[y(found.best)], name="to deploy", mode="markers", hoverinfo="skip",
            marker={"size": 18, "symbol": "circle-open", "color": ALARM, "line": {"width": 2}},
        )  # fmt: skip
    drawn.update_layout(showlegend=True)
    return drawn


def _trade(found: Sizing) -> Any:
    """Return what a client moves against the time of all rounds, and the deadline."""
    unit, unit_name = clock(max((max(row.whole_s) for row in found.rows if row.each), default=1.0))
    drawn = _lines(found, lambda row: float(np.mean(row.whole_s)) / unit, lambda row: row.moved / 1e6, _hover)
    drawn.update_xaxes(title=f"virtual time ({unit_name})", rangemode="tozero")
    drawn.update_yaxes(title="megabytes of a client, both ways", rangemode="tozero")
    if found.plan.deadline_s is not None and found.plan.deadline_s <= 1.5 * unit * max(float(x) for line in drawn.data for x in line.x):
        drawn.add_vline(x=found.plan.deadline_s / unit, line={"dash": "dot", "color": INK}, annotation_text="deadline")
    return drawn


def _waits(found: Sizing) -> Any:
    """Return how many replies are late against how long a round takes in the median."""
    medians = [float(np.median(np.concatenate([one.round_s for one in row.each]))) for row in found.rows if row.each]
    unit, unit_name = clock(max(medians, default=1.0))
    drawn = _lines(
        found, lambda row: float(np.median(np.concatenate([one.round_s for one in row.each]))) / unit,
        lambda row: float(np.mean([one.late for one in row.each])), _hover,
    )  # fmt: skip
    drawn.update_xaxes(title=f"a round, median ({unit_name})", rangemode="tozero")
    drawn.update_yaxes(title="replies that are late", tickformat=".0%", rangemode="tozero")
    return drawn


def _hover(row: Row) -> str:
    asked = "" if row.setting.clients is None else f"{row.setting.clients:,} clients, "
    learned = f"{row.rounds:.3g} rounds" + ("" if row.learned else " (estimated)")
    return f"{asked}waits {duration(row.setting.timeout_s)}<br>{learned}, {duration(float(np.mean(row.whole_s)))}"


def _table(found: Sizing) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    rows: list[str] = []
    for row in found.rows:
        cells, style = row_cells(found, row)
        mark = {"bold green": ' class="best"', "dim": ' class="misses"'}.get(style, "")
        rows.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return f"<div class=sized><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
