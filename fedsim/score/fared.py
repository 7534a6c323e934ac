"""How each client of a run fared, and how often it was heard. Reads frames and a manifest; what follows is computed by ``fairness``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.types import FloatArray, Frame, IntArray
from fedsim.score import online
from fedsim.score.fairness import Participation, Spread, participation, spread
from fedsim.score.prequential import NO_ANSWER
from fedsim.score.target import upwards

MEASURES = {
    "accuracy": "accuracy on what each client keeps back, at its last federated evaluation",
    "prequential accuracy": "accuracy of what each client predicted before it trained on it",
    "loss": "loss on what each client keeps back, at its last federated evaluation",
    "train_loss": "loss of each client's mini-batches in the last training that it was heard of",
}
"""What clients are held against each other by: the first that a run has of any client; and what that is, in words."""


@dataclass(frozen=True, slots=True)
class Fairness:
    """How even a run was to its clients. *measure* is a key of MEASURES, empty where nothing was told; *scores* is then None.

    *since* is the earliest round that one of the scores is of: where few clients are asked, they are of models of different rounds.
    """

    measure: str
    scores: Spread | None
    since: int
    participation: Participation


def fairness(clients: Frame, devices: Frame, tested: Frame, about: Mapping[str, Any]) -> Fairness:
    """Return how even a run was, from its frames and its manifest *about*."""
    counts, gflops, examples = heard(clients, devices, int(about["scenario"]["clients"]["count"]))
    part = participation(counts, gflops, examples)
    measure, last = fared(clients, tested)
    if not measure:
        return Fairness("", None, 0, part)
    return Fairness(measure, spread(last["value"].to_numpy(dtype=np.float64), upwards=upwards(measure)), int(last["round"].min()), part)


def fared(clients: Frame, tested: Frame) -> tuple[str, Frame]:
    """Return the measure that clients are held by, and a row per client of which it is known: client, round, value; "" for none."""
    for name in MEASURES:
        if name == "prequential accuracy":
            found = _predicted(tested)
        else:
            found = last(clients, name)
        if len(found):
            return name, found
    return "", last(clients, "loss")


def last(clients: Frame, name: str) -> Frame:
    """Return what each client last told of *name*: client, round, value, a row per client that told it."""
    told: Frame = clients.loc[np.isfinite(clients[name].to_numpy()), ["client", "round", name]]
    return told.groupby("client", as_index=False).last().rename(columns={name: "value"})


def heard(clients: Frame, devices: Frame, count: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return of each of *count* clients how many training replies arrived, its device's speed and its examples; NaN is unknown."""
    arrived = clients.client[clients.outcome == "arrived"].to_numpy(dtype=np.int64)
    counts = np.bincount(arrived[arrived < count], minlength=count)
    gflops, examples = np.full(count, np.nan), np.full(count, np.nan)
    there = devices[devices.client.between(0, count - 1)]
    gflops[there.client], examples[there.client] = there.gflops, there.examples
    return counts, gflops, examples


def _predicted(tested: Frame) -> Frame:
    """Return how many of its examples each client predicted correctly, of those that a model answered and a label came for."""
    scored = online.scored(tested)
    scored = scored[scored.prediction != NO_ANSWER]
    right = (scored.y == scored.prediction).astype(float)
    return scored.assign(value=right).groupby("client", as_index=False).agg({"round": "max", "value": "mean"})
