"""The report: a run folder as one web page that needs no network. Reads rows and the manifest; simulates nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from fedsim.core.errors import RunError, door
from fedsim.record import manifest
from fedsim.report import between, clients, figures, findings, foretold, holding, introduced, joules, monitoring, online, times, waited
from fedsim.report.drawing import Drawing
from fedsim.report.figures import MEANINGS, Seen
from fedsim.report.sections import Section, part, sections
from fedsim.report.units import duration, megabytes
from fedsim.score.online import pooled
from fedsim.score.outcomes import streams_ended, uncounted, waiting
from fedsim.score.run import Run

FILE = "report.html"


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the run's folder, whatever the state of the run, and return its path."""
    path = run.path / FILE
    with door(f"{run.path}: its report", "cannot be drawn:", wrong=RunError):  # Rows may say anything: a folder may be damaged.
        page = _page(Seen.of(run))
    manifest.whole(path, page)
    return path


def _page(seen: Seen) -> str:
    draw = Drawing()
    *ours, last = OURS
    others = [name for name in sections if name not in OURS]
    parts = [part(name, seen, draw) for name in (*ours, *others, last)]
    name, status = escape(seen.run.name), escape(seen.run.status)
    return PAGE.substitute(name=name, status=status, body="\n".join(each for each in parts if each))


def _facts(seen: Seen, _: Drawing) -> str:
    run, about, final = seen.run, seen.about, seen.final
    down, up, wasted = seen.sent
    others = ", ".join(f"{count:,} {name}" for name, count in uncounted(seen.tasks).items())
    digest = str(about["digest"] or "")
    last = "final" if about["status"] == "done" else "last"
    hindsight = " in hindsight" if run.hindsight else ""
    why = " Over the examples that clients trained on: nothing was held out." if hindsight else ""
    beside = "" if run.hindsight else " The examples that the server tests on are on no stream, and not among these."
    facts = [
        (f"{last} {name}{hindsight}", f"{value:.4f}", f"{MEANINGS.get(name, '')}{why}".strip())
        for name, value in final.items()
        if name not in ("rounds", "scored_round")
    ]
    if "stream" in about["scenario"] and (score := pooled(run.tested)["accuracy"]) is not None:
        facts.append(("prequential accuracy", f"{score:.4f}", f"Of what clients predicted before they trained on it.{beside}"))
    facts += [
        (
            "rounds", f"{final.get('rounds', 0)} of {about['scenario']['server']['rounds']}",
            "Then every stream had ended." if streams_ended(about) else "",
        ),
        ("time, real clients" if about.get("ground") else "virtual time", duration(seen.now_s), f"{seen.now_s:.3f} s"),
        ("sent down", megabytes(down), f"{down:,.0f} bytes, framing included"),
        ("sent up", megabytes(up), f"{up:,.0f} bytes, framing included"),
        (
            "of it wasted", megabytes(wasted),
            "Both ways, for tasks that did not count: late, failed, after their stream's end, or cut off by the end of the run.",
        ),
        ("client tasks", f"{len(seen.tasks):,}", ""),
        *([("waited for data", f"{100 * waiting(seen.tasks):.0f} %", "Of the time that devices were at work: for mini-batches to load.")]
          if seen.tasks.waited_s.any() else []),
        ("seed", str(about["seed"]), ""),
        ("digest", f"{digest[:12]}..." if digest else "none yet" if run.status == "running" else "none",
         digest or "A run has a digest once it is done."),
    ]  # fmt: skip
    cells = [f"<div{_title(title)}><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value, title in facts]
    note = f"<p class=note>Client tasks that did not count: {escape(others)}.</p>" if others else ""
    return f"<dl class=facts>{''.join(cells)}</dl>{note}"


def _title(text: str) -> str:
    return f' title="{escape(text)}"' if text else ""


def _notice(seen: Seen, _: Drawing) -> str:
    status, error = seen.run.status, str(seen.about.get("error", ""))
    if status == "running":
        said = "This run was still going when the report was written."
    else:
        said = "This run failed." if status == "failed" else f"This run was {status}."
    shown = f"<pre>{escape(error)}</pre>" if error else ""
    return f'<div class="notice"><p>{escape(said)} The page shows what was recorded until then.</p>{shown}</div>'


def _origin(seen: Seen, _: Drawing) -> str:
    about = seen.about
    model = about["model"]
    tables = {
        "Run": {
            "started": about["started"], "wall time of its rounds": duration(about["wall_s"]), "digest": about["digest"] or "none",
            "metrics digest": about["metrics_digest"] or "none", "scenario digest": about["scenario_digest"],
            "model": f"{model['parameters']:,} parameters, {model['training_flops_per_example']:,.0f} FLOP to train on an example",
        },
        "Versions": about["versions"],
        "Machine": about["machine"],
        "Executor": {**about["executor"], "promise": about["promise"], **_notes(about)},
        "Data files": about["files"],
        "Plug-in code": about["code"],
    }  # fmt: skip
    shown = "".join(f"<section><h3>{title}</h3>{_table(rows)}</section>" for title, rows in tables.items() if rows)
    scenario = f"<section><h3>Scenario</h3><pre>{escape(toml(about['scenario']))}</pre></section>"
    return f"<div class=pair>{scenario}<div>{shown}</div></div>"


def _notes(about: Mapping[str, Any]) -> dict[str, str]:
    return {"note": " ".join(about["notes"])} if about.get("notes") else {}


def _table(rows: Mapping[str, Any]) -> str:
    cells = (f"<tr><th>{escape(str(name))}</th><td>{escape(_plain(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def toml(table: Mapping[str, Any]) -> str:
    """Return a scenario as the TOML file it could have been read from: a kind with its settings stays on one line.

    >>> print(toml({"seed": 7, "data": {"source": {"kind": "digits"}}, "model": {"kind": "mlp", "hidden": [64]}}))
    seed = 7
    <BLANKLINE>
    [data]
    source = { kind = "digits" }
    <BLANKLINE>
    [model]
    kind = "mlp"
    hidden = [64]
    """
    top = [f"{_key(name)} = {_value(value)}" for name, value in table.items() if not isinstance(value, Mapping)]
    blocks = ["\n".join(top)] if top else []
    for name, below in table.items():
        if isinstance(below, Mapping):
            blocks.append("\n".join([f"[{_key(name)}]", *(f"{_key(n)} = {_value(v)}" for n, v in below.items())]))
    return "\n\n".join(blocks)


def _key(name: Any) -> str:
    return str(name) if re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) else json.dumps(str(name))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value)


def _always(_: Seen) -> bool:
    return True


OURS = {
    "introduced": Section("", introduced.tells, introduced.introduced),
    "facts": Section("", _always, _facts),
    "notice": Section("", lambda seen: seen.run.status != "done", _notice),
    "findings": Section("In words", findings.found, findings.findings),
    "learning": Section("Learning", _always, figures.learning),
    "online": Section("Online learning", lambda seen: "stream" in seen.about["scenario"], online.streams),
    "times": Section("How long messages take", times.timed, times.times),
    "stragglers": Section("Whom rounds waited for", waited.there, waited.waited),
    "bytes": Section("Where the bytes went", times.sent, times.bytes_sent),
    "edges": Section("By way of edges", between.there, between.edges),
    "energy": Section("Where the joules went", joules.counted, joules.energy),
    "timeline": Section("What the clients did, and when", _always, figures.timeline),
    "rounds": Section("Rounds", _always, figures.rounds),
    "data": Section("What clients hold", holding.holds, holding.holding),
    "clients": Section("Clients: who took part, and how they fared", clients.took_part, clients.clients),
    "foretold": Section("Foretold and observed", foretold.validated, foretold.foretold),
    "monitoring": Section("Training, step by step", monitoring.watched, monitoring.monitoring),
    "origin": Section("What the run was", _always, _origin),
}
"""Our sections in their order; those of others come before the last."""

for _name, _section in OURS.items():
    sections.register(_name)(partial(lambda section: section, _section))

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name: $status</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 0 auto; padding: 1rem clamp(0.8rem, 3vw, 2rem) 3rem; }
h1 { font-size: 1.7rem; margin: 0.6rem 0; } h2 { font-size: 1.25rem; margin: 2.4rem 0 0.6rem; }
h3 { font-size: 1rem; margin: 0.6rem 0 0.2rem; }
h1 small { font-size: 0.9rem; font-weight: 500; border: 1px solid; border-radius: 1rem; padding: 0.1rem 0.7rem; vertical-align: middle;
opacity: 0.75; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: 0.7rem 1.2rem; margin: 0; }
.facts dt { font-size: 0.82rem; opacity: 0.65; } .facts dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 0.5rem 1.6rem; align-items: start; }
.pair > *, figure { min-width: 0; margin: 0; }
.timeline { overflow-x: auto; } .timeline > div { min-width: 44rem; }
.printed { max-width: 178mm; } .printed .timeline > div { min-width: 0; }
@media print { body { padding: 0; } .modebar, fieldset { display: none; } figure, tr, .facts > div { break-inside: avoid; }
h2, h3 { break-after: avoid; } details > * { display: block; } .timeline { overflow: visible; } }
.note { opacity: 0.75; font-size: 0.88rem; max-width: 56rem; }
.notice { border-left: 4px solid #d55e00; padding: 0.1rem 1rem; margin: 1.2rem 0; background: #d55e0018; }
fieldset { border: 0; padding: 0; margin: 0; } legend { float: left; margin-right: 0.8rem; opacity: 0.65; }
label { margin-right: 1rem; white-space: nowrap; }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.82rem; background: #80808018; padding: 0.7rem;
border-radius: 4px; margin: 0.3rem 0; }
.lead { font-size: 1.05rem; max-width: 56rem; margin: 0.4rem 0 1rem; }
.asked { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; margin: 0 0 1.4rem; max-width: 56rem;
font-size: 0.92rem; } .asked dt { opacity: 0.65; } .asked dd { margin: 0; }
.findings { max-width: 56rem; padding-left: 1.2rem; } .findings li { margin: 0.3rem 0; }
.numbers td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } .numbers thead th { text-align: right; }
.numbers { display: block; overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; } th { text-align: left; font-weight: 500; opacity: 0.65; }
th, td { padding: 0.12rem 1rem 0.12rem 0; vertical-align: top; overflow-wrap: anywhere; } th { overflow-wrap: normal; }
</style></head>
<body><h1>$name <small>$status</small></h1>
$body
</body></html>
""")
