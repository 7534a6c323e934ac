"""What a training step takes by itself: memory, counted; time on this computer, and the share of its peak, timed. Runs no scenario."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.studies.measures import Estimate

if TYPE_CHECKING:
    from fedsim.scenario.build import Parts

NOTCH = 1.57
"""Of the interquartile range over the root of n: half the width of a median's 95 % interval (McGill et al. 1978)."""


@dataclass(frozen=True)
class Host:
    """By batch size, bytes of a step and seconds that steps took; the operations of an example and of an update; the peak."""

    memory: Mapping[int | str, float]
    step_s: Mapping[int | str, Any]
    counted: Mapping[int | str, int]
    example_flops: float
    update_flops: float
    peak: float

    def figures(self, batch: int | str) -> dict[str, Estimate]:
        """Return memory, speed and the share of the peak at a batch size."""
        size, bytes_, least = self.counted[batch], self.memory[batch], self.memory[1]
        rates = size / np.asarray(self.step_s.get(batch, [math.nan]), dtype=np.float64)
        middle, half = float(np.median(rates)), NOTCH * float(np.subtract(*np.quantile(rates, [0.75, 0.25]))) / math.sqrt(len(rates))
        share = (self.example_flops + self.update_flops / size) / self.peak
        return {
            "memory_bytes": Estimate(bytes_, 0.0), "memory_ratio": Estimate(bytes_ / least, 0.0),
            "samples_per_s": Estimate(middle, half, len(rates)), "utilisation": Estimate(middle * share, half * share, len(rates)),
        }  # fmt: skip


def measured(parts: Parts, batches: Iterable[int | str], most: int) -> Host:
    """Return what steps of *parts* take at each of *batches*, the largest client having *most* examples: nothing else should run."""
    from fedsim.learn.arithmetic import Arithmetic
    from fedsim.learn.footprint import count
    from fedsim.learn.optim import rule
    from fedsim.learn.speed import matmul_flops, step_s
    from fedsim.learn.terms import flops_of

    engine, store = parts.scenario.engine, parts.engine.site.store
    arithmetic = Arithmetic(engine.precision, parts.scenario.training.checkpointing)
    footprint = count(parts.model, parts.objective, store.sample, arithmetic)
    wanted = set(batches)
    sizes = {batch: most if isinstance(batch, str) else min(batch * parts.job.accumulate, most) for batch in {1, *wanted}}
    times: dict[int | str, Any] = {}
    memory: dict[int | str, float] = {}
    for batch, size in sizes.items():
        job = replace(parts.job, batch_size=0 if isinstance(batch, str) else batch)
        memory[batch] = footprint.bytes(job, max(job.micro(size)))
        if batch in wanted:
            with suppress(Exception):  # A model that takes no batch of one: its runs say so.
                times[batch] = step_s(parts.model, parts.objective, *store.sample(size))
    flops = parts.fleet.flops
    return Host(
        memory, times, sizes, flops.training, flops_of(rule(parts.job), flops.parameters), matmul_flops(store.dtype, parts.test[0].device)
    )
