"""What messages took and where their bytes went: functions of a run's task rows. Scores nothing, draws nothing."""

from __future__ import annotations

import numpy as np

from fedsim.core.types import Frame
from fedsim.sim.rows import STREAM_ENDED

PHASES = ("download", "waiting", "training", "upload")
ENDED = "stream ended"
REASONS = {"arrived": "counted", "late": "late", "failed": "failed", "in flight": "cut off"}
"""What became of a message, by its row's outcome, in a word; one whose client's stream had ended is apart (ENDED)."""


def phases(tasks: Frame) -> Frame:
    """Return how long each message of *tasks* took: a row each, in their order.

    Columns: client, round, kind, outcome; download_s, waiting_s (for the device, or for a client's trigger), training_s (or evaluation:
    all that the device did), upload_s, and total_s, from sending to the reply's arrival. NaN for what never happened. Virtual seconds.
    """
    found = tasks[["client", "round", "kind", "outcome"]].copy()
    steps = ("sent_s", "received_s", "started_s", "computed_s", "arrived_s")
    for name, begin, end in zip(PHASES, steps, steps[1:], strict=False):
        found[f"{name}_s"] = tasks[end] - tasks[begin]
    found["total_s"] = tasks.arrived_s - tasks.sent_s
    return found


def spread(tasks: Frame) -> Frame:
    """Return of each phase of the training messages of *tasks*, and of all of it, how long it takes: a row each.

    Columns: phase, p50_s, p90_s, p99_s, mean_s (virtual seconds, of those that came so far), share (of the sum of all totals).
    """
    import pandas as pd

    times = phases(tasks[tasks.kind == "train"])
    whole = float(times[[f"{name}_s" for name in PHASES]].sum().sum())
    rows: list[tuple[str, float, float, float, float, float]] = []
    for name in (*PHASES, "total"):
        values = times[f"{name}_s"].dropna().to_numpy(dtype=np.float64)
        if len(values):
            p50, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99]).tolist()
            rows.append((name, p50, p90, p99, float(values.mean()), float(values.sum()) / whole if whole else 0.0))
    return pd.DataFrame(rows, columns=["phase", "p50_s", "p90_s", "p99_s", "mean_s", "share"])


def ledger(tasks: Frame) -> Frame:
    """Return where the bytes of *tasks* went: a row for each kind of message and each fate that there was.

    Columns: kind (train, evaluate), fate (counted, late, failed, stream ended, cut off), messages, and bytes: down and up (payload),
    down_framing and up_framing, resent (of the framing, both ways), total, share (of all). What did not count is wasted.
    """
    fate = tasks.outcome.map(REASONS).where(tasks.failure != STREAM_ENDED, ENDED)
    resent = tasks.down_resent_bytes + tasks.up_resent_bytes if "up_resent_bytes" in tasks else 0  # Older runs have none.
    grouped: Frame = tasks.assign(fate=fate, resent=resent).groupby(["kind", "fate"], sort=False)
    found: Frame = grouped[["down_bytes", "up_bytes", "down_framing_bytes", "up_framing_bytes"]].sum()
    found.columns = ["down", "up", "down_framing", "up_framing"]
    found["resent"] = grouped["resent"].sum()
    found.insert(0, "messages", grouped.size())
    found["total"] = found[["down", "up", "down_framing", "up_framing"]].sum(axis=1)
    found["share"] = found.total / max(1, int(found.total.sum()))
    order = {word: i for i, word in enumerate(("train", "evaluate", *REASONS.values(), ENDED))}
    return found.reset_index().sort_values(["kind", "fate"], key=lambda column: column.map(order)).reset_index(drop=True)
