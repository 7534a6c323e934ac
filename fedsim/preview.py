"""What a scenario's world looks like, and what running it would cost: the same world, timed and not trained."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedsim.core.machine import ALONE
from fedsim.core.types import IntArray
from fedsim.data.arriving import Arriving, looked_at
from fedsim.data.federation import Federation
from fedsim.flower.aggregated import bared
from fedsim.rehearsal import LOOKS_SHARE, Foretold, Watch, rehearse
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import Loaded
from fedsim.scenario.together import Keeps, keeps, together, touched

WALL_S = 10.0
"""Wall time for which rounds are rehearsed, unless told otherwise."""
LABELS_FROM = 2000
"""Clients whose labels are counted at most."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A scenario's world and its foretold cost. Bytes include framing; times are virtual, but for *built_s*."""

    parts: Parts
    sizes: IntArray
    labels: list[int]
    arriving: Arriving | None
    foretold: Foretold
    built_s: float = 0.0
    """Wall time that building the world took."""

    @property
    def rounds(self) -> int:
        """Return the number of rounds that the scenario asks for, or after which every stream has ended."""
        return self.foretold.rounds

    @property
    def round_s(self) -> float:
        """Return how long a round takes, in the mean."""
        return self.foretold.virtual_s / self.rounds

    @property
    def down_bytes_per_round(self) -> float:
        """Return what a round sends to clients, in the mean."""
        return self.foretold.down_bytes / self.rounds

    @property
    def up_bytes_per_round(self) -> float:
        """Return what a round sends back, in the mean."""
        return self.foretold.up_bytes / self.rounds

    @property
    def step_bytes(self) -> float | None:
        """Return what memory the largest step takes; None where nobody counted, since devices hold any."""
        fitting = self.parts.fleet.fitting
        return None if fitting is None else fitting.footprint.bytes(self.parts.job, self.foretold.work.at_once)

    @property
    def notes(self) -> list[str]:
        """Return what a reader must know of these figures, and of how the scenario was understood."""
        early = "training.stopping: every task is taken to train for all its epochs; those that stop early take less time."
        control = self.parts.controller
        sizes = sorted(set(control.changes) - {"lr_factor"}) if control else []
        orders = f"server.controller: may change {' and '.join(sizes)}, and with that how long tasks take; what is foretold is without it."
        noisy = "training.batch_policy: goes by what training tells; what is foretold is at the size that it starts with."
        sizing = self.parts.fleet.sizing
        stop, told = self.parts.scenario.stop, [early] if self.parts.job.stopping else []
        if stop and stop.bounds and not self.foretold.stopped:
            told.append(f"[stop]: the run is over before it comes to {' or '.join(stop.bounds)}.")
        told += [*([orders] if sizes else []), *([noisy] if sizing and sizing.policy.needs else [])]
        return [*self.parts.notes, *self.foretold.paced, *told]

    @property
    def keeps(self) -> Keeps:
        """Return what a client keeps between messages at most."""
        items = self.sizes.mean() if self.arriving is None else self.arriving.items / max(1, self.arriving.clients)
        return keeps(self.parts, float(items))

    @property
    def touched(self) -> float:
        """Return how many clients train in all: told exactly where every round was rehearsed, else as if all were drawn alike."""
        told, clients = self.foretold, self.parts.federation.count
        seen = len(told.work.clients)
        return float(seen) if told.whole else touched(clients, told.asked, self.rounds, seen)

    def _kept(self) -> dict[str, Any]:
        """Return what clients keep, as plain values."""
        found = self.keeps
        return {
            "together": together(self.parts),
            "clients_touched": self.touched,
            "kept_bytes_per_client": {**found.each},
            "kept_bytes": found.bytes * self.touched,
            "kept_unknown": list(found.unknown),
        }

    def _work(self) -> dict[str, Any]:
        """Return what a training task comes to, as plain values; None for all where no client trains."""
        work, any_ = self.foretold.work, self.foretold.work.tasks > 0
        return {
            "steps_per_task": {"min": work.fewest, "mean": work.steps / work.tasks, "max": work.most} if any_ else None,
            "batch_size": {"min": work.smallest, "max": work.largest} if any_ else None,
            "examples_per_step": work.examples / work.steps if work.steps else None,
            "examples_at_once": work.at_once if any_ else None,
            "step_bytes": self.step_bytes if any_ else None,
        }

    def plain(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        told = self.foretold
        quartiles = np.quantile(self.sizes, [0, 0.25, 0.5, 0.75, 1]).tolist()
        return {
            "scenario": self.parts.scenario.name,
            "clients": self.parts.federation.count,
            "examples_per_client": dict(zip(("min", "q1", "median", "q3", "max"), quartiles, strict=True)),
            "labels_per_client_median": float(np.median(self.labels)) if self.labels else None,
            "labels_from_clients": len(self.labels),
            "train_examples": int(self.sizes.sum()),
            "stream": None if self.arriving is None else asdict(self.arriving),
            "test_examples": len(self.parts.federation.test),
            "parameters": self.parts.fleet.flops.parameters,
            "training_flops_per_example": self.parts.fleet.flops.training,
            "chunk": self.parts.engine.chunk,
            **self._work(),
            "rounds": self.rounds,
            "rehearsed_rounds": told.rehearsed,
            "sampled_rounds": told.sampled,
            "streams_end": told.ends,
            "stopped": told.stopped or None,
            "clients_per_round": told.asked,
            "missed_per_round": told.missed,
            "round_s": self.round_s,
            "slowest_round_s": told.slowest_round_s,
            "virtual_s": told.virtual_s,
            "virtual_s_interval": None if math.isnan(told.low_s) else [told.low_s, told.high_s],
            "bytes_down_per_round": self.down_bytes_per_round,
            "bytes_up_per_round": self.up_bytes_per_round,
            "bytes_down": told.down_bytes,
            "bytes_up": told.up_bytes,
            **({} if told.edges is None else {"edges": dict(zip(("bytes_down_per_round", "bytes_up_per_round"), told.edges, strict=True))}),
            **self._kept(),
            "notes": self.notes,
        }


def preview(
    loaded: Loaded, rounds: int | None = None, *, wall_s: float = WALL_S, watch: Watch | None = None
) -> Preview:
    """Return what *loaded* would cost; no model is trained.

    Rehearses every round where *wall_s* of wall time suffices, once the world is built, and a sample of them where not;
    *rounds* is how many at most one after the other. *watch* hears how far it is. What is cut short by the wall time may
    come out a little different the next time.
    Raises ScenarioError, and RunError when the strategy waits for clients that never come.
    """
    with ALONE:
        began_s = time.perf_counter()
        parts = build(loaded)
        built_s = time.perf_counter() - began_s
        try:
            foretold = rehearse(parts, wall_s=wall_s, rounds=rounds, watch=watch)
        finally:
            bared(parts.strategy.strategy)  # Which would hold all, and wait for the collector.
    federation = parts.federation
    return Preview(
        parts=parts,
        sizes=federation.sizes(np.arange(federation.count)),
        labels=_labels(federation, LOOKS_SHARE * wall_s),
        arriving=Arriving.of(federation, LOOKS_SHARE * wall_s),
        foretold=foretold,
        built_s=built_s,
    )


def _labels(federation: Federation, wall_s: float) -> list[int]:
    """Return how many labels each of some clients has, as many clients as *wall_s* allows; none where targets are no classes."""
    if not np.issubdtype(federation.test.y.dtype, np.integer):
        return []
    return [len(np.unique(federation.labels(client))) for client in looked_at(federation.count, LABELS_FROM, wall_s)]
