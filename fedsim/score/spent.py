"""What messages took, where their bytes went, and joules where they were counted: functions of a run's rows. Draws nothing."""

from __future__ import annotations

import numpy as np

from fedsim.core.types import FloatArray, Frame, Seconds
from fedsim.cost.meter import Moments, Spans, spans
from fedsim.score.outcomes import DISCARDED
from fedsim.sim.rows import STREAM_ENDED

MOMENTS = ("sent", "received", "started", "computed", "arrived")
PHASES = ("download", "waiting", "training", "upload")
AWAY: dict[str, str] = dict(zip(PHASES, ("down_away_s", "waiting_away_s", "work_away_s", "up_away_s"), strict=True))
ENDED = "stream ended"
REASONS = {"arrived": "counted", "late": "late", "failed": "failed", "in flight": "cut off"}
"""What became of a message, by its row's outcome, in a word; one whose client's stream had ended is apart (ENDED)."""


def phases(tasks: Frame) -> Frame:
    """Return how long each message of *tasks* took: a row each, in their order.

    Columns: client, round, kind, outcome; download_s, waiting_s (for the device, or for a client's trigger), training_s (or evaluation:
    all that the device did), upload_s, away_s (of any of these, while which its client was away: they have none of it), and total_s, from
    sending to the reply's arrival. NaN for what never happened. Virtual seconds.
    """
    found = tasks[["client", "round", "kind", "outcome"]].copy()
    steps = ("sent_s", "received_s", "started_s", "computed_s", "arrived_s")
    for name, begin, end in zip(PHASES, steps, steps[1:], strict=False):
        found[f"{name}_s"] = (tasks[end] - tasks[begin] - _away(tasks, name)).clip(lower=0.0)
    found["away_s"] = sum(_away(tasks, name) for name in PHASES)
    found["total_s"] = tasks.arrived_s - tasks.sent_s
    return found


def _away(tasks: Frame, phase: str) -> FloatArray:
    """Return for how much of a *phase* the client of each of *tasks* was away; older runs do not say."""
    return tasks[AWAY[phase]].to_numpy(dtype=np.float64) if AWAY[phase] in tasks else np.zeros(len(tasks))


def spread(tasks: Frame) -> Frame:
    """Return of each phase of the training messages of *tasks*, and of all of it, how long it takes: a row each.

    Columns: phase, p50_s, p90_s, p99_s, mean_s (virtual seconds, of those that came so far), share (of the sum of all totals).
    """
    import pandas as pd

    times = phases(tasks[tasks.kind == "train"])
    whole = float(times[[f"{name}_s" for name in (*PHASES, "away")]].sum().sum())
    rows: list[tuple[str, float, float, float, float, float]] = []
    for name in (*PHASES, *(("away",) if (times.away_s > 0).any() else ()), "total"):
        values = times[f"{name}_s"].dropna().to_numpy(dtype=np.float64)
        if len(values):
            p50, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99]).tolist()
            rows.append((name, p50, p90, p99, float(values.mean()), float(values.sum()) / whole if whole else 0.0))
    return pd.DataFrame(rows, columns=["phase", "p50_s", "p90_s", "p99_s", "mean_s", "share"])


def went(tasks: Frame, end_s: Seconds) -> Spans:
    """Return from when to when each phase of *tasks* went on, in a run that ended at *end_s*."""
    times: dict[str, FloatArray] = {name: tasks[f"{name}_s"].to_numpy(dtype=np.float64) for name in MOMENTS}
    waited_s: FloatArray = tasks.waited_s.to_numpy(dtype=np.float64)
    return spans(Moments(
        times["sent"], times["received"], times["started"], times["computed"], times["arrived"], waited_s,
        (tasks.outcome == "in flight").to_numpy(), tasks.stopped_s.to_numpy(dtype=np.float64) if "stopped_s" in tasks else None,
        (_away(tasks, "download"), _away(tasks, "waiting"), _away(tasks, "training"), _away(tasks, "upload")),
    ), end_s)  # fmt: skip


def fates(tasks: Frame) -> Frame:
    """Return what became of each of *tasks*, in a word of REASONS, DISCARDED or ENDED: a column, in their order."""
    found = tasks.outcome.map(REASONS).where(tasks.failure != STREAM_ENDED, ENDED)
    if "discarded" not in tasks:  # Older runs have none.
        return found
    return found.where(tasks.discarded == "", tasks.discarded.map(DISCARDED))


def in_order(found: Frame) -> Frame:
    """Return the rows of *found*, which go by kind and fate, in the order in which they are told."""
    order = {word: i for i, word in enumerate(("train", "evaluate", *REASONS.values(), *DISCARDED.values(), ENDED))}
    return found.reset_index().sort_values(["kind", "fate"], key=lambda column: column.map(order)).reset_index(drop=True)


def ledger(tasks: Frame, end_s: Seconds) -> Frame:
    """Return where the bytes of *tasks* went, in a run that ended at *end_s*: a row for each kind of message and each fate that there was.

    Columns: kind (train, evaluate), fate (counted, late, not needed, in an abandoned round, failed, stream ended, cut off), messages, and
    bytes: down and up (payload), down_framing and up_framing, resent (of the framing, both ways), total, share (of all); compute_s
    (seconds that clients' devices computed, what was cut off as far as it came) and compute_share. What did not count is wasted.
    """
    fate = fates(tasks)
    resent = tasks.down_resent_bytes + tasks.up_resent_bytes if "up_resent_bytes" in tasks else 0  # Older runs have none.
    grouped: Frame = tasks.assign(fate=fate, resent=resent, compute_s=went(tasks, end_s).compute_s).groupby(["kind", "fate"], sort=False)
    found: Frame = grouped[["down_bytes", "up_bytes", "down_framing_bytes", "up_framing_bytes"]].sum()
    found.columns = ["down", "up", "down_framing", "up_framing"]
    found["resent"] = grouped["resent"].sum()
    found.insert(0, "messages", grouped.size())
    found["total"] = found[["down", "up", "down_framing", "up_framing"]].sum(axis=1)
    found["share"] = found.total / max(1, int(found.total.sum()))
    found["compute_s"] = grouped["compute_s"].sum()
    found["compute_share"] = found.compute_s / (float(found.compute_s.sum()) or 1.0)
    return in_order(found)


TIERS = ("server-edge", "edge-client")


def tiers(tasks: Frame, edges: Frame) -> Frame:
    """Return the bytes of *tasks*, and of what *edges* passed on, by tier and kind of message: a row each.

    Columns: tier (server-edge, edge-client; server-client where there are no edges), kind, messages, and bytes: down, up (payload),
    down_framing, up_framing, total; wasted (both ways, of what did not count).
    """
    import pandas as pd

    found: list[Frame] = []
    for tier, rows in zip(TIERS if len(edges) else ("", "server-client"), (edges, tasks), strict=True):
        if not tier:
            continue
        bytes_of = rows[["down_bytes", "up_bytes", "down_framing_bytes", "up_framing_bytes"]]
        total = bytes_of.sum(axis=1)
        grouped: Frame = rows.assign(total=total, wasted=total.where(rows.outcome != "arrived", 0)).groupby("kind", sort=False)
        sums: Frame = grouped[[*bytes_of.columns, "total", "wasted"]].sum()
        sums.columns = ["down", "up", "down_framing", "up_framing", "total", "wasted"]
        sums.insert(0, "messages", grouped.size())
        sums.insert(0, "tier", tier)
        found.append(sums.reset_index())
    whole: Frame = pd.concat(found, ignore_index=True)
    return whole[["tier", "kind", *whole.columns[2:]]]


JOULES = ("compute_j", "down_j", "up_j", "idle_j")


def charged(tasks: Frame, energy: Frame) -> Frame:
    """Return what each of *tasks* cost its client's device by the rows *energy*: a row each, in their order.

    Columns: message, client, round, kind, outcome, fate; compute_j, down_j, up_j, idle_j, total_j (joules); grams (of CO2). NaN for tasks
    of which nothing is known yet.
    """
    numbers = tasks.message.str[1:].astype(np.int64)
    found = tasks[["message", "client", "round", "kind", "outcome"]].assign(fate=fates(tasks))
    known = energy.set_index("message").reindex(numbers)
    for name in JOULES:
        found[name] = known[name].to_numpy()
    found["total_j"] = found[list(JOULES)].sum(axis=1, skipna=False)
    found["grams"] = known.grams.to_numpy()
    return found


def energy(tasks: Frame, rows: Frame) -> Frame:
    """Return where the joules of *tasks* went by the *rows* of what they cost: a row for each kind of message and fate that there was.

    Columns: kind, fate (as in ``ledger``), messages; joules: compute_j, down_j, up_j, idle_j, total_j; share (of all), grams (of CO2; NaN
    where no intensity was given), wasted (whether it did not count). Sums are exact, in whatever order the rows come.
    """
    each = charged(tasks, rows)
    grouped: Frame = each[each.total_j.notna()].groupby(["kind", "fate"], sort=False)
    found: Frame = grouped[[*JOULES, "total_j"]].sum()
    found.insert(0, "messages", grouped.size())
    found["share"] = found.total_j / (float(found.total_j.sum()) or 1.0)
    found["grams"] = grouped["grams"].sum(min_count=1)
    found["wasted"] = found.index.get_level_values("fate") != REASONS["arrived"]
    return in_order(found)
