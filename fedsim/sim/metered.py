"""Metered: an observer between the simulator and whoever listens, that charges each message for what its client's device drew.

Joules follow from rows, and nothing here moves one: what is heard goes on as it came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.core.errors import must
from fedsim.core.types import FloatArray, Seconds
from fedsim.cost.meter import Meter, Moments
from fedsim.sim.rows import (
    EdgeRow,
    EnergyRow,
    ExaminedRow,
    HeardRow,
    NoiseRow,
    Observer,
    PredictionRow,
    RoundRow,
    StepRow,
    TaskRow,
    VersionRow,
)

BATCH = 2000
"""Messages that are charged at a time at most, where rounds have more, or a server knows none."""
PARTS = ("compute", "down", "up", "idle")


class Metered:
    """Tells *observer* all that it hears, and joules by *meter* besides: of what is settled by round or batch, of the rest at the end."""

    def __init__(self, observer: Observer, meter: Meter) -> None:
        self._observer, self._meter = observer, meter
        self._settled: list[TaskRow] = []
        self._open: list[TaskRow] = []  # The run ended first: what was done of them follows from when.
        self._joules, self._counted_j, self._wasted_j = dict.fromkeys(PARTS, 0.0), 0.0, 0.0
        self._heard = self._charged = 0  # Messages.
        self._grams = self._wasted_grams = 0.0

    def task(self, row: TaskRow) -> None:
        """Hear that a task's fate is sealed."""
        self._observer.task(row)
        self._heard += 1
        if row.outcome == "in flight":
            self._open.append(row)
            return
        self._settled.append(row)
        if len(self._settled) >= BATCH:
            self._charge(self._settled, math.nan)

    def finish(self, end_s: Seconds) -> None:
        """Charge what was not yet, in a run that ended at *end_s*."""
        self._charge(self._settled, end_s)
        self._charge(self._open, end_s)
        must(self._heard == self._charged, f"{self._heard} messages had their fate, and {self._charged} were charged")
        total = sum(self._joules.values())  # Exact up to 2**33 J, in whatever order: all are whole multiples of one small unit.
        add_up = math.isclose(total, self._counted_j + self._wasted_j, rel_tol=1e-12)
        must(add_up, f"{total} J were drawn, {self._counted_j} counted and {self._wasted_j} wasted")

    def described(self) -> Mapping[str, Any]:
        """Return what a manifest says: every constant, joules by what drew them, how many of them were wasted, and grams."""
        grams = {"grams": self._grams, "grams_wasted": self._wasted_grams} if self._meter.intensity is not None else {}
        joules = {**self._joules, "total": sum(self._joules.values()), "wasted": self._wasted_j}
        return {"kind": self._meter.kind, "constants": self._meter.constants, "joules": joules, **grams}

    def _charge(self, rows: list[TaskRow], end_s: Seconds) -> None:
        if not rows:
            return
        found = self._meter.charge(
            _ints([row.client for row in rows]), _moments(rows), _ints([row.down_bytes + row.down_framing_bytes for row in rows]),
            _ints([row.up_bytes + row.up_framing_bytes for row in rows]), end_s,
        )  # fmt: skip
        parts = (found.compute_j, found.down_j, found.up_j, found.idle_j)
        self._observer.energy(EnergyRow(_ints([int(row.message[1:]) for row in rows]), *parts, found.grams))
        for name, joules in zip(PARTS, parts, strict=True):
            must(bool((joules >= 0.0).all()), f"a message was charged less than no joules ({name})")
        self._charged += len(rows)
        wasted = np.array([row.outcome != "arrived" for row in rows], dtype=np.bool_)
        for name, joules in zip(PARTS, parts, strict=True):
            self._joules[name] += float(joules.sum())
            self._counted_j += float(joules[~wasted].sum())
            self._wasted_j += float(joules[wasted].sum())
        if self._meter.intensity is not None:
            self._grams += float(found.grams.sum())
            self._wasted_grams += float(found.grams[wasted].sum())
        rows.clear()

    # -- what goes on as it came --------------------------------------------------------------------------------

    def tested(self, row: PredictionRow) -> None:
        """Hear what a client predicted before it trained."""
        self._observer.tested(row)

    def version(self, row: VersionRow) -> None:
        """Hear of a version of the model, and what it took in."""
        self._observer.version(row)

    def watched(self, row: StepRow) -> None:
        """Hear what was watched of training tasks."""
        self._observer.watched(row)

    def examined(self, row: ExaminedRow) -> None:
        """Hear of signal and noise within a client."""
        self._observer.examined(row)

    def noise(self, row: NoiseRow) -> None:
        """Hear of signal and noise between clients."""
        self._observer.noise(row)

    def heard(self, row: HeardRow) -> None:
        """Hear what clients told of themselves."""
        self._observer.heard(row)

    def round(self, row: RoundRow) -> None:
        """Hear that a batch of replies was handed over, and charge what is settled: a kill loses no more than a round."""
        self._charge(self._settled, math.nan)
        self._observer.round(row)

    def energy(self, row: EnergyRow) -> None:
        """Hear of joules that somebody else charged."""
        self._observer.energy(row)

    def edge(self, row: EdgeRow) -> None:
        """Hear what passed between the server and an edge."""
        self._observer.edge(row)


def _moments(rows: Sequence[TaskRow]) -> Moments:
    return Moments(
        sent_s=_times([row.sent_s for row in rows]), received_s=_times([row.received_s for row in rows]),
        started_s=_times([row.started_s for row in rows]), computed_s=_times([row.computed_s for row in rows]),
        arrived_s=_times([row.arrived_s for row in rows]), waited_s=np.array([row.waited_s for row in rows], dtype=np.float64),
        open=np.array([row.outcome == "in flight" for row in rows], dtype=np.bool_), stopped_s=_times([row.stopped_s for row in rows]),
        away_s=_away(rows),
    )  # fmt: skip


def _away(rows: Sequence[TaskRow]) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    each = np.array([(row.down_away_s, row.waiting_away_s, row.work_away_s, row.up_away_s) for row in rows], dtype=np.float64)
    return each[:, 0], each[:, 1], each[:, 2], each[:, 3]


def _ints(values: list[int]) -> Any:
    return np.array(values, dtype=np.int64)


def _times(values: list[float]) -> FloatArray:
    times = np.array(values, dtype=np.float64)
    return np.where(times < 0, np.nan, times)
