"""What the rows of a run say in plain words, where a rule supports it; each with the number that it rests on. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

import numpy as np

from fedsim.core.types import FloatArray, Frame
from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen
from fedsim.report.units import duration, megabytes
from fedsim.score import spent
from fedsim.score.outcomes import deadline_of
from fedsim.score.target import Target, upwards

MANY_LATE = 0.02
"""The share of late replies from which it is said."""
WASTED = 0.03
SLOW = 0.6
"""Where the median task is done in less than this share of its round, the slowest are said to keep the rest waiting."""
MOST = 0.5
"""A phase that takes more than this share of all time is said to decide."""
FLAT, LOOKED = 0.25, 0.1
"""The last quarter of the rounds is called flat where it brought less than this share of what all rounds did."""
SWINGS = 0.1
"""The last quarter of the rounds swings where scores move, from one to the next and back, by more than this share of what was gained."""
FEWEST = 8
"""Evaluations from which flatness and swings are told."""


def finding_lines(seen: Seen) -> list[str]:
    """Return what can be said, a sentence or two each; empty where no rule applies."""
    rules: tuple[Callable[[Seen], str], ...] = (
        _goal, _flat, _swings, _late, _stragglers, _phase, _unheard, _wasted, _failures,
    )  # fmt: skip
    return [said for rule in rules if (said := rule(seen))]


def findings(seen: Seen, _: Drawing) -> str:
    """Return these as a list."""
    return f"<ul class=findings>{''.join(f'<li>{escape(line)}</li>' for line in finding_lines(seen))}</ul>"


def found(seen: Seen) -> bool:
    """Return whether anything can be said."""
    return bool(finding_lines(seen))


def _central(seen: Seen) -> tuple[str, Frame] | None:
    """Return the server's score that a reader looks at first, and its rows."""
    central = seen.metrics[seen.metrics.scope == "central"]
    for name in ("accuracy", "loss"):
        rows = central[central.name == name]
        if len(rows):
            return name, rows
    return None


def _goal(seen: Seen) -> str:
    target = Target.of(seen.about["scenario"].get("stop"))
    if target is None:
        return ""
    rows = seen.metrics[(seen.metrics.scope == "central") & (seen.metrics.name == target.metric)]
    met = rows[[target.holds(float(value)) for value in rows["value"]]]
    if len(met):
        row = met.iloc[0]
        sent = megabytes(float(row.down_bytes + row.up_bytes))
        return f"The target, {target}, was reached in round {row['round']:.0f}, after {duration(float(row.now_s))} and {sent} both ways."
    best = rows["value"].max() if target.upwards else rows["value"].min()
    return f"The target, {target}, was not reached: the best was {best:.4g}." if len(rows) else ""


def _flat(seen: Seen) -> str:
    if (known := _central(seen)) is None or len(known[1]) < FEWEST:
        return ""
    name, rows = known
    values: FloatArray = rows["value"].to_numpy(dtype=np.float64) * (1 if upwards(name) else -1)
    since = int(len(values) * (1 - FLAT))
    gained, late = float(values.max() - values[0]), float(values.max() - values[:since].max())
    if not gained > 0 or not 0 <= late < LOOKED * gained:
        return ""
    first = rows["round"].iloc[since]
    share = "less than 1 %" if 0 < late < 0.005 * gained else f"{100 * late / gained:.0f} %"
    return (
        f"The last quarter of the rounds brought little: since round {first} the best {name} went from {abs(values[:since].max()):.4g} to"
        f" {abs(values.max()):.4g}, {share} of all that was gained."
    )


def _swings(seen: Seen) -> str:
    if (known := _central(seen)) is None or len(known[1]) < FEWEST:
        return ""
    name, rows = known
    values: FloatArray = rows["value"].to_numpy(dtype=np.float64) * (1 if upwards(name) else -1)
    gained, last = float(values.max() - values[0]), values[int(len(values) * (1 - FLAT)) :]  # What got worse gained nothing.
    moves = np.diff(last)
    moved = float(np.abs(moves).mean()) if len(moves) else 0.0
    if not gained > 0 or moved - abs(float(moves.mean())) < SWINGS * gained:  # What goes one way swings not.
        return ""
    return (
        f"The {name} still swings: by {moved:.3g} from one evaluation to the next over the last quarter, {100 * moved / gained:.0f} % of"
        f" all that was gained. One run's last value says little; compare several seeds, and try a lower rate or more clients a round."
    )


def _late(seen: Seen) -> str:
    tasks = seen.tasks[seen.tasks.kind == "train"]
    late = float(((spent.fates(tasks) == "late") & (tasks.cause == "")).mean()) if len(tasks) else 0.0  # Others never came at all.
    if late < MANY_LATE:
        return ""
    deadline_s = deadline_of(seen.about)
    total = (tasks.arrived_s - tasks.sent_s).dropna().to_numpy(dtype=np.float64)
    within = float((total <= deadline_s).mean()) if len(total) else math.nan
    point = f"{100 * within:.0f} %"
    known = math.isfinite(within) and math.isfinite(deadline_s)
    where = f" the deadline ({duration(deadline_s)}) is at the {point} point of how long replies take" if known else ""
    return f"{100 * late:.0f} % of replies were late:{where}." if where else f"{100 * late:.0f} % of replies were late."


def _stragglers(seen: Seen) -> str:
    tasks = seen.tasks[(seen.tasks.kind == "train") & (seen.tasks.outcome == "arrived")]
    rounds = seen.rounds[seen.rounds.kind == "train"]
    if len(tasks) < FEWEST or not len(rounds):
        return ""
    lasted = float((rounds.ended_s - rounds.started_s).mean())
    took = float((tasks.arrived_s - tasks.sent_s).median())
    if not lasted > 0 or took >= SLOW * lasted:
        return ""
    return (
        f"The slowest keep the rest waiting: half of the replies were there after {duration(took)}, and a round took {duration(lasted)} in"
        f" the mean. A shorter deadline, or more clients asked than are waited for, would tell what the last ones are worth (fedsim size)."
    )


def _phase(seen: Seen) -> str:
    table = spent.spread(seen.tasks)
    parts = table[table.phase != "total"]
    if not len(parts):
        return ""
    most = parts.loc[parts.share.idxmax()]
    if most.share < MOST:
        return ""
    what = {
        "download": "A smaller model, or codec.down, shortens it.", "upload": "A smaller model, or codec.up, shortens it.",
        "training": "Less local work, or a smaller model, shortens it.", "waiting": "",
    }[str(most.phase)]  # fmt: skip
    half = f"half of them {duration(most.p50_s)} or less"
    return f"{str(most.phase).capitalize()} takes {100 * most.share:.0f} % of a message's time ({half}). {what}".strip()


def _unheard(seen: Seen) -> str:
    count = int(seen.about["scenario"]["clients"]["count"])
    tasks = seen.tasks[seen.tasks.kind == "train"]
    heard = tasks[tasks.outcome == "arrived"].client.nunique()
    if not len(tasks) or heard == count:
        return ""
    asked = tasks.client.nunique()
    never = f"; {count - asked:,} were never asked" if asked < count else ""
    return f"{count - heard:,} of {count:,} clients ({100 * (count - heard) / count:.0f} %) were never heard{never}."


def _wasted(seen: Seen) -> str:
    down, up, wasted = seen.sent
    if not down + up or wasted < WASTED * (down + up):
        return ""
    return f"{100 * wasted / (down + up):.0f} % of all bytes ({megabytes(wasted)}) were for work that did not count."


def _failures(seen: Seen) -> str:
    failed = seen.tasks[(seen.tasks.outcome == "failed") & (seen.tasks.failure != spent.STREAM_ENDED)]
    if not len(failed):
        return ""
    reason, times = failed.failure.value_counts().index[0], int(failed.failure.value_counts().iloc[0])
    return f"{len(failed):,} messages failed, {times:,} of them for this reason: {str(reason)[:160]}"
