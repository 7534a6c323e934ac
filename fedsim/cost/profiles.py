"""Devices as others have described them: a published cost model, and tiers of phones. Pure functions of (key, client, task)."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]  # It has none.

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import FloatArray, IntArray, NonNegative, Positive
from fedsim.cost.compute import ConstantCompute, Correlation, Luck, SteadyCompute, Volumes, computes, luck


@computes.register("field_guide")
def field_guide(*, gflops: Positive = 5.0, ratio: Positive = 7.0, overhead_s: NonNegative = 10.0) -> ConstantCompute:
    """Return devices that take *ratio* times what a computer of *gflops* GFLOP/s takes, and *overhead_s* for any task: R T + C.

    The cost model of a guide that fitted it to a production system of phones, with its R of 7 and its C of 10 s. It goes with links of
    6 Mbit/s down and 2 up (0.75 and 0.25 MB/s). Reference: Wang et al. 2021, arXiv:2107.06917, on system costs.

    >>> field_guide().seconds(3, task=0, flops=1e10)
    24.0
    """
    return ConstantCompute(gflops / ratio, overhead_s)


@computes.register("tiers")
def tiers(
    key: Key, volumes: Volumes | None = None, *, gflops: Positive, slower: list[float] | None = None, shares: list[float] | None = None,
    overhead_s: NonNegative = 0.0, step_s: NonNegative = 0.0, speed_data_correlation: Correlation = 0.0,
) -> SteadyCompute:  # fmt: skip
    """Return devices of a few kinds: those of the first do *gflops* GFLOP/s, those of each other kind are so many times *slower*.

    [1.0, 3.0, 8.0] unless given, of which a client is with the chances [0.3, 0.5, 0.2]: phones of the upper, the middle and the lower end.
    *shares* are relative to their sum. With a *speed_data_correlation* above 0 who holds more data has the faster device, below it the
    slower one: between the normal score of a client's rank by examples and that of its draw.
    Raises ScenarioError where *slower* and *shares* are not of one length, or hold something not above 0.

    >>> sorted({*tiers(Key(0), gflops=8.0).gflops(np.arange(50)).tolist()})
    [1.0, 2.6666666666666665, 8.0]
    """
    slower = [1.0, 3.0, 8.0] if slower is None else slower
    shares = ([0.3, 0.5, 0.2] if len(slower) == 3 else [1.0] * len(slower)) if shares is None else shares
    for name, values in (("slower", slower), ("shares", shares)):
        if not values or not all(np.isfinite(value) and value > 0 for value in values):
            raise ScenarioError(f"clients.compute.{name} = {values}: must be numbers > 0, one for each kind of device.")
    if len(slower) != len(shares):
        raise ScenarioError(f"clients.compute.shares = {shares}: are {len(shares)}, and slower has {len(slower)}. Give one for each kind.")
    if speed_data_correlation:  # It goes from the fastest kind to the slowest.
        order = np.argsort(slower, kind="stable").tolist()
        slower, shares = [slower[i] for i in order], [shares[i] for i in order]
    speeds, edges = gflops / np.array(slower), np.cumsum(shares) / np.sum(shares)
    scores = luck(key.fold("tier"), volumes, speed_data_correlation)
    return SteadyCompute(partial(_tiered, speeds, edges, scores), overhead_s, step_s)


def _tiered(speeds: FloatArray, edges: FloatArray, scores: Luck, clients: IntArray) -> FloatArray:
    # The higher a score, the further up among the fast ones, which come first: hence the minus.
    return speeds[np.minimum(np.searchsorted(edges, ndtr(-scores(clients)), side="right"), len(speeds) - 1)]
