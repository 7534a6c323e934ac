"""What a person sees in a terminal: live progress, the summary of a run, the preview, the list of kinds."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedsim.report.noises import ADVISED
from fedsim.report.units import duration, grams, joules, megabytes
from fedsim.scenario.load import recorded
from fedsim.scenario.schema import Scenario
from fedsim.score.advice import Hint
from fedsim.score.noise import Scale
from fedsim.score.outcomes import streams_ended, uncounted, waiting
from fedsim.score.run import Run
from fedsim.show_rows import rows

if TYPE_CHECKING:

    from fedsim.data.arriving import Arriving
    from fedsim.foreign.session import Where as At
    from fedsim.preview import Preview
    from fedsim.rehearsal import Foretold
    from fedsim.trial import Wall


@contextmanager
def following(name: str, *, silent: bool) -> Generator[Callable[[At], None] | None]:
    """Show how far the run of an app is, on standard error: nobody knows how many rounds there will be. Yields what to tell it with."""
    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield None
        return
    with Progress(TextColumn("{task.description}"), TextColumn("{task.fields[doing]}"), TimeElapsedColumn(), console=console,
                  transient=True) as bar:  # fmt: skip
        line = bar.add_task(name, total=None, doing="loading the app")

        def tell(where: At) -> None:
            score = next((f", {key} {value:.3f}" for key, value in where.scores.items()), "")
            bar.update(line, doing=f"round {where.round}, {where.messages:,} messages, virtual {duration(where.now_s)}{score}")

        yield tell


@contextmanager
def rehearsing(scenario: Scenario, *, silent: bool) -> Generator[Callable[[int, int], None] | None]:
    """Show how far ``check`` is, on standard error; yields what to tell it with, or None when silent.

    It is told how many rounds are on the virtual clock, of how many; that none are, where some are trained to see how long that takes.
    """
    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TextColumn("{task.fields[doing]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task(scenario.name, total=None, doing="building the world")

        def tell(rehearsed: int, rounds: int) -> None:
            doing = f"{rehearsed:,} of {rounds:,} rounds on the virtual clock" if rounds else "training some, to see how long they take"
            bar.update(line, completed=rehearsed, total=rounds or None, doing=doing)

        yield tell


@contextmanager
def studying(name: str, *, silent: bool) -> Generator[Callable[[int, int, str], None] | None]:
    """Show how far many runs are, those of *name*, on standard error; yields what to tell it with, or None when silent."""
    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=12), MofNCompleteColumn(), TextColumn("{task.fields[doing]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task(name[:30], total=None, doing="building the world")

        def tell(done: int, known: int, last: str) -> None:
            bar.update(line, completed=done, total=known, doing=f"runs so far known; last {last}"[:40])

        yield tell


def summary_line(run: Run) -> dict[str, Any]:
    """Return the figures of a run as one table: what ``--json`` prints.

    ``online`` is there where clients have streams, ``energy`` where joules were counted, ``edges`` where there are some.
    """
    from fedsim.score.online import pooled

    about = run.manifest
    energy = {name: about[name] for name in ("energy", "edges") if name in about}
    streams = {"online": pooled(run.tested)} if "stream" in about["scenario"] else {}
    return {
        "run": str(run.path), "status": run.status, "digest": about["digest"], "metrics_digest": about["metrics_digest"],
        "final": about["final"], "virtual_s": about["virtual_s"], "wall_s": about["wall_s"],
        "bytes_down": about["bytes_down"], "bytes_up": about["bytes_up"], **streams, **energy,
    }  # fmt: skip


def _drawn(energy: Mapping[str, Any]) -> str:
    """Return the joules of a run and what drew them, in a line."""
    drew, words = energy["joules"], {"compute": "at work", "down": "down", "up": "up", "idle": "waiting"}
    parts = ", ".join(f"{word} {joules(drew[name])}" for name, word in words.items())
    carbon = f"; {grams(energy['grams'])} of CO2" if "grams" in energy else ""
    return f"{joules(drew['total'])} ({parts}), of it wasted {joules(drew['wasted'])}{carbon}"


def advice(run: Run, hints: Sequence[Hint]) -> None:
    """Print what to try next, what that rests on, and how sure it is."""
    console = Console(highlight=False)
    console.print(f"[bold]{escape(run.name)}[/], {run.manifest['final'].get('rounds', 0)} rounds watched", soft_wrap=True)
    for hint in hints:
        change = f"{hint.now:g}, as it is" if hint.next == hint.now else f"{hint.now:g} → {hint.next:.3g}"
        console.print(f"  [bold cyan]{hint.setting:<22}[/]{change:<18}{hint.sure}")
        for line in textwrap.wrap(f"{hint.why}.", max(20, min(console.width, 100) - 6)):
            console.print(f"      {escape(line)}", soft_wrap=True)
    for line in textwrap.wrap(f"What to try, and no forecast: the next run tells. {ADVISED}", max(20, min(console.width, 100))):
        console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
    console.print(f"[dim]{escape(str(run.path))}[/]", soft_wrap=True)


def summary(run: Run, parts: Mapping[str, float] | None = None) -> None:
    """Print what a run was and what came of it. *parts*: seconds that the command took here, where it ran just now."""
    if "app" in run.manifest:
        _summary_of_app(run, parts)
        return
    about, figures = run.manifest, list[tuple[str, str]]()
    scenario, strange = recorded(about["scenario"])
    hindsight = " (on the training data, in hindsight)" if run.hindsight else ""
    for name, value in about["final"].items():
        if name not in ("rounds", "scored_round"):
            when = f" (of round {about['final']['scored_round']})" if "scored_round" in about["final"] else ""
            figures.append((name, f"{value:.4f}{when}{hindsight}"))
    if scenario.stream is not None:
        for name, said in _online(run, scenario).items():
            figures.append((name, said))
    if scenario.monitor is not None:
        for name, said in _watched(run).items():
            figures.append((name, said))
    reached = about["final"].get("rounds", 0)
    figures.append(("rounds", f"{reached} of {scenario.server.rounds}{_stopped(scenario, about)}"))
    figures.append(("time, real clients" if about.get("ground") else "virtual time", duration(about["virtual_s"])))
    figures.append(("sent down, up", f"{megabytes(about['bytes_down'])}, {megabytes(about['bytes_up'])}"))
    if about["bytes_wasted"]:
        figures.append(("of it wasted", megabytes(about["bytes_wasted"])))
    if edges := about.get("edges"):
        between = f"{megabytes(edges['bytes_down'])}, {megabytes(edges['bytes_up'])}"
        figures.append(("server to edges", f"{between} (down, up; the above is between edges and clients)"))
    if energy := about.get("energy"):
        figures.append(("energy", _drawn(energy)))
    tasks = run.tasks
    others = ", ".join(f"{count:,} {name}" for name, count in uncounted(tasks).items())
    figures.append(("client tasks", f"{len(tasks):,}{f' ({others})' if others else ''}"))
    if tasks.waited_s.any():
        figures.append(("loading", f"{100 * waiting(tasks):.0f} % of the time at work on a task went in waiting for batches"))
    if tasks.batch_size.notna().any():
        chosen = tasks.batch_size.dropna()
        sizes = f"{chosen.min():,.0f} to {chosen.max():,.0f} (median {chosen.median():g})"
        figures.append(("batch sizes", f"{sizes}, by training.batch_policy"))
    figures.append(("strategy, model", f"{scenario.server.strategy['kind']}, {scenario.model.kind}"
                  f" ({about['model']['parameters']:,} parameters)"))  # fmt: skip
    figures.append(("seed", str(about["seed"])))
    figures.append(("digest", f"{about['digest'][:32]}..." if about["digest"] else "none: the run did not finish"))
    figures.append(("wall time", _took(about, parts)))
    for note in about.get("notes", []):
        figures.append(("note", str(note)))
    if strange:
        figures.append(("note", f"This version does not know {', '.join(strange)} of the scenario; the manifest has them as they are."))
    if "error" in about:
        figures.append(("ended by", about["error"]))
    figures.append(("run folder", str(run.path)))
    report = run.path / "report.html"
    figures.append(("report", str(report) if report.exists() else f"none yet: fedsim report {run.path}"))
    rows(f"{run.name}: {run.status}", figures)


def _took(about: Mapping[str, Any], parts: Mapping[str, float] | None) -> str:
    """Return how long a run took: the whole command by its *parts*, as check foretells them, or what the manifest knows, its rounds."""
    if parts is None:
        return f"{duration(about['wall_s'])} for its rounds"
    return f"{duration(sum(parts.values()))} here ({', '.join(f'{name} {duration(took_s)}' for name, took_s in parts.items())})"


def _summary_of_app(run: Run, parts: Mapping[str, float] | None) -> None:
    """Print what the run of a Flower app was and what came of it."""
    about, tasks = run.manifest, run.tasks
    app, scenario = about["app"], about["scenario"]
    others = ", ".join(f"{count:,} {name}" for name, count in uncounted(tasks).items())
    wasted = {"of it wasted": megabytes(about["bytes_wasted"])} if about["bytes_wasted"] else {}
    report = run.path / "report.html"
    figures = [*{
        **{name: f"{value:.4f}" for name, value in about["final"].items() if name != "rounds"},
        "rounds": str(about["final"].get("rounds", 0)),
        "virtual time": duration(about["virtual_s"]),
        "sent down, up": f"{megabytes(about['bytes_down'])}, {megabytes(about['bytes_up'])}", **wasted,
        "client tasks": f"{len(tasks):,}{f' ({others})' if others else ''}",
        "app": f"{app['name']} {app['version']} ({app['folder']})",
        "fleet": f"{about['fleet']['name']}, {scenario['clients']['count']:,} clients",
        "strategy, model": f"{scenario['server']['strategy']['kind']}, {about['model']['parameters']:,} parameters",
        "seed": str(about["seed"]),
        "digest": f"{about['digest'][:32]}..." if about["digest"] else "none: the run did not finish",
        "wall time": _took(about, parts),
    }.items()]  # fmt: skip
    figures += [("note", str(note)) for note in about.get("notes", [])]
    if "error" in about:
        figures.append(("ended by", str(about["error"])))
    figures.append(("run folder", str(run.path)))
    figures.append(("report", str(report) if report.exists() else f"none yet: fedsim report {run.path}"))
    rows(f"{run.name}: {run.status}", figures)


def _online(run: Run, scenario: Scenario) -> dict[str, str]:
    """Return the rows about what clients predicted before they trained."""
    from fedsim.score.online import noticed, pooled

    found = pooled(run.tested)
    if found["accuracy"] is None:
        return {"prequential": "no example was predicted before it was trained on"}
    rows: dict[str, str] = {}
    if (scenario.clients.detector or {"kind": "none"})["kind"] != "none":
        rows["drift"] = noticed(run.detection())
    known = ((name, found[key]) for key, name in (("no_change", "no change"), ("majority", "majority")))
    beside = ", ".join(f"{name} {value:.4f}" for name, value in known if value is not None)
    return {
        **rows,
        "prequential": f"accuracy {found['accuracy']:.4f}{f' ({beside})' if beside else ''}",
        "worst tenth": f"accuracy {found['worst_tenth']:.4f} (the clients that predicted worst)",
    }


def _watched(run: Run) -> dict[str, str]:
    """Return the rows about what was watched of training: the newest round's steps, and how many examples and clients to average."""
    steps, rows = run.steps, dict[str, str]()
    if len(steps):
        first, last = (steps[steps["round"] == number] for number in (steps["round"].min(), steps["round"].max()))
        fell = ", ".join(f"{name} {first[name].mean():.3g} to {last[name].mean():.3g}" for name in ("gradient", "update"))
        rows["watched"] = f"{len(steps):,} steps; mean lengths, first round to last: {fell}"
    scales = run.noise_scale()
    said = [
        f"{_scale(scale)} {what}" for scale, what in ((scales.within, "examples in a batch"), (scales.between, "clients in a round"))
        if scale.count
    ]  # fmt: skip
    return {**rows, **({"noise scale": "; ".join(said)} if said else {})}


def _scale(scale: Scale) -> str:
    around = "" if scale.low != scale.low else f" ({scale.low:.3g} to {scale.high:.3g})"
    return f"{scale.value:.3g}{around}"


def _stopped(scenario: Scenario, about: dict[str, Any]) -> str:
    stop, final = scenario.stop, about["final"]
    if streams_ended(about):
        return " (then every stream had ended)"
    if stop is None or (stop.metric is not None and stop.metric not in final):
        return ""
    # Folders of before 2026-11-30 do not say that they were stopped; their scores do.
    met = about.get("stopped") or (stop.learned if stop.metric is not None and stop.holds(final[stop.metric]) else "")
    return f" (stopped at {met})" if met else f" (never reached {stop.words})"


def preview(foretold: Preview, wall: Wall) -> None:
    """Print what a scenario's world looks like, what running it would cost, and how long that takes here."""
    figures, shown = foretold.plain(), list[tuple[str, str]]()
    parts, scenario = foretold.parts, foretold.parts.scenario
    sizes = figures["examples_per_client"]
    streams, hindsight = parts.federation.streams is not None, parts.federation.hindsight
    beside = " (the same: in hindsight)" if hindsight else " (on no stream)" if streams else ""
    shown.append(("clients", f"{figures['clients']:,}, {figures['clients_per_round']:.3g} a round"))
    shown.append(("examples", f"{figures['train_examples']:,} to train on, {figures['test_examples']:,} to test on{beside}"))
    shown.append(("per client", f"{sizes['min']:g} to {sizes['max']:g} examples (median {sizes['median']:g}),"
                  f" {_labels(figures, parts.federation.outputs)}"))  # fmt: skip
    if foretold.arriving is not None:
        shown.append(("streams", _arriving(foretold.arriving, figures["clients"])))
    shown.append(("model", f"{scenario.model.kind}, {figures['parameters']:,} parameters,"
                  f" {figures['training_flops_per_example'] / 1e6:.3g} MFLOP to train on an example"))  # fmt: skip
    if foretold.foretold.work.steps:
        shown.append(("a task takes", _work(figures)))
    shown.append(("strategy", f"{scenario.server.strategy['kind']}, {figures['rounds']} rounds"))
    for name, said in figures["together"].items():
        shown.append((name, said))
    if figures["kept_bytes_per_client"] or figures["kept_unknown"]:
        shown.append(("clients keep", _kept(figures)))
    shown.append(("a round takes", f"{duration(figures['round_s'])} of virtual time (slowest {duration(figures['slowest_round_s'])});"
                  f" {_waits(scenario)}"))  # fmt: skip
    if figures["missed_per_round"] and figures["missed_per_round"] == figures["clients_per_round"]:
        shown.append(("warning", f"not one client answers in time: nothing would be learned. {_longer(scenario)}"))
    elif figures["missed_per_round"]:
        how = "miss the deadline" if scenario.server.pacing is None else "are not waited for"
        shown.append(("of it late", f"{figures['missed_per_round']:.3g} clients a round {how}"))
    if told := figures.get("edges"):
        between = f"{megabytes(told['bytes_down_per_round'])} down, {megabytes(told['bytes_up_per_round'])} up"
        shown.append(("to edges", f"{between} between them and the server; what follows is between them and clients"))
    shown.append(("a round sends", f"{megabytes(figures['bytes_down_per_round'])} down,"
                  f" {megabytes(figures['bytes_up_per_round'])} up"))  # fmt: skip
    told = foretold.foretold
    around = "" if told.whole else "about "
    last = f"{told.stopped} are spent" if told.stopped else "every stream has ended" if told.ends else ""
    until = f" ({around}{foretold.rounds:,}, then {last})" if last else ""
    until += f"; ends sooner at {scenario.stop.learned}" if scenario.stop and scenario.stop.learned else ""
    sent = f"{around}{megabytes(figures['bytes_down'])} down, {megabytes(figures['bytes_up'])} up"
    shown.append(("all rounds", f"{_foretold(told)}, {sent}{until}"))
    shown.append(("foretold from", _rehearsed(told)))
    if wall.wall_s is not None:
        shown.append(("wall time", _wall(wall)))
    elif wall.why:
        shown.append(("wall time", f"not known: {wall.why}"))
    for note in foretold.notes:
        shown.append(("note", note))
    rows(f"{scenario.name}: ready to run", shown)


def _waits(scenario: Scenario) -> str:
    """Return how long a round waits, in words."""
    pacing, longest = scenario.server.pacing, duration(scenario.server.round_timeout_s)
    return f"deadline {longest}" if pacing is None else f"paced by {pacing['kind']}, no longer than {longest}"


def _longer(scenario: Scenario) -> str:
    return "Raise server.round_timeout_s." if scenario.server.pacing is None else "Let server.pacing wait longer."


def _work(figures: dict[str, Any]) -> str:
    """Return what a client's task comes to, like "2 to 9 local steps (mean 4.5) in batches of 7 to 10 (mean 9.1 examples)"."""
    steps, size, mean = figures["steps_per_task"], figures["batch_size"], figures["examples_per_step"]
    said = f"{_span(steps)} local step{'s' * (steps['max'] > 1)}"
    said += f" (mean {steps['mean']:.3g})" if steps["min"] < steps["max"] else ""
    said += f" in batches of {_span(size)}"
    said += f" (mean {mean:.3g} examples)" if mean != size["max"] else " examples"
    at_once = figures["examples_at_once"]
    said += f", no more than {at_once:,} at once" if at_once < size["max"] else ""
    return said + (f"; a step takes up to {megabytes(figures['step_bytes'])} of memory" if figures["step_bytes"] is not None else "")


def _kept(figures: dict[str, Any]) -> str:
    """Return what clients keep between messages, like "up to 50 kB each (algorithm 50 kB); 1.2 MB with 24 clients that train"."""
    each, unknown = figures["kept_bytes_per_client"], " and ".join(figures["kept_unknown"])
    if not each:
        return f"{unknown}, of a size that shows when they train"
    of_it = ", ".join(f"{name} {megabytes(size)}" for name, size in each.items())
    besides = f", and {unknown} besides" if unknown else ""
    all_ = f"{megabytes(figures['kept_bytes'])} with the {figures['clients_touched']:,.0f} that train"
    return f"up to {megabytes(sum(each.values()))} each ({of_it}{besides}); {all_}"


def _span(ends: dict[str, Any]) -> str:
    return f"{ends['min']:,}" if ends["min"] == ends["max"] else f"{ends['min']:,} to {ends['max']:,}"


def _foretold(told: Foretold) -> str:
    if told.exact:
        return f"{duration(told.virtual_s)} of virtual time"
    if told.low_s != told.low_s:  # NaN: too little was seen.
        return f"some {duration(told.virtual_s)} of virtual time"
    low, high = duration(told.low_s), duration(told.high_s)
    return f"about {duration(told.virtual_s)} of virtual time{f' (likely {low} to {high})' if low != high else ''}"


def _rehearsed(told: Foretold) -> str:
    if told.whole:
        alarms = ": without what alarms or a controller change in a client's training" if told.alarms else ""
        return f"all {told.rounds:,} rounds on the virtual clock, without training{alarms}"
    ahead = f", and {told.sampled:,} spread over what is to come" if told.sampled else ""
    row = told.rehearsed - told.sampled
    return f"{row:,} of {told.rounds:,} rounds on the virtual clock{ahead}, without training. --wall-s N takes more time for it"


def _wall(wall: Wall) -> str:
    """Return how long a run takes here: by the parts that its summary will name, and what takes most of the rounds."""
    rounds = {name: took_s for name, took_s in wall.parts.items() if name not in ("start", "report")}
    most, trained = max(rounds, key=lambda name: rounds[name]), f"{wall.rounds} round{'s' * (wall.rounds > 1)}"
    said = f"start {duration(wall.parts['start'])}, rounds {duration(sum(rounds.values()))}, report {duration(wall.parts['report'])}"
    by = f"{trained} trained for it" if wall.whole else "the first steps of a round, trained for it"
    return f"about {duration(wall.wall_s or 0.0)} here ({said}), by {by}; most of the rounds is {most}, {duration(rounds[most])}"


def _arriving(streams: Arriving, clients: int) -> str:
    looked = f" at {streams.clients:,} of {clients:,} clients" if streams.clients < clients else ""
    words = [f"{streams.items:,} examples arrive{looked} within {duration(streams.last_s)} of virtual time"]
    if streams.unlabelled:
        words.append(f"{streams.unlabelled:,} labels never come")
    if streams.drifting:
        words.append(f"{streams.drifting:,} clients see drift")
    if streams.without:
        words.append(f"{streams.without:,} clients get nothing")
    return "; ".join(words)


def _labels(figures: dict[str, Any], outputs: int) -> str:
    median = figures["labels_per_client_median"]
    looked = f" of {figures['labels_from_clients']:,} clients" if figures["labels_from_clients"] < figures["clients"] else ""
    return f"{median:g} of {outputs} labels (median{looked})" if median is not None else "no class labels"
