"""What each model of a run had learned from: which task trained on an example, and when that task's result was merged.

Pure functions of a run's frames. A model is a version, numbered as the server first sent them: 0 is the start, which has learned
from nothing. Rounds play no part, so that servers without any are scored alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fedsim.core.types import FloatArray, Frame, IntArray, Seconds
from fedsim.score.freshness import age_of_newest, mean_age_s, newest_in_versions, time_to_influence
from fedsim.score.online import ALL

NEVER = -1
"""The model that nothing was merged into."""


def told_by_rounds(tasks: Frame, rounds: Frame) -> Frame:
    """Return the versions of a run of before these were told: each training round made one, at its end, of what arrived in it."""
    trains = rounds[rounds.kind == "train"][["round", "kind", "started_s", "ended_s"]]
    found = tasks.merge(trains.rename(columns={"started_s": "sent_s"}), how="inner", on=["round", "kind", "sent_s"])
    made = [
        (int(group.version.iloc[0]) + 1, float(group.ended_s.iloc[0]), _numbers(group[group.outcome == "arrived"]))
        for _, group in found.groupby(["round", "sent_s"], sort=False) if (group.outcome == "arrived").any()
    ]
    return pd.DataFrame([(0, 0.0, np.zeros(0, dtype=np.int64)), *made], columns=["version", "now_s", "merged"])


def merges(tasks: Frame, versions: Frame) -> Frame:
    """Return *tasks* with the model each message ``carried``, the one its result was ``merged`` into, and when (merged_s).

    -1 and NaN for a result that never was: late, failed, cut off by the end, or an evaluation; or given to a server that made no
    model of it.
    """
    took = versions.explode("merged").dropna(subset=["merged"]).set_index("merged")
    found: Any = took[~took.index.duplicated()].reindex(_numbers(tasks))
    return tasks.assign(
        carried=np.maximum(tasks.version.to_numpy(dtype=np.int64), 0),
        merged=found.version.fillna(NEVER).to_numpy(dtype=np.int64),
        merged_s=found.now_s.to_numpy(dtype=np.float64),
    )


def _numbers(tasks: Frame) -> IntArray:
    """Return the number of each task's message. Shapes: (tasks,)."""
    return tasks.message.str[1:].to_numpy(dtype=np.int64)


def trained(tested: Frame, merged: Frame) -> Frame:
    """Return the labelled rows of *tested* with the ``task`` that trained on them anew: its row in *merged*, -1 for none.

    A task trains on what has got its label since the client's task before. What a memory rehearses is not counted
    again. With ``training.steps``, ``drop_last`` or less than an epoch all of it counts, though few steps may not reach the last
    examples, and the batch that is left out may hold others.
    """
    begun = merged[(merged.kind == "train") & (merged.number >= 0)]
    items = tested[np.isfinite(tested.labelled_s.to_numpy(dtype=np.float64))].reset_index(drop=True)
    labelled_s, task = items.labelled_s.to_numpy(dtype=np.float64), np.full(len(items), NEVER)
    rows_of = items.groupby("client").indices
    for client, group in begun.groupby("client"):
        rows = rows_of.get(client)
        if rows is None:
            continue
        ordered = group.sort_values("started_s", kind="stable")
        which = np.searchsorted(ordered.started_s.to_numpy(), labelled_s[rows], side="left")
        task[rows] = np.append(ordered.index.to_numpy(), NEVER)[which]
    return items.assign(task=task)


def freshness(tested: Frame, tasks: Frame, versions: Frame, end_s: Seconds, *, local: bool = False) -> Frame:
    """Return how old the newest example is that a client's model knows, and how soon an example counts.

    A row per client, then one over all. Columns: client (-1 for all), mean_age_s (of the newest example in the model
    that serves the client, averaged over time until *end_s*), age_s (at the end), examples (tested, with a label),
    merged (of these, into a global model), to_model_s and to_model_p90_s: mean and 90 % quantile of the time from
    arrival at the client to the first global model that learned from it. A client serves the model that it received
    last; with *local* the one that it trained last.
    """
    merged = merges(tasks, versions).reset_index(drop=True)
    items = trained(tested, merged)
    fresh = items[items.task >= 0]
    newest_s = np.full(len(merged), np.nan)
    np.fmax.at(newest_s, fresh.task.to_numpy(dtype=np.int64), fresh.arrived_s.to_numpy(dtype=np.float64))
    models = newest_in_versions(merged.merged.to_numpy(), newest_s, int(max([0, *merged.merged, *merged.carried])) + 1)
    counted = merged.assign(knows_s=np.fmax(models[merged.carried], newest_s) if local else models[merged.carried])
    at = "computed_s" if local else "received_s"
    served = counted[(counted[at] >= 0) & ((counted.kind == "train") | (not local))].sort_values(at, kind="stable")
    took_s = _to_model_s(items, merged)
    rows: list[dict[str, Any]] = []
    examples_of = items.groupby("client").indices
    for client, models_of in served.groupby("client"):
        served_s, knows_s = models_of[at].to_numpy(), models_of.knows_s.to_numpy()
        mean_s = mean_age_s(served_s, knows_s, 0.0, end_s)
        age_s = float(age_of_newest(np.array([end_s]), served_s, knows_s)[0])
        rows.append(_row(int(client), mean_s, age_s, took_s[examples_of.get(client, np.zeros(0, dtype=np.int64))]))
    mean_s, age_s = (_mean(np.array([row[name] for row in rows], dtype=np.float64)) for name in ("mean_age_s", "age_s"))
    return pd.DataFrame([*rows, _row(ALL, mean_s, age_s, took_s)])


def _to_model_s(items: Frame, merged: Frame) -> FloatArray:
    """Return, for each of *items*, the time from its arrival to the first model that learned from it; NaN for never."""
    never = np.append(merged.merged_s.to_numpy(dtype=np.float64), np.nan)  # Task -1 is the last: never.
    task: IntArray = np.where(items.task >= 0, items.task, len(merged))
    return time_to_influence(np.arange(len(items)), items.arrived_s.to_numpy(dtype=np.float64), task, never)[1]


def _row(client: int, mean_age: float, age_s: float, took_s: FloatArray) -> dict[str, Any]:
    known = took_s[~np.isnan(took_s)]
    return {
        "client": client, "mean_age_s": mean_age, "age_s": age_s, "examples": len(took_s), "merged": len(known),
        "to_model_s": _mean(known), "to_model_p90_s": float(np.quantile(known, 0.9)) if len(known) else float("nan"),
    }  # fmt: skip


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
