"""Whom each round waited for, and what it was at: its slowest link, its slowest device, or the deadline. A function of a run's rows."""

from __future__ import annotations

import numpy as np

from fedsim.core.types import Frame
from fedsim.score import spent

DEADLINE = "deadline"
_SLACK_S = 1e-6
"""How much later than its last reply a round ends by rounding alone; by more, where it was over before somebody answered."""


def stragglers(tasks: Frame, rounds: Frame) -> Frame:
    """Return, of each training round that anybody was asked in, who answered last of those in time, and what that took.

    Columns: round; client (whose reply was the last in time; <NA> where none was); waited_for (the longest of its phases: download,
    waiting, training, upload; or deadline, where the round went on without somebody); download_s, waiting_s, training_s, upload_s of that
    client; round_s, from the first message to the end of waiting; spared_s (how much sooner the round would have been over, had that
    client not been asked: to the reply before it; 0 at a deadline, NaN where there is none). Virtual seconds.
    """
    import pandas as pd

    asked: Frame = rounds[(rounds.kind == "train") & (rounds.asked > 0)]
    ours: Frame = tasks[tasks.kind == "train"]
    phases = spent.phases(ours)
    names = [f"{name}_s" for name in spent.PHASES]
    by_round = {number: group.index.to_numpy() for number, group in ours.groupby("round", sort=False)}
    found: list[tuple[object, ...]] = []
    for row in asked.itertuples():
        came = ours.loc[by_round.get(row.round, np.zeros(0, dtype=np.int64))]
        came = came[came.arrived_s <= float(row.ended_s)].sort_values(["arrived_s", "client"], kind="stable")
        lasted = float(row.ended_s) - float(row.started_s)
        if not len(came):
            found.append((int(row.round), pd.NA, DEADLINE, *[np.nan] * len(names), lasted, np.nan))
            continue
        moments = came.arrived_s.to_numpy(dtype=np.float64)
        took = phases.loc[came.index[-1], names].to_numpy(dtype=np.float64)
        over = bool(row.missed) and float(row.ended_s) - float(moments[-1]) > _SLACK_S
        what = DEADLINE if over else spent.PHASES[int(np.nanargmax(took))] if np.isfinite(took).any() else ""
        spared = 0.0 if over else float(moments[-1] - moments[-2]) if len(moments) > 1 else np.nan
        found.append((int(row.round), int(came.client.iloc[-1]), what, *took.tolist(), lasted, spared))
    frame: Frame = pd.DataFrame(found, columns=["round", "client", "waited_for", *names, "round_s", "spared_s"])
    return frame.astype({"client": "Int64"})
