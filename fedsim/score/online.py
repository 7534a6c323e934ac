"""What a run on streams shows of its clients: scores, drifts noticed, recovery, weights. Pure functions of a run's frames.

A frame *tested* is ``Run.tested``, *alarms* ``Run.alarms``, *drifts* ``Run.drifts``, *tasks* ``Run.tasks``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import pandas as pd

from fedsim.core.types import FloatArray, Frame, IntArray, Seconds
from fedsim.score.continual import RECOVERY_EPS, RECOVERY_WINDOW, recovery_s
from fedsim.score.detection import detection_scores
from fedsim.score.prequential import summary

ALL = -1
"""Stands for a client in the row that is about all of them."""

Told: TypeAlias = frozenset[int] | Literal[True]
"""Of which clients the true drifts are known; True: of all."""


def scored(tested: Frame) -> Frame:
    """Return the examples that scores are over, in the order of virtual time: those whose label comes at all."""
    known = tested[np.isfinite(tested.labelled_s.to_numpy(dtype=np.float64))]
    return known.sort_values("time_s", kind="stable", ignore_index=True)


def pooled(tested: Frame) -> dict[str, float | int | None]:
    """Return the prequential scores over all clients, and the accuracy of their worst tenth; None where undefined."""
    table = summary(scored(tested)).set_index("scope")
    figures: dict[str, Any] = dict(table.loc["pooled"].drop("client"))
    if "worst tenth" in table.index:
        figures["worst_tenth"] = table.loc["worst tenth", "accuracy"]
    plain = {name: float(value) if np.isfinite(value) else None for name, value in figures.items()}
    return {**plain, "examples": int(figures["examples"])}


def told(scenario: Mapping[str, Any], drifts: Frame) -> Told:
    """Return of which clients the true drifts are known, by a run's *scenario* and the *drifts* on record.

    Known is what a scenario makes (``stream.drift``, an order that brings concepts one by one) or declares
    (``stream.drifts_s``); of other data nobody said when they drift, which is not to say that they do not.
    """
    stream = scenario.get("stream")
    declared = (stream or {}).get("drifts_s")
    if isinstance(declared, Mapping):
        return frozenset(int(client) for client in cast(Mapping[str, Any], declared))
    made = stream is None or "drift" in stream or stream.get("order", {}).get("kind") == "class_incremental"
    return True if made or declared is not None or len(drifts) else frozenset()


def detections(tested: Frame, alarms: Frame, drifts: Frame, horizon_s: Seconds = np.inf, known: Told = True) -> Frame:
    """Return how each client's alarms met its true drifts, and a last row over all clients.

    Columns: client (-1 for all), alarms, drifts, noticed, missed, false_alarms, mean_delay_s, a mean over what was
    noticed. *known* are the clients whose true drifts are known (True: all): of the others an alarm is neither right nor
    false, and all but their alarms is NaN. The last row scores the known ones; its alarms are everybody's.
    """
    alarms_of, drifts_of = _times(alarms), _times(drifts)
    rows: list[dict[str, Any]] = []
    everything: list[FloatArray] = []
    for client in sorted({*tested.client.astype(int), *alarms_of, *drifts_of}):
        signals = alarms_of.get(client, np.zeros(0))
        if known is not True and client not in known:
            rows.append(_unknown(client, len(signals)))
            continue
        found = detection_scores(signals, drifts_of.get(client, np.zeros(0)), horizon_s)
        rows.append(_detected(client, len(signals), found.delays_s, found.false_alarms))
        everything.append(found.delays_s)
    if rows and not everything:
        return pd.DataFrame([*rows, _unknown(ALL, len(alarms))])
    false = sum(row["false_alarms"] for row in rows if row["false_alarms"] == row["false_alarms"])
    return pd.DataFrame([*rows, _detected(ALL, len(alarms), np.concatenate([np.zeros(0), *everything]), false)])


def noticed(found: Frame) -> str:
    """Return what ``detections`` found over all clients, in words.

    >>> noticed(pd.DataFrame([_unknown(0, 8), _unknown(ALL, 8)]))
    '8 alarms, true drifts unknown'
    >>> noticed(pd.DataFrame([_detected(ALL, 2, np.array([3.0, np.nan]), 1)]))
    '1 of 2 drifts noticed, 1 false alarm'
    """
    everyone, unknown = found.iloc[-1], found[(found.client != ALL) & found.drifts.isna()]
    if np.isnan(everyone.drifts):
        return f"{_count(everyone.alarms, 'alarm')}, true drifts unknown"
    said = f"{everyone.noticed:.0f} of {_count(everyone.drifts, 'drift')} noticed, {_count(everyone.false_alarms, 'false alarm')}"
    more = f"; {_count(unknown.alarms.sum(), 'alarm')} of {_count(len(unknown), 'client')} whose true drifts are unknown"
    return said + (more if len(unknown) else "")


def recoveries(
    tested: Frame, drifts: Frame, *, window: int = RECOVERY_WINDOW, eps: float = RECOVERY_EPS
) -> Frame:
    """Return how long after each drift the accuracy was back: time_s of the drift, clients, before, after, recovery_s.

    Clients that drift at one moment are one row, and their examples are pooled: so many came before the drift, so many
    after it and before the next drift of any of them. See ``continual.recovery_s`` for *window*, *eps* and NaN.
    """
    frame = scored(tested)
    right = (frame.y == frame.prediction).to_numpy(dtype=np.float64)
    time_s = frame.time_s.to_numpy(dtype=np.float64)
    of = {int(number): rows for number, rows in frame.groupby("client").indices.items()}
    drifts_of = _times(drifts)
    table: list[dict[str, Any]] = []
    for drift_s, group in drifts.groupby("time_s"):
        at_s, clients = float(drift_s), sorted(set(group.client))
        next_s = min([np.inf, *(t for number in clients for t in drifts_of[number].tolist() if t > at_s)])
        rows = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *(of[number] for number in clients if number in of)]))
        times = time_s[rows]
        table.append({
            "time_s": at_s, "clients": len(clients), "before": int((times < at_s).sum()),
            "after": int(((times >= at_s) & (times < next_s)).sum()),
            "recovery_s": recovery_s(times, right[rows], at_s, eps=eps, window=window, until_s=next_s),
        })  # fmt: skip
    return pd.DataFrame(table, columns=["time_s", "clients", "before", "after", "recovery_s"])


def weights(tasks: Frame) -> Frame:
    """Return what each client weighed in the aggregation: client, tasks, examples, share.

    Counts training tasks that arrived. Strategies average by ``num-examples`` within a round, so the share is a
    client's part of its round's examples, averaged over the rounds; all shares sum to 1.
    """
    arrived = tasks[(tasks.kind == "train") & (tasks.outcome == "arrived")]
    part = arrived.examples / arrived.groupby("round").examples.transform("sum")
    grouped = arrived.assign(part=part).groupby("client")
    share = grouped.part.sum() / max(1, arrived["round"].nunique())
    frame = pd.DataFrame({"tasks": grouped.size(), "examples": grouped.examples.sum(), "share": share})
    return frame.rename_axis("client").reset_index()


def gini(values: FloatArray | IntArray, count: int | None = None) -> float:
    """Return the Gini coefficient: 0 when all of *count* have the same, near 1 when one has everything.

    Those beyond the *values* have nothing. NaN when nobody has anything.

    >>> gini(np.array([1.0, 1.0])), gini(np.array([1.0, 3.0])), gini(np.array([5.0]), count=4)
    (0.0, 0.25, 0.75)
    """
    count = len(values) if count is None else count
    total = float(np.sum(values))
    if not total:
        return float("nan")
    ranks = np.arange(count - len(values) + 1, count + 1)
    return float(((2 * ranks - count - 1) * np.sort(values)).sum() / (count * total))


def _times(frame: Frame) -> dict[int, FloatArray]:
    return dict(_each(frame))


def _each(frame: Frame) -> Iterator[tuple[int, FloatArray]]:
    for client, group in frame.groupby("client"):
        yield int(client), group.time_s.to_numpy(dtype=np.float64)


def _detected(client: int, alarms: int, delays_s: FloatArray, false_alarms: int) -> dict[str, Any]:
    seen = delays_s[~np.isnan(delays_s)]
    return {
        "client": client, "alarms": alarms, "drifts": len(delays_s), "noticed": len(seen), "missed": len(delays_s) - len(seen),
        "false_alarms": false_alarms, "mean_delay_s": float(seen.mean()) if len(seen) else float("nan"),
    }  # fmt: skip


def _unknown(client: int, alarms: int) -> dict[str, Any]:
    names = ("drifts", "noticed", "missed", "false_alarms", "mean_delay_s")
    return {"client": client, "alarms": alarms, **dict.fromkeys(names, float("nan"))}


def _count(number: float, noun: str) -> str:
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"
